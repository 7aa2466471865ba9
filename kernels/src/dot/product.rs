//! Codes times activations, for one token or many.
//!
//! ```text
//! for each tile of 32 rows
//!   for each step of min(group, 32) columns
//!     codes of 4 columns at a time, out of their fields
//!     for each token
//!       A = sum of (code - c) a, F = the same of the fine parts, if any        exact
//!       y = y + d ((A + F / 254) delta)                    one multiply-add, one product, one multiply-add
//!       y = y + (m + c d) X                                in the kinds with a minimum
//! ```
//!
//! With one token the sums stay in registers and each code is used as it is unpacked; with many, the codes of a
//! block are unpacked once for all of them.
//!
//! # Bounds
//! `|sum of code * a| <= 255 * 127 * 32` is exact in f32, and so is `A`. In 16 bits, AVX2's products of two codes below 16 are
//! at most `2 * 15 * 127 = 3810`, eight of them 30480; codes below 128 are added up in 32 bits at once, and codes
//! of 8 bits less 128 first.
//!
//! # Order of f32 operations (the bit contract)
//! Per row and token, steps ascending, as above: `t = fma(F, 1/254, A) * delta`, then two fused multiply-adds, with
//! `m + c d` one as well. `reference::product` is this order, one weight at a time.

use super::activations::{Block, FINE_STEPS};
use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::pack::c32::{BLOCK_COLS, UNIT_BYTES, widths};
use crate::pack::p32::TILE_ROWS;
use crate::pack::params::SUPERBLOCK;
use crate::pack::{Packed, ParamKind};
use crate::simd::{Kernel, Simd};
use core::ops::Range;

/// Products of 4 columns in a block.
const QUADS: usize = BLOCK_COLS / 4;

/// How far ahead of its use a field is asked for.
const PREFETCH_BYTES: usize = 2048;

/// `y = W x` for the rows of some tiles and all tokens; `w` is of a uniform kind.
///
/// `x` is `[token][block of 32 columns]`, `y` is `[tile][token][32 rows]` and is overwritten; what rows get
/// that the matrix does not have means nothing. `first_use` says that these tiles probably come from memory, not from a cache: a hint,
/// without influence on the result.
///
/// # Errors
/// [`Error::Length`] where `x` or `y` do not fit, [`Error::Shape`] for tiles outside of the matrix or another kind.
pub fn product(
    isa: Isa,
    w: &Packed<'_>,
    x: &[Block],
    tiles: Range<usize>,
    first_use: bool,
    y: &mut [[f32; TILE_ROWS]],
) -> Result<()> {
    if !w.kind().is_uniform() {
        return Err(Error::Shape { what: "kind", found: w.planes(), allowed: "uniform" });
    }
    let tokens = check(w, x, &tiles, y)?;
    let p = Product { w, x, tokens, first: tiles.start, first_use, y };
    match w.planes() {
        1 => p.run::<1>(isa),
        2 => p.run::<2>(isa),
        3 => p.run::<3>(isa),
        4 => p.run::<4>(isa),
        5 => p.run::<5>(isa),
        6 => p.run::<6>(isa),
        7 => p.run::<7>(isa),
        _ => p.run::<8>(isa),
    }
    Ok(())
}

/// Number of tokens, if everything fits.
fn check(w: &Packed<'_>, x: &[Block], tiles: &Range<usize>, y: &[[f32; TILE_ROWS]]) -> Result<usize> {
    let shape = w.shape();
    if tiles.start > tiles.end || tiles.end > shape.tiles() {
        return Err(Error::Shape { what: "tile", found: tiles.end, allowed: "within the matrix" });
    }
    let blocks = shape.cols.div_ceil(BLOCK_COLS);
    let tokens = x.len() / blocks.max(1);
    for (what, expected, found) in
        [("blocks of activations", tokens * blocks, x.len()), ("products", tokens * tiles.len(), y.len())]
    {
        if expected != found {
            return Err(Error::Length { what: what.into(), expected, found });
        }
    }
    Ok(tokens)
}

struct Product<'a> {
    w: &'a Packed<'a>,
    x: &'a [Block],
    tokens: usize,
    first: usize,
    first_use: bool,
    y: &'a mut [[f32; TILE_ROWS]],
}

impl Product<'_> {
    fn run<const BITS: usize>(self, isa: Isa) {
        match self.tokens {
            0 => {}
            1 => isa.run(One::<BITS>(self)),
            _ => isa.run(Many::<BITS>(self)),
        }
    }
}

/// One token.
struct One<'a, const BITS: usize>(Product<'a>);

