//! Types whose codes stand for values of a table that is no uniform grid. They have no exact form in few planes.
//!
//! ```text
//! IQ4_NL  d qs[16]                            32 weights   w = d table[q]
//! IQ4_XS  d scales_h(u16) scales_l[4] qs[128]   256 weights in groups of 32   w = (d (sc - 32)) table[q]
//! MXFP4   e qs[16]                            32 weights   w = 2^(e - 128) table[q]
//! ```
//!
//! Every product is exact in `f32` (11 + 5 + 7 bits at most), but for MXFP4's that exceed it and are infinite, as
//! ggml's are. The tables are `kvalues_iq4nl` and `kvalues_mxfp4` of ggml-common.h.

use super::uniform::nibbles;
use half::f16;

/// Steps that grow to both sides, for weights that lie thicker around zero.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of the four-bit float E2M1 (OCP Microscaling Formats 1.0, section 5.3.3); its minus zero is zero.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(super) fn iq4_nl(b: &[u8; 18]) -> [f32; 32] {
    let [d0, d1, qs @ ..] = b;
    values(f16::from_le_bytes([*d0, *d1]).to_f32(), qs, &IQ4)
}

pub(super) fn iq4_xs(b: &[u8; 136]) -> [f32; 256] {
    let [d0, d1, h0, h1, rest @ ..] = b;
    let d = f16::from_le_bytes([*d0, *d1]).to_f32();
    let high = u16::from_le_bytes([*h0, *h1]);
    let (low, qs) = rest.split_at(4);
    let mut out = [0.0; 256];
    let groups = out.as_chunks_mut().0.iter_mut().zip(qs.as_chunks().0);
    for (g, (w, qs)) in groups.enumerate() {
        let scale = low[g / 2] >> (g % 2 * 4) & 15 | ((high >> (2 * g) & 3) as u8) << 4;
        *w = values(d * f32::from(scale as i8 - 32), qs, &IQ4);
    }
    out
}

pub(super) fn mxfp4(b: &[u8; 17]) -> [f32; 32] {
    let [e, qs @ ..] = b;
    // 2^(e - 127), halved because the table is doubled. The two least are subnormal.
    let bits = if *e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 };
    values(f32::from_bits(bits), qs, &E2M1)
}

fn values(d: f32, qs: &[u8; 16], table: &[i8; 16]) -> [f32; 32] {
    nibbles(qs).map(|q| d * f32::from(table[usize::from(q & 15)]))
}
