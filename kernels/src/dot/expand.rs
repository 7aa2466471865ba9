//! Planes as whole codes: what the products of a prompt are made of.
//!
//! A table's look-ups grow with the number of planes, a product of codes does not, so from some number of planes on many
//! tokens are multiplied faster by codes: see [`pays`]. Per row and group:
//!
//! ```text
//! n = floor(max |s_p| (255 - q / 2) / sum |s_p|)     so many steps for the largest scale at most
//! D = max |s_p| / (n - i)            of 8 i from 0 on that with the least sum (s_p - D c_p)^2, rounded up to f16
//! c_p = round(s_p (1 / D))           to nearest even
//! offset = - sum of the negative c_p
//! code = offset + sum c_p b_p        w = D code + (z - D offset), but for what rounding c_p took
//! ```
//!
//! # Bounds
//! `|c_p| <= |s_p| / D + 1/2`, so `sum |c_p| <= 255 - q / 2 + q / 2`: every code is a byte. On the way there sums of bytes
//! wrap around. A weight is off by `D / 2` for each plane at most. The choice of `D` makes that half as much or less: without
//! it, with 5 planes, it was more than what rounding activations costs (`docs/speed.md`).

use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::pack::c32::{self, BLOCK_COLS, UNIT_BYTES};
use crate::pack::p32::{BLOCK_BYTES, PAIR_COLS, TILE_ROWS};
use crate::pack::{MAX_PLANES, Packed, ParamKind, PlaneShape};
use crate::simd::{Kernel, LANES, Simd, rows_f16, rows_scaled};
use core::ops::Range;

/// Whether codes are worth their making for a prompt's products with `planes` planes, and exact enough.
pub const fn pays(isa: Isa, planes: usize) -> bool {
    let from = if isa.has_byte_products() { 3 } else { 4 };
    from <= planes && planes <= 5
}

/// Bits of a code.
const BITS: usize = 8;

/// Numbers of steps for the largest scale that are tried.
const TRIED: usize = 8;

/// One number of each row of a tile.
pub(super) type Rows = [f32; TILE_ROWS];

/// Bytes of `tiles` tiles of `cols` columns in groups of `group`, as [`expand`] makes them; saturating.
pub const fn expanded_bytes(tiles: usize, cols: usize, group: usize) -> usize {
    tiles.saturating_mul(code_bytes(cols).saturating_add(param_bytes(cols, group)))
}

/// Bytes of a tile's codes.
const fn code_bytes(cols: usize) -> usize {
    c32::tile_bytes(PlaneShape { rows: TILE_ROWS, cols }, BITS)
}

/// Bytes of a tile's parameters.
const fn param_bytes(cols: usize, group: usize) -> usize {
    2 * 2 * TILE_ROWS * cols.div_ceil(group)
}

/// Some tiles of `w`, which is of an HLQ kind, as a matrix of codes of 8 bits ([`ParamKind::Uniform`]) in `out`, which has
/// [`expanded_bytes`] at least.
///
/// A weight beyond the range of f16 becomes infinite.
///
/// # Errors
/// [`Error::Length`] where `out` is too short, [`Error::Shape`] for tiles outside of the matrix or another kind.
pub fn expand<'a>(isa: Isa, w: &Packed<'_>, tiles: Range<usize>, out: &'a mut [u8]) -> Result<Packed<'a>> {
    let shape = w.shape();
    if tiles.start > tiles.end || tiles.end > shape.tiles() {
        return Err(Error::Shape { what: "tile", found: tiles.end, allowed: "within the matrix" });
    }
    if w.kind().is_uniform() {
        return Err(Error::Shape { what: "kind", found: w.planes(), allowed: "hlq16 or hlq8" });
    }
    let expected = expanded_bytes(tiles.len(), shape.cols, w.group());
    let found = out.len();
    let Some(out) = out.get_mut(..expected) else {
        return Err(Error::Length { what: "room for codes".into(), expected, found });
    };
    let (codes, params) = out.split_at_mut(tiles.len() * code_bytes(shape.cols));
    isa.run(Expand { w, first: tiles.start, codes, params });
    let shape = PlaneShape { rows: tiles.len() * TILE_ROWS, cols: shape.cols };
    Packed::new(shape, w.group(), ParamKind::Uniform, BITS, &[codes], params, &[])
}

