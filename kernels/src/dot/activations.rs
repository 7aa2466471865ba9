//! Activations as integers of 8 bits, 32 under one scale: all but the largest, which stays as it is.
//!
//! ```text
//! m = max |x| of the others     delta = m (1 / 127)     a = round(x (127 / m))     to nearest even, within +-127
//! ```
//!
//! A scale that had to reach the largest activation would make the others' steps coarse: in blocks of 32 it is often
//! several times as large as the next. Multiplied apart, in f32, it costs a product a twelfth, and the change of tokens'
//! probabilities is less than half (`docs/speed.md`). A block whose others are all (nearly) zeros has `delta = 0`; one
//! with an infinite or NaN activation has `delta = NaN`, so that every output that uses it is NaN, on every tier.

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
    /// The integers, within +-127; zero where the largest activation is, and behind the last.
    pub(crate) a: [[i8; BLOCK_COLS]; T],
    /// What 1 stands for.
    pub(crate) delta: [f32; T],
    /// Where the largest activation is, below 32.
    pub(crate) at: [u8; T],
    /// The largest activation, in those of the three sums that it belongs to; 0 in the other.
    pub(crate) largest: [[f32; T]; 3],
    /// Sums of the activations, in f32: 8 lanes and one tree.
    pub(crate) x: [[f32; T]; 3],
    /// Sums of what rounding took off: `x - (delta n + largest)`.
    pub(crate) lost: [[f32; T]; 3],
    /// Sums of the integers, exact.
    pub(crate) n: [[f32; T]; 3],
}

impl<const T: usize> Default for Block<T> {
    fn default() -> Self {
        Block {
            a: [[0; BLOCK_COLS]; T],
            delta: [0.0; T],
            at: [0; T],
            largest: [[0.0; T]; 3],
            x: [[0.0; T]; 3],
            lost: [[0.0; T]; 3],
            n: [[0.0; T]; 3],
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

/// Ones around a zero: from `BLOCK_COLS - 1 - i` on, all but number `i`.
const ALL_BUT_ONE: [f32; 2 * BLOCK_COLS] = {
    let mut ones = [1.0; 2 * BLOCK_COLS];
    ones[BLOCK_COLS - 1] = 0.0;
    ones
};

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
    let mut v = [[zero; 4]; T];
    for t in 0..T {
        v[t] = load(s, x[t]);
    }
    out.x = halves(s, v);
    let mut finite = true;
    for x in out.x[ALL] {
        finite &= x.is_finite();
    }
    let mut poison = [0.0; T];
    if !finite {
        for t in 0..T {
            // The sum may be infinite without one of the activations.
            if x[t].iter().any(|x| !x.is_finite()) {
                (x[t], poison[t]) = (&[0.0; BLOCK_COLS], f32::NAN);
            }
        }
    }
    let mut inverse = [0.0; T];
    out.largest = [[0.0; T]; 3];
    for t in 0..T {
        let all = load(s, x[t]);
        let at = s.position(x[t], max_abs(s, all));
        (out.at[t], out.largest[at / 16][t], out.largest[ALL][t]) = (at as u8, x[t][at], x[t][at]);
        let others = ALL_BUT_ONE[BLOCK_COLS - 1 - at..].first_chunk().unwrap_or(x[t]);
        let others = load(s, others);
        for i in 0..4 {
            v[t][i] = s.mul(all[i], others[i]);
        }
        let m = max_abs(s, v[t]);
        // Below 1e-30 the inverse would leave f32's range, and the products f32's precision.
        inverse[t] = if m < 1e-30 { 0.0 } else { 127.0 / m };
        out.delta[t] = if m < 1e-30 { 0.0 } else { m * (1.0 / 127.0) } + poison[t];
    }
    for t in 0..T {
        let inverse = s.splat(inverse[t]);
        for v in &mut v[t] {
            *v = s.round(s.mul(*v, inverse));
        }
        s.store_i8(v[t], &mut out.a[t]);
    }
    out.n = halves(s, v);
    for i in 0..3 {
        for t in 0..T {
            out.lost[i][t] = out.x[i][t] - out.n[i][t].mul_add(out.delta[t], out.largest[i][t]);
        }
    }
}

/// The largest magnitude.
#[inline(always)]
fn max_abs<S: Simd>(s: S, x: [S::F; 4]) -> f32 {
    let zero = s.splat(0.0);
    let mut most = zero;
    for x in x {
        most = s.max(s.max(x, s.sub(zero, x)), most);
    }
    s.hmax(most)
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