impl<const BITS: usize> Kernel for One<'_, BITS> {
    type Output = ();
    const PRODUCTS: bool = true;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = self.0;
        for (i, y) in p.y.iter_mut().enumerate() {
            let tile = Tile::<BITS>::new(p.w, p.first + i);
            let mut acc = s.rows_splat(0.0);
            for (b, x) in p.x.iter().enumerate() {
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
struct Many<'a, const BITS: usize>(Product<'a>);

impl<const BITS: usize> Kernel for Many<'_, BITS> {
    type Output = ();
    const PRODUCTS: bool = true;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = self.0;
        for (i, y) in p.y.chunks_exact_mut(p.tokens).enumerate() {
            let tile = Tile::<BITS>::new(p.w, p.first + i);
            y.as_flattened_mut().fill(0.0);
            let blocks = p.x.len() / p.tokens;
            for b in 0..blocks {
                let codes = tile.block(s, b);
                let x = Column { x: p.x, blocks, b };
                if tile.halves {
                    tokens::<S, BITS, 4>(s, &codes, 0, &tile.coefficients(s, b, 0), x, y);
                    if tile.has_second_half(b) {
                        tokens::<S, BITS, 4>(s, &codes, 1, &tile.coefficients(s, b, 1), x, y);
                    }
                } else {
                    tokens::<S, BITS, 8>(s, &codes, 0, &tile.coefficients(s, b, 0), x, y);
                }
            }
        }
    }
}

/// One block of columns of all tokens' activations.
#[derive(Clone, Copy)]
struct Column<'a> {
    x: &'a [Block],
    blocks: usize,
    b: usize,
}

impl<'a> Column<'a> {
    #[inline(always)]
    fn token(self, t: usize) -> &'a Block {
        &self.x[t * self.blocks + self.b]
    }
}

/// What turns the integer sums of a step into products.
#[derive(Clone, Copy)]
struct Coefficients<S: Simd> {
    d: S::Rows,
    /// `m + c d`, in the kinds that have a minimum.
    m: Option<S::Rows>,
    center: f32,
}

/// Adds one step's products to all tokens', two at a time: both use a code while it is in a register.
#[inline(always)]
fn tokens<S: Simd, const BITS: usize, const N: usize>(
    s: S,
    codes: &[S::Codes; QUADS],
    half: usize,
    c: &Coefficients<S>,
    x: Column<'_>,
    y: &mut [[f32; TILE_ROWS]],
) {
    let mut t = 0;
    while t + 2 <= y.len() {
        let pair = [x.token(t), x.token(t + 1)];
        let n = [sum::<N>(&pair[0].n, half), sum::<N>(&pair[1].n, half)];
        let mut a = pair_sums::<S, BITS, N>(s, codes, half, c, [&pair[0].a, &pair[1].a], n);
        if pair[0].refined || pair[1].refined {
            let n = [sum::<N>(&pair[0].fine_n, half), sum::<N>(&pair[1].fine_n, half)];
            let fine = pair_sums::<S, BITS, N>(s, codes, half, c, [&pair[0].fine, &pair[1].fine], n);
            for i in 0..2 {
                a[i] = refined(s, a[i], fine[i]);
            }
        }
        for i in 0..2 {
            let acc = add::<S, N>(s, a[i], half, c, pair[i], s.rows_load(&y[t + i]));
            s.rows_store(acc, &mut y[t + i]);
        }
        t += 2;
    }
    if t < y.len() {
        let x = x.token(t);
        let mut a = sums::<S, BITS, N>(s, codes, half, c, &x.a, sum::<N>(&x.n, half));
        if x.refined {
            let fine = sums::<S, BITS, N>(s, codes, half, c, &x.fine, sum::<N>(&x.fine_n, half));
            a = refined(s, a, fine);
        }
        let acc = add::<S, N>(s, a, half, c, x, s.rows_load(&y[t]));
        s.rows_store(acc, &mut y[t]);
    }
}

/// Integer sums of one step and two tokens, whose activations are `x` with the sums `n`.
#[inline(always)]
fn pair_sums<S: Simd, const BITS: usize, const N: usize>(
    s: S,
    codes: &[S::Codes; QUADS],
    half: usize,
    c: &Coefficients<S>,
    x: [&[i8; BLOCK_COLS]; 2],
    n: [f32; 2],
) -> [S::Rows; 2] {
    let mut sums = s.pair_zero();
    let [(x0, _), (x1, _)] = [x[0].as_chunks::<8>(), x[1].as_chunks::<8>()];
    for i in (half * N..half * N + N).step_by(2) {
        sums = s.pair_dot::<BITS>(sums, [codes[i], codes[i + 1]], [&x0[i / 2], &x1[i / 2]]);
    }
    s.pair_to_rows::<BITS>(sums, c.center, n)
}

