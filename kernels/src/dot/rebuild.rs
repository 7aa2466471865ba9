//! Levels of signs as whole codes: what the products of a prompt are made of.
//!
//! The work of look-ups grows with levels times rank and with tokens; once they are weights again, a tile of 32 rows is multiplied
//! with many tokens at the price of any matrix of bytes. Per row and group of 32 columns:
//!
//! ```text
//! w = sum over levels, ascending, of s m          m = sum over i, ascending, of u_i v_i          [`crate::pack::SignLevel`]
//! d = max |w| / 127, rounded up to f16
//! code = 128 + round(w (1 / d))                   to nearest even
//! ```
//!
//! # Bounds
//! `|w| (1 / d)` is 127 and some rounding at most: codes lie in 1..=255, and a weight is off by `d / 2` at most. Padded columns
//! have codes of 0.
//!
//! # Order of f32 operations (the bit contract)
//! As above; products are fused multiply-adds. `reference::rebuild` is this order, one weight at a time.

use super::expand::{Rows, rounded, up_to_half};
use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::pack::c32::{self, BLOCK_COLS, UNIT_BYTES};
use crate::pack::p32::{PAIR_COLS, TILE_ROWS};
use crate::pack::{Packed, ParamKind, PlaneShape, RANKS, SignLevel};
use crate::simd::{Kernel, LANES, Simd, WIDE, halves};
use core::ops::Range;

/// Bits of a code.
const BITS: usize = 8;

/// The code that stands for 0.
const CENTER: u8 = 128;

/// The largest rank.
const RANK: usize = RANKS[RANKS.len() - 1];

/// Columns whose sums stay in registers together.
const TOGETHER: usize = 2;

/// Whether prompts' levels of this rank are better rebuilt than looked up: four levels of rank 16 from 11 to 15 tokens on, of
/// rank 1 from 75 on or never (`docs/speed.md`).
pub const fn pays(rank: usize) -> bool {
    rank >= 4
}

/// Bytes of `tiles` tiles of `cols` columns, as [`rebuild`] makes them; saturating.
pub const fn rebuilt_bytes(tiles: usize, cols: usize) -> usize {
    tiles.saturating_mul(code_bytes(cols).saturating_add(scale_bytes(cols)))
}

/// Bytes of a tile's codes.
const fn code_bytes(cols: usize) -> usize {
    c32::tile_bytes(PlaneShape { rows: TILE_ROWS, cols }, BITS)
}

/// Bytes of a tile's scales.
const fn scale_bytes(cols: usize) -> usize {
    2 * TILE_ROWS * cols.div_ceil(BLOCK_COLS)
}

/// Some tiles of the sum of `levels`, as a matrix of codes of 8 bits around 128 ([`ParamKind::Centered`]), groups of 32, in
/// `out`, which has [`rebuilt_bytes`] at least. Rows that the matrix does not have are zeros.
///
/// A weight beyond 127 times the range of f16 makes its group's weights NaN.
///
/// # Errors
/// [`Error::Length`] where `out` is too short, [`Error::Shape`] for no levels, levels of several shapes, or tiles outside of
/// the matrix.
pub fn rebuild<'a>(
    isa: Isa,
    levels: &[SignLevel<'_>],
    tiles: Range<usize>,
    out: &'a mut [u8],
) -> Result<Packed<'a>> {
    let Some(shape) = levels.first().map(SignLevel::shape) else {
        return Err(Error::Shape { what: "number of levels", found: 0, allowed: "1 or more" });
    };
    if let Some(other) = levels.iter().position(|level| level.shape() != shape) {
        return Err(Error::Shape {
            what: "level of another shape",
            found: other,
            allowed: "that of the first",
        });
    }
    if tiles.start > tiles.end || tiles.end > shape.tiles() {
        return Err(Error::Shape { what: "tile", found: tiles.end, allowed: "within the matrix" });
    }
    let (expected, found) = (rebuilt_bytes(tiles.len(), shape.cols), out.len());
    let Some(out) = out.get_mut(..expected) else {
        return Err(Error::Length { what: "room for codes".into(), expected, found });
    };
    let (codes, scales) = out.split_at_mut(tiles.len() * code_bytes(shape.cols));
    isa.run(Rebuild { levels, first: tiles.start, cols: shape.cols, codes, scales });
    let shape = PlaneShape { rows: tiles.len() * TILE_ROWS, cols: shape.cols };
    Packed::new(shape, BLOCK_COLS, ParamKind::Centered(CENTER), BITS, &[codes], scales, &[])
}

struct Rebuild<'a> {
    levels: &'a [SignLevel<'a>],
    first: usize,
    cols: usize,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
}

