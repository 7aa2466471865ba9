//! GEMV: one activation vector's tables against a packed matrix.
//!
//! ```text
//! for each tile of 32 rows
//!   acc = 0                                                      32 floats
//!   for each group
//!     for each chunk of the group (one table scale each)
//!       for each 8 columns: load two tables; for each plane: load 32 bytes, look 64 entries up, add
//!       integer sums, exact in i16, to f32 once: t_p = t_p + A_p delta/2        t_p starts at X/2
//!     acc = acc + s_p t_p   for each plane
//!     acc = acc + z X
//! ```
//!
//! The uniform kinds are multiplied by integer products instead: [`crate::dot`].
//!
//! # Bounds
//! A chunk is at most 64 activations, 16 look-ups of entries within +-127 per plane: `|A_p| <= 2032`. Up to 257
//! biased entries of at most 255 fit the 16-bit accumulators.
//!
//! # Order of f32 operations (the bit contract)
//! Per row: groups ascending; in a group planes ascending, each `t_p` over its chunks ascending, then
//! `z X`. All are fused multiply-adds. Nothing depends on tiles, threads or tokens. `reference::gemv_lut` is this
//! order, one row at a time.

use super::table::Tables;
use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::pack::p32::TILE_ROWS;
use crate::pack::{MAX_PLANES, Packed, ParamKind};
use crate::simd::{BIAS, Kernel, Simd, prefetch_lines};
use core::ops::Range;

/// How far ahead of its use each plane is asked for. A tile is walked in step through as many streams as
/// there are planes, which hardware prefetchers follow only half-heartedly.
const PREFETCH_BYTES: usize = 4096;

/// The same for parameters, of which there are fewer.
const PREFETCH_PARAMS: usize = 1024;

/// `y = W x` for the rows of some tiles; `w` is of an HLQ kind.
///
/// `tiles` counts tiles of 32 rows; `y` has the rows of those tiles that the matrix has, and is
/// overwritten. The tables must have been built for `w`'s columns and group. `first_use` says that these
/// tiles probably come from memory, not from a cache: a hint, without influence on the result.
///
/// # Errors
/// [`Error::Length`] where tables or `y` do not fit, [`Error::Shape`] for tiles outside of the matrix.
pub fn gemv(
    isa: Isa,
    w: &Packed<'_>,
    t: &Tables<'_>,
    tiles: Range<usize>,
    first_use: bool,
    y: &mut [f32],
) -> Result<()> {
    let shape = w.shape();
    if tiles.start > tiles.end || tiles.end > shape.tiles() {
        return Err(Error::Shape { what: "tile", found: tiles.end, allowed: "within the matrix" });
    }
    if w.kind().is_uniform() {
        return Err(Error::Shape { what: "kind", found: w.planes(), allowed: "hlq16 or hlq8" });
    }
    for (what, expected, found) in [
        ("activations behind the tables", shape.cols, t.shape().cols),
        ("group of the tables", w.group(), t.shape().group),
        ("y", shape.rows.min(tiles.end * TILE_ROWS).saturating_sub(tiles.start * TILE_ROWS), y.len()),
    ] {
        if expected != found {
            return Err(Error::Length { what: what.into(), expected, found });
        }
    }
    let g = Gemv { w, t, first: tiles.start, first_use, y };
    match w.kind() {
        ParamKind::Hlq8 => g.run::<true>(isa),
        _ => g.run::<false>(isa),
    }
    Ok(())
}

struct Gemv<'a> {
    w: &'a Packed<'a>,
    t: &'a Tables<'a>,
    first: usize,
    first_use: bool,
    y: &'a mut [f32],
}

impl Gemv<'_> {
    /// Planes are split into a pass of up to 4 and a second one: 4 planes' accumulators, two tables and
    /// a mask are what 16 vector registers hold. 5 planes are 3 + 2, so that the top two share a pass.
    fn run<const INT8: bool>(self, isa: Isa) {
        match self.w.planes() {
            1 => isa.run(Passes::<INT8, 1, 0>(self)),
            2 => isa.run(Passes::<INT8, 2, 0>(self)),
            3 => isa.run(Passes::<INT8, 3, 0>(self)),
            4 => isa.run(Passes::<INT8, 4, 0>(self)),
            5 => isa.run(Passes::<INT8, 3, 2>(self)),
            6 => isa.run(Passes::<INT8, 4, 2>(self)),
            7 => isa.run(Passes::<INT8, 4, 3>(self)),
            _ => isa.run(Passes::<INT8, 4, 4>(self)),
        }
    }
}

/// One kind and number of planes, `LO` in a first pass and `HI` in a second: a function of its own for each, since one
/// for all took minutes to compile.
struct Passes<'a, const INT8: bool, const LO: usize, const HI: usize>(Gemv<'a>);

