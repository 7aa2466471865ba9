//! GEMV: the tables of an activation vector, or of a few, against a packed matrix.
//!
//! ```text
//! for each tile of 32 rows
//!   acc = 0                                                      32 floats
//!   for each group
//!     for each chunk of the group (one table scale each)
//!       for each 8 columns: load two tables; for each plane: load 32 bytes, look 64 entries up, add
//!       the activation x that is not in the tables, if any: t_p = t_p + x/2 or - x/2        t_p starts at X/2
//!       integer sums, exact in i16, to f32 once: t_p = t_p + A_p delta/2
//!     acc = acc + s_p t_p   for each plane
//!     acc = acc + z X
//! ```
//!
//! With one token the planes of a pass share a table that is in registers; with several, the tokens share a plane's
//! nibbles. Either way the sums are the same.
//!
//! The uniform kinds are multiplied by integer products instead: [`crate::dot`].
//!
//! # Bounds
//! A chunk is at most 64 activations, 16 look-ups of entries within +-127 per plane: `|A_p| <= 2032`. Up to 257
//! biased entries of at most 255 fit the 16-bit accumulators.
//!
//! # Order of f32 operations (the bit contract)
//! Per row: groups ascending; in a group planes ascending, each `t_p` over its chunks ascending, as above, then
//! `z X`. Products are fused multiply-adds. Nothing depends on tiles, threads or tokens. `reference::gemv_lut` is this
//! order, one row at a time.

use super::table::{PER_CHUNK, TableShape, Tables};
use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::pack::p32::TILE_ROWS;
use crate::pack::{MAX_PLANES, Packed, ParamKind};
use crate::simd::{BIAS, Kernel, Simd, prefetch_lines, rows_f16, rows_scaled};
use core::ops::Range;

/// How many bytes ahead of its use each plane is asked for, unless something better was measured. A tile is walked in step
/// through as many streams as there are planes, which hardware prefetchers follow only half-heartedly.
pub const AHEAD: usize = 4096;

/// Most tokens at once: with more, their sums would leave the registers.
pub const MAX_TOKENS: usize = 4;

/// `y = W x` for the rows of some tiles and up to [`MAX_TOKENS`] tokens, whose tables are `t`; `w` is of an HLQ kind.
///
/// `tiles` counts tiles of 32 rows; `y` is `[token][tile][32 rows]` and is overwritten; what rows get that the matrix does
/// not have means nothing. The tables must have been built for `w`'s columns and group. `ahead` is how many bytes ahead of
/// their use planes are asked for, parameters a quarter of it; 0 where the tiles come from a cache. It has no influence on
/// the result.
///
/// # Errors
/// [`Error::Length`] where tables or `y` do not fit, [`Error::Shape`] for tiles outside of the matrix, another kind, or too
/// many tokens.
pub fn gemv(
    isa: Isa,
    w: &Packed<'_>,
    t: &[Tables<'_>],
    tiles: Range<usize>,
    ahead: usize,
    y: &mut [[f32; TILE_ROWS]],
) -> Result<()> {
    let shape = w.shape();
    if tiles.start > tiles.end || tiles.end > shape.tiles() {
        return Err(Error::Shape { what: "tile", found: tiles.end, allowed: "within the matrix" });
    }
    if w.kind().is_uniform() {
        return Err(Error::Shape { what: "kind", found: w.planes(), allowed: "hlq16 or hlq8" });
    }
    if t.len() > MAX_TOKENS {
        return Err(Error::Shape { what: "number of tokens", found: t.len(), allowed: "at most 4" });
    }
    let same = |what: &str, expected, found| match expected == found {
        true => Ok(()),
        false => Err(Error::Length { what: what.into(), expected, found }),
    };
    for t in t {
        same("activations behind the tables", shape.cols, t.shape().cols)?;
        same("group of the tables", w.group(), t.shape().group)?;
    }
    same("products", t.len() * tiles.len(), y.len())?;
    let g = Gemv { w, t, first: tiles.start, ahead, y };
    match w.kind() {
        ParamKind::Hlq8 => g.run::<true>(isa),
        _ => g.run::<false>(isa),
    }
    Ok(())
}

struct Gemv<'a> {
    w: &'a Packed<'a>,
    t: &'a [Tables<'a>],
    first: usize,
    ahead: usize,
    y: &'a mut [[f32; TILE_ROWS]],
}

