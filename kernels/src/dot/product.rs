//! Codes times activations, for one token or many.
//!
//! ```text
//! for each tile of 32 rows
//!   for each step of min(group, 32) columns
//!     codes of 4 columns at a time, out of their fields
//!     for each token
//!       S = sum of code a                                          exact
//!       y = y + d (k largest + c lost + delta S)                   k is the largest activation's code
//!       y = y + m X                                                in the kinds with a minimum
//! ```
//!
//! `lost` is what rounding took off the sum `X` of the activations: the middle of all codes `c` times it is given back, so
//! that an error of rounding is multiplied by a code's distance from the middle only. Kinds without a minimum have codes
//! around their center `C` instead, and `C (lost - X)`.
//!
//! With one token the sums stay in registers and each code is used as it is unpacked; with many, the codes of a
//! block are unpacked once for all of them.
//!
//! # Bounds
//! `|sum of code * a| <= 255 * 127 * 32` is exact in f32. In 16 bits, AVX2's products of two codes below 16 are
//! at most `2 * 15 * 127 = 3810`, eight of them 30480; codes below 128 are added up in 32 bits at once; of codes
//! of 8 bits 128 is taken off first, and added again to the sums.
//!
//! # Order of f32 operations (the bit contract)
//! Per row and token, steps ascending, as above: `t = fma(k, largest, c * lost)`, `t = fma(S, delta, t)`,
//! `y = fma(d, t, y)`, `y = fma(m, X, y)`. `reference::product` is this order, one weight at a time.

use super::activations::{ALL, Block, TOGETHER, Tokens};
use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::pack::c32::{BLOCK_COLS, UNIT_BYTES, widths};
use crate::pack::p32::TILE_ROWS;
use crate::pack::params::SUPERBLOCK;
use crate::pack::{Packed, ParamKind};
use crate::simd::{Kernel, Simd, prefetch_lines, rows_f16, rows_scaled};
use core::ops::Range;

/// Products of 4 columns in a block.
const QUADS: usize = BLOCK_COLS / 4;

/// Tiles that are worked on together with many tokens: a block of activations is fetched into L1 for all of them.
const TILES: usize = 4;

/// Most tokens at once: their products with 4 tiles are 16 KiB, which stay in L1.
pub const MAX_TOKENS: usize = 32;

/// How many bytes ahead of its use a field is asked for, unless something better was measured.
pub const AHEAD: usize = 8192;

/// `y = W x` for the rows of some tiles and up to [`MAX_TOKENS`] tokens; `w` is of a uniform kind.
///
/// `y` is `[token][tile][32 rows]` and is overwritten; what rows get that the matrix does not have means nothing.
/// `ahead` is how many bytes ahead of their use fields are asked for, coefficients a quarter of it; 0 where the tiles come
/// from a cache. It has no influence on the result.
///
/// # Errors
/// [`Error::Length`] where `x` or `y` do not fit, [`Error::Shape`] for tiles outside of the matrix, another kind,
/// or too many tokens.
pub fn product(
    isa: Isa,
    w: &Packed<'_>,
    x: Tokens<'_>,
    tiles: Range<usize>,
    ahead: usize,
    y: &mut [[f32; TILE_ROWS]],
) -> Result<()> {
    if !w.kind().is_uniform() {
        return Err(Error::Shape { what: "kind", found: w.planes(), allowed: "uniform" });
    }
    check(w, x, &tiles, y)?;
    let p = Product { w, first: tiles.start, ahead, y };
    match w.planes() {
        1 => p.run::<1>(isa, x),
        2 => p.run::<2>(isa, x),
        3 => p.run::<3>(isa, x),
        4 => p.run::<4>(isa, x),
        5 => p.run::<5>(isa, x),
        6 => p.run::<6>(isa, x),
        7 => p.run::<7>(isa, x),
        _ => p.run::<8>(isa, x),
    }
    Ok(())
}

/// Whether everything fits.
fn check(w: &Packed<'_>, x: Tokens<'_>, tiles: &Range<usize>, y: &[[f32; TILE_ROWS]]) -> Result<()> {
    let shape = w.shape();
    if tiles.start > tiles.end || tiles.end > shape.tiles() {
        return Err(Error::Shape { what: "tile", found: tiles.end, allowed: "within the matrix" });
    }
    let blocks = shape.cols.div_ceil(BLOCK_COLS);
    let (tokens, expected, found) = match x {
        Tokens::One(x) => (1, blocks, x.len()),
        Tokens::Many(x, n) => (n, blocks.saturating_mul(n.div_ceil(TOGETHER)), x.len()),
    };
    if tokens > MAX_TOKENS {
        return Err(Error::Shape { what: "number of tokens", found: tokens, allowed: "at most 32" });
    }
    for (what, expected, found) in
        [("blocks of activations", expected, found), ("products", tokens * tiles.len(), y.len())]
    {
        if expected != found {
            return Err(Error::Length { what: what.into(), expected, found });
        }
    }
    Ok(())
}

