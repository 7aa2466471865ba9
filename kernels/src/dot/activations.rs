//! Activations as integers, 32 under one scale: 8 bits, and 8 bits more of what rounding to the first ones lost.
//!
//! ```text
//! m = max |x|      delta = m (1 / 127)      t = x * (127 / m)      a = round(t)      fine = round(254 (t - a))
//! x = delta (a + fine / 254)            to nearest even, all within +-127
//! ```
//!
//! Rounding to 8 bits hurts where one activation is far above the others, whose steps it makes coarse. Only such blocks,
//! whose largest magnitude is above 3.5 times their root mean square, have a fine part: a third of SmolLM2's, and the
//! change of its tokens' probabilities falls from 1.3 to 0.4 % (RMS; `docs/speed.md`). A block of all (nearly) zeros has `delta = 0`; one with an
//! infinite or NaN activation has `delta = NaN`, so that every output that uses it is NaN, on every tier.

use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::pack::c32::BLOCK_COLS;
use crate::simd::{Kernel, LANES, Simd};

/// 32 activations of each of `T` tokens. All bytes zero are zeros.
///
/// Tokens lie side by side, so that a product with many of them reads no more than it needs, one cache line after the
/// other. Sums are of the first 16, of the last 16, and of all.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Block<const T: usize> {
    /// The integers, within +-127; zero behind the last activation.
    pub(crate) a: [[i8; BLOCK_COLS]; T],
    /// What 1 stands for.
    pub(crate) delta: [f32; T],
    /// Sums of the activations, in f32: 8 lanes and one tree.
    pub(crate) x: [[f32; T]; 3],
    /// Sums of what is not in the integers: `x - delta (n + fine_n / 254)`.
    pub(crate) lost: [[f32; T]; 3],
    /// Sums of the integers, exact.
    pub(crate) n: [[f32; T]; 3],
    /// Whether there is a fine part.
    pub(crate) refined: [bool; T],
    /// What the integers lack, in steps of 1/254; zeros where there is no fine part.
    pub(crate) fine: [[i8; BLOCK_COLS]; T],
    /// What 1 of the fine ones stands for.
    pub(crate) fine_delta: [f32; T],
    /// Sums of the fine ones, exact.
    pub(crate) fine_n: [[f32; T]; 3],
}

impl<const T: usize> Default for Block<T> {
    fn default() -> Self {
        Block {
            a: [[0; BLOCK_COLS]; T],
            delta: [0.0; T],
            x: [[0.0; T]; 3],
            lost: [[0.0; T]; 3],
            n: [[0.0; T]; 3],
            refined: [false; T],
            fine: [[0; BLOCK_COLS]; T],
            fine_delta: [0.0; T],
            fine_n: [[0.0; T]; 3],
        }
    }
}

/// Index of the sums over all 32.
pub(crate) const ALL: usize = 2;

/// Tokens that lie side by side where there are several.
pub const TOGETHER: usize = 8;

/// The activations of a product.
#[derive(Clone, Copy, Debug)]
pub enum Tokens<'a> {
    /// Of one token, `[block]`.
    One(&'a [Block<1>]),
    /// `[tokens / TOGETHER][block]`, and the number of tokens.
    Many(&'a [Block<TOGETHER>], usize),
}

/// A fine step, of one of the others.
const FINE: f32 = 1.0 / 254.0;

/// A block is refined whose integers have a smaller sum of squares: exact, and so the same everywhere.
const REFINED_BELOW: f32 = 127.0 * 127.0 * BLOCK_COLS as f32 / (3.5 * 3.5);

/// Rounds the activations `x` of `T` tokens to blocks of 32; the last one is filled up with zeros. A token without any
/// activations, where others have some, gets blocks of zeros.
///
/// # Errors
/// [`Error::Length`] where `out` has not as many blocks as the longest of `x` needs, or the others are neither as long nor
/// empty.
pub fn quantize<const T: usize>(isa: Isa, x: [&[f32]; T], out: &mut [Block<T>]) -> Result<()> {
    let cols = x.iter().map(|x| x.len()).max().unwrap_or(0);
    let wrong = |what: &str, expected, found| Err(Error::Length { what: what.into(), expected, found });
    if let Some(x) = x.iter().find(|x| !x.is_empty() && x.len() != cols) {
        return wrong("activations of a token", cols, x.len());
    }
    if out.len() != cols.div_ceil(BLOCK_COLS) {
        return wrong("blocks of activations", cols.div_ceil(BLOCK_COLS), out.len());
    }
    isa.run(Quantize { x, out });
    Ok(())
}

struct Quantize<'a, const T: usize> {
    x: [&'a [f32]; T],
    out: &'a mut [Block<T>],
}

impl<const T: usize> Kernel for Quantize<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (mut whole, mut tails) = ([[].as_slice(); T], [[0.0; BLOCK_COLS]; T]);
        for ((x, whole), filled) in self.x.iter().zip(&mut whole).zip(&mut tails) {
            let tail;
            (*whole, tail) = x.as_chunks();
            filled[..tail.len()].copy_from_slice(tail);
        }
        for (b, out) in self.out.iter_mut().enumerate() {
            let mut x = tails.each_ref();
            for (x, whole) in x.iter_mut().zip(whole) {
                if let Some(whole) = whole.get(b) {
                    *x = whole;
                }
            }
            block(s, x, out);
        }
    }
}

