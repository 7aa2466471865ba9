//! How the keys and values of one KV head lie in memory, and how a position is stored.
//!
//! ```text
//! keys    [positions / 16][groups of 32 dims]{ scales of 16 positions; [dims of the group][16 positions] }
//! values  [position][groups of 32 dims]{ scale; [dims of the group] }
//! ```
//!
//! Keys are transposed in blocks of 16 positions: 16 scores grow together, one dimension after the other, and
//! no sum over lanes is ever needed. `f32` and `f16` have no scales. A row of values is filled up to a multiple
//! of 16 dimensions. The 16 numbers of a *column* (one dimension of a block of keys; 16 dimensions of a value)
//! are read at once; of 4-bit ones, byte `i` holds number `i` in its low nibble and number `i + 8` in its high one.
//!
//! `q8_0` and `q4_0` have the numbers of bits of ggml's types of these names, and almost their arithmetic: of each
//! 32 dimensions of a position, `d = max |x| / 127` (8 bits) or the `x` of the largest magnitude over -8 (4 bits; the
//! positive one of two), rounded to a half float; codes are `x / d`, rounded to nearest, ties to even, and clamped to
//! +-127 or -8..=7. ggml divides by `d` as it was before the rounding, and loses a little more by it. Where an `x`
//! is infinite or NaN so is `d`.

use super::MAX_HEAD_DIM;
use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::mem;
use crate::simd::{Kernel, LANES, Simd, WIDE};
use half::f16;

/// Positions of a block of keys.
pub(super) const BLOCK: usize = WIDE;

/// Dimensions that share a scale.
pub(super) const GROUP: usize = 32;

/// How keys or values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// Floats, for judging.
    F32,
    /// Half floats: what everybody uses.
    #[default]
    F16,
    /// 8 bits and a scale per 32 dimensions: 8.5 bits each.
    Q8_0,
    /// 4 bits and a scale per 32 dimensions: 4.5 bits each.
    Q4_0,
}

impl KvType {
    /// All of them, largest first.
    pub const ALL: [KvType; 4] = [KvType::F32, KvType::F16, KvType::Q8_0, KvType::Q4_0];

    /// Its name, which is llama.cpp's.
    pub const fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
            KvType::Q4_0 => "q4_0",
        }
    }

    /// Bytes of 16 numbers, and of a scale.
    const fn sizes(self) -> (usize, usize) {
        match self {
            KvType::F32 => (64, 0),
            KvType::F16 => (32, 0),
            KvType::Q8_0 => (16, 2),
            KvType::Q4_0 => (8, 2),
        }
    }

    /// Bytes of a group's columns with their scale or scales, `[scales][columns]`.
    const fn group_bytes(self, scales: usize, columns: usize) -> usize {
        let (column, scale) = self.sizes();
        scales * scale + columns * column
    }

    fn has_scales(self) -> bool {
        self.sizes().1 > 0
    }
}

/// The layout of one KV head; see the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    dim: usize,
    keys: KvType,
    values: KvType,
}

impl KvLayout {
    /// The layout for heads of `dim` dimensions.
    ///
    /// # Errors
    /// [`Error::Shape`] where `dim` is 0, above [`MAX_HEAD_DIM`] or no multiple of 8, or of 32 where a type has scales.
    pub fn new(dim: usize, keys: KvType, values: KvType) -> Result<KvLayout> {
        let allowed = if keys.has_scales() || values.has_scales() {
            (
                GROUP,
                "a multiple of 32, at most 256, for a cache of type q8_0 or q4_0; f16 takes any multiple of 8",
            )
        } else {
            (LANES, "a multiple of 8, at most 256")
        };
        if dim == 0 || dim > MAX_HEAD_DIM || !dim.is_multiple_of(allowed.0) {
            return Err(Error::Shape {
                what: "the number of dimensions of a head",
                found: dim,
                allowed: allowed.1,
            });
        }
        Ok(KvLayout { dim, keys, values })
    }