impl Kernel for Rebuild<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Rebuild { levels, first, cols, codes, scales } = self;
        let tiles = codes.chunks_exact_mut(code_bytes(cols).max(1));
        let tiles = tiles.zip(scales.chunks_exact_mut(scale_bytes(cols).max(1)));
        for (tile, (codes, scales)) in (first..).zip(tiles) {
            let blocks = codes.as_chunks_mut::<{ BLOCK_COLS * TILE_ROWS }>().0.iter_mut();
            let blocks = blocks.zip(scales.as_chunks_mut::<{ 2 * TILE_ROWS }>().0);
            for (block, (codes, scale)) in blocks.enumerate() {
                let from = block * BLOCK_COLS;
                let n = (cols - from).min(BLOCK_COLS);
                let mut w = [[0.0; TILE_ROWS]; BLOCK_COLS];
                for level in levels {
                    add(s, level, tile, from, &mut w[..n.next_multiple_of(TOGETHER)]);
                }
                let mut d = largest(s, &w);
                d.iter_mut().for_each(|d| *d /= 127.0);
                let inverse = up_to_half(s, &mut d, scale);
                for (q, (w, codes)) in
                    w.as_chunks::<4>().0.iter().zip(codes.as_chunks_mut::<UNIT_BYTES>().0).enumerate()
                {
                    fill(w, &inverse, n.saturating_sub(4 * q), codes);
                }
            }
        }
    }
}

/// Adds a level's weights of columns `from ..` to `w`, `[column][row]`.
#[inline(always)]
fn add<S: Simd>(s: S, level: &SignLevel<'_>, tile: usize, from: usize, w: &mut [Rows]) {
    let rank = level.rank();
    let (mut u, mut v) = ([[0.0; TILE_ROWS]; RANK], [[0.0; BLOCK_COLS]; RANK]);
    for i in 0..rank {
        s.rows_store(halves(s, level.tile_u(i, tile)), &mut u[i]);
        let row = &level.row_v(i)[2 * from..];
        s.rows_store(halves(s, &row[..row.len().min(2 * BLOCK_COLS)]), &mut v[i]);
    }
    let signs = &level.tile_signs(tile).as_chunks::<32>().0[from / PAIR_COLS..];
    for (j, w) in w.as_chunks_mut::<TOGETHER>().0.iter_mut().enumerate() {
        let at = j * TOGETHER;
        let mut m = [s.rows_splat(0.0); TOGETHER];
        for (u, v) in u[..rank].iter().zip(&v) {
            let u = s.rows_load(u);
            for c in 0..TOGETHER {
                m[c] = s.rows_fma(u, s.rows_splat(v[at + c]), m[c]);
            }
        }
        for c in 0..TOGETHER {
            let (block, bit) = ((at + c) / PAIR_COLS, (at + c) % PAIR_COLS);
            let sign = s.rows_add_signed(s.rows_splat(0.0), &signs[block], bit, 1.0);
            s.rows_store(s.rows_fma(sign, m[c], s.rows_load(&w[c])), &mut w[c]);
        }
    }
}

/// Each row's largest magnitude.
#[inline(always)]
fn largest<S: Simd>(s: S, w: &[Rows; BLOCK_COLS]) -> Rows {
    let mut most = [0.0; TILE_ROWS];
    for (half, most) in most.as_chunks_mut::<WIDE>().0.iter_mut().enumerate() {
        let mut m = s.wide_splat(0.0);
        for w in w {
            let w = s.wide_load(&w.as_chunks::<WIDE>().0[half]);
            m = s.wide_max(s.wide_max(w, s.wide_sub(s.wide_splat(0.0), w)), m);
        }
        s.wide_store(m, most);
    }
    most
}

/// The codes of 4 columns, of which the first `n` are there, `[row][4]`.
#[inline(always)]
fn fill(w: &[Rows; 4], inverse: &Rows, n: usize, codes: &mut [u8; UNIT_BYTES]) {
    let mut center = [0; 4];
    center[..n.min(4)].fill(i32::from(CENTER));
    let mut four = [0; TILE_ROWS];
    for c in 0..4 {
        for r in 0..TILE_ROWS {
            four[r] |= (rounded(w[c][r] * inverse[r]) + center[c]) << (8 * c);
        }
    }
    for (codes, four) in codes.as_chunks_mut().0.iter_mut().zip(four) {
        *codes = four.to_le_bytes();
    }
}

// Two halves of lanes make rows; what `halves` fills up to are a block's columns.
const _: () = assert!(TILE_ROWS == 4 * LANES && BLOCK_COLS == TILE_ROWS);