struct Product<'a> {
    w: &'a Packed<'a>,
    first: usize,
    ahead: usize,
    y: &'a mut [[f32; TILE_ROWS]],
}

impl Product<'_> {
    fn run<const BITS: usize>(self, isa: Isa, x: Tokens<'_>) {
        match x {
            Tokens::One(x) => isa.run(One::<BITS> { p: self, x }),
            Tokens::Many(_, 0) => {}
            Tokens::Many(x, tokens) => isa.run(Many::<BITS> { p: self, x, tokens }),
        }
    }
}

/// One token.
struct One<'a, const BITS: usize> {
    p: Product<'a>,
    x: &'a [Block<1>],
}

impl<const BITS: usize> Kernel for One<'_, BITS> {
    type Output = ();
    const PRODUCTS: bool = true;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = self.p;
        for (i, y) in p.y.iter_mut().enumerate() {
            let tile = Tile::<BITS>::new(p.w, p.first + i);
            let mut acc = s.rows_splat(0.0);
            for (b, x) in self.x.iter().enumerate() {
                if p.ahead > 0 {
                    tile.prefetch(s, b, p.ahead);
                }
                if tile.halves {
                    acc = tile.step::<S, 4>(s, b, 0, x, acc);
                    if tile.has_second_half(b) {
                        acc = tile.step::<S, 4>(s, b, 1, x, acc);
                    }
                } else {
                    acc = tile.step::<S, 8>(s, b, 0, x, acc);
                }
            }
            s.rows_store(acc, y);
        }
    }
}

/// Many tokens.
struct Many<'a, const BITS: usize> {
    p: Product<'a>,
    x: &'a [Block<TOGETHER>],
    tokens: usize,
}

impl<const BITS: usize> Kernel for Many<'_, BITS> {
    type Output = ();
    const PRODUCTS: bool = true;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Many { p, x, tokens } = self;
        p.y.as_flattened_mut().fill(0.0);
        let blocks = x.len() / tokens.div_ceil(TOGETHER);
        let stride = p.y.len() / tokens;
        for first in (0..stride).step_by(TILES) {
            let mut tiles = [Tile::<BITS>::new(p.w, p.first + first); TILES];
            let count = TILES.min(stride - first);
            for j in 1..count {
                tiles[j] = Tile::new(p.w, p.first + first + j);
            }
            for b in 0..blocks {
                let x = Column::new(&x[b..], blocks, &tiles[0]);
                for (j, tile) in tiles[..count].iter().enumerate() {
                    tile.columns(s, b, &x, Products { y: p.y, tile: first + j, stride });
                }
            }
        }
    }
}

/// Where a tile's products are: every token has `stride` tiles of them.
struct Products<'a> {
    y: &'a mut [[f32; TILE_ROWS]],
    tile: usize,
    stride: usize,
}

/// One block of columns of all tokens' activations.
struct Column<'a> {
    /// The blocks of 8 tokens each, `blocks` apart.
    x: &'a [Block<TOGETHER>],
    blocks: usize,
    /// [`Tile::off`] of each of the block's three sums and each token.
    off: [[[f32; TOGETHER]; MAX_TOKENS / TOGETHER]; 3],
}

impl<'a> Column<'a> {
    /// The first of every `blocks` blocks of `x`, for a matrix of the kind of `tile`.
    #[inline(always)]
    fn new<const BITS: usize>(x: &'a [Block<TOGETHER>], blocks: usize, tile: &Tile<'_, BITS>) -> Self {
        let sums = if tile.halves { 0..ALL } else { ALL..ALL + 1 };
        let mut off = [[[0.0; TOGETHER]; MAX_TOKENS / TOGETHER]; 3];
        for h in sums {
            for (off, x) in off[h].iter_mut().zip(x.iter().step_by(blocks)) {
                for t in 0..TOGETHER {
                    off[t] = tile.off(x, t, h);
                }
            }
        }
        Column { x, blocks, off }
    }
}

