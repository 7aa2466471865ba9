//! One level of a matrix as BitStack takes it apart (arXiv 2410.23918): signs, and magnitudes of low rank.
//!
//! ```text
//! w[r][c] = sum over levels, ascending, of  s[r][c] m[r][c]          s is 1 where the level's bit is set, else -1
//! m[r][c] = sum over i < rank, ascending, of  u[i][r] v[i][c]
//! ```
//!
//! in f32. A product of two half floats is exact there, so that a fused multiply-add gives the same bits. The signs are a
//! plane in layout [`p32`]; `u` and `v` are f16, `[rank][rows]` and `[rank][cols]`. The scale of each input that the
//! signs were chosen under is part of `v`.

use super::p32::{self, PAIR_COLS, PlaneShape, TILE_ROWS};
use crate::error::{Error, Result};
use half::f16;

/// Ranks of magnitudes that kernels know.
pub const RANKS: [usize; 5] = [1, 2, 4, 8, 16];

/// [`RANKS`], for messages.
pub(crate) const RANKS_LIST: &str = "1, 2, 4, 8 or 16";

/// Levels of a matrix at most.
pub const MAX_LEVELS: usize = 32;

/// One level, borrowed from wherever it lies. All lengths were checked when it was made, so kernels need not.
#[derive(Clone, Copy, Debug)]
pub struct SignLevel<'a> {
    shape: PlaneShape,
    rank: usize,
    signs: &'a [u8],
    u: &'a [u8],
    v: &'a [u8],
}

impl<'a> SignLevel<'a> {
    /// Checks that the buffers fit the shape: `signs` is a plane in layout P32, `u` f16 `[rank][rows]`, `v` f16
    /// `[rank][cols]`. No alignment is asked for.
    ///
    /// # Errors
    /// [`Error::Shape`] for a rank or size that no kernel knows, [`Error::Length`] for a buffer of another size than the
    /// shape's.
    pub fn new(
        shape: PlaneShape,
        rank: usize,
        signs: &'a [u8],
        u: &'a [u8],
        v: &'a [u8],
    ) -> Result<SignLevel<'a>> {
        if !RANKS.contains(&rank) {
            return Err(Error::Shape { what: "rank", found: rank, allowed: RANKS_LIST });
        }
        let halves = |n: usize| n.checked_mul(2 * rank);
        for (what, expected, found) in [
            ("plane of signs", shape.plane_bytes(), signs.len()),
            ("u", halves(shape.rows), u.len()),
            ("v", halves(shape.cols), v.len()),
        ] {
            let Some(expected) = expected else {
                return Err(Error::Shape { what, found: usize::MAX, allowed: "less than the address space" });
            };
            if expected != found {
                return Err(Error::Length { what: what.into(), expected, found });
            }
        }
        Ok(SignLevel { shape, rank, signs, u, v })
    }

    /// Rows and columns.
    pub fn shape(&self) -> PlaneShape {
        self.shape
    }
    /// Rank of the magnitudes.
    pub fn rank(&self) -> usize {
        self.rank
    }
    /// Bytes that a matrix-vector product reads.
    pub fn bytes(&self) -> usize {
        self.signs.len() + self.u.len() + self.v.len()
    }
    /// `u[i][row]`, exactly widened.
    pub fn u(&self, i: usize, row: usize) -> f32 {
        half(self.u, i * self.shape.rows + row)
    }
    /// `v[i][col]`, exactly widened.
    pub fn v(&self, i: usize, col: usize) -> f32 {
        half(self.v, i * self.shape.cols + col)
    }
    /// 1 or -1.
    pub fn sign(&self, row: usize, col: usize) -> f32 {
        let mut bit = [0; PAIR_COLS];
        let from = col / PAIR_COLS * PAIR_COLS;
        p32::unpack_row(&[self.tile_signs(row / TILE_ROWS)], row % TILE_ROWS, from, &mut bit);
        if bit[col % PAIR_COLS] == 1 { 1.0 } else { -1.0 }
    }

    /// Adds what the level says of row `row` to `out`, which has `cols` weights: levels that are added to zeros one after
    /// the other give the weights. The meaning of the format.
    ///
    /// # Errors
    /// [`Error::Shape`] for a row outside of the matrix, [`Error::Length`] for a wrong `out`.
    pub fn add_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        let PlaneShape { rows, cols } = self.shape;
        if row >= rows {
            return Err(Error::Shape { what: "row", found: row, allowed: "below the matrix' rows" });
        }
        if out.len() != cols {
            return Err(Error::Length { what: "output row".into(), expected: cols, found: out.len() });
        }
        for (c, w) in out.iter_mut().enumerate() {
            let m = (0..self.rank).fold(0.0, |m, i| m + self.u(i, row) * self.v(i, c));
            *w += self.sign(row, c) * m;
        }
        Ok(())
    }

    /// The signs of one tile.
    #[inline(always)]
    pub(crate) fn tile_signs(&self, tile: usize) -> &'a [u8] {
        let bytes = self.shape.tile_bytes();
        &self.signs[tile * bytes..(tile + 1) * bytes]
    }

    /// `u[i]` of one tile's rows as f16, of less than 32 in a short tile.
    #[inline(always)]
    pub(crate) fn tile_u(&self, i: usize, tile: usize) -> &'a [u8] {
        let from = tile * TILE_ROWS;
        let rows = (self.shape.rows - from).min(TILE_ROWS);
        &self.u[2 * (i * self.shape.rows + from)..][..2 * rows]
    }

    /// `v[i]` as f16, `[cols]`.
    #[inline(always)]
    pub(crate) fn row_v(&self, i: usize) -> &'a [u8] {
        let bytes = 2 * self.shape.cols;
        &self.v[i * bytes..(i + 1) * bytes]
    }
}

/// All levels of a matrix in their order, of one shape and one rank.
#[derive(Clone, Copy, Debug)]
pub struct SignLevels<'a> {
    /// The first `count` of them; behind these the first again.
    all: [SignLevel<'a>; MAX_LEVELS],
    count: usize,
}

impl<'a> SignLevels<'a> {
    /// Checks each level's signs, `u` and `v`, as [`SignLevel::new`] does. Allocates nothing.
    ///
    /// # Errors
    /// As [`SignLevel::new`]; [`Error::Shape`] for no levels, or more than [`MAX_LEVELS`].
    pub fn new(
        shape: PlaneShape,
        rank: usize,
        levels: impl IntoIterator<Item = [&'a [u8]; 3]>,
    ) -> Result<SignLevels<'a>> {
        let wrong = |found| Error::Shape { what: "number of levels", found, allowed: "1 to 32" };
        let mut levels = levels.into_iter().map(|[signs, u, v]| SignLevel::new(shape, rank, signs, u, v));
        let first = levels.next().ok_or(wrong(0))??;
        let (mut all, mut count) = ([first; MAX_LEVELS], 1);
        for level in levels {
            *all.get_mut(count).ok_or(wrong(count + 1))? = level?;
            count += 1;
        }
        Ok(SignLevels { all, count })
    }

    /// The levels.
    pub fn as_slice(&self) -> &[SignLevel<'a>] {
        &self.all[..self.count]
    }

    /// Writes the weights of row `row` to `out`, which has as many as the matrix has columns.
    ///
    /// # Errors
    /// As [`SignLevel::add_row`].
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        out.fill(0.0);
        self.as_slice().iter().try_for_each(|level| level.add_row(row, out))
    }
}

fn half(bytes: &[u8], i: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32()
}