    /// Dimensions of a head.
    pub const fn dim(self) -> usize {
        self.dim
    }
    /// How keys are stored.
    pub const fn keys(self) -> KvType {
        self.keys
    }
    /// How values are stored.
    pub const fn values(self) -> KvType {
        self.values
    }

    /// Bytes of `positions` keys; saturating.
    pub const fn key_bytes(self, positions: usize) -> usize {
        self.block_bytes().saturating_mul(positions.div_ceil(BLOCK))
    }
    /// Bytes of `positions` values; saturating.
    pub const fn value_bytes(self, positions: usize) -> usize {
        self.row_bytes().saturating_mul(positions)
    }

    /// Bytes of a block of keys.
    pub(super) const fn block_bytes(self) -> usize {
        self.dim.div_ceil(GROUP) * self.keys.group_bytes(BLOCK, 0) + self.keys.group_bytes(0, self.dim)
    }
    /// Bytes of a value.
    pub(super) const fn row_bytes(self) -> usize {
        self.dim.div_ceil(GROUP) * self.values.group_bytes(1, 0)
            + self.values.group_bytes(0, self.dim.div_ceil(WIDE))
    }

    /// Stores the key of a position, `[dim]`, into a head's keys. Allocates nothing.
    ///
    /// # Panics
    /// Where the lengths do not fit together.
    pub fn put_key(self, isa: Isa, keys: &mut [u8], position: usize, key: &[f32]) {
        assert_eq!(key.len(), self.dim, "a key of another length than the head");
        let block = &mut keys[position / BLOCK * self.block_bytes()..][..self.block_bytes()];
        let lane = position % BLOCK;
        let (column, scale) = self.keys.sizes();
        let groups = block.chunks_mut(self.keys.group_bytes(BLOCK, GROUP)).zip(key.chunks(GROUP));
        for (group, x) in groups {
            let (scales, columns) = group.split_at_mut(BLOCK * scale);
            let columns = columns.chunks_exact_mut(column);
            match self.keys {
                KvType::F32 => {
                    for (c, x) in columns.zip(x) {
                        c[4 * lane..4 * lane + 4].copy_from_slice(&x.to_le_bytes());
                    }
                }
                KvType::F16 => {
                    let mut halves = [0; GROUP];
                    to_f16(isa, x, &mut halves[..x.len()]);
                    for (c, h) in columns.zip(halves) {
                        c[2 * lane..2 * lane + 2].copy_from_slice(&h.to_le_bytes());
                    }
                }
                KvType::Q8_0 | KvType::Q4_0 => {
                    let (d, codes) = quantize(isa, self.keys, x);
                    scales[2 * lane..2 * lane + 2].copy_from_slice(&d.to_le_bytes());
                    for (c, code) in columns.zip(codes) {
                        put_code(self.keys, c, lane, code);
                    }
                }
            }
        }
    }

    /// Stores the value of a position, `[dim]`, into a head's values. Allocates nothing.
    ///
    /// # Panics
    /// Where the lengths do not fit together.
    pub fn put_value(self, isa: Isa, values: &mut [u8], position: usize, value: &[f32]) {
        assert_eq!(value.len(), self.dim, "a value of another length than the head");
        let row = &mut values[position * self.row_bytes()..][..self.row_bytes()];
        let (column, scale) = self.values.sizes();
        let groups = row.chunks_mut(self.values.group_bytes(1, GROUP / WIDE)).zip(value.chunks(GROUP));
        for (group, x) in groups {
            let (head, columns) = group.split_at_mut(scale);
            match self.values {
                KvType::F32 => {
                    for (c, x) in columns.chunks_exact_mut(4).zip(x) {
                        c.copy_from_slice(&x.to_le_bytes());
                    }
                }
                KvType::F16 => {
                    let mut halves = [0; GROUP];
                    to_f16(isa, x, &mut halves[..x.len()]);
                    for (c, h) in columns.chunks_exact_mut(2).zip(halves) {
                        c.copy_from_slice(&h.to_le_bytes());
                    }
                }
                KvType::Q8_0 | KvType::Q4_0 => {
                    let (d, codes) = quantize(isa, self.values, x);
                    head.copy_from_slice(&d.to_le_bytes());
                    for (i, code) in codes.into_iter().enumerate() {
                        put_code(self.values, &mut columns[i / WIDE * column..], i % WIDE, code);
                    }
                }
            }
        }
    }
}

