//! Products with a level of signs and magnitudes of rank `k` ([`crate::pack::SignLevel`]): `y += (S o (u v^T)) x`.
//!
//! ```text
//! S (v_i o x) for each i < k are sign sums of k vectors with one and the same plane:
//!
//! build   for each 256 columns g, for each i:   tables of v_i o x                              [`super::table`]
//! look up for each strip of columns whose tables fit into L1: for each tile of 32 rows: for each g in the strip
//!           for each i, 4 of them at a time, since the sums of more would leave the registers
//!             h_i = A_i delta +- what is not in the tables
//!           y = y + u_i h_i
//! ```
//!
//! The tables of a level serve that level alone: `v` differs from one to the next. The plane's bytes are read once for all
//! `k`, but the work is that of `k` planes: rank 1 is as cheap as a plane of [`super::gemv()`], rank 16 is bound by look-ups.
//!
//! # Bounds
//! All 256 activations of a run share a table scale, where those of a plane's tables are at most 64: the way from integers
//! to floats is a quarter of a rank's work otherwise. It costs twice the tables' error, 5e-5 to 7e-5 of the outputs' energy
//! (`docs/speed.md`), when a level leaves a hundred times that. 64 entries within +-127 sum up to 8128: exact in 16 bits.
//! `v x` is rounded to f32 once.
//!
//! # Order of f32 operations (the bit contract)
//! Per row: runs of 256 columns ascending; in a run `i` ascending. Both products are fused multiply-adds. Nothing depends on
//! strips, tiles or threads. `reference::sign_lut` is this order.

use super::gemv::{padded, sums, two_blocks};
use super::table::{PAIR_BYTES, PER_CHUNK, chunk_tables};
use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::pack::p32::{PAIR_COLS, TILE_ROWS};
use crate::pack::{RANKS, SignLevel};
use crate::simd::{BIAS, Kernel, LANES, Simd, blocks, halves, load_tail, prefetch_lines};
use core::ops::Range;

/// Columns whose activations share a table scale, and whose sums are multiplied by `u` together: a run.
pub const RUN_COLS: usize = 256;

/// Blocks of a run.
const RUN_PAIRS: usize = RUN_COLS / PAIR_COLS;

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
    /// Bytes of table entries, `[run][rank][cols / 8][2][16]`: the activations padded to 8.
    pub const fn entries_len(self) -> usize {
        (self.cols.div_ceil(PAIR_COLS) * PAIR_BYTES).saturating_mul(self.rank)
    }
    /// Floats of scales, `[run][rank][3]`: delta, the activation that is not in the tables, and where that is in the run.
    pub const fn scales_len(self) -> usize {
        (self.cols.div_ceil(RUN_COLS) * PER_CHUNK).saturating_mul(self.rank)
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
        let entries = self.entries.chunks_mut(RUN_PAIRS * PAIR_BYTES * rank);
        let scales = self.scales.as_chunks_mut().0.chunks_mut(rank);
        for (g, ((x, entries), scales)) in self.x.chunks(RUN_COLS).zip(entries).zip(scales).enumerate() {
            let entries = entries.chunks_exact_mut(x.len().div_ceil(PAIR_COLS) * PAIR_BYTES);
            for (i, (entries, scales)) in entries.zip(scales).enumerate() {
                let v = &self.w.row_v(i)[2 * (self.from + g * RUN_COLS)..][..2 * x.len()];
                let mut vx = [0.0; RUN_COLS];
                times(s, v, x, &mut vx);
                *scales = chunk_tables::<S, RUN_COLS>(s, &vx[..x.len()], entries);
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
        let Product { w, t, first, ahead, y } = self;
        let rank = B * T;
        let run_bytes = RUN_PAIRS * PAIR_BYTES * rank;
        let runs = (STRIP_BYTES / run_bytes).max(1);
        // Behind a strip of a tile comes that of the next tile.
        let whole = runs * RUN_PAIRS >= w.shape().pairs();
        let ahead = if ahead == 0 || whole { ahead } else { w.shape().tile_bytes() };
        let entries = t.entries.chunks(runs * run_bytes);
        let scales = t.scales.as_chunks().0.chunks(runs * rank);
        for (strip, (entries, scales)) in entries.zip(scales).enumerate() {
            for (tile, y) in (first..).zip(&mut *y) {
                let signs = &w.tile_signs(tile).as_chunks().0[strip * runs * RUN_PAIRS..];
                let tables = entries.chunks(run_bytes).zip(scales.chunks_exact(rank));
                let mut acc = s.rows_load(y);
                for (signs, (entries, scales)) in signs.chunks(RUN_PAIRS).zip(tables) {
                    let run = Run::<B, T> { w, tile, entries, scales, ahead };
                    acc = match signs.as_array::<RUN_PAIRS>() {
                        // With its length spelled out, a whole run is compiled apart.
                        Some(signs) => run.add(s, signs, acc),
                        None => run.add(s, signs, acc),
                    };
                }
                s.rows_store(acc, y);
            }
        }
    }
}

/// One tile and the tables of one run.
struct Run<'a, const B: usize, const T: usize> {
    w: &'a SignLevel<'a>,
    tile: usize,
    /// `[rank][pair]`.
    entries: &'a [u8],
    /// `[rank][delta, apart, at]`.
    scales: &'a [[f32; PER_CHUNK]],
    ahead: usize,
}