impl Gemv<'_> {
    /// Planes are split into a pass of up to 4 and a second one: 4 planes' accumulators, two tables and
    /// a mask are what 16 vector registers hold. 5 planes are 3 + 2, so that the top two share a pass. With several tokens
    /// each plane has a pass of its own.
    fn run<const INT8: bool>(self, isa: Isa) {
        match (self.t, self.w.planes()) {
            ([], _) => {}
            (&[t], 1) => isa.run(Passes::<INT8, 1, 0, 1>(self, [t])),
            (&[t], 2) => isa.run(Passes::<INT8, 2, 0, 1>(self, [t])),
            (&[t], 3) => isa.run(Passes::<INT8, 3, 0, 1>(self, [t])),
            (&[t], 4) => isa.run(Passes::<INT8, 4, 0, 1>(self, [t])),
            (&[t], 5) => isa.run(Passes::<INT8, 3, 2, 1>(self, [t])),
            (&[t], 6) => isa.run(Passes::<INT8, 4, 2, 1>(self, [t])),
            (&[t], 7) => isa.run(Passes::<INT8, 4, 3, 1>(self, [t])),
            (&[t], _) => isa.run(Passes::<INT8, 4, 4, 1>(self, [t])),
            (&[a, b], _) => isa.run(Passes::<INT8, 1, 1, 2>(self, [a, b])),
            (&[a, b, c], _) => isa.run(Passes::<INT8, 1, 1, 3>(self, [a, b, c])),
            (&[a, b, c, d, ..], _) => isa.run(Passes::<INT8, 1, 1, 4>(self, [a, b, c, d])),
        }
    }
}

/// One kind and number of planes, `LO` in a first pass and `HI` in further ones, and the tables of `T` tokens: a function of
/// its own for each, since one for all took minutes to compile.
struct Passes<'a, const INT8: bool, const LO: usize, const HI: usize, const T: usize>(
    Gemv<'a>,
    [Tables<'a>; T],
);

impl<const INT8: bool, const LO: usize, const HI: usize, const T: usize> Kernel
    for Passes<'_, INT8, LO, HI, T>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Passes(g, tables) = self;
        let mut tokens = [Token::new(&tables[0]); T];
        for t in 1..T {
            tokens[t] = Token::new(&tables[t]);
        }
        let count = g.y.len() / T;
        for i in 0..count {
            let tile = Tile::new(g.w, g.first + i, g.ahead);
            let acc = products::<S, INT8, LO, HI, T>(s, &tile, &tokens);
            for t in 0..T {
                s.rows_store(acc[t], &mut g.y[t * count + i]);
            }
        }
    }
}

/// The tables of one token.
#[derive(Clone, Copy)]
struct Token<'a> {
    /// Table pairs, `[cols / 8]`.
    entries: &'a [[u8; 32]],
    /// `[group][X, half deltas]`.
    scales: &'a [f32],
}