/// The tokens side by side: what is worked out once for a block is worked out for all of them at once.
#[inline(always)]
fn block<S: Simd, const T: usize>(s: S, mut x: [&[f32; BLOCK_COLS]; T], out: &mut Block<T>) {
    let zero = s.splat(0.0);
    let (mut m, mut v) = ([0.0; T], [[zero; 4]; T]);
    for t in 0..T {
        v[t] = load(s, x[t]);
        let mut most = zero;
        for v in v[t] {
            most = s.max(s.max(v, s.sub(zero, v)), most);
        }
        m[t] = s.hmax(most);
    }
    out.x = halves(s, v);
    let (mut inverse, mut steps, mut finite) = ([0.0; T], [0.0; T], true);
    for t in 0..T {
        // Below 1e-30 the inverse would leave f32's range, and the products f32's precision.
        let some = m[t] >= 1e-30;
        let i = 127.0 / m[t];
        inverse[t] = if some { i } else { 0.0 };
        out.delta[t] = if some { m[t] * (1.0 / 127.0) } else { 0.0 };
        finite &= out.x[ALL][t].is_finite();
    }
    if !finite {
        for t in 0..T {
            // The sum may be infinite without one of the activations.
            if x[t].iter().any(|x| !x.is_finite()) {
                (x[t], inverse[t], out.delta[t]) = (&[0.0; BLOCK_COLS], 0.0, f32::NAN);
            }
        }
    }
    let (mut a, mut squares) = ([[zero; 4]; T], [zero; T]);
    for t in 0..T {
        let (v, inverse) = (load(s, x[t]), s.splat(inverse[t]));
        for i in 0..4 {
            a[t][i] = s.round(s.mul(v[i], inverse));
            squares[t] = s.fma(a[t][i], a[t][i], squares[t]);
        }
        s.store_i8(a[t], &mut out.a[t]);
    }
    out.n = halves(s, a);
    let squares = sums(s, squares);
    for t in 0..T {
        out.refined[t] = out.delta[t] > 0.0 && squares[t] < REFINED_BELOW;
        // Worked out in any case: whether it counts is as good as random, and a branch would be guessed wrong.
        steps[t] = if out.refined[t] { 1.0 / FINE } else { 0.0 };
        out.fine_delta[t] = out.delta[t] * FINE;
    }
    for t in 0..T {
        let (v, inverse, steps) = (load(s, x[t]), s.splat(inverse[t]), s.splat(steps[t]));
        for i in 0..4 {
            a[t][i] = s.round(s.mul(s.sub(s.mul(v[i], inverse), a[t][i]), steps));
        }
        s.store_i8(a[t], &mut out.fine[t]);
    }
    out.fine_n = halves(s, a);
    for i in 0..3 {
        for t in 0..T {
            out.lost[i][t] = out.x[i][t] - out.fine_n[i][t].mul_add(FINE, out.n[i][t]) * out.delta[t];
        }
    }
}

#[inline(always)]
fn load<S: Simd>(s: S, x: &[f32; BLOCK_COLS]) -> [S::F; 4] {
    let (x, _) = x.as_chunks::<LANES>();
    [s.load(&x[0]), s.load(&x[1]), s.load(&x[2]), s.load(&x[3])]
}

/// Sums of each token's first half, of its last half, and of both.
#[inline(always)]
fn halves<S: Simd, const T: usize>(s: S, x: [[S::F; 4]; T]) -> [[f32; T]; 3] {
    let zero = s.splat(0.0);
    let (mut first, mut second) = ([zero; T], [zero; T]);
    for t in 0..T {
        (first[t], second[t]) = (s.add(x[t][0], x[t][1]), s.add(x[t][2], x[t][3]));
    }
    let (a, b) = (sums(s, first), sums(s, second));
    let mut both = a;
    for t in 0..T {
        both[t] += b[t];
    }
    [a, b, both]
}

/// The sum of each.
#[inline(always)]
fn sums<S: Simd, const T: usize>(s: S, x: [S::F; T]) -> [f32; T] {
    let mut out = [0.0; T];
    let (many, few) = x.as_chunks();
    let (many_out, few_out) = out.as_chunks_mut();
    for (x, out) in many.iter().zip(many_out) {
        s.store(s.sums_of(*x), out);
    }
    for (x, out) in few.iter().zip(few_out) {
        *out = s.sum(*x);
    }
    out
}
