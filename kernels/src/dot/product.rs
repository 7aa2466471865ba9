//! Codes times activations, for one token or many.
//!
//! ```text
//! for each tile of 32 rows
//!   for each step of min(group, 32) columns
//!     codes of 4 columns at a time, out of their fields
//!     for each token
//!       S = sum of code a                                          exact
//!       y = y + d (delta S + c lost)                               c is the middle of all codes
//!       y = y + m X                                                in the kinds with a minimum
//!       y = y + d (delta / 254 F)                                  F is S of the fine part, if there is one
//! ```
//!
//! `lost` is what rounding took off the sum `X` of the activations: the middle code times it is given back, so that an
//! error of rounding is multiplied by a code's distance from the middle only. Kinds without a minimum have codes around
//! their center `C` instead: `y = y + d (delta S + C (lost - X))`.
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
//! Per row and token, steps ascending, as above: `t = fma(S, delta, c * lost)`, `y = fma(d, t, y)`,
//! `y = fma(m, X, y)`, `y = fma(d, F * fine_delta, y)`. `reference::product` is this order, one weight at a time.

use super::activations::{ALL, Block, TOGETHER, Tokens};
use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::pack::c32::{BLOCK_COLS, UNIT_BYTES, widths};
use crate::pack::p32::TILE_ROWS;
use crate::pack::params::SUPERBLOCK;
use crate::pack::{Packed, ParamKind};
use crate::simd::{Kernel, Simd, prefetch_lines};
use core::ops::Range;

/// Products of 4 columns in a block.
const QUADS: usize = BLOCK_COLS / 4;

/// Tiles that are worked on together with many tokens: a block of activations is fetched into L1 for all of them.
const TILES: usize = 4;

/// Most tokens at once: their products with 4 tiles are 16 KiB, which stay in L1.
pub const MAX_TOKENS: usize = 32;

/// How far ahead of its use a field is asked for.
const PREFETCH_BYTES: usize = 8192;

/// The same for coefficients, of which there are fewer.
const PREFETCH_PARAMS: usize = 2048;

/// `y = W x` for the rows of some tiles and up to [`MAX_TOKENS`] tokens; `w` is of a uniform kind.
///
/// `y` is `[tile][token][32 rows]` and is overwritten; what rows get that the matrix does not have means nothing.
/// `first_use` says that these tiles probably come from memory, not from a cache: a hint, without influence on the result.
///
/// # Errors
/// [`Error::Length`] where `x` or `y` do not fit, [`Error::Shape`] for tiles outside of the matrix, another kind,
/// or too many tokens.
pub fn product(
    isa: Isa,
    w: &Packed<'_>,
    x: Tokens<'_>,
    tiles: Range<usize>,
    first_use: bool,
    y: &mut [[f32; TILE_ROWS]],
) -> Result<()> {
    if !w.kind().is_uniform() {
        return Err(Error::Shape { what: "kind", found: w.planes(), allowed: "uniform" });
    }
    check(w, x, &tiles, y)?;
    let p = Product { w, first: tiles.start, first_use, y };
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
    first_use: bool,
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
                if p.first_use {
                    tile.prefetch(s, b);
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
        for (i, y) in p.y.chunks_mut(TILES * tokens).enumerate() {
            let mut tiles = [Tile::<BITS>::new(p.w, p.first + i * TILES); TILES];
            let count = y.len() / tokens;
            for j in 1..count {
                tiles[j] = Tile::new(p.w, p.first + i * TILES + j);
            }
            for b in 0..blocks {
                let x = Column::new(x, blocks, b, tokens, &tiles[0]);
                for (tile, y) in tiles.iter().zip(y.chunks_exact_mut(tokens)) {
                    tile.columns(s, b, &x, y);
                }
            }
        }
    }
}

/// One block of columns of all tokens' activations.
struct Column<'a> {
    x: &'a [Block<TOGETHER>],
    blocks: usize,
    /// The middle code times what it gives back, of each of the block's three sums and each token.
    off: [[f32; MAX_TOKENS]; 3],
    /// Tokens that have a fine part.
    refined: [usize; MAX_TOKENS],
    refined_count: usize,
}

impl<'a> Column<'a> {
    /// Block `b` of `blocks`, for a matrix of the kind of `tile`. Behind the last of the tokens may lie what others
    /// have left.
    #[inline(always)]
    fn new<const BITS: usize>(
        x: &'a [Block<TOGETHER>],
        blocks: usize,
        b: usize,
        tokens: usize,
        tile: &Tile<'_, BITS>,
    ) -> Self {
        let x = &x[b..];
        let sums = if tile.halves { 0..ALL } else { ALL..ALL + 1 };
        let mut off = [[0.0; MAX_TOKENS]; 3];
        let (mut refined, mut refined_count) = ([0; MAX_TOKENS], 0);
        for (i, x) in x.iter().step_by(blocks).enumerate().take(MAX_TOKENS / TOGETHER) {
            for h in sums.clone() {
                for t in 0..TOGETHER {
                    off[h][i * TOGETHER + t] = tile.off(x, t, h);
                }
            }
            for t in 0..TOGETHER {
                // Written in any case: whether it counts is as good as random, and a branch would be guessed wrong.
                let token = i * TOGETHER + t;
                refined[refined_count % MAX_TOKENS] = token;
                refined_count += usize::from(x.refined[t] & (token < tokens));
            }
        }
        Column { x, blocks, off, refined, refined_count }
    }

