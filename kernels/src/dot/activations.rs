//! Activations as integers, 32 under one scale: 8 bits, and 8 bits more of what rounding to the first ones lost.
//!
//! ```text
//! m = max |x|      delta = m / 127      t = x * (127 / m)      a = round(t)      fine = round(254 (t - a))
//! x = delta (a + fine / 254)            to nearest even, all within +-127
//! ```
//!
//! 8 bits alone would cost an output error of 2.6e-5 (normalised mean square, Gaussian inputs), which on small models
//! is too much: SmolLM2's best token changed at 4 % of all positions (`docs/speed.md`). A block of all (nearly) zeros
//! has `delta = 0`; one with an infinite or NaN activation has `delta = NaN`, so that every output that uses it is
//! NaN, on every tier.

use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::pack::c32::BLOCK_COLS;
use crate::simd::{Kernel, LANES, Simd};

/// 32 activations: two cache lines. All bytes zero are 32 zeros.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Block {
    /// The integers, within +-127; zero behind the last activation.
    pub(crate) a: [i8; BLOCK_COLS],
    /// What they lack, in steps of 1/254.
    pub(crate) fine: [i8; BLOCK_COLS],
    /// What 1 stands for.
    pub(crate) delta: f32,
    /// Sums of the first and last 16 activations, in f32: 8 lanes and one tree.
    pub(crate) x: [f32; 2],
    /// Sums of the first and last 16 integers, exact.
    pub(crate) n: [f32; 2],
    /// The same of the fine ones.
    pub(crate) fine_n: [f32; 2],
}

/// Fine steps in one of the others.
pub(crate) const FINE_STEPS: f32 = 254.0;

/// Rounds `x` to blocks of 32; the last one is filled up with zeros.
///
/// # Errors
/// [`Error::Length`] where `out` has not as many blocks as `x` needs.
pub fn quantize(isa: Isa, x: &[f32], out: &mut [Block]) -> Result<()> {
    let expected = x.len().div_ceil(BLOCK_COLS);
    if out.len() != expected {
        return Err(Error::Length { what: "blocks of activations".into(), expected, found: out.len() });
    }
    isa.run(Quantize { x, out });
    Ok(())
}

struct Quantize<'a> {
    x: &'a [f32],
    out: &'a mut [Block],
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (whole, tail) = self.x.as_chunks::<BLOCK_COLS>();
        for (x, out) in whole.iter().zip(&mut *self.out) {
            block(s, x, out);
        }
        if !tail.is_empty()
            && let Some(out) = self.out.last_mut()
        {
            let mut x = [0.0; BLOCK_COLS];
            x[..tail.len()].copy_from_slice(tail);
            block(s, &x, out);
        }
    }
}

#[inline(always)]
fn block<S: Simd>(s: S, x: &[f32; BLOCK_COLS], out: &mut Block) {
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
        (127.0 / m, m / 127.0)
    };
    out.delta = delta;
    let (a, _) = out.a.as_chunks_mut::<LANES>();
    let (fine, _) = out.fine.as_chunks_mut::<LANES>();
    for half in 0..2 {
        let (x0, x1) = (x[2 * half], x[2 * half + 1]);
        let (t0, t1) = if delta.is_nan() {
            (zero, zero)
        } else {
            (s.mul(x0, s.splat(inverse)), s.mul(x1, s.splat(inverse)))
        };
        let (a0, a1) = (s.round(t0), s.round(t1));
        let steps = s.splat(FINE_STEPS);
        let (f0, f1) = (s.round(s.mul(s.sub(t0, a0), steps)), s.round(s.mul(s.sub(t1, a1), steps)));
        s.store_i8(a0, &mut a[2 * half]);
        s.store_i8(a1, &mut a[2 * half + 1]);
        s.store_i8(f0, &mut fine[2 * half]);
        s.store_i8(f1, &mut fine[2 * half + 1]);
        out.x[half] = s.sum(s.add(x0, x1));
        out.n[half] = s.sum(s.add(a0, a1));
        out.fine_n[half] = s.sum(s.add(f0, f1));
    }
}
