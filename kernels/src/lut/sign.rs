//! Products with a level of signs and magnitudes of rank `k` ([`crate::pack::SignLevel`]): `y += (S o (u v^T)) x`.
//!
//! ```text
//! S (v_i o x) for each i < k are sign sums of k vectors with one and the same plane:
//!
//! build   for each 256 columns g, for each i:   tables of v_i o x                              [`super::table`]
//! look up for each strip of columns whose tables fit into L1: for each tile of 32 rows: for each g in the strip
//!           for each i, 4 of them at a time: they share the nibbles of the plane
//!             h_i = 0; for each chunk of 64 columns: h_i = h_i +- what is not in its tables; h_i = h_i + A_i delta
//!           y = y + u_i h_i
//! ```
//!
//! The tables of a level serve that level alone: `v` differs from one to the next. The plane's bytes are read once for all
//! `k`, but the work is that of `k` planes: rank 1 is as cheap as a plane of [`super::gemv()`], rank 16 is bound by look-ups.
//!
//! # Bounds
//! As for [`super::gemv()`]: a chunk is at most 64 activations, so that integer sums are exact in 16 bits. `v x` is rounded
//! to f32 once. The scales of these tables are whole steps, not half ones, since signs are multiplied, not bits.
//!
//! # Order of f32 operations (the bit contract)
//! Per row: runs of 256 columns ascending; in a run `i` ascending, each `h_i` over its chunks ascending, as above. Products
//! are fused multiply-adds. Nothing depends on strips, tiles or threads. `reference::sign_lut` is this order.

use super::gemv::Group;
use super::table::{Build, PER_CHUNK, TableShape};
use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::pack::p32::{PAIR_COLS, TILE_ROWS};
use crate::pack::{RANKS, SignLevel};
use crate::simd::{Kernel, LANES, Simd, blocks, load_tail};
use core::ops::Range;

/// Columns whose sums are multiplied by `u` together: a run.
pub const RUN_COLS: usize = 256;

/// Blocks of a chunk of 64 columns.
const CHUNK_PAIRS: usize = 8;

/// Tables that stay in L1 while all tiles are multiplied with them: 4 bytes of entries for each column and rank.
const STRIP_BYTES: usize = 16 << 10;

/// Sizes of the tables of one activation vector for levels of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignTableShape {
    /// Activations.
    pub cols: usize,
    /// Rank: 1, 2, 4, 8 or 16.
    pub rank: usize,
}

impl SignTableShape {
    /// The tables of one `i` in a whole run.
    const fn run(cols: usize) -> TableShape {
        TableShape { cols, group: RUN_COLS }
    }
    /// Bytes of table entries, `[run][rank][cols / 8][2][16]`: the activations padded to 8.
    pub const fn entries_len(self) -> usize {
        SignTableShape::run(self.cols).entries_len().saturating_mul(self.rank)
    }
    /// Floats of scales, `[run][rank][numbers of a group]`.
    pub const fn scales_len(self) -> usize {
        SignTableShape::run(self.cols).scales_len().saturating_mul(self.rank)
    }

    fn check(self, entries: usize, scales: usize) -> Result<()> {
        let all =
            [("sign table entries", self.entries_len(), entries), ("scales", self.scales_len(), scales)];
        all.into_iter().try_for_each(|(what, expected, found)| same(what, expected, found))
    }
}

fn same(what: &str, expected: usize, found: usize) -> Result<()> {
    match expected == found {
        true => Ok(()),
        false => Err(Error::Length { what: what.into(), expected, found }),
    }
}

/// The tables of one activation vector for one level, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct SignTables<'a> {
    shape: SignTableShape,
    entries: &'a [u8],
    scales: &'a [f32],
}

impl<'a> SignTables<'a> {
    /// A view of buffers that [`build`] filled.
    ///
    /// # Errors
    /// [`Error::Length`] where they do not fit `shape`, [`Error::Shape`] for an unknown rank.
    pub fn new(shape: SignTableShape, entries: &'a [u8], scales: &'a [f32]) -> Result<SignTables<'a>> {
        if !RANKS.contains(&shape.rank) {
            return Err(Error::Shape { what: "rank", found: shape.rank, allowed: crate::pack::RANKS_LIST });
        }
        shape.check(entries.len(), scales.len())?;
        Ok(SignTables { shape, entries, scales })
    }
}