/// Adds one step's products to all tokens'. `MINIMUM` says whether the kind has one: a branch in the loop would keep the
/// compiler from mixing the tokens' operations.
#[inline(always)]
fn tokens<S: Simd, const BITS: usize, const N: usize, const MINIMUM: bool>(
    s: S,
    codes: &[S::Codes; QUADS],
    lines: &Lines,
    half: usize,
    c: &Coefficients<S>,
    x: &Column<'_>,
    y: &mut Products<'_>,
) {
    let h = sums_of::<N>(half);
    let together = x.x.iter().step_by(x.blocks).zip(&x.off[h]);
    for ((x, off), ys) in together.zip(y.y.chunks_mut(TOGETHER * y.stride)) {
        if !S::PAIRS {
            for (t, y) in ys[y.tile..].iter_mut().step_by(y.stride).enumerate().take(TOGETHER) {
                let sums = sums::<S, BITS, N>(s, codes, half, &x.a[t], x.n[h][t]);
                let others = lines.others(s, x, t, h, off);
                let acc = c.add::<MINIMUM, _>(s, sums, others, x, t, h, s.rows_load(y));
                s.rows_store(acc, y);
            }
            continue;
        }
        for (i, ys) in ys.chunks_mut(2 * y.stride).enumerate().take(TOGETHER / 2) {
            let t = 2 * i;
            if let Ok([y0, y1]) = ys.get_disjoint_mut([y.tile, y.tile + y.stride]) {
                let others = [lines.others(s, x, t, h, off), lines.others(s, x, t + 1, h, off)];
                let n = [x.n[h][t], x.n[h][t + 1]];
                let sums = pair_sums::<S, BITS, N>(s, codes, half, [&x.a[t], &x.a[t + 1]], n);
                let [mut acc0, mut acc1] = [s.rows_load(y0), s.rows_load(y1)];
                acc0 = c.add::<MINIMUM, _>(s, sums[0], others[0], x, t, h, acc0);
                acc1 = c.add::<MINIMUM, _>(s, sums[1], others[1], x, t + 1, h, acc1);
                s.rows_store(acc0, y0);
                s.rows_store(acc1, y1);
            } else if let Some(y) = ys.get_mut(y.tile) {
                let sums = sums::<S, BITS, N>(s, codes, half, &x.a[t], x.n[h][t]);
                let others = lines.others(s, x, t, h, off);
                let acc = c.add::<MINIMUM, _>(s, sums, others, x, t, h, s.rows_load(y));
                s.rows_store(acc, y);
            }
        }
    }
}

/// The codes of a block of columns in memory, by quads, for a column that is only known at run time; in whole cache lines,
/// as loads across their borders take twice as long.
#[repr(align(64))]
struct Lines([[u8; UNIT_BYTES]; QUADS]);

impl Lines {
    /// What token `t` of `x` has beside the sums of its integers: its largest activation's products, and `off`, which is
    /// [`Tile::off`].
    #[inline(always)]
    fn others<S: Simd>(
        &self,
        s: S,
        x: &Block<TOGETHER>,
        t: usize,
        h: usize,
        off: &[f32; TOGETHER],
    ) -> S::Rows {
        let at = usize::from(x.at[t]);
        let codes = s.code_at(s.codes(&self.0[at / 4 % QUADS]), at % 4);
        s.rows_fma(codes, s.rows_splat(x.largest[h][t]), s.rows_splat(off[t]))
    }
}

/// Integer sums of one step and two tokens, whose activations are `x` with the sums `n`.
#[inline(always)]
fn pair_sums<S: Simd, const BITS: usize, const N: usize>(
    s: S,
    codes: &[S::Codes; QUADS],
    half: usize,
    x: [&[i8; BLOCK_COLS]; 2],
    n: [f32; 2],
) -> [S::Rows; 2] {
    let mut sums = s.pair_zero();
    let [(x0, _), (x1, _)] = [x[0].as_chunks::<8>(), x[1].as_chunks::<8>()];
    for i in (half * N..half * N + N).step_by(2) {
        sums = s.pair_dot::<BITS>(sums, [codes[i], codes[i + 1]], [&x0[i / 2], &x1[i / 2]]);
    }
    s.pair_to_rows::<BITS>(sums, n)
}

