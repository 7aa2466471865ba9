//! The vector operations that every algorithm of this crate is written over.
//!
//! An implementor is a zero-size token that proves that its instruction set is there
//! (`crate::arch`). Algorithms are generic over [`Simd`] and written once; `arch` files are thin.
//! Three shapes are enough: 8 floats that may be summed ([`Simd::F`]), 16 whose lanes never meet ([`Simd::W`]), and the 32
//! rows of a tile (bytes, sums, or one float each; [`Simd::Rows`] are the floats).
//!
//! All methods must give equal bits on every implementor, NaN payloads excepted.

/// Number of f32 lanes that every reduction uses, whatever the hardware's width.
pub(crate) const LANES: usize = 8;

/// Lanes of a [`Simd::W`].
pub(crate) const WIDE: usize = 16;

/// Rows of a tile: one byte of a 32-byte vector each. See `pack::p32`.
pub(crate) const TILE: usize = 32;

/// What is added to table entries so that they are positive.
pub(crate) const BIAS: u8 = 128;

/// A set of vector instructions. Everything is `#[inline(always)]` so that it is compiled inside the
/// featured function that [`Simd::vectorize`] enters.
pub(crate) trait Simd: Copy {
    /// 8 f32 lanes.
    type F: Copy;
    /// 16 f32 lanes, for algorithms whose lanes never meet: one register where the hardware has such.
    type W: Copy;
    /// Four 16-entry byte tables, those of two blocks of `pack::p32`, ready to be looked up.
    type Tables: Copy;
    /// The entries' numbers of two blocks of `pack::p32`, ready to look up.
    type Nibbles: Copy;
    /// Running sums of table entries for 32 rows; up to 256 entries may be added.
    type Acc: Copy;
    /// 32 signed sums, of 16 bits at least, rows in order once converted to floats.
    type Sums: Copy;
    /// 32 floats, one for each row of a tile, in order.
    type Rows: Copy;
    /// 4 codes, a byte each, for each row of a tile.
    type Codes: Copy;
    /// 32 running sums of codes times activations.
    type Dots: Copy;
    /// The same for two tokens.
    type Pair: Copy;
    /// How many [`Simd::W`] the registers hold.
    const WIDES: usize;
    /// Whether products with many tokens are made for two of them at once.
    const PAIRS: bool;

