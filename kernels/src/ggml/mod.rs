//! The tensor types of ggml, and exact readers for the ones that are plain or uniform.
//!
//! A GGUF file names the type of a tensor by a number of ggml's `enum ggml_type`. This module holds that
//! table (source: `ggml/include/ggml.h` and `type_traits` in `ggml/src/ggml.c` of llama.cpp, read at ggml
//! 0.25) and two ways to read rows:
//!
//! - [`dequantize_row`]: bytes to `f32`, equal bit for bit to ggml's `dequantize_row_*`;
//! - [`uniform_row`]: bytes to unsigned codes and `f16` scales, with nothing rounded, for the bit-plane
//!   importer.
//!
//! The uniform types store 32 weights in a block of `d`, perhaps `m`, and codes of 4, 5 or 8 bits (all
//! little-endian):
//!
//! ```text
//! Q4_0  d        qs[16]          w = d (q - 8)       code j      = low  nibble of qs[j]
//! Q4_1  d m      qs[16]          w = d q + m         code j + 16 = high nibble of qs[j]     j = 0..16
//! Q5_0  d   qh   qs[16]          w = d (q - 16)      the fifth bit of code i is bit i of the u32 qh
//! Q5_1  d m qh   qs[16]          w = d q + m
//! Q8_0  d        qs[32] as i8    w = d qs[i]         code = qs[i] + 128
//! ```
//!
//! Why this is exact: `d` has 11 significant bits and a code at most 8, so `d q` has at most 19 and is exact
//! in `f32`, for subnormal `d` too (the least `f16` is 2^-24, far above the least `f32`). Only the addition
//! of `m` rounds, once, so that a compiler which fuses the two (as GCC may, for ggml) and one which does not
//! give the same bits.

mod types;

use half::f16;
pub use types::{GgmlError, GgmlType};

/// Weights in a block of every uniform type read here (`QK4_0`, `QK5_0`, `QK8_0` in ggml).
pub const UNIFORM_BLOCK: usize = 32;

/// How the codes of a uniform type map to weights; see [`uniform_row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniformFormat {
    /// Significant bits of a code: 4, 5 or 8.
    pub bits: u8,
    /// Weights that share one `d` (and `m`).
    pub block: usize,
    /// `Some(c)`: symmetric, weight = d (code - c), no `m`. `None`: weight = d code + m.
    pub center: Option<u8>,
}

/// The layout of a type whose weights are a uniform grid per block of 32, or `None` for every other type.
pub const fn uniform_format(ty: GgmlType) -> Option<UniformFormat> {
    let (bits, center) = match ty {
        GgmlType::Q4_0 => (4, Some(8)),
        GgmlType::Q4_1 => (4, None),
        GgmlType::Q5_0 => (5, Some(16)),
        GgmlType::Q5_1 => (5, None),
        GgmlType::Q8_0 => (8, Some(128)),
        _ => return None,
    };
    Some(UniformFormat { bits, block: UNIFORM_BLOCK, center })
}

/// Converts a row (or several that lie one after another) to `f32`, bit for bit as ggml does.
///
/// `bytes` is `[out.len() / block_len][block_bytes]`, `out` is `[n]`. Reads F32, F16, BF16, Q4_0, Q4_1, Q5_0,
/// Q5_1 and Q8_0. Only the payload of a NaN is not promised.
///
/// # Errors
/// [`GgmlError::Unsupported`] for another type, [`GgmlError::Length`] where `out` is no whole number of
/// blocks or `bytes` does not hold as many. `out` is then untouched.
pub fn dequantize_row(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), GgmlError> {
    check_row(ty, bytes.len(), "out", out.len())?;
    match ty {
        GgmlType::F32 => decode(bytes, out, |b: &[u8; 4]| [f32::from_le_bytes(*b)]),
        GgmlType::F16 => decode(bytes, out, |b: &[u8; 2]| [f16::from_le_bytes(*b).to_f32()]),
        // bf16 is the upper half of an f32.
        GgmlType::BF16 => decode(bytes, out, |b: &[u8; 2]| [f32::from_le_bytes([0, 0, b[0], b[1]])]),
        GgmlType::Q4_0 => decode(bytes, out, |b| q4_0(b).symmetric(8)),
        GgmlType::Q4_1 => decode(bytes, out, |b| q4_1(b).affine()),
        GgmlType::Q5_0 => decode(bytes, out, |b| q5_0(b).symmetric(16)),
        GgmlType::Q5_1 => decode(bytes, out, |b| q5_1(b).affine()),
        GgmlType::Q8_0 => decode(bytes, out, |b| q8_0(b).symmetric(128)),
        _ => {
            return Err(GgmlError::Unsupported {
                ty,
                readable: "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0",
            });
        }
    }
    Ok(())
}