/// As [`pair_sums`], of one token.
#[inline(always)]
fn sums<S: Simd, const BITS: usize, const N: usize>(
    s: S,
    codes: &[S::Codes; QUADS],
    half: usize,
    x: &[i8; BLOCK_COLS],
    n: f32,
) -> S::Rows {
    let mut sums = s.dots_zero();
    for i in half * N..half * N + N {
        sums = s.dot::<BITS>(sums, codes[i], &x.as_chunks::<4>().0[i]);
    }
    s.dots_to_rows::<BITS>(sums, n)
}

/// Index of a block's sums over a step: a half block of 4 quads, or both.
#[inline(always)]
const fn sums_of<const N: usize>(half: usize) -> usize {
    if N == QUADS { ALL } else { half }
}

/// What turns the integer sums of a step into products.
#[derive(Clone, Copy)]
struct Coefficients<S: Simd> {
    d: S::Rows,
    /// Zeros in the kinds that have no minimum.
    m: S::Rows,
}

impl<S: Simd> Coefficients<S> {
    /// `acc` plus one step's products with token `t`: `sums` of its integers, and `others`, which are not in them; `h` says
    /// which of the block's sums are the step's.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the formula has as many")]
    fn add<const MINIMUM: bool, const T: usize>(
        &self,
        s: S,
        sums: S::Rows,
        others: S::Rows,
        x: &Block<T>,
        t: usize,
        h: usize,
        acc: S::Rows,
    ) -> S::Rows {
        let product = s.rows_fma(sums, s.rows_splat(x.delta[t]), others);
        let acc = s.rows_fma(self.d, product, acc);
        if MINIMUM { s.rows_fma(self.m, s.rows_splat(x.x[h][t]), acc) } else { acc }
    }
}

/// What one tile of 32 rows is made of.
#[derive(Clone, Copy)]
struct Tile<'a, const BITS: usize> {
    /// Each field's units of this tile, `[block][width]`.
    fields: [&'a [[u8; UNIT_BYTES]]; 3],
    kind: ParamKind,
    /// The tile's parameters as bytes, `[group][coefficient][32]`.
    params: &'a [u8],
    /// Bytes of them for each block of columns.
    block_params: usize,
    /// The tile's scales as bytes, `[superblock][coefficient][32]` f16, in the K kinds.
    scales: &'a [u8],
    cols: usize,
    group: usize,
    /// Whether a step is half a block: groups of 16.
    halves: bool,
    /// The middle or central code.
    center: f32,
    /// Whether there is a second coefficient, the minimum.
    minimum: bool,
}

impl<'a, const BITS: usize> Tile<'a, BITS> {
    #[inline(always)]
    fn new(w: &Packed<'a>, tile: usize) -> Self {
        let (shape, kind) = (w.shape(), w.kind());
        let parts = w.tile_parts(tile);
        Tile {
            fields: [0, 1, 2].map(|f| parts[f].as_chunks().0),
            kind,
            params: w.tile_params(tile),
            block_params: w.group_params() * BLOCK_COLS / w.group(),
            scales: w.tile_scales(tile),
            cols: shape.cols,
            group: w.group(),
            halves: w.group() < BLOCK_COLS,
            center: kind.center().map_or(f32::from(1u8 << (BITS - 1)), f32::from),
            minimum: kind.coefficients(BITS) == 2,
        }
    }

    /// The middle code times what rounding lost of sum `h` of token `t`; a central code is taken off the others too.
    #[inline(always)]
    fn off<const T: usize>(&self, x: &Block<T>, t: usize, h: usize) -> f32 {
        let (lost, all) = (x.lost[h][t], x.x[h][t]);
        self.center * if self.minimum { lost } else { lost - all }
    }

    /// Whether block `b` reaches beyond its first 16 columns.
    #[inline(always)]
    fn has_second_half(&self, b: usize) -> bool {
        b * BLOCK_COLS + BLOCK_COLS / 2 < self.cols
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, b: usize, ahead: usize) {
        for (field, width) in self.fields.iter().zip(widths(BITS)) {
            prefetch_lines(s, field[b * width..(b + 1) * width].as_flattened(), ahead);
        }
        let params = &self.params[b * self.block_params..];
        prefetch_lines(s, &params[..self.block_params.min(params.len())], ahead / 4);
    }