    /// The blocks, of 8 tokens each.
    #[inline(always)]
    fn together(&self) -> impl Iterator<Item = &'a Block<TOGETHER>> {
        self.x.iter().step_by(self.blocks)
    }

    /// The block of a token, and its place in it.
    #[inline(always)]
    fn token(&self, t: usize) -> (&'a Block<TOGETHER>, usize) {
        (&self.x[t / TOGETHER * self.blocks], t % TOGETHER)
    }

    fn refined(&self) -> &[usize] {
        &self.refined[..self.refined_count]
    }
}

/// Adds one step's products to all tokens', two at a time: both use a code while it is in a register. `MINIMUM` says
/// whether the kind has one: a branch in the loop would keep the compiler from mixing the two tokens' operations.
#[inline(always)]
fn tokens<S: Simd, const BITS: usize, const N: usize, const MINIMUM: bool>(
    s: S,
    codes: &[S::Codes; QUADS],
    half: usize,
    c: &Coefficients<S>,
    x: &Column<'_>,
    y: &mut [[f32; TILE_ROWS]],
) {
    let h = sums_of::<N>(half);
    let off = x.off[h].as_chunks::<TOGETHER>().0;
    for ((x, off), y) in x.together().zip(off).zip(y.chunks_mut(TOGETHER)) {
        let (pairs, last) = y.as_chunks_mut::<2>();
        for (i, y) in pairs.iter_mut().enumerate().take(TOGETHER / 2) {
            let t = 2 * i;
            let n = [x.n[h][t], x.n[h][t + 1]];
            let sums = pair_sums::<S, BITS, N>(s, codes, half, [&x.a[t], &x.a[t + 1]], n);
            for i in 0..2 {
                let t = t + i;
                let acc = s.rows_load(&y[i]);
                let acc = c.add::<MINIMUM>(s, sums[i], x.delta[t], off[t], x.x[h][t], acc);
                s.rows_store(acc, &mut y[i]);
            }
        }
        for y in last {
            let t = pairs.len() * 2 % TOGETHER;
            let sums = sums::<S, BITS, N>(s, codes, half, &x.a[t], x.n[h][t]);
            let acc = c.add::<MINIMUM>(s, sums, x.delta[t], off[t], x.x[h][t], s.rows_load(y));
            s.rows_store(acc, y);
        }
    }
    let (pairs, last) = x.refined().as_chunks::<2>();
    for ts in pairs {
        let [(x0, t0), (x1, t1)] = [x.token(ts[0]), x.token(ts[1])];
        let n = [x0.fine_n[h][t0], x1.fine_n[h][t1]];
        let sums = pair_sums::<S, BITS, N>(s, codes, half, [&x0.fine[t0], &x1.fine[t1]], n);
        for (i, (x, t)) in [(x0, t0), (x1, t1)].into_iter().enumerate() {
            let y = &mut y[ts[i]];
            s.rows_store(c.add_fine(s, sums[i], x.fine_delta[t], s.rows_load(y)), y);
        }
    }
    for at in last {
        let ((x, t), y) = (x.token(*at), &mut y[*at]);
        let sums = sums::<S, BITS, N>(s, codes, half, &x.fine[t], x.fine_n[h][t]);
        s.rows_store(c.add_fine(s, sums, x.fine_delta[t], s.rows_load(y)), y);
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
    /// `acc` plus one step's products with a token: `sums` in steps of `delta`, `off` is [`Tile::off`], `all` the
    /// sum of its activations.
    #[inline(always)]
    fn add<const MINIMUM: bool>(
        &self,
        s: S,
        sums: S::Rows,
        delta: f32,
        off: f32,
        all: f32,
        acc: S::Rows,
    ) -> S::Rows {
        let product = s.rows_fma(sums, s.rows_splat(delta), s.rows_splat(off));
        let acc = s.rows_fma(self.d, product, acc);
        if MINIMUM { s.rows_fma(self.m, s.rows_splat(all), acc) } else { acc }
    }

    /// `acc` plus one step's products with the fine part of a token.
    #[inline(always)]
    fn add_fine(&self, s: S, sums: S::Rows, fine_delta: f32, acc: S::Rows) -> S::Rows {
        s.rows_fma(self.d, s.rows_mul(sums, s.rows_splat(fine_delta)), acc)
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
        let mut fields: [&[[u8; UNIT_BYTES]]; 3] = [&[]; 3];
        for ((field, part), width) in fields.iter_mut().zip(w.parts()).zip(widths(BITS)) {
            let bytes = kind.part_tile_bytes(shape, *width);
            *field = part[tile * bytes..(tile + 1) * bytes].as_chunks().0;
        }
        let count = kind.coefficients(BITS);
        let group_params = count * kind.coefficient_bytes() * TILE_ROWS;
        let params = group_params * shape.groups(w.group());
        let scales = kind.scale_blocks(shape.cols) * count * TILE_ROWS * 2;
        Tile {
            fields,
            kind,
            params: &w.params()[tile * params..(tile + 1) * params],
            block_params: group_params * BLOCK_COLS / w.group(),
            scales: &w.row_scales()[tile * scales..(tile + 1) * scales],
            cols: shape.cols,
            group: w.group(),
            halves: w.group() < BLOCK_COLS,
            center: kind.center().map_or(f32::from(1u8 << (BITS - 1)), f32::from),
            minimum: count == 2,
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
    fn prefetch<S: Simd>(&self, s: S, b: usize) {
        for (field, width) in self.fields.iter().zip(widths(BITS)) {
            prefetch_lines(s, field[b * width..(b + 1) * width].as_flattened(), PREFETCH_BYTES);
        }
        let params = &self.params[b * self.block_params..];
        prefetch_lines(s, &params[..self.block_params.min(params.len())], PREFETCH_PARAMS);
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

    /// All codes of block `b`.
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, b: usize) -> [S::Codes; QUADS] {
        let mut codes = [self.codes(s, b, 0); QUADS];
        for q in 1..QUADS {
            codes[q] = self.codes(s, b, q);
        }
        codes
    }

    /// The `k`th 32 coefficients, in the K kinds under the `scale`th 32 scales.
    #[inline(always)]
    fn coefficient<S: Simd>(&self, s: S, k: usize, scale: usize) -> S::Rows {
        match self.kind {
            ParamKind::UniformK | ParamKind::CenteredK(_) => {
                let scale = s.rows_load_f16(&self.scales.as_chunks().0[scale]);
                s.rows_mul(s.rows_load_i8(&self.params.as_chunks().0[k]), scale)
            }
            _ => s.rows_load_f16(&self.params.as_chunks().0[k]),
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
        let (mut sums, mut fine) = (s.dots_zero(), s.dots_zero());
        let (a, f) = (x.a[0].as_chunks::<4>().0, x.fine[0].as_chunks::<4>().0);
        let (c, h) = (self.coefficients(s, b, half), sums_of::<N>(half));
        if !x.refined[0] {
            for i in half * N..half * N + N {
                sums = s.dot::<BITS>(sums, self.codes(s, b, i), &a[i]);
            }
            return self.add(s, &c, s.dots_to_rows::<BITS>(sums, x.n[h][0]), x, h, acc);
        }
        for i in half * N..half * N + N {
            let code = self.codes(s, b, i);
            sums = s.dot::<BITS>(sums, code, &a[i]);
            fine = s.dot::<BITS>(fine, code, &f[i]);
        }
        let acc = self.add(s, &c, s.dots_to_rows::<BITS>(sums, x.n[h][0]), x, h, acc);
        c.add_fine(s, s.dots_to_rows::<BITS>(fine, x.fine_n[h][0]), x.fine_delta[0], acc)
    }

    /// `acc` plus the products `sums` with one token, over the columns of its sum `h`.
    #[inline(always)]
    fn add<S: Simd>(
        &self,
        s: S,
        c: &Coefficients<S>,
        sums: S::Rows,
        x: &Block<1>,
        h: usize,
        acc: S::Rows,
    ) -> S::Rows {
        let (delta, off, all) = (x.delta[0], self.off(x, 0, h), x.x[h][0]);
        match self.minimum {
            true => c.add::<true>(s, sums, delta, off, all, acc),
            false => c.add::<false>(s, sums, delta, off, all, acc),
        }
    }

    /// Adds the products of block `b` with many tokens to `y`.
    #[inline(always)]
    fn columns<S: Simd>(&self, s: S, b: usize, x: &Column<'_>, y: &mut [[f32; TILE_ROWS]]) {
        let codes = self.block(s, b);
        if self.halves {
            self.tokens::<S, 4>(s, &codes, b, 0, x, y);
            if self.has_second_half(b) {
                self.tokens::<S, 4>(s, &codes, b, 1, x, y);
            }
        } else {
            self.tokens::<S, 8>(s, &codes, b, 0, x, y);
        }
    }

    /// Adds the products of step `half` of block `b`, whose codes are `codes`, with many tokens to `y`.
    #[inline(always)]
    fn tokens<S: Simd, const N: usize>(
        &self,
        s: S,
        codes: &[S::Codes; QUADS],
        b: usize,
        half: usize,
        x: &Column<'_>,
        y: &mut [[f32; TILE_ROWS]],
    ) {
        let c = self.coefficients(s, b, half);
        match self.minimum {
            true => tokens::<S, BITS, N, true>(s, codes, half, &c, x, y),
            false => tokens::<S, BITS, N, false>(s, codes, half, &c, x, y),
        }
    }
}