impl<const B: usize, const T: usize> Run<'_, B, T> {
    /// Adds all `u_i h_i` to `acc`.
    #[inline(always)]
    fn add<S: Simd>(&self, s: S, signs: &[[u8; 32]], mut acc: S::Rows) -> S::Rows {
        let (all, _) = self.entries.as_chunks::<32>();
        let n = signs.len();
        // Shared by all tables, where that is worth it: from 16 on, and where making them is half of a look-up. The last is
        // of a lone block and zeros, if anything.
        let mut nibbles = [s.nibbles(&[0; 64]); RUN_PAIRS / 2];
        let (twos, lone) = two_blocks(signs);
        let shared = B > 2 || (B > 1 && S::WIDES > 16);
        if shared {
            for (nibbles, two) in nibbles.iter_mut().zip(twos) {
                *nibbles = s.nibbles(two);
            }
            if !n.is_multiple_of(2) {
                nibbles[n / 2] = s.nibbles(&padded(lone));
            }
            if self.ahead > 0 {
                prefetch_lines(s, signs.as_flattened(), self.ahead);
            }
        }
        for b in 0..B {
            let mut entries = [all; T];
            for t in 0..T {
                entries[t] = &all[(b * T + t) * n..][..n];
            }
            let a = match shared {
                true => sums_of(s, entries, &nibbles[..n.div_ceil(2)]),
                false => sums::<S, 1, T>(s, entries, [signs], if b == 0 { self.ahead } else { 0 })[0],
            };
            for t in 0..T {
                let i = b * T + t;
                let [delta, apart, at] = self.scales[i];
                let mut h = s.rows_splat(0.0);
                if apart != 0.0 {
                    let at = at as usize;
                    h = s.rows_add_signed(h, &signs[at / PAIR_COLS], at % PAIR_COLS, apart);
                }
                h = s.rows_fma(s.sums_to_rows(a[t]), s.rows_splat(delta), h);
                acc = s.rows_fma(halves(s, self.w.tile_u(i, self.tile)), h, acc);
            }
        }
        acc
    }
}

/// The integer sums of `T` tables, looked up with nibbles that are ready.
#[inline(always)]
fn sums_of<S: Simd, const T: usize>(s: S, entries: [&[[u8; 32]]; T], nibbles: &[S::Nibbles]) -> [S::Sums; T] {
    let n = entries[0].len();
    let entries = entries.map(two_blocks);
    let mut acc = [s.acc_less(2 * n as u16 * u16::from(BIAS)); T];
    for j in 0..n / 2 {
        for t in 0..T {
            acc[t] = s.accumulate(acc[t], s.tables(&entries[t].0[j]), nibbles[j]);
        }
    }
    if !n.is_multiple_of(2) {
        for t in 0..T {
            acc[t] = s.accumulate(acc[t], s.tables(&padded(entries[t].1)), nibbles[n / 2]);
        }
    }
    let mut out = [s.sums(acc[0]); T];
    for t in 1..T {
        out[t] = s.sums(acc[t]);
    }
    out
}