impl<const INT8: bool, const LO: usize, const HI: usize> Kernel for Passes<'_, INT8, LO, HI> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let g = self.0;
        for (i, y) in g.y.chunks_mut(TILE_ROWS).enumerate() {
            let acc = tile::<S, INT8, LO, HI>(s, &Tile::new(g.w, g.t, g.first + i, g.first_use));
            let mut out = [0.0; TILE_ROWS];
            s.rows_store(acc, &mut out);
            y.copy_from_slice(&out[..y.len()]);
        }
    }
}

/// What one tile of 32 rows is made of.
struct Tile<'a> {
    /// Each plane's blocks of this tile, `[cols / 8]`.
    planes: [&'a [[u8; 32]]; MAX_PLANES],
    /// The tile's parameters as bytes, `[group][coefficient][32]`.
    params: &'a [u8],
    /// The tile's scales as bytes, `[coefficient][32]` f16.
    row_scales: &'a [u8],
    /// Bytes of one group's parameters.
    group_params: usize,
    /// Table pairs, `[cols / 8]`.
    entries: &'a [[u8; 32]],
    /// `cols / 8`.
    pairs: usize,
    /// `[group][X, half deltas]`.
    scales: &'a [f32],
    per_group: usize,
    /// Table pairs of one whole group, and of one whole chunk.
    group_pairs: usize,
    chunk_pairs: usize,
    /// Whether to prefetch.
    first_use: bool,
}

impl<'a> Tile<'a> {
    #[inline(always)]
    fn new(w: &Packed<'a>, t: &Tables<'a>, tile: usize, first_use: bool) -> Tile<'a> {
        let shape = w.shape();
        let mut planes: [&[[u8; 32]]; MAX_PLANES] = [&[]; MAX_PLANES];
        let bytes = shape.tile_bytes();
        for (p, plane) in planes.iter_mut().zip(w.parts()) {
            *p = plane[tile * bytes..(tile + 1) * bytes].as_chunks().0;
        }
        let count = w.kind().coefficients(w.planes());
        let group_params = count * w.kind().coefficient_bytes() * TILE_ROWS;
        let tile_params = group_params * shape.groups(w.group());
        let scales = w.kind().scale_blocks(shape.cols) * count * TILE_ROWS * 2;
        Tile {
            planes,
            params: &w.params()[tile * tile_params..(tile + 1) * tile_params],
            row_scales: &w.row_scales()[tile * scales..(tile + 1) * scales],
            group_params,
            entries: t.entries().as_chunks().0,
            pairs: shape.pairs(),
            scales: t.scales(),
            per_group: t.shape().scales_per_group(),
            group_pairs: w.group() / 8,
            chunk_pairs: t.shape().chunk() / 8,
            first_use,
        }
    }
}

/// One chunk's exact integer sums for `Q` planes, the first of them plane `from`.
#[inline(always)]
fn sums<S: Simd, const Q: usize>(s: S, tile: &Tile<'_>, from: usize, pairs: Range<usize>) -> [S::Sums; Q] {
    // With their length spelled out, whole chunks are compiled apart: without a loop, and without a check in it.
    match pairs.len() {
        8 => sums_of(s, tile, from, pairs.start, 8),
        4 => sums_of(s, tile, from, pairs.start, 4),
        n => sums_of(s, tile, from, pairs.start, n),
    }
}

/// As [`sums`] of `n` pairs from `start` on.
#[inline(always)]
fn sums_of<S: Simd, const Q: usize>(
    s: S,
    tile: &Tile<'_>,
    from: usize,
    start: usize,
    n: usize,
) -> [S::Sums; Q] {
    let entries = two_blocks(&tile.entries[start..][..n]);
    let mut planes = [two_blocks(&[]); Q];
    for p in 0..Q {
        planes[p] = two_blocks(&tile.planes[from + p][start..][..n]);
        if tile.first_use {
            prefetch_lines(s, planes[p].0.as_flattened(), PREFETCH_BYTES);
        }
    }
    let bias = 2 * n as u16 * u16::from(BIAS);
    let mut acc = [s.acc_less(bias); Q];
    for (j, e) in entries.0.iter().enumerate() {
        let t = s.tables(e);
        for p in 0..Q {
            acc[p] = s.accumulate(acc[p], t, &planes[p].0[j]);
        }
    }
    if !entries.1.is_empty() {
        let t = s.tables(&padded(entries.1));
        for p in 0..Q {
            acc[p] = s.accumulate(acc[p], t, &padded(planes[p].1));
        }
    }
    let mut out = [s.sums(s.acc_less(0)); Q];
    for p in 0..Q {
        out[p] = s.sums(acc[p]);
    }
    out
}