    /// Runs `k` inside a function that has this token's instructions enabled.
    fn vectorize<K: Kernel>(self, k: K) -> K::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// 8 floats from memory.
    fn load(self, x: &[f32; LANES]) -> Self::F;
    /// 8 floats to memory.
    fn store(self, v: Self::F, out: &mut [f32; LANES]);
    /// 8 little-endian IEEE half floats, exactly widened.
    fn load_f16(self, x: &[u8; 16]) -> Self::F;
    /// Rounds to half floats (to nearest, ties to even), little-endian.
    fn store_f16(self, v: Self::F, out: &mut [u8; 16]);
    /// 8 little-endian bfloat16, exactly widened.
    fn load_bf16(self, x: &[u8; 16]) -> Self::F;
    /// 8 signed bytes, exactly widened.
    fn load_i8(self, x: &[u8; 8]) -> Self::F;
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c` with one rounding.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a > b { a } else { b }` per lane: the second operand when either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }` per lane: the second operand when either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `2^n` for integral `n` in -126..=127.
    fn exp2i(self, n: Self::F) -> Self::F;
    /// `((v0+v4) + (v2+v6)) + ((v1+v5) + (v3+v7))`: the one tree of the bit contract.
    fn sum(self, v: Self::F) -> f32;
    /// [`Simd::sum`] of each.
    #[inline(always)]
    fn sums_of(self, v: [Self::F; LANES]) -> Self::F {
        let mut sums = [0.0; LANES];
        for (sum, v) in sums.iter_mut().zip(v) {
            *sum = self.sum(v);
        }
        self.load(&sums)
    }
    /// Largest lane (no NaN among the lanes).
    fn hmax(self, v: Self::F) -> f32;

    /// All lanes `x`.
    fn wide_splat(self, x: f32) -> Self::W;
    /// All lanes one little-endian half float.
    fn wide_splat_f16(self, x: [u8; 2]) -> Self::W;
    /// 16 little-endian floats.
    fn wide_f32(self, x: &[u8; 64]) -> Self::W;
    /// 16 little-endian half floats, exactly widened.
    fn wide_f16(self, x: &[u8; 32]) -> Self::W;
    /// 16 signed bytes, exactly widened.
    fn wide_i8(self, x: &[u8; 16]) -> Self::W;
    /// 16 numbers of 4 bits, less 8: the low nibbles of 8 bytes, then the high ones.
    fn wide_i4(self, x: &[u8; 8]) -> Self::W;
    /// 16 floats from memory.
    fn wide_load(self, x: &[f32; WIDE]) -> Self::W;
    /// 16 floats to memory.
    fn wide_store(self, v: Self::W, out: &mut [f32; WIDE]);
    /// `a + b`
    fn wide_add(self, a: Self::W, b: Self::W) -> Self::W;
    /// `a - b`
    fn wide_sub(self, a: Self::W, b: Self::W) -> Self::W;
    /// `a * b`
    fn wide_mul(self, a: Self::W, b: Self::W) -> Self::W;
    /// `a / b`
    fn wide_div(self, a: Self::W, b: Self::W) -> Self::W;
    /// `a * b + c` with one rounding.
    fn wide_fma(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W;
    /// As [`Simd::max`].
    fn wide_max(self, a: Self::W, b: Self::W) -> Self::W;
    /// As [`Simd::min`].
    fn wide_min(self, a: Self::W, b: Self::W) -> Self::W;
    /// As [`Simd::round`].
    fn wide_round(self, a: Self::W) -> Self::W;
    /// As [`Simd::exp2i`].
    fn wide_exp2i(self, n: Self::W) -> Self::W;

    /// `(|x0| + |x1|) + (|x2| + |x3|)` of each 4 activations, the lanes in an order of the tier's own.
    fn tuples(self, x: &[f32; 4 * LANES]) -> Self::F;
    /// Table entries of twice 4 activations. `t[e]` is `inv` times the sum over `i` of `x[i]` where bit `i` of `e`
    /// is set and of `-x[i]` where it is not, formed as `(x0 + x1) + (x2 + x3)`; it must lie within +-127.
    /// `out[e] = round(t[e]) + 128`, to nearest even.
    fn build_tables(self, x: &[f32; 8], inv: f32, out: &mut [u8; 32]);
    /// Asks for the cache line `ahead` bytes behind the start of `at`. A hint: any address will do.
    fn prefetch(self, at: &[u8], ahead: usize);
    /// Makes four consecutive tables ready for look-up.
    fn tables(self, t: &[u8; 64]) -> Self::Tables;
    /// No entries added yet, and `bias` taken off.
    fn acc_less(self, bias: u16) -> Self::Acc;
    /// The nibbles of two blocks of 32 rows.
    fn nibbles(self, w: &[u8; 64]) -> Self::Nibbles;
    /// Looks up two blocks, the first one's low nibbles in the first table and its high nibbles in the second, the
    /// other's in the third and fourth, and adds the four entries to each row's sum.
    fn accumulate(self, acc: Self::Acc, t: Self::Tables, n: Self::Nibbles) -> Self::Acc;
    /// The sums, exact where they fit in an i16.
    fn sums(self, acc: Self::Acc) -> Self::Sums;
    /// The sums of all rows, exactly widened.
    fn sums_to_rows(self, s: Self::Sums) -> Self::Rows;

    /// All rows `x`.
    fn rows_splat(self, x: f32) -> Self::Rows;
    /// 32 little-endian IEEE half floats, exactly widened.
    fn rows_load_f16(self, x: &[u8; 2 * TILE]) -> Self::Rows;
    /// 32 signed bytes, exactly widened.
    fn rows_load_i8(self, x: &[u8; TILE]) -> Self::Rows;
    /// 32 floats to memory.
    fn rows_store(self, v: Self::Rows, out: &mut [f32; TILE]);
    /// `a * b`
    fn rows_mul(self, a: Self::Rows, b: Self::Rows) -> Self::Rows;
    /// `a * b + c` with one rounding.
    fn rows_fma(self, a: Self::Rows, b: Self::Rows, c: Self::Rows) -> Self::Rows;

    /// 32 floats from memory.
    fn rows_load(self, x: &[f32; TILE]) -> Self::Rows;
    /// `a` plus `x` where bit `bit` of the row's byte of a block of `pack::p32` is set, less `x` where it is not.
    fn rows_add_signed(self, a: Self::Rows, block: &[u8; TILE], bit: usize, x: f32) -> Self::Rows;
    /// Where the first number is whose magnitude is `m`; 0 if there is none.
    #[inline(always)]
    fn position(self, x: &[f32; 4 * LANES], m: f32) -> usize {
        x.iter().position(|x| x.abs() == m).unwrap_or(0)
    }
    /// 32 integers within +-127 as bytes.
    fn store_i8(self, v: [Self::F; 4], out: &mut [i8; 4 * LANES]);

    /// 4 bytes of each row, in order.
    fn codes(self, x: &[u8; 4 * TILE]) -> Self::Codes;
    /// The bytes again.
    fn codes_store(self, c: Self::Codes, out: &mut [u8; 4 * TILE]);
    /// Every byte shifted to the right by `shift` (to the left where that is negative; -7 to 7), then masked. What is
    /// shifted across a byte's end must be masked out.
    fn codes_field(self, c: Self::Codes, shift: i32, mask: u8) -> Self::Codes;
    /// `a | b`
    fn codes_or(self, a: Self::Codes, b: Self::Codes) -> Self::Codes;
    /// Adds byte `i` of each row of `c` to the row's code `i`, wrapping, where bit `i` of the row's nibble is set: low
    /// nibbles of a block of `pack::p32` for the first codes, high ones for the second.
    fn codes_add_where(
        self,
        codes: [Self::Codes; 2],
        nibbles: &[u8; TILE],
        c: Self::Codes,
    ) -> [Self::Codes; 2];
    /// Every row's code number `i` of 4, below 256 and exactly widened.
    fn code_at(self, c: Self::Codes, i: usize) -> Self::Rows;
    /// No products added yet.
    fn dots_zero(self) -> Self::Dots;
    /// Adds 4 products, of codes below `2^BITS` with activations within +-127, to each row's sum; to one sum at most
    /// 8 times.
    fn dot<const BITS: usize>(self, sums: Self::Dots, c: Self::Codes, a: &[i8; 4]) -> Self::Dots;
    /// `sum code a` of each row, exact; `n` is the sum of the activations.
    fn dots_to_rows<const BITS: usize>(self, sums: Self::Dots, n: f32) -> Self::Rows;
    /// No products added yet.
    fn pair_zero(self) -> Self::Pair;
    /// As [`Simd::dot`], of 8 columns with those of two tokens.
    fn pair_dot<const BITS: usize>(
        self,
        sums: Self::Pair,
        c: [Self::Codes; 2],
        a: [&[i8; 8]; 2],
    ) -> Self::Pair;
    /// As [`Simd::dots_to_rows`], of either token.
    fn pair_to_rows<const BITS: usize>(self, sums: Self::Pair, n: [f32; 2]) -> [Self::Rows; 2];
}

/// The operations on a pair of tokens, where `Pair` is `[Dots; 2]`.
macro_rules! pair_of_dots {
    () => {
        #[inline(always)]
        fn pair_zero(self) -> Self::Pair {
            [self.dots_zero(); 2]
        }
        #[inline(always)]
        fn pair_dot<const BITS: usize>(
            self,
            sums: Self::Pair,
            c: [Self::Codes; 2],
            a: [&[i8; 8]; 2],
        ) -> Self::Pair {
            let [(a, _), (b, _)] = [a[0].as_chunks::<4>(), a[1].as_chunks::<4>()];
            [
                self.dot::<BITS>(self.dot::<BITS>(sums[0], c[0], &a[0]), c[1], &a[1]),
                self.dot::<BITS>(self.dot::<BITS>(sums[1], c[0], &b[0]), c[1], &b[1]),
            ]
        }
        #[inline(always)]
        fn pair_to_rows<const BITS: usize>(self, sums: Self::Pair, n: [f32; 2]) -> [Self::Rows; 2] {
            [self.dots_to_rows::<BITS>(sums[0], n[0]), self.dots_to_rows::<BITS>(sums[1], n[1])]
        }
    };
}
pub(crate) use pair_of_dots;

/// An algorithm with its arguments, to be run on whichever instruction set is there.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Whether it multiplies codes: tiers that differ in nothing else are entered only then.
    #[cfg_attr(not(target_arch = "aarch64"), expect(dead_code, reason = "such tiers are Arm's only"))]
    const PRODUCTS: bool = false;
    /// The algorithm. Must be `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Asks for the cache lines of `bytes`, `ahead` bytes behind where they are.
