//! The ternary types: 256 weights of -d, 0 or d. As uniform codes: w = d (code - 1).
//!
//! ```text
//! TQ1_0  qs[48] qh[4] d    five ternary digits in a byte of qs, four in one of qh: 1.69 bits per weight
//! TQ2_0  qs[64] d          four codes of two bits in a byte: 2.06 bits per weight
//! ```
//!
//! A TQ1_0 byte is the fraction `byte / 256` in base 3, rounded up, so that its digits come off the top: multiply by
//! 3, and what exceeds a byte is the next digit. Digit `n` of several bytes lie one after another.

use super::uniform::Block;
use half::f16;

pub(super) fn tq1_0(b: &[u8; 54]) -> Block<256> {
    let (qs, rest) = b.split_at(48);
    let (qh, d) = rest.split_at(4);
    let mut codes = [0; 256];
    let mut out = codes.iter_mut();
    for (bytes, digits) in [(&qs[..32], 5), (&qs[32..], 5), (qh, 4)] {
        for n in 0..digits {
            for (q, code) in bytes.iter().zip(&mut out) {
                let shifted = q.wrapping_mul(3u8.pow(n));
                *code = ((u16::from(shifted) * 3) >> 8) as u8;
            }
        }
    }
    Block { d: f16::from_le_bytes([d[0], d[1]]), m: f16::ZERO, codes }
}

pub(super) fn tq2_0(b: &[u8; 66]) -> Block<256> {
    let [qs @ .., d0, d1] = b;
    // Two runs of 32 bytes; a run's lowest two bits are its first 32 codes.
    let codes = core::array::from_fn(|i| qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3);
    Block { d: f16::from_le_bytes([*d0, *d1]), m: f16::ZERO, codes }
}
