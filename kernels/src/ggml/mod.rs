//! ggml's tensor types, and exact readers for most of them.
//!
//! A GGUF file names the type of a tensor by a number of ggml's `enum ggml_type`; [`GgmlType`] is that table. There are
//! three ways to read rows, the last two for the bit-plane importer:
//!
//! - [`dequantize_row`]: bytes to `f32`, equal bit for bit to ggml's `dequantize_row_*`;
//! - [`uniform_row`]: bytes to unsigned codes and `f16` scales, with nothing rounded, where the weights of a block are
//!   a uniform grid;
//! - [`superblock_row`]: the same for the K-quants and IQ4_XS, whose scales are small integers under an `f16` per 256
//!   weights.
//!
//! The layouts are at the heads of `uniform.rs`, `ternary.rs`, `kquants.rs` and `codebook.rs`; all are little-endian.
//! Their source is `dequantize_row_*` in `ggml/src/ggml-quants.c` of llama.cpp, read at ggml 0.25.
//!
//! Why this is exact: a scale `d` has 11 significant bits, and what it is multiplied by at most 13 (a code
//! and perhaps a sub-scale), so that all products are exact in `f32`, for subnormal `d` too (the least `f16` is 2^-24, far above
//! the least `f32`). Only the addition of a minimum rounds, once, so that a compiler which fuses the two (as GCC may,
//! for ggml) and one which does not give the same bits.

mod codebook;
mod kquants;
mod ternary;
mod types;
mod uniform;

use half::f16;
use kquants::{SUPERBLOCK, Superblock};
pub use types::{GgmlError, GgmlType};
use uniform::Block;

/// The types that [`dequantize_row`] reads.
pub const READABLE: &[GgmlType] = &[
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
    GgmlType::TQ1_0,
    GgmlType::TQ2_0,
    GgmlType::IQ4_NL,
    GgmlType::IQ4_XS,
    GgmlType::MXFP4,
];

/// The types that [`uniform_row`] splits.
const UNIFORM: &[GgmlType] = &[
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::TQ1_0,
    GgmlType::TQ2_0,
    GgmlType::IQ4_NL,
    GgmlType::MXFP4,
];

/// The types that [`superblock_row`] splits.
const SUPERBLOCKS: &[GgmlType] =
    &[GgmlType::Q2_K, GgmlType::Q3_K, GgmlType::Q4_K, GgmlType::Q5_K, GgmlType::Q6_K, GgmlType::IQ4_XS];

/// How the codes of a uniform type map to weights; see [`uniform_row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniformFormat {
    /// Significant bits of a code, 2 to 8.
    pub bits: u8,
    /// Weights that share one `d` (and `m`): 32 or 256.
    pub block: usize,
    /// `Some(c)`: symmetric, weight = d (code - c), no `m`. `None`: weight = d code + m.
    pub center: Option<u8>,
}

/// The layout of a type whose weights are a uniform grid per block, or `None` for every other type.
pub const fn uniform_format(ty: GgmlType) -> Option<UniformFormat> {
    let (bits, center) = match ty {
        GgmlType::Q4_0 => (4, Some(8)),
        GgmlType::Q4_1 => (4, None),
        GgmlType::Q5_0 => (5, Some(16)),
        GgmlType::Q5_1 => (5, None),
        GgmlType::Q8_0 => (8, Some(128)),
        // Codes 0 to 2; a TQ2_0 file may also hold the fourth, 2 d.
        GgmlType::TQ1_0 | GgmlType::TQ2_0 => (2, Some(1)),
        GgmlType::IQ4_NL => (8, Some(codebook::IQ4_CENTER)),
        GgmlType::MXFP4 => (5, Some(codebook::E2M1_CENTER)),
        _ => return None,
    };
    Some(UniformFormat { bits, block: ty.block_len(), center })
}

/// How the codes of a type with superblocks map to weights; see [`superblock_row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuperblockFormat {
    /// Significant bits of a code, 2 to 8.
    pub bits: u8,
    /// Weights that share a sub-scale: 16 or 32.
    pub group: usize,
    /// Weights that share an `f16`: 256.
    pub superblock: usize,
    /// `Some(c)`: weight = (d scale) (code - c). `None`: weight = (d scale) code + (m min).
    pub center: Option<u8>,
}