/// As [`pair_sums`], of one token.
#[inline(always)]
fn sums<S: Simd, const BITS: usize, const N: usize>(
    s: S,
    codes: &[S::Codes; QUADS],
    half: usize,
    c: &Coefficients<S>,
    x: &[i8; BLOCK_COLS],
    n: f32,
) -> S::Rows {
    let mut sums = s.dots_zero();
    for i in half * N..half * N + N {
        sums = s.dot::<BITS>(sums, codes[i], &x.as_chunks::<4>().0[i]);
    }
    s.dots_to_rows::<BITS>(sums, c.center, n)
}

/// The sum over a step: a half block of 4 quads, or both.
#[inline(always)]
fn sum<const N: usize>(halves: &[f32; 2], half: usize) -> f32 {
    if N == QUADS { halves[0] + halves[1] } else { halves[half] }
}

/// Integer sums with their fine part.
#[inline(always)]
fn refined<S: Simd>(s: S, a: S::Rows, fine: S::Rows) -> S::Rows {
    s.rows_fma(fine, s.rows_splat(1.0 / FINE_STEPS), a)
}

/// `acc` plus one step's products.
#[inline(always)]
fn add<S: Simd, const N: usize>(
    s: S,
    a: S::Rows,
    half: usize,
    c: &Coefficients<S>,
    x: &Block,
    acc: S::Rows,
) -> S::Rows {
    let t = s.rows_mul(a, s.rows_splat(x.delta));
    let acc = s.rows_fma(c.d, t, acc);
    match c.m {
        Some(m) => s.rows_fma(m, s.rows_splat(sum::<N>(&x.x, half)), acc),
        None => acc,
    }
}

/// What one tile of 32 rows is made of.
struct Tile<'a, const BITS: usize> {
    /// Each field's units of this tile, `[block][width]`.
    fields: [&'a [[u8; UNIT_BYTES]]; 3],
    kind: ParamKind,
    /// The tile's parameters as bytes, `[group][coefficient][32]`.
    params: &'a [u8],
    /// The tile's scales as bytes, `[superblock][coefficient][32]` f16, in the K kinds.
    scales: &'a [u8],
    cols: usize,
    group: usize,
    /// Whether a step is half a block: groups of 16.
    halves: bool,
    center: f32,
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
        let params = count * kind.coefficient_bytes() * TILE_ROWS * shape.groups(w.group());
        let scales = kind.scale_blocks(shape.cols) * count * TILE_ROWS * 2;
        Tile {
            fields,
            kind,
            params: &w.params()[tile * params..(tile + 1) * params],
            scales: &w.row_scales()[tile * scales..(tile + 1) * scales],
            cols: shape.cols,
            group: w.group(),
            halves: w.group() < BLOCK_COLS,
            center: kind.center().map_or(f32::from(1u8 << (BITS - 1)), f32::from),
        }
    }

    /// Whether block `b` reaches beyond its first 16 columns.
    #[inline(always)]
    fn has_second_half(&self, b: usize) -> bool {
        b * BLOCK_COLS + BLOCK_COLS / 2 < self.cols
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, b: usize) {
        for (field, width) in self.fields.iter().zip(widths(BITS)) {
            for unit in &field[b * width..(b + 1) * width] {
                s.prefetch(unit, PREFETCH_BYTES);
                s.prefetch(unit, PREFETCH_BYTES + 64);
            }
        }
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
        let (g, count) = (col / self.group, self.kind.coefficients(BITS));
        let d = self.coefficient(s, g * count, col / SUPERBLOCK * count);
        let m = if count == 2 {
            let m = self.coefficient(s, g * count + 1, col / SUPERBLOCK * count + 1);
            Some(s.rows_fma(s.rows_splat(self.center), d, m))
        } else {
            None
        };
        Coefficients { d, m, center: self.center }
    }

    /// `acc` plus the products of step `half` of block `b`, which is `N` quads long.
    #[inline(always)]
    fn step<S: Simd, const N: usize>(&self, s: S, b: usize, half: usize, x: &Block, acc: S::Rows) -> S::Rows {
        let (mut sums, mut fine) = (s.dots_zero(), s.dots_zero());
        let c = self.coefficients(s, b, half);
        let (a, f) = (x.a.as_chunks::<4>().0, x.fine.as_chunks::<4>().0);
        if x.refined {
            for i in half * N..half * N + N {
                let code = self.codes(s, b, i);
                sums = s.dot::<BITS>(sums, code, &a[i]);
                fine = s.dot::<BITS>(fine, code, &f[i]);
            }
        } else {
            for i in half * N..half * N + N {
                sums = s.dot::<BITS>(sums, self.codes(s, b, i), &a[i]);
            }
        }
        let mut a = s.dots_to_rows::<BITS>(sums, c.center, sum::<N>(&x.n, half));
        if x.refined {
            let f = s.dots_to_rows::<BITS>(fine, c.center, sum::<N>(&x.fine_n, half));
            a = refined(s, a, f);
        }
        add::<S, N>(s, a, half, &c, x, acc)
    }
}