/// Writes number `lane` of a column of 8 or 4 bits.
fn put_code(ty: KvType, column: &mut [u8], lane: usize, code: i8) {
    if ty == KvType::Q8_0 {
        column[lane] = code.cast_unsigned();
    } else {
        let (byte, nibble) = (&mut column[lane % 8], (code + 8).cast_unsigned());
        *byte = if lane < 8 { *byte & 0xf0 | nibble } else { *byte & 0x0f | nibble << 4 };
    }
}

/// Scale and codes of 32 numbers; see the module's head.
fn quantize(isa: Isa, ty: KvType, x: &[f32]) -> (f16, [i8; GROUP]) {
    let x = x.first_chunk::<GROUP>().expect("types with scales have whole groups: KvLayout::new");
    let extremes = isa.run(Extremes { x });
    let Some([low, high]) = extremes else { return (f16::NAN, [0; GROUP]) };
    let (d, limits) = match ty {
        KvType::Q4_0 => (if high >= -low { high } else { low } / -8.0, [-8.0, 7.0]),
        _ => (high.max(-low) / 127.0, [-127.0, 127.0]),
    };
    let d = f16::from_f32(d);
    let mut codes = [0; GROUP];
    if d.to_f32() != 0.0 {
        isa.run(Codes { x, d: d.to_f32(), limits, codes: &mut codes });
    }
    (d, codes)
}

/// The smallest and the largest of 32 numbers; none where one is not finite.
struct Extremes<'a> {
    x: &'a [f32; GROUP],
}

impl Kernel for Extremes<'_> {
    type Output = Option<[f32; 2]>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let (mut low, mut high) = (s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY));
        let mut nan = s.splat(0.0); // stays 0 unless a number is infinite or NaN
        for x in self.x.as_chunks().0 {
            let x = s.load(x);
            (low, high) = (s.min(x, low), s.max(x, high));
            nan = s.fma(x, s.splat(0.0), nan);
        }
        let low = -s.hmax(s.sub(s.splat(0.0), low));
        (s.sum(nan) == 0.0).then(|| [low, s.hmax(high)])
    }
}

struct Codes<'a> {
    x: &'a [f32; GROUP],
    d: f32,
    limits: [f32; 2],
    codes: &'a mut [i8; GROUP],
}

impl Kernel for Codes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [low, high] = self.limits;
        let (d, low, high) = (s.splat(self.d), s.splat(low), s.splat(high));
        for (x, codes) in self.x.as_chunks().0.iter().zip(self.codes.as_chunks_mut::<LANES>().0) {
            let code = s.min(s.max(s.round(s.div(s.load(x), d)), low), high);
            let mut floats = [0.0; LANES];
            s.store(code, &mut floats);
            *codes = floats.map(|c| c as i8);
        }
    }
}

/// Rounds floats to half floats (nearest, ties to even); `x` and `out` have equal lengths.
fn to_f16(isa: Isa, x: &[f32], out: &mut [u16]) {
    isa.run(ToF16 { x, out });
}

struct ToF16<'a> {
    x: &'a [f32],
    out: &'a mut [u16],
}

impl Kernel for ToF16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, tail) = self.x.as_chunks::<LANES>();
        debug_assert!(tail.is_empty(), "head dimensions are multiples of 8");
        let (out, _) = mem::bytes_of_mut(self.out).as_chunks_mut::<16>();
        for (x, o) in x.iter().zip(out) {
            s.store_f16(s.load(x), o);
        }
    }
}