impl SuperblockFormat {
    /// Numbers of each group, and of each superblock: the scale, and the minimum where there is one.
    pub const fn coefficients(&self) -> usize {
        if self.center.is_some() { 1 } else { 2 }
    }
}

/// The layout of a type with superblocks, or `None` for every other type.
pub const fn superblock_format(ty: GgmlType) -> Option<SuperblockFormat> {
    let (bits, group, center) = match ty {
        GgmlType::Q2_K => (2, 16, None),
        GgmlType::Q3_K => (3, 16, Some(4)),
        GgmlType::Q4_K => (4, 32, None),
        GgmlType::Q5_K => (5, 32, None),
        GgmlType::Q6_K => (6, 16, Some(32)),
        GgmlType::IQ4_XS => (8, 32, Some(codebook::IQ4_CENTER)),
        _ => return None,
    };
    Some(SuperblockFormat { bits, group, superblock: SUPERBLOCK, center })
}

/// Converts a row (or several that lie one after another) to `f32`, bit for bit as ggml does.
///
/// `bytes` is `[out.len() / block_len][block_bytes]`, `out` is `[n]`. Reads the types of [`READABLE`]. Only the payload
/// of a NaN is not promised.
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
        GgmlType::Q4_0 => decode(bytes, out, |b| uniform::q4_0(b).symmetric(8)),
        GgmlType::Q4_1 => decode(bytes, out, |b| uniform::q4_1(b).affine()),
        GgmlType::Q5_0 => decode(bytes, out, |b| uniform::q5_0(b).symmetric(16)),
        GgmlType::Q5_1 => decode(bytes, out, |b| uniform::q5_1(b).affine()),
        GgmlType::Q8_0 => decode(bytes, out, |b| uniform::q8_0(b).symmetric(128)),
        GgmlType::TQ1_0 => decode(bytes, out, |b| ternary::tq1_0(b).symmetric(1)),
        GgmlType::TQ2_0 => decode(bytes, out, |b| ternary::tq2_0(b).symmetric(1)),
        GgmlType::Q2_K => decode(bytes, out, |b| kquants::q2_k(b).affine(16)),
        GgmlType::Q3_K => decode(bytes, out, |b| kquants::q3_k(b).symmetric(16, 4)),
        GgmlType::Q4_K => decode(bytes, out, |b| kquants::q4_k(b).affine(32)),
        GgmlType::Q5_K => decode(bytes, out, |b| kquants::q5_k(b).affine(32)),
        GgmlType::Q6_K => decode(bytes, out, |b| kquants::q6_k(b).symmetric(16, 32)),
        GgmlType::IQ4_NL => decode(bytes, out, |b| codebook::iq4_nl(b).symmetric(codebook::IQ4_CENTER)),
        GgmlType::IQ4_XS => decode(bytes, out, |b| codebook::iq4_xs(b).symmetric(32, codebook::IQ4_CENTER)),
        GgmlType::MXFP4 => decode(bytes, out, codebook::mxfp4),
        _ => return Err(GgmlError::Unsupported { ty, readable: READABLE }),
    }
    Ok(())
}

/// Splits a row (or several) of a uniform type into its codes and scales, rounding nothing.
///
/// `codes` is `[n]`, one code per weight in the order of the weights; `d` is `[n / block]`; `m` is `[n / block]`
/// for Q4_1 and Q5_1 and empty for the symmetric types. What a code means is said by [`uniform_format`].
/// MXFP4's scales go far beyond `f16`: one that none is equal to is given as NaN.
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
    let unsupported = GgmlError::Unsupported { ty, readable: UNIFORM };
    let format = uniform_format(ty).ok_or(unsupported)?;
    check_row(ty, bytes.len(), "codes", codes.len())?;
    let blocks = codes.len() / format.block;
    check_len(ty, "d", blocks, d.len())?;
    check_len(ty, "m", if format.center.is_some() { 0 } else { blocks }, m.len())?;
    match ty {
        GgmlType::Q4_0 => split(bytes, codes, d, m, uniform::q4_0),
        GgmlType::Q4_1 => split(bytes, codes, d, m, uniform::q4_1),
        GgmlType::Q5_0 => split(bytes, codes, d, m, uniform::q5_0),
        GgmlType::Q5_1 => split(bytes, codes, d, m, uniform::q5_1),
        GgmlType::Q8_0 => split(bytes, codes, d, m, uniform::q8_0),
        GgmlType::TQ1_0 => split(bytes, codes, d, m, ternary::tq1_0),
        GgmlType::TQ2_0 => split(bytes, codes, d, m, ternary::tq2_0),
        GgmlType::IQ4_NL => split(bytes, codes, d, m, codebook::iq4_nl),
        GgmlType::MXFP4 => split(bytes, codes, d, m, codebook::mxfp4_block),
        _ => return Err(unsupported),
    }
    Ok(())
}