/// Builds the tables of `x`, the activations of `w`'s columns `from ..`, for the level `w`. Where these are not all columns
/// `from` and, but for the last part, `x.len()` are multiples of [`RUN_COLS`], and the buffers are the matching parts:
/// those of [`SignTableShape`] with `cols: x.len()`.
///
/// # Errors
/// [`Error::Length`] where the buffers do not fit, [`Error::Shape`] for columns that `w` does not have or that begin within
/// a run.
pub fn build(
    isa: Isa,
    w: &SignLevel<'_>,
    from: usize,
    x: &[f32],
    entries: &mut [u8],
    scales: &mut [f32],
) -> Result<()> {
    let cols = w.shape().cols;
    if !from.is_multiple_of(RUN_COLS) || from > cols || x.len() > cols - from {
        return Err(Error::Shape {
            what: "first column",
            found: from,
            allowed: "a run's, within the matrix",
        });
    }
    if !x.len().is_multiple_of(RUN_COLS) && from + x.len() != cols {
        return Err(Error::Shape {
            what: "activations",
            found: x.len(),
            allowed: "whole runs, or all that are left",
        });
    }
    SignTableShape { cols: x.len(), rank: w.rank() }.check(entries.len(), scales.len())?;
    isa.run(BuildSigns { w, from, x, entries, scales });
    Ok(())
}

struct BuildSigns<'a> {
    w: &'a SignLevel<'a>,
    from: usize,
    x: &'a [f32],
    entries: &'a mut [u8],
    scales: &'a mut [f32],
}

impl Kernel for BuildSigns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rank = self.w.rank();
        let run = SignTableShape::run(RUN_COLS);
        let entries = self.entries.chunks_mut(run.entries_len() * rank);
        let scales = self.scales.chunks_mut(run.scales_len() * rank);
        for (g, ((x, entries), scales)) in self.x.chunks(RUN_COLS).zip(entries).zip(scales).enumerate() {
            let shape = SignTableShape::run(x.len());
            let entries = entries.chunks_exact_mut(shape.entries_len());
            let scales = scales.chunks_exact_mut(shape.scales_len());
            for (i, (entries, scales)) in entries.zip(scales).enumerate() {
                let v = &self.w.row_v(i)[2 * (self.from + g * RUN_COLS)..][..2 * x.len()];
                let mut vx = [0.0; RUN_COLS];
                times(s, v, x, &mut vx);
                Build { shape, x: &vx[..x.len()], entries, scales: &mut *scales }.run(s);
                for numbers in scales[1..].as_chunks_mut::<PER_CHUNK>().0 {
                    numbers[0] *= 2.0;
                    numbers[1] *= 2.0;
                }
            }
        }
    }
}

/// `v o x`, of half floats and floats.
#[inline(always)]
fn times<S: Simd>(s: S, v: &[u8], x: &[f32], out: &mut [f32; RUN_COLS]) {
    let ((whole, tail), (v, v_tail)) = (blocks(x), v.as_chunks::<{ 2 * LANES }>());
    let (out, _) = out.as_chunks_mut::<LANES>();
    for ((x, v), out) in whole.iter().zip(v).zip(&mut *out) {
        s.store(s.mul(s.load_f16(v), s.load(x)), out);
    }
    if !tail.is_empty() {
        let mut v = [0; 2 * LANES];
        v[..v_tail.len()].copy_from_slice(v_tail);
        s.store(s.mul(s.load_f16(&v), load_tail(s, tail, 0.0)), &mut out[whole.len()]);
    }
}