impl<'a> Token<'a> {
    #[inline(always)]
    fn new(t: &Tables<'a>) -> Self {
        Token { entries: t.entries().as_chunks().0, scales: t.scales() }
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
    /// How many.
    count: usize,
    /// `cols / 8`.
    pairs: usize,
    /// Numbers of a group in [`Token::scales`].
    per_group: usize,
    /// Table pairs of one whole group, and of one whole chunk.
    group_pairs: usize,
    chunk_pairs: usize,
    /// How far ahead to ask for memory, or 0.
    ahead: usize,
}

impl<'a> Tile<'a> {
    #[inline(always)]
    fn new(w: &Packed<'a>, tile: usize, ahead: usize) -> Tile<'a> {
        let shape = w.shape();
        let table = TableShape { cols: shape.cols, group: w.group() };
        Tile {
            planes: w.tile_parts(tile).map(|plane| plane.as_chunks().0),
            params: w.tile_params(tile),
            row_scales: w.tile_scales(tile),
            group_params: w.group_params(),
            count: w.planes(),
            pairs: shape.pairs(),
            per_group: table.scales_per_group(),
            group_pairs: w.group() / 8,
            chunk_pairs: table.chunk() / 8,
            ahead,
        }
    }
}

/// A chunk's exact integer sums: its tables `entries` of `T` tokens, looked up with its blocks of `Q` planes, as many.
#[inline(always)]
pub(super) fn sums<S: Simd, const Q: usize, const T: usize>(
    s: S,
    entries: [&[[u8; 32]]; T],
    planes: [&[[u8; 32]]; Q],
    ahead: usize,
) -> [[S::Sums; T]; Q] {
    let n = entries[0].len();
    let entries = entries.map(two_blocks);
    let planes = planes.map(two_blocks);
    if ahead > 0 {
        for p in 0..Q {
            prefetch_lines(s, planes[p].0.as_flattened(), ahead);
        }
    }
    let bias = 2 * n as u16 * u16::from(BIAS);
    let mut acc = [[s.acc_less(bias); T]; Q];
    for j in 0..n / 2 {
        let mut tables = [s.tables(&entries[0].0[j]); T];
        for t in 1..T {
            tables[t] = s.tables(&entries[t].0[j]);
        }
        for p in 0..Q {
            let nibbles = s.nibbles(&planes[p].0[j]);
            for t in 0..T {
                acc[p][t] = s.accumulate(acc[p][t], tables[t], nibbles);
            }
        }
    }
    if !n.is_multiple_of(2) {
        for t in 0..T {
            let tables = s.tables(&padded(entries[t].1));
            for p in 0..Q {
                acc[p][t] = s.accumulate(acc[p][t], tables, s.nibbles(&padded(planes[p].1)));
            }
        }
    }
    let mut out = [[s.sums(s.acc_less(0)); T]; Q];
    for p in 0..Q {
        for t in 0..T {
            out[p][t] = s.sums(acc[p][t]);
        }
    }
    out
}

/// Blocks by twos, and a last one where their number is odd.
#[inline(always)]
pub(super) fn two_blocks(blocks: &[[u8; 32]]) -> (&[[u8; 64]], &[u8]) {
    blocks.as_flattened().as_chunks()
}

/// A block and zeros: tables of zeros add nothing, whatever is looked up in them.
#[inline(always)]
pub(super) fn padded(block: &[u8]) -> [u8; 64] {
    let mut two = [0; 64];
    two[..block.len()].copy_from_slice(block);
    two
}

/// The products of one tile with `T` tokens.
#[inline(always)]
fn products<S: Simd, const INT8: bool, const LO: usize, const HI: usize, const T: usize>(
    s: S,
    tile: &Tile<'_>,
    tokens: &[Token<'_>; T],
) -> [S::Rows; T] {
    let mut row_scales = [s.rows_splat(1.0); MAX_PLANES + 1];
    for (k, b) in tile.row_scales.as_chunks().0.iter().enumerate() {
        row_scales[k] = s.rows_load_f16(b);
    }
    let mut acc = [s.rows_splat(0.0); T];
    for (g, params) in tile.params.chunks_exact(tile.group_params).enumerate() {
        if tile.ahead > 0 {
            prefetch_lines(s, params, tile.ahead / 4);
        }
        let c = Coefficients::<'_, S, INT8> { s, params, row_scales: &row_scales };
        pass::<S, LO, INT8, T>(s, tile, tokens, g, 0, &c, &mut acc);
        match HI {
            0 => {}
            1 => {
                for p in 1..tile.count {
                    pass::<S, 1, INT8, T>(s, tile, tokens, g, p, &c, &mut acc);
                }
            }
            2 => pass::<S, 2, INT8, T>(s, tile, tokens, g, LO, &c, &mut acc),
            3 => pass::<S, 3, INT8, T>(s, tile, tokens, g, LO, &c, &mut acc),
            _ => pass::<S, 4, INT8, T>(s, tile, tokens, g, LO, &c, &mut acc),
        }
        let z = c.get(tile.count);
        for t in 0..T {
            let x = tokens[t].scales[g * tile.per_group];
            acc[t] = s.rows_fma(z, s.rows_splat(x), acc[t]);
        }
    }
    acc
}

/// Adds planes `from .. from + Q` of one group to `acc`.
#[inline(always)]
fn pass<S: Simd, const Q: usize, const INT8: bool, const T: usize>(
    s: S,
    tile: &Tile<'_>,
    tokens: &[Token<'_>; T],
    g: usize,
    from: usize,
    c: &Coefficients<'_, S, INT8>,
    acc: &mut [S::Rows; T],
) {
    let start = g * tile.group_pairs;
    let pairs = tile.group_pairs.min(tile.pairs - start);
    let mut group =
        Group::<Q, T> { entries: [&[]; T], numbers: [&[]; T], planes: [&[]; Q], ahead: tile.ahead };
    for t in 0..T {
        group.entries[t] = &tokens[t].entries[start..][..pairs];
        group.numbers[t] = &tokens[t].scales[g * tile.per_group..][..tile.per_group];
    }
    for p in 0..Q {
        group.planes[p] = &tile.planes[from + p][start..][..pairs];
    }
    // With their length spelled out, whole chunks are compiled apart: without a loop, and without a check in it.
    let sum: [_; Q] = match (tile.chunk_pairs, pairs == tile.group_pairs) {
        (8, true) => group.whole::<S, 8>(s),
        (4, true) => group.whole::<S, 4>(s),
        (n, _) => group.any(s, n),
    };
    for p in 0..Q {
        let scale = c.get(from + p);
        for t in 0..T {
            acc[t] = s.rows_fma(scale, sum[p][t], acc[t]);
        }
    }
}

/// One group of a tile: `Q` planes, tables of `T` tokens.
struct Group<'a, const Q: usize, const T: usize> {
    /// `[token][pair]`.
    entries: [&'a [[u8; 32]]; T],
    /// `[token][X, chunks of PER_CHUNK numbers]`.
    numbers: [&'a [f32]; T],
    /// `[plane][pair]`.
    planes: [&'a [[u8; 32]]; Q],
    ahead: usize,
}

impl<const Q: usize, const T: usize> Group<'_, Q, T> {
    /// `t_p` for each plane and token, of whole chunks of `N` pairs.
    #[inline(always)]
    fn whole<S: Simd, const N: usize>(&self, s: S) -> [[S::Rows; T]; Q] {
        let mut sum = self.first(s);
        let entries = self.entries.map(|entries| entries.as_chunks::<N>().0);
        let planes = self.planes.map(|plane| plane.as_chunks::<N>().0);
        for i in 0..entries[0].len() {
            self.chunk(s, i, entries.map(|e| e[i].as_slice()), planes.map(|p| p[i].as_slice()), &mut sum);
        }
        sum
    }

    /// The same of chunks of up to `n` pairs.
    #[inline(always)]
    fn any<S: Simd>(&self, s: S, n: usize) -> [[S::Rows; T]; Q] {
        let mut sum = self.first(s);
        for i in 0..self.entries[0].len().div_ceil(n) {
            let part = |all: &[[u8; 32]]| i * n..(i * n + n).min(all.len());
            let entries = self.entries.map(|e| &e[part(e)]);
            let planes = self.planes.map(|p| &p[part(p)]);
            self.chunk(s, i, entries, planes, &mut sum);
        }
        sum
    }

    /// `X / 2`.
    #[inline(always)]
    fn first<S: Simd>(&self, s: S) -> [[S::Rows; T]; Q] {
        let mut sum = [[s.rows_splat(0.0); T]; Q];
        for t in 0..T {
            for p in 0..Q {
                sum[p][t] = s.rows_splat(0.5 * self.numbers[t][0]);
            }
        }
        sum
    }

    /// Adds chunk `i`.
    #[inline(always)]
    fn chunk<S: Simd>(
        &self,
        s: S,
        i: usize,
        entries: [&[[u8; 32]]; T],
        planes: [&[[u8; 32]]; Q],
        sum: &mut [[S::Rows; T]; Q],
    ) {
        // Before the look-ups: behind them, the compiler would move these past the branch, and do half of them twice.
        for t in 0..T {
            let numbers = &self.numbers[t][1..].as_chunks::<PER_CHUNK>().0[i];
            if numbers[1] != 0.0 {
                let at = numbers[2] as usize;
                for p in 0..Q {
                    sum[p][t] = s.rows_add_signed(sum[p][t], &planes[p][at / 8], at % 8, numbers[1]);
                }
            }
        }
        let a = sums::<S, Q, T>(s, entries, planes, self.ahead);
        for t in 0..T {
            let half = s.rows_splat(self.numbers[t][1..].as_chunks::<PER_CHUNK>().0[i][0]);
            for p in 0..Q {
                sum[p][t] = s.rows_fma(s.sums_to_rows(a[p][t]), half, sum[p][t]);
            }
        }
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
            true => rows_scaled(self.s, self.params, k, self.row_scales[k]),
            false => rows_f16(self.s, self.params, k),
        }
    }
}