/// Splits a row (or several) of a type with superblocks into its codes and both levels of scales, rounding nothing.
///
/// `codes` is `[n]`, one code per weight in the order of the weights; `sub_scales` is `[n / group][coefficients]` and
/// `scales` is `[n / superblock][coefficients]`, each the scale and then, where there is one, the minimum. ggml
/// subtracts `dmin` times the minimum; `m` is `-dmin`, so that it is added. See [`superblock_format`].
///
/// # Errors
/// [`GgmlError::Unsupported`] for a type without superblocks, [`GgmlError::Length`] for slices that do not agree.
pub fn superblock_row(
    ty: GgmlType,
    bytes: &[u8],
    codes: &mut [u8],
    sub_scales: &mut [i8],
    scales: &mut [f16],
) -> Result<(), GgmlError> {
    let unsupported = GgmlError::Unsupported { ty, readable: SUPERBLOCKS };
    let format = superblock_format(ty).ok_or(unsupported)?;
    check_row(ty, bytes.len(), "codes", codes.len())?;
    let k = format.coefficients();
    check_len(ty, "sub_scales", codes.len() / format.group * k, sub_scales.len())?;
    check_len(ty, "scales", codes.len() / format.superblock * k, scales.len())?;
    match ty {
        GgmlType::Q2_K => split_super(format, bytes, codes, sub_scales, scales, kquants::q2_k),
        GgmlType::Q3_K => split_super(format, bytes, codes, sub_scales, scales, kquants::q3_k),
        GgmlType::Q4_K => split_super(format, bytes, codes, sub_scales, scales, kquants::q4_k),
        GgmlType::Q5_K => split_super(format, bytes, codes, sub_scales, scales, kquants::q5_k),
        GgmlType::Q6_K => split_super(format, bytes, codes, sub_scales, scales, kquants::q6_k),
        GgmlType::IQ4_XS => split_super(format, bytes, codes, sub_scales, scales, codebook::iq4_xs),
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
fn split<const B: usize, const N: usize>(
    bytes: &[u8],
    codes: &mut [u8],
    d: &mut [f16],
    m: &mut [f16],
    block: impl Fn(&[u8; B]) -> Block<N>,
) {
    let codes = codes.as_chunks_mut::<N>().0;
    for (i, (b, c)) in bytes.as_chunks::<B>().0.iter().zip(codes).enumerate() {
        let block = block(b);
        *c = block.codes;
        d[i] = block.d;
        if let Some(m) = m.get_mut(i) {
            *m = block.m;
        }
    }
}

/// As [`split`], with the scales of groups under those of superblocks.
fn split_super<const B: usize>(
    format: SuperblockFormat,
    bytes: &[u8],
    codes: &mut [u8],
    sub_scales: &mut [i8],
    scales: &mut [f16],
    block: impl Fn(&[u8; B]) -> Superblock,
) {
    let k = format.coefficients();
    let blocks = bytes.as_chunks::<B>().0.iter().zip(codes.as_chunks_mut().0);
    let outs =
        sub_scales.chunks_exact_mut(format.superblock / format.group * k).zip(scales.chunks_exact_mut(k));
    for ((b, codes), (sub_scales, scales)) in blocks.zip(outs) {
        let block = block(b);
        *codes = block.codes;
        scales.copy_from_slice(&[block.d, block.m][..k]);
        for (g, pair) in sub_scales.chunks_exact_mut(k).enumerate() {
            pair.copy_from_slice(&[block.scales[g], block.mins[g]][..k]);
        }
    }
}
