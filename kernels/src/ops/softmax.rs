//! Softmax.

use crate::isa::Isa;
use crate::simd::{Kernel, LANES, Simd, exp_less, load_tail, max_and_nan, store_tail, sum};

/// Replaces `x` by `exp(x - max(x)) / sum`. NaN anywhere makes all of it NaN; an empty slice stays.
pub fn softmax(isa: Isa, x: &mut [f32]) {
    isa.run(Softmax { x });
}

/// `log(sum(exp(x)))`, stable; minus infinity for an empty slice.
pub fn log_sum_exp(x: &[f32]) -> f64 {
    let max = x.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    if max == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    f64::from(max) + libm::log(x.iter().map(|x| libm::exp(f64::from(*x) - f64::from(max))).sum())
}

struct Softmax<'a> {
    x: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.x.is_empty() {
            return;
        }
        let (max, nan) = max_and_nan(s, self.x);
        exp_less(s, self.x, max + nan);

        // The shift is NaN where a score was; `exp` may clamp it, this product does not.
        let inv = s.splat(1.0 / sum(s, self.x) + nan);
        let (whole, tail) = self.x.as_chunks_mut::<LANES>();
        for b in whole {
            let v = s.mul(s.load(b), inv);
            s.store(v, b);
        }
        let v = s.mul(load_tail(s, tail, 0.0), inv);
        store_tail(s, v, tail);
    }
}