struct Expand<'a> {
    w: &'a Packed<'a>,
    first: usize,
    codes: &'a mut [u8],
    params: &'a mut [u8],
}

impl Kernel for Expand<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Expand { w, first, codes, params } = self;
        let (shape, kind, group) = (w.shape(), w.kind(), w.group());
        let tiles = codes.chunks_exact_mut(code_bytes(shape.cols).max(1));
        let tiles = tiles.zip(params.chunks_exact_mut(param_bytes(shape.cols, group).max(1)));
        for (t, (codes, params)) in (first..).zip(tiles) {
            let (parts, scales) = (w.tile_parts(t), w.tile_scales(t));
            let sets = w.tile_params(t).chunks_exact(w.group_params());
            let groups = codes.chunks_mut(group / PAIR_COLS * 2 * UNIT_BYTES);
            for (g, ((codes, out), set)) in groups.zip(params.as_chunks_mut().0).zip(sets).enumerate() {
                let steps = steps(s, kind, set, scales, w.planes(), out);
                let planes =
                    parts.map(|part| part.as_chunks().0.get(g * group / PAIR_COLS..).unwrap_or_default());
                fill(s, &planes[..w.planes()], &steps, codes);
            }
        }
    }
}

/// What a group's codes start from, and what each plane's bits add to them: 4 times for each row.
struct Steps {
    offset: [u8; UNIT_BYTES],
    c: [[u8; UNIT_BYTES]; MAX_PLANES],
}

/// The steps of a group with the parameters `set`, which are under `scales` where those are there; its `D` and minimum go
/// to `out`.
#[inline(always)]
fn steps<S: Simd>(
    s: S,
    kind: ParamKind,
    set: &[u8],
    scales: &[u8],
    planes: usize,
    out: &mut [u8; 4 * TILE_ROWS],
) -> Steps {
    let mut coefficients = [[0.0; TILE_ROWS]; MAX_PLANES + 1];
    for (k, rows) in coefficients[..=planes].iter_mut().enumerate() {
        let numbers = match kind {
            ParamKind::Hlq8 => rows_scaled(s, set, k, rows_f16(s, scales, k)),
            _ => rows_f16(s, set, k),
        };
        s.rows_store(numbers, rows);
    }
    let (d_out, m_out) = out.split_at_mut(2 * TILE_ROWS);
    let mut d = finest(&coefficients[..planes]);
    let inverse = up_to_half(s, &mut d, d_out);
    let mut steps = Steps { offset: [0; UNIT_BYTES], c: [[0; UNIT_BYTES]; MAX_PLANES] };
    let mut offset = [0i32; TILE_ROWS];
    for (rows, out) in coefficients[..planes].iter().zip(&mut steps.c) {
        let mut c = [0i32; TILE_ROWS];
        for r in 0..TILE_ROWS {
            c[r] = rounded(rows[r] * inverse[r]);
            offset[r] -= c[r].min(0);
        }
        four_times(&c, out);
    }
    four_times(&offset, &mut steps.offset);
    let mut m = [0.0; TILE_ROWS];
    for r in 0..TILE_ROWS {
        m[r] = coefficients[planes][r] - d[r] * offset[r] as f32;
    }
    to_halves(s, &m, m_out);
    steps
}