    /// The codes of quad `q` of block `b`.
    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, q: usize) -> S::Codes {
        let (mut code, mut base) = (None, 0);
        for (f, width) in widths(BITS).iter().enumerate() {
            let per_byte = 8 / width;
            let unit = s.codes(&self.fields[f][b * width + q / per_byte]);
            let field = match width {
                8 => unit,
                _ => {
                    let mask = ((1u32 << width) - 1) << base;
                    s.codes_field(unit, (width * (q % per_byte)) as i32 - base, mask as u8)
                }
            };
            code = Some(match code {
                None => field,
                Some(low) => s.codes_or(low, field),
            });
            base += *width as i32;
        }
        code.unwrap_or(s.codes(&[0; UNIT_BYTES]))
    }

    /// All codes of block `b`, in registers and in `lines`.
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, b: usize, lines: &mut Lines) -> [S::Codes; QUADS] {
        let mut codes = [self.codes(s, b, 0); QUADS];
        for q in 0..QUADS {
            codes[q] = self.codes(s, b, q);
        }
        for q in 0..QUADS {
            s.codes_store(codes[q], &mut lines.0[q]);
        }
        codes
    }

    /// The `k`th 32 coefficients, in the K kinds under the `scale`th 32 scales.
    #[inline(always)]
    fn coefficient<S: Simd>(&self, s: S, k: usize, scale: usize) -> S::Rows {
        match self.kind {
            ParamKind::UniformK | ParamKind::CenteredK(_) => {
                rows_scaled(s, self.params, k, rows_f16(s, self.scales, scale))
            }
            _ => rows_f16(s, self.params, k),
        }
    }

    /// The coefficients of step `half` of block `b`.
    #[inline(always)]
    fn coefficients<S: Simd>(&self, s: S, b: usize, half: usize) -> Coefficients<S> {
        let col = b * BLOCK_COLS + half * (BLOCK_COLS / 2);
        let (g, count) = (col / self.group, 1 + usize::from(self.minimum));
        let d = self.coefficient(s, g * count, col / SUPERBLOCK * count);
        let m = match self.minimum {
            true => self.coefficient(s, g * count + 1, col / SUPERBLOCK * count + 1),
            false => s.rows_splat(0.0),
        };
        Coefficients { d, m }
    }

    /// `acc` plus the products of step `half` of block `b`, which is `N` quads long.
    #[inline(always)]
    fn step<S: Simd, const N: usize>(
        &self,
        s: S,
        b: usize,
        half: usize,
        x: &Block<1>,
        acc: S::Rows,
    ) -> S::Rows {
        let (mut sums, h) = (s.dots_zero(), sums_of::<N>(half));
        for i in half * N..half * N + N {
            sums = s.dot::<BITS>(sums, self.codes(s, b, i), &x.a[0].as_chunks::<4>().0[i]);
        }
        let (sums, at) = (s.dots_to_rows::<BITS>(sums, x.n[h][0]), usize::from(x.at[0]));
        let at = s.code_at(self.codes(s, b, at / 4), at % 4);
        let (c, off) = (self.coefficients(s, b, half), s.rows_splat(self.off(x, 0, h)));
        let others = s.rows_fma(at, s.rows_splat(x.largest[h][0]), off);
        match self.minimum {
            true => c.add::<true, _>(s, sums, others, x, 0, h, acc),
            false => c.add::<false, _>(s, sums, others, x, 0, h, acc),
        }
    }

    /// Adds the products of block `b` with many tokens to `y`.
    #[inline(always)]
    fn columns<S: Simd>(&self, s: S, b: usize, x: &Column<'_>, mut y: Products<'_>) {
        let mut lines = Lines([[0; UNIT_BYTES]; QUADS]);
        let codes = (&self.block(s, b, &mut lines), &lines);
        if self.halves {
            self.tokens::<S, 4>(s, codes, b, 0, x, &mut y);
            if self.has_second_half(b) {
                self.tokens::<S, 4>(s, codes, b, 1, x, &mut y);
            }
        } else {
            self.tokens::<S, 8>(s, codes, b, 0, x, &mut y);
        }
    }

    /// Adds the products of step `half` of block `b`, whose codes are `codes`, with many tokens to `y`.
    #[inline(always)]
    fn tokens<S: Simd, const N: usize>(
        &self,
        s: S,
        (codes, lines): (&[S::Codes; QUADS], &Lines),
        b: usize,
        half: usize,
        x: &Column<'_>,
        y: &mut Products<'_>,
    ) {
        let c = self.coefficients(s, b, half);
        match self.minimum {
            true => tokens::<S, BITS, N, true>(s, codes, lines, half, &c, x, y),
            false => tokens::<S, BITS, N, false>(s, codes, lines, half, &c, x, y),
        }
    }
}
