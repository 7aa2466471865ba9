//! The uniform types of 32 weights: blocks of `d`, perhaps `m`, and codes of 4, 5 or 8 bits.
//!
//! ```text
//! Q4_0  d        qs[16]          w = d (q - 8)       code j      = low  nibble of qs[j]
//! Q4_1  d m      qs[16]          w = d q + m         code j + 16 = high nibble of qs[j]     j = 0..16
//! Q5_0  d   qh   qs[16]          w = d (q - 16)      the fifth bit of code i is bit i of the u32 qh
//! Q5_1  d m qh   qs[16]          w = d q + m
//! Q8_0  d        qs[32] as i8    w = d qs[i]         code = qs[i] + 128
//! ```

use half::f16;

/// One block of a uniform type, unpacked. `m` is zero where the type has none.
pub(super) struct Block<const N: usize> {
    pub(super) d: f16,
    pub(super) m: f16,
    pub(super) codes: [u8; N],
}

impl<const N: usize> Block<N> {
    /// w = d (code - center), exact.
    pub(super) fn symmetric(&self, center: u8) -> [f32; N] {
        let d = self.d.to_f32();
        self.codes.map(|c| f32::from(i16::from(c) - i16::from(center)) * d)
    }

    /// w = d code + m, one rounding.
    pub(super) fn affine(&self) -> [f32; N] {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        self.codes.map(|c| f32::from(c) * d + m)
    }
}

pub(super) fn q4_0(b: &[u8; 18]) -> Block<32> {
    let [d0, d1, qs @ ..] = b;
    Block { d: f16::from_le_bytes([*d0, *d1]), m: f16::ZERO, codes: nibbles(qs) }
}

pub(super) fn q4_1(b: &[u8; 20]) -> Block<32> {
    let [d0, d1, m0, m1, qs @ ..] = b;
    Block { d: f16::from_le_bytes([*d0, *d1]), m: f16::from_le_bytes([*m0, *m1]), codes: nibbles(qs) }
}

pub(super) fn q5_0(b: &[u8; 22]) -> Block<32> {
    let [d0, d1, h0, h1, h2, h3, qs @ ..] = b;
    let codes = with_fifth_bit(nibbles(qs), u32::from_le_bytes([*h0, *h1, *h2, *h3]));
    Block { d: f16::from_le_bytes([*d0, *d1]), m: f16::ZERO, codes }
}

pub(super) fn q5_1(b: &[u8; 24]) -> Block<32> {
    let [d0, d1, m0, m1, h0, h1, h2, h3, qs @ ..] = b;
    let codes = with_fifth_bit(nibbles(qs), u32::from_le_bytes([*h0, *h1, *h2, *h3]));
    Block { d: f16::from_le_bytes([*d0, *d1]), m: f16::from_le_bytes([*m0, *m1]), codes }
}

pub(super) fn q8_0(b: &[u8; 34]) -> Block<32> {
    let [d0, d1, qs @ ..] = b;
    // Flipping the sign bit of a two's complement byte adds 128.
    Block { d: f16::from_le_bytes([*d0, *d1]), m: f16::ZERO, codes: qs.map(|q| q ^ 0x80) }
}

/// Low nibbles are the first half of the block, high nibbles the second.
pub(super) fn nibbles(qs: &[u8; 16]) -> [u8; 32] {
    core::array::from_fn(|i| if i < 16 { qs[i] & 0x0f } else { qs[i - 16] >> 4 })
}

fn with_fifth_bit(mut codes: [u8; 32], qh: u32) -> [u8; 32] {
    for (i, c) in codes.iter_mut().enumerate() {
        *c |= ((qh >> i & 1) as u8) << 4;
    }
    codes
}