/// Splits a row (or several) of a uniform type into its codes and scales, rounding nothing.
///
/// `codes` is `[n]`, one code per weight in the order of the weights; `d` is `[n / 32]`; `m` is `[n / 32]`
/// for Q4_1 and Q5_1 and empty for the symmetric types. What a code means is said by [`uniform_format`].
///
/// # Errors
/// [`GgmlError::Unsupported`] for a type that is not uniform, [`GgmlError::Length`] for slices that do not
/// agree.
pub fn uniform_row(
    ty: GgmlType,
    bytes: &[u8],
    codes: &mut [u8],
    d: &mut [f16],
    m: &mut [f16],
) -> Result<(), GgmlError> {
    let readable = "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0";
    let unsupported = GgmlError::Unsupported { ty, readable };
    let format = uniform_format(ty).ok_or(unsupported)?;
    check_row(ty, bytes.len(), "codes", codes.len())?;
    let blocks = codes.len() / format.block;
    check_len(ty, "d", blocks, d.len())?;
    check_len(ty, "m", if format.center.is_some() { 0 } else { blocks }, m.len())?;
    match ty {
        GgmlType::Q4_0 => split(bytes, codes, d, m, q4_0),
        GgmlType::Q4_1 => split(bytes, codes, d, m, q4_1),
        GgmlType::Q5_0 => split(bytes, codes, d, m, q5_0),
        GgmlType::Q5_1 => split(bytes, codes, d, m, q5_1),
        GgmlType::Q8_0 => split(bytes, codes, d, m, q8_0),
        _ => return Err(unsupported),
    }
    Ok(())
}

fn check_len(ty: GgmlType, slice: &'static str, expected: usize, found: usize) -> Result<(), GgmlError> {
    if expected == found { Ok(()) } else { Err(GgmlError::Length { ty, slice, expected, found }) }
}

/// `n` values must be whole blocks, and `found_bytes` exactly their bytes.
fn check_row(ty: GgmlType, found_bytes: usize, values: &'static str, n: usize) -> Result<(), GgmlError> {
    let Some(need) = ty.row_bytes(n) else {
        let expected = n.checked_next_multiple_of(ty.block_len()).unwrap_or(usize::MAX);
        return Err(GgmlError::Length { ty, slice: values, expected, found: n });
    };
    check_len(ty, "bytes", need, found_bytes)
}

/// Applies `block` to each run of `B` bytes, giving `N` values. The lengths were checked by the caller.
fn decode<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; B]) -> [f32; N],
) {
    for (b, o) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        *o = block(b);
    }
}

/// As [`decode`], into codes and scales; an empty `m` stays empty.
fn split<const B: usize>(
    bytes: &[u8],
    codes: &mut [u8],
    d: &mut [f16],
    m: &mut [f16],
    block: impl Fn(&[u8; B]) -> Block,
) {
    let codes = codes.as_chunks_mut::<UNIFORM_BLOCK>().0;
    for (i, (b, c)) in bytes.as_chunks::<B>().0.iter().zip(codes).enumerate() {
        let block = block(b);
        *c = block.codes;
        d[i] = block.d;
        if let Some(m) = m.get_mut(i) {
            *m = block.m;
        }
    }
}

/// One block of a uniform type, unpacked. `m` is zero where the type has none.
struct Block {
    d: f16,
    m: f16,
    codes: [u8; UNIFORM_BLOCK],
}

impl Block {
    /// w = d (code - center), exact.
    fn symmetric(&self, center: i16) -> [f32; UNIFORM_BLOCK] {
        let d = self.d.to_f32();
        self.codes.map(|c| f32::from(i16::from(c) - center) * d)
    }

    /// w = d code + m, one rounding.
    fn affine(&self) -> [f32; UNIFORM_BLOCK] {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        self.codes.map(|c| f32::from(c) * d + m)
    }
}

fn q4_0(b: &[u8; 18]) -> Block {
    let [d0, d1, qs @ ..] = b;
    Block { d: f16::from_le_bytes([*d0, *d1]), m: f16::ZERO, codes: nibbles(qs) }
}

fn q4_1(b: &[u8; 20]) -> Block {
    let [d0, d1, m0, m1, qs @ ..] = b;
    Block { d: f16::from_le_bytes([*d0, *d1]), m: f16::from_le_bytes([*m0, *m1]), codes: nibbles(qs) }
}

fn q5_0(b: &[u8; 22]) -> Block {
    let [d0, d1, h0, h1, h2, h3, qs @ ..] = b;
    let codes = with_fifth_bit(nibbles(qs), u32::from_le_bytes([*h0, *h1, *h2, *h3]));
    Block { d: f16::from_le_bytes([*d0, *d1]), m: f16::ZERO, codes }
}

fn q5_1(b: &[u8; 24]) -> Block {
    let [d0, d1, m0, m1, h0, h1, h2, h3, qs @ ..] = b;
    let codes = with_fifth_bit(nibbles(qs), u32::from_le_bytes([*h0, *h1, *h2, *h3]));
    Block { d: f16::from_le_bytes([*d0, *d1]), m: f16::from_le_bytes([*m0, *m1]), codes }
}

fn q8_0(b: &[u8; 34]) -> Block {
    let [d0, d1, qs @ ..] = b;
    // Flipping the sign bit of a two's complement byte adds 128.
    Block { d: f16::from_le_bytes([*d0, *d1]), m: f16::ZERO, codes: qs.map(|q| q ^ 0x80) }
}

/// Low nibbles are the first half of the block, high nibbles the second.
fn nibbles(qs: &[u8; 16]) -> [u8; UNIFORM_BLOCK] {
    core::array::from_fn(|i| if i < 16 { qs[i] & 0x0f } else { qs[i - 16] >> 4 })
}

fn with_fifth_bit(mut codes: [u8; UNIFORM_BLOCK], qh: u32) -> [u8; UNIFORM_BLOCK] {
    for (i, c) in codes.iter_mut().enumerate() {
        *c |= ((qh >> i & 1) as u8) << 4;
    }
    codes
}
