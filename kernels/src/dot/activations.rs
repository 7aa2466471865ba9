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

/// Rounds the activations `x` of token `t` of `T` to blocks of 32; the last one is filled up with zeros.
///
/// # Errors
/// [`Error::Length`] where `out` has not as many blocks as `x` needs, [`Error::Shape`] where there is no token `t`.
pub fn quantize<const T: usize>(isa: Isa, x: &[f32], out: &mut [Block<T>], t: usize) -> Result<()> {
    let expected = x.len().div_ceil(BLOCK_COLS);
    if out.len() != expected {
        return Err(Error::Length { what: "blocks of activations".into(), expected, found: out.len() });
    }
    if t >= T {
        return Err(Error::Shape {
            what: "token of a block",
            found: t,
            allowed: "below its number of tokens",
        });
    }
    isa.run(Quantize { x, out, t });
    Ok(())
}

struct Quantize<'a, const T: usize> {
    x: &'a [f32],
    out: &'a mut [Block<T>],
    t: usize,
}

impl<const T: usize> Kernel for Quantize<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (whole, tail) = self.x.as_chunks::<BLOCK_COLS>();
        for (x, out) in whole.iter().zip(&mut *self.out) {
            block(s, x, out, self.t);
        }
        if !tail.is_empty()
            && let Some(out) = self.out.last_mut()
        {
            let mut x = [0.0; BLOCK_COLS];
            x[..tail.len()].copy_from_slice(tail);
            block(s, &x, out, self.t);
        }
    }
}

#[inline(always)]
fn block<S: Simd, const T: usize>(s: S, x: &[f32; BLOCK_COLS], out: &mut Block<T>, at: usize) {
    let (x, _) = x.as_chunks::<LANES>();
    let x = [s.load(&x[0]), s.load(&x[1]), s.load(&x[2]), s.load(&x[3])];
    let zero = s.splat(0.0);
    let (mut most, mut poison) = (zero, zero);
    for x in x {
        most = s.max(s.max(x, s.sub(zero, x)), most);
        poison = s.fma(x, zero, poison); // 0 unless x is infinite or NaN
    }
    let m = s.hmax(most);
    // Below 1e-30 the inverse would leave f32's range, and the products f32's precision.
    let (inverse, delta) = if s.sum(poison) != 0.0 || !m.is_finite() {
        (0.0, f32::NAN)
    } else if m < 1e-30 {
        (0.0, 0.0)
    } else {
        (127.0 / m, m * (1.0 / 127.0))
    };
    let (mut t, mut a, mut squares) = ([zero; 4], [zero; 4], zero);
    if !delta.is_nan() {
        for i in 0..4 {
            t[i] = s.mul(x[i], s.splat(inverse));
            a[i] = s.round(t[i]);
            squares = s.fma(a[i], a[i], squares);
        }
    }
    let refined = delta > 0.0 && s.sum(squares) < REFINED_BELOW;
    // Worked out in any case: whether it counts is as good as random, and a branch would be guessed wrong.
    let steps = s.splat(if refined { 1.0 / FINE } else { 0.0 });
    for i in 0..4 {
        t[i] = s.round(s.mul(s.sub(t[i], a[i]), steps));
    }
    store(s, a, &mut out.a[at]);
    store(s, t, &mut out.fine[at]);
    (out.delta[at], out.fine_delta[at], out.refined[at]) = (delta, delta * FINE, refined);
    let (x, n, fine_n) = (halves(s, x), halves(s, a), halves(s, t));
    for i in 0..3 {
        (out.x[i][at], out.n[i][at], out.fine_n[i][at]) = (x[i], n[i], fine_n[i]);
        out.lost[i][at] = x[i] - fine_n[i].mul_add(FINE, n[i]) * delta;
    }
}

/// Sums of the first half, of the last half, and of both.
#[inline(always)]
fn halves<S: Simd>(s: S, x: [S::F; 4]) -> [f32; 3] {
    let (a, b) = (s.sum(s.add(x[0], x[1])), s.sum(s.add(x[2], x[3])));
    [a, b, a + b]
}

/// Integers within +-127 as bytes.
#[inline(always)]
fn store<S: Simd>(s: S, x: [S::F; 4], out: &mut [i8; BLOCK_COLS]) {
    for (x, out) in x.into_iter().zip(out.as_chunks_mut().0) {
        s.store_i8(x, out);
    }
}