/// Adds the products of the level `w` with the activations behind `t` to `y`, for the rows of some tiles.
///
/// `tiles` counts tiles of 32 rows; `y` is `[tile][32 rows]`; what is added to rows that the matrix does not have means
/// nothing. The tables must have been built for `w`. `ahead` is how many bytes ahead of their use signs are asked for; 0
/// where the tiles come from a cache. It has no influence on the result.
///
/// # Errors
/// [`Error::Length`] where tables or `y` do not fit, [`Error::Shape`] for tiles outside of the matrix.
pub fn sign_lut(
    isa: Isa,
    w: &SignLevel<'_>,
    t: &SignTables<'_>,
    tiles: Range<usize>,
    ahead: usize,
    y: &mut [[f32; TILE_ROWS]],
) -> Result<()> {
    if tiles.start > tiles.end || tiles.end > w.shape().tiles() {
        return Err(Error::Shape { what: "tile", found: tiles.end, allowed: "within the matrix" });
    }
    same("activations behind the tables", w.shape().cols, t.shape.cols)?;
    same("ranks behind the tables", w.rank(), t.shape.rank)?;
    same("products", tiles.len(), y.len())?;
    let first = tiles.start;
    match w.rank() {
        1 => isa.run(Product::<1, 1> { w, t, first, ahead, y }),
        2 => isa.run(Product::<1, 2> { w, t, first, ahead, y }),
        4 => isa.run(Product::<1, 4> { w, t, first, ahead, y }),
        8 => isa.run(Product::<2, 4> { w, t, first, ahead, y }),
        _ => isa.run(Product::<4, 4> { w, t, first, ahead, y }),
    }
    Ok(())
}

/// A level of rank `B T`: `T` tables are looked up together, as many as leave their sums in the registers.
struct Product<'a, const B: usize, const T: usize> {
    w: &'a SignLevel<'a>,
    t: &'a SignTables<'a>,
    first: usize,
    ahead: usize,
    y: &'a mut [[f32; TILE_ROWS]],
}

impl<const B: usize, const T: usize> Kernel for Product<'_, B, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (run, rank) = (SignTableShape::run(RUN_COLS), B * T);
        let runs = (STRIP_BYTES / (run.entries_len() * rank)).max(1);
        let pairs = runs * RUN_COLS / PAIR_COLS;
        // Behind a strip of a tile comes that of the next tile.
        let row = self.w.shape().pairs();
        let ahead = if self.ahead > 0 && pairs < row { self.w.shape().tile_bytes() } else { self.ahead };
        let entries = self.t.entries.chunks(runs * run.entries_len() * rank);
        let scales = self.t.scales.chunks(runs * run.scales_len() * rank);
        for (i, (entries, scales)) in entries.zip(scales).enumerate() {
            for (j, y) in self.y.iter_mut().enumerate() {
                let tile = self.first + j;
                let signs = &self.w.tile_signs(tile).as_chunks().0[i * pairs..];
                let signs = &signs[..pairs.min(signs.len())];
                let mut acc = s.rows_load(y);
                let entries = entries.chunks(run.entries_len() * rank);
                let scales = scales.chunks_exact(run.scales_len() * rank);
                for ((signs, entries), scales) in signs.chunks(RUN_COLS / PAIR_COLS).zip(entries).zip(scales)
                {
                    for b in 0..B {
                        let h = sums::<S, T>(s, signs, entries, scales, b, if b == 0 { ahead } else { 0 });
                        for t in 0..T {
                            let u = s.rows_load_f16(&self.w.tile_u(b * T + t, tile));
                            acc = s.rows_fma(u, h[t], acc);
                        }
                    }
                }
                s.rows_store(acc, y);
            }
        }
    }
}

/// `h_i` of a run for the `T` numbers `i` from `b T` on.
#[inline(always)]
fn sums<S: Simd, const T: usize>(
    s: S,
    signs: &[[u8; 32]],
    entries: &[u8],
    scales: &[f32],
    b: usize,
    ahead: usize,
) -> [S::Rows; T] {
    let per_run = SignTableShape::run(RUN_COLS).scales_len();
    let (entries, _) = entries.as_chunks::<32>();
    let mut group = Group::<1, T> { entries: [&[]; T], numbers: [&[]; T], planes: [signs], ahead };
    for t in 0..T {
        let i = b * T + t;
        group.entries[t] = &entries[i * signs.len()..][..signs.len()];
        group.numbers[t] = &scales[i * per_run..][..per_run];
    }
    let zero = [[s.rows_splat(0.0); T]];
    let [h] = match signs.len() == RUN_COLS / PAIR_COLS {
        true => group.whole::<S, CHUNK_PAIRS>(s, zero),
        false => group.any(s, CHUNK_PAIRS, zero),
    };
    h
}