#[inline(always)]
pub(crate) fn prefetch_lines<S: Simd>(s: S, bytes: &[u8], ahead: usize) {
    for line in bytes.chunks(64) {
        s.prefetch(line, ahead);
    }
}

/// The `k`th 32 half floats of `params`: a coefficient of a tile's rows.
#[inline(always)]
pub(crate) fn rows_f16<S: Simd>(s: S, params: &[u8], k: usize) -> S::Rows {
    s.rows_load_f16(&params.as_chunks().0[k])
}

/// 32 half floats, or as many as there are and zeros.
#[inline(always)]
pub(crate) fn halves<S: Simd>(s: S, x: &[u8]) -> S::Rows {
    match x.first_chunk() {
        Some(x) => s.rows_load_f16(x),
        None => {
            let mut filled = [0; 2 * TILE];
            filled[..x.len()].copy_from_slice(x);
            s.rows_load_f16(&filled)
        }
    }
}

/// The `k`th 32 signed bytes of `params` times their scales. The product of an int8 and a half is exact in f32.
#[inline(always)]
pub(crate) fn rows_scaled<S: Simd>(s: S, params: &[u8], k: usize, scale: S::Rows) -> S::Rows {
    s.rows_mul(s.rows_load_i8(&params.as_chunks().0[k]), scale)
}

