//! Types whose codes stand for values of a table that is no uniform grid.
//!
//! ```text
//! IQ4_NL  d qs[16]                            32 weights                      w = d table[q]
//! IQ4_XS  d scales_h(u16) scales_l[4] qs[128]   256 weights in groups of 32   w = (d (sc - 32)) table[q]    sc: six bits
//! MXFP4   e qs[16]                            32 weights                      w = 2^(e - 128) table[q]
//! ```
//!
//! The tables hold small integers (`kvalues_iq4nl` and `kvalues_mxfp4` in ggml-common.h), so that the *values* are a
//! uniform grid, if one that is sparsely filled: as codes of 8 or 5 bits instead of 4 they can be imported exactly.

use super::kquants::Superblock;
use super::uniform::{Block, nibbles};
use half::f16;

/// Steps that grow to both sides, for weights that lie thicker around zero.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The code that stands for 0 in IQ4_NL and IQ4_XS.
pub(super) const IQ4_CENTER: u8 = 128;

/// Twice the values of the four-bit float E2M1 (OCP Microscaling Formats 1.0, section 5.3.3); its minus zero is zero.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The code that stands for 0 in MXFP4.
pub(super) const E2M1_CENTER: u8 = 12;

pub(super) fn iq4_nl(b: &[u8; 18]) -> Block<32> {
    let [d0, d1, qs @ ..] = b;
    Block { d: f16::from_le_bytes([*d0, *d1]), m: f16::ZERO, codes: codes(qs, &IQ4, IQ4_CENTER) }
}

pub(super) fn iq4_xs(b: &[u8; 136]) -> Superblock {
    let [d0, d1, h0, h1, rest @ ..] = b;
    let high = u16::from_le_bytes([*h0, *h1]);
    let (low, qs) = rest.split_at(4);
    let mut block = Superblock {
        d: f16::from_le_bytes([*d0, *d1]),
        m: f16::ZERO,
        scales: [0; 16],
        mins: [0; 16],
        codes: [0; 256],
    };
    for (g, (to, qs)) in block.codes.as_chunks_mut().0.iter_mut().zip(qs.as_chunks().0).enumerate() {
        let scale = low[g / 2] >> (g % 2 * 4) & 15 | ((high >> (2 * g) & 3) as u8) << 4;
        block.scales[g] = scale as i8 - 32;
        *to = codes(qs, &IQ4, IQ4_CENTER);
    }
    block
}

/// Products that exceed f32 are infinite, as ggml's are.
pub(super) fn mxfp4(b: &[u8; 17]) -> [f32; 32] {
    let [e, qs @ ..] = b;
    let d = half_e8m0(*e);
    codes(qs, &E2M1, E2M1_CENTER).map(|c| d * f32::from(c as i8 - E2M1_CENTER as i8))
}

/// As codes under an f16, which is NaN where none is this power of two: outside of 2^-24 to 2^15, but for a block of
/// zeros, whose scale does not matter.
pub(super) fn mxfp4_block(b: &[u8; 17]) -> Block<32> {
    let [e, qs @ ..] = b;
    let codes = codes(qs, &E2M1, E2M1_CENTER);
    let exact = half_e8m0(*e);
    let d = match f16::from_f32(exact) {
        d if d.to_f32() == exact => d,
        _ if codes == [E2M1_CENTER; 32] => f16::ZERO,
        _ => f16::NAN,
    };
    Block { d, m: f16::ZERO, codes }
}

/// 2^(e - 127), the scale of Microscaling Formats, halved because the table is doubled. The two least are subnormal.
fn half_e8m0(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

fn codes(qs: &[u8; 16], table: &[i8; 16], center: u8) -> [u8; 32] {
    nibbles(qs).map(|q| center.wrapping_add_signed(table[usize::from(q & 15)]))
}