/// Blocks by twos, and a last one where their number is odd.
#[inline(always)]
fn two_blocks(blocks: &[[u8; 32]]) -> (&[[u8; 64]], &[u8]) {
    blocks.as_flattened().as_chunks()
}

/// A block and zeros: tables of zeros add nothing, whatever is looked up in them.
#[inline(always)]
fn padded(block: &[u8]) -> [u8; 64] {
    let mut two = [0; 64];
    two[..block.len()].copy_from_slice(block);
    two
}

/// The chunks of group `g`: pairs of tables, and half the chunk's scale.
#[inline(always)]
fn chunks<'t>(tile: &Tile<'t>, g: usize) -> impl Iterator<Item = (Range<usize>, f32)> + use<'t> {
    let start = g * tile.group_pairs;
    let end = (start + tile.group_pairs).min(tile.pairs);
    let step = tile.chunk_pairs;
    let halves = &tile.scales[g * tile.per_group + 1..(g + 1) * tile.per_group];
    halves.iter().enumerate().map(move |(c, half)| {
        let from = (start + c * step).min(end);
        (from..(from + step).min(end), *half)
    })
}

/// The f16 parameter `k` of a tile's rows.
#[inline(always)]
fn halves<S: Simd>(s: S, params: &[u8], k: usize) -> S::Rows {
    s.rows_load_f16(&params.as_chunks().0[k])
}

/// The int8 parameter `k` of a tile's rows times its scale. The product of an int8 and a half is exact in f32.
#[inline(always)]
fn scaled<S: Simd>(s: S, params: &[u8], k: usize, scale: S::Rows) -> S::Rows {
    s.rows_mul(s.rows_load_i8(&params.as_chunks().0[k]), scale)
}

/// The products of one tile.
#[inline(always)]
fn tile<S: Simd, const INT8: bool, const LO: usize, const HI: usize>(s: S, tile: &Tile<'_>) -> S::Rows {
    let mut row_scales = [s.rows_splat(1.0); MAX_PLANES + 1];
    for (k, b) in tile.row_scales.as_chunks().0.iter().enumerate() {
        row_scales[k] = s.rows_load_f16(b);
    }
    let mut acc = s.rows_splat(0.0);
    for (g, params) in tile.params.chunks_exact(tile.group_params).enumerate() {
        let x = tile.scales[g * tile.per_group];
        if tile.first_use {
            prefetch_lines(s, params, PREFETCH_PARAMS);
        }
        let c = Coefficients::<'_, S, INT8> { s, params, row_scales: &row_scales };
        hlq_pass::<S, LO, INT8>(s, tile, g, 0, &c, &mut acc);
        match HI {
            0 => {}
            2 => hlq_pass::<S, 2, INT8>(s, tile, g, LO, &c, &mut acc),
            3 => hlq_pass::<S, 3, INT8>(s, tile, g, LO, &c, &mut acc),
            _ => hlq_pass::<S, 4, INT8>(s, tile, g, LO, &c, &mut acc),
        }
        acc = s.rows_fma(c.get(LO + HI), s.rows_splat(x), acc);
    }
    acc
}

/// Adds planes `from .. from + Q` of one group to `acc`.
#[inline(always)]
fn hlq_pass<S: Simd, const Q: usize, const INT8: bool>(
    s: S,
    tile: &Tile<'_>,
    g: usize,
    from: usize,
    c: &Coefficients<'_, S, INT8>,
    acc: &mut S::Rows,
) {
    let x = tile.scales[g * tile.per_group];
    let mut t = [s.rows_splat(0.5 * x); Q];
    for (pairs, half) in chunks(tile, g) {
        let a = sums::<S, Q>(s, tile, from, pairs);
        for p in 0..Q {
            t[p] = s.rows_fma(s.sums_to_rows(a[p]), s.rows_splat(half), t[p]);
        }
    }
    for p in 0..Q {
        *acc = s.rows_fma(c.get(from + p), t[p], *acc);
    }
}

/// The coefficients of one tile and group.
struct Coefficients<'a, S: Simd, const INT8: bool> {
    s: S,
    params: &'a [u8],
    row_scales: &'a [S::Rows; MAX_PLANES + 1],
}

impl<S: Simd, const INT8: bool> Coefficients<'_, S, INT8> {
    /// Coefficient `k` of the tile's 32 rows.
    #[inline(always)]
    fn get(&self, k: usize) -> S::Rows {
        match INT8 {
            true => scaled(self.s, self.params, k, self.row_scales[k]),
            false => halves(self.s, self.params, k),
        }
    }
}