/// Splits into whole 8-lane blocks and a tail shorter than 8.
#[inline(always)]
pub(crate) fn blocks(x: &[f32]) -> (&[[f32; LANES]], &[f32]) {
    x.as_chunks::<LANES>()
}

/// Loads a tail shorter than 8, filling the missing lanes with `fill`.
#[inline(always)]
pub(crate) fn load_tail<S: Simd>(s: S, tail: &[f32], fill: f32) -> S::F {
    let mut b = [fill; LANES];
    b[..tail.len()].copy_from_slice(tail);
    s.load(&b)
}

/// Stores the first lanes into a tail shorter than 8.
#[inline(always)]
pub(crate) fn store_tail<S: Simd>(s: S, v: S::F, tail: &mut [f32]) {
    let mut b = [0.0; LANES];
    s.store(v, &mut b);
    tail.copy_from_slice(&b[..tail.len()]);
}

/// The first 16 numbers of `x`, or all of them and zeros.
#[inline(always)]
pub(crate) fn first_wide(x: &[f32]) -> [f32; WIDE] {
    let mut b = [0.0; WIDE];
    let n = x.len().min(WIDE);
    b[..n].copy_from_slice(&x[..n]);
    b
}

/// The sum of any number of floats, over 8 lanes and the one tree.
#[inline(always)]
pub(crate) fn sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (whole, tail) = blocks(x);
    let mut acc = s.splat(0.0);
    for x in whole {
        acc = s.add(acc, s.load(x));
    }
    s.sum(s.add(acc, load_tail(s, tail, 0.0)))
}

/// The largest number, minus infinity if there is none; and 0, or NaN where a number is not finite.
#[inline(always)]
pub(crate) fn max_and_nan<S: Simd>(s: S, x: &[f32]) -> (f32, f32) {
    let (whole, tail) = blocks(x);
    let (mut max, mut nan) = (s.splat(f32::NEG_INFINITY), s.splat(0.0));
    for x in whole {
        let x = s.load(x);
        max = s.max(x, max);
        nan = s.fma(x, s.splat(0.0), nan);
    }
    max = s.max(load_tail(s, tail, f32::NEG_INFINITY), max);
    nan = s.fma(load_tail(s, tail, 0.0), s.splat(0.0), nan);
    (s.hmax(max), s.sum(nan))
}

/// Replaces each number by `exp(x - top)`; see [`exp`].
#[inline(always)]
pub(crate) fn exp_less<S: Simd>(s: S, x: &mut [f32], top: f32) {
    let top = s.wide_splat(top);
    let (whole, tail) = x.as_chunks_mut::<WIDE>();
    for x in whole {
        s.wide_store(exp(s, s.wide_sub(s.wide_load(x), top)), x);
    }
    if !tail.is_empty() {
        let mut x = first_wide(tail);
        s.wide_store(exp(s, s.wide_sub(s.wide_load(&x), top)), &mut x);
        tail.copy_from_slice(&x[..tail.len()]);
    }
}

/// `exp(x)` within 2 units in the last place; `x` is first clamped to -87.34..=88.37, so that results
/// stay between the smallest normal number and the largest. NaN gives NaN or a clamped end: callers
/// keep NaN out.
///
/// Range reduction by ln 2 in two parts and the degree-5 minimax polynomial of Cephes `expf`
/// (netlib.org/cephes, single/expf.c).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::W) -> S::W {
    const LO: f32 = -87.336_54; // ln of the smallest normal number
    let x = s.wide_max(s.wide_min(x, s.wide_splat(88.376_26)), s.wide_splat(LO));
    let n = s.wide_round(s.wide_mul(x, s.wide_splat(core::f32::consts::LOG2_E)));
    let r = s.wide_fma(n, s.wide_splat(-0.693_359_4), x);
    let r = s.wide_fma(n, s.wide_splat(2.121_944_4e-4), r);
    let mut p = s.wide_splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.wide_fma(p, r, s.wide_splat(c));
    }
    let p = s.wide_add(s.wide_fma(p, s.wide_mul(r, r), r), s.wide_splat(1.0));
    s.wide_mul(p, s.wide_exp2i(n))
}