/// Each row's `D`, before it is rounded up, for the scales `[plane][row]`; 0 where all of them are.
#[inline(always)]
fn finest(scales: &[Rows]) -> Rows {
    let (mut top, mut total) = ([0.0f32; TILE_ROWS], [0.0; TILE_ROWS]);
    for rows in scales {
        for r in 0..TILE_ROWS {
            let s = rows[r].abs();
            top[r] = if s > top[r] { s } else { top[r] };
            total[r] += s;
        }
    }
    let (mut most, mut unit) = ([0.0; TILE_ROWS], [0.0; TILE_ROWS]);
    for r in 0..TILE_ROWS {
        let n = (top[r] * (255.0 - 0.5 * scales.len() as f32) / total[r]).floor();
        // Not above 0 where numbers are too small, or none.
        (most[r], unit[r]) = (if n > 0.0 { n } else { 1.0 }, 1.0 / top[r]);
    }
    let (mut best, mut least) = (most, [f32::INFINITY; TILE_ROWS]);
    for i in 0..TRIED {
        let (mut n, mut left) = ([0.0; TILE_ROWS], [0.0; TILE_ROWS]);
        for r in 0..TILE_ROWS {
            n[r] = most[r] - i as f32;
        }
        for rows in scales {
            for r in 0..TILE_ROWS {
                let steps = rows[r] * unit[r] * n[r];
                let e = steps - steps.round_ties_even();
                left[r] += e * e;
            }
        }
        for r in 0..TILE_ROWS {
            // In squares of D, which is inverse to n.
            let better = left[r] * (best[r] * best[r]) < least[r] * (n[r] * n[r]) && n[r] > 0.0;
            best[r] = if better { n[r] } else { best[r] };
            least[r] = if better { left[r] } else { least[r] };
        }
    }
    for r in 0..TILE_ROWS {
        top[r] /= best[r];
    }
    top
}

/// `d` rounded up to half floats, which go to `out` too; returns its inverse.
#[inline(always)]
pub(super) fn up_to_half<S: Simd>(s: S, d: &mut Rows, out: &mut [u8]) -> Rows {
    let least = *d;
    to_halves(s, &least, out);
    for (d, half) in d.as_chunks_mut().0.iter_mut().zip(out.as_chunks().0) {
        s.store(s.load_f16(half), d);
    }
    // Up to the next half float: the bits of positive ones are in their order.
    for (half, (d, least)) in out.as_chunks_mut().0.iter_mut().zip(d.iter().zip(&least)) {
        *half = (u16::from_le_bytes(*half) + u16::from(d < least)).to_le_bytes();
    }
    let mut inverse = [0.0; TILE_ROWS];
    for ((d, inverse), half) in
        d.as_chunks_mut().0.iter_mut().zip(inverse.as_chunks_mut::<LANES>().0).zip(out.as_chunks().0)
    {
        s.store(s.load_f16(half), d);
        for (d, inverse) in d.iter().zip(inverse) {
            *inverse = if *d == 0.0 { 0.0 } else { 1.0 / d };
        }
    }
    inverse
}

/// The nearest integer, to even, of numbers within +-256; 0 of others. A cast would look at each for itself.
#[inline(always)]
pub(super) fn rounded(x: f32) -> i32 {
    /// From here on floats are the integers, one by one.
    const INTEGERS: f32 = 12_582_912.0;
    let x = if x.abs() <= 256.0 { x } else { 0.0 };
    (x + INTEGERS).to_bits().cast_signed() - INTEGERS.to_bits().cast_signed()
}

/// 32 numbers as half floats.
#[inline(always)]
fn to_halves<S: Simd>(s: S, x: &Rows, out: &mut [u8]) {
    for (x, out) in x.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        s.store_f16(s.load(x), out);
    }
}

/// The lowest byte of each number, 4 times.
#[inline(always)]
fn four_times(x: &[i32; TILE_ROWS], out: &mut [u8; UNIT_BYTES]) {
    for (out, x) in out.as_chunks_mut().0.iter_mut().zip(x) {
        *out = ((*x as u32 & 255) * 0x0101_0101).to_le_bytes();
    }
}

/// The codes of a group, `[quad][row][4]`, of its `planes`, which may go on behind it, or end before the last block does.
#[inline(always)]
fn fill<S: Simd>(s: S, planes: &[&[[u8; BLOCK_BYTES]]], steps: &Steps, codes: &mut [u8]) {
    let offset = s.codes(&steps.offset);
    for (j, two) in codes.as_chunks_mut::<{ 2 * UNIT_BYTES }>().0.iter_mut().enumerate() {
        let mut sums = [offset; 2];
        for (plane, c) in planes.iter().zip(&steps.c) {
            if let Some(nibbles) = plane.get(j) {
                sums = s.codes_add_where(sums, nibbles, s.codes(c));
            }
        }
        let (two, _) = two.as_chunks_mut();
        s.codes_store(sums[0], &mut two[0]);
        s.codes_store(sums[1], &mut two[1]);
    }
}

// A block of codes is whole pairs of quads.
const _: () = assert!(BLOCK_COLS.is_multiple_of(PAIR_COLS));
