//! The K-quants: superblocks of 256 weights in groups of 16 or 32. A group's scale is a small integer times the
//! superblock's `d`, and where there is a minimum that is a small integer times the superblock's `dmin`.
//!
//! ```text
//! Q2_K  scales[16] qs[64] d dmin           groups of 16   w = (d sc) q - (dmin mn)    sc, mn: nibbles
//! Q3_K  hmask[32] qs[64] scales[12] d      groups of 16   w = (d (sc - 32)) (q - 4)   sc: six bits
//! Q4_K  d dmin scales[12] qs[128]          groups of 32   w = (d sc) q - (dmin mn)    sc, mn: six bits
//! Q5_K  d dmin scales[12] qh[32] qs[128]   groups of 32   the same
//! Q6_K  ql[128] qh[64] scales[16] d        groups of 16   w = (d sc) (q - 32)         sc: i8
//! ```
//!
//! All products are exact in `f32`: `d` has 11 significant bits, a scale at most 7 and a code at most 6 (of 128 and 32
//! one bit each), 24 together. Only the subtraction of the minimum rounds, once, so that it does not matter whether
//! a compiler fuses it.

use half::f16;

/// Weights in a superblock (`QK_K` in ggml).
pub(super) const SUPERBLOCK: usize = 256;

/// Groups in a superblock at most.
const MAX_GROUPS: usize = 16;

/// One superblock, unpacked. Types with groups of 32 fill 8 of the 16 groups; `m` and `mins` are zero where the type
/// has no minimum.
pub(super) struct Superblock {
    pub(super) d: f16,
    /// `-dmin`: the format's minimum is added and ggml's is subtracted.
    pub(super) m: f16,
    pub(super) scales: [i8; MAX_GROUPS],
    pub(super) mins: [i8; MAX_GROUPS],
    pub(super) codes: [u8; SUPERBLOCK],
}

impl Superblock {
    /// w = (d scale) (code - center), exact.
    pub(super) fn symmetric(&self, group: usize, center: u8) -> [f32; SUPERBLOCK] {
        let d = self.d.to_f32();
        let mut out = [0.0; SUPERBLOCK];
        let groups = out.chunks_exact_mut(group).zip(self.codes.chunks_exact(group));
        for ((w, codes), scale) in groups.zip(self.scales) {
            let d = d * f32::from(scale);
            for (w, c) in w.iter_mut().zip(codes) {
                *w = d * f32::from(i16::from(*c) - i16::from(center));
            }
        }
        out
    }

    /// w = (d scale) code + (m min), one rounding.
    pub(super) fn affine(&self, group: usize) -> [f32; SUPERBLOCK] {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        let mut out = [0.0; SUPERBLOCK];
        let groups = out.chunks_exact_mut(group).zip(self.codes.chunks_exact(group));
        for ((w, codes), (scale, min)) in groups.zip(self.scales.into_iter().zip(self.mins)) {
            let (d, m) = (d * f32::from(scale), m * f32::from(min));
            w.iter_mut().zip(codes).for_each(|(w, c)| *w = d * f32::from(*c) + m);
        }
        out
    }
}

pub(super) fn q2_k(b: &[u8; 84]) -> Superblock {
    let [scales @ .., d0, d1, m0, m1] = b;
    let (scales, qs) = scales.split_at(16);
    Superblock {
        d: f16::from_le_bytes([*d0, *d1]),
        m: -f16::from_le_bytes([*m0, *m1]),
        scales: core::array::from_fn(|g| (scales[g] & 15) as i8),
        mins: core::array::from_fn(|g| (scales[g] >> 4) as i8),
        codes: core::array::from_fn(|i| two_bits(qs, i)),
    }
}

pub(super) fn q3_k(b: &[u8; 110]) -> Superblock {
    let [hmask @ .., d0, d1] = b;
    let (hmask, rest) = hmask.split_at(32);
    let (qs, scales) = rest.split_at(64);
    // Low nibbles of 16 scales in 8 bytes, then their upper two bits in 4.
    let scale = |g: usize| {
        let low = scales[g % 8] >> (g / 8 * 4) & 15;
        let high = scales[8 + g % 4] >> (g / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    };
    Superblock {
        d: f16::from_le_bytes([*d0, *d1]),
        m: f16::ZERO,
        scales: core::array::from_fn(scale),
        mins: [0; MAX_GROUPS],
        codes: core::array::from_fn(|i| two_bits(qs, i) | high_bit(hmask, i) << 2),
    }
}

pub(super) fn q4_k(b: &[u8; 144]) -> Superblock {
    let (head, qs) = b.split_at(16);
    affine_k(head, |i| nibble(qs, i))
}

pub(super) fn q5_k(b: &[u8; 176]) -> Superblock {
    let (head, rest) = b.split_at(16);
    let (qh, qs) = rest.split_at(32);
    affine_k(head, |i| nibble(qs, i) | high_bit(qh, i) << 4)
}

pub(super) fn q6_k(b: &[u8; 210]) -> Superblock {
    let [ql @ .., d0, d1] = b;
    let (ql, rest) = ql.split_at(128);
    let (qh, scales) = rest.split_at(64);
    // Each half of 128 codes has 64 bytes of ql: two runs of 32 low nibbles, then two of high ones.
    let low = |i: usize| ql[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
    Superblock {
        d: f16::from_le_bytes([*d0, *d1]),
        m: f16::ZERO,
        scales: core::array::from_fn(|g| scales[g].cast_signed()),
        mins: [0; MAX_GROUPS],
        codes: core::array::from_fn(|i| low(i) | two_bits(qh, i) << 4),
    }
}

/// Q4_K and Q5_K: `head` is `d dmin scales[12]`.
fn affine_k(head: &[u8], code: impl Fn(usize) -> u8) -> Superblock {
    let s = &head[4..16];
    // The first four groups' scales and minima are six bits of a byte each. The others' low nibbles share a byte, and
    // their upper two bits are those left over in the bytes of the first four.
    let scale = |g: usize| if g < 4 { s[g] & 63 } else { s[g + 4] & 15 | s[g - 4] >> 6 << 4 };
    let min = |g: usize| if g < 4 { s[g + 4] & 63 } else { s[g + 4] >> 4 | s[g] >> 6 << 4 };
    let (mut scales, mut mins) = ([0; MAX_GROUPS], [0; MAX_GROUPS]);
    for g in 0..8 {
        scales[g] = scale(g) as i8;
        mins[g] = min(g) as i8;
    }
    Superblock {
        d: f16::from_le_bytes([head[0], head[1]]),
        m: -f16::from_le_bytes([head[2], head[3]]),
        scales,
        mins,
        codes: core::array::from_fn(code),
    }
}

/// Code `i` of 64 bytes: two runs of 32, whose lowest two bits are the run's first 32 codes.
fn two_bits(qs: &[u8], i: usize) -> u8 {
    qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3
}

/// Code `i` of 128 bytes: runs of 32 whose low nibbles come first.
fn nibble(qs: &[u8], i: usize) -> u8 {
    qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15
}

/// Bit `i` of 32 bytes: each bit position is a run of 32 weights.
fn high_bit(qh: &[u8], i: usize) -> u8 {
    qh[i % 32] >> (i / 32) & 1
}
