//! Softmax.

use crate::isa::Isa;
use crate::simd::{Kernel, LANES, Simd, blocks, exp_less, load_tail, store_tail, sum};

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
        let (whole, tail) = blocks(self.x);
        let mut max = s.splat(f32::NEG_INFINITY);
        let mut nan = s.splat(0.0); // stays 0 unless a score is infinite or NaN
        for b in whole {
            let v = s.load(b);
            max = s.max(v, max);
            nan = s.fma(v, s.splat(0.0), nan);
        }
        let v = load_tail(s, tail, f32::NEG_INFINITY);
        max = s.max(v, max);
        nan = s.fma(load_tail(s, tail, 0.0), s.splat(0.0), nan);
        exp_less(s, self.x, s.hmax(max) + s.sum(nan));

        // The shift is NaN where a score was; `exp` may clamp it, this product does not.
        let inv = s.splat(1.0 / sum(s, self.x) + s.sum(nan));
        let (whole, tail) = self.x.as_chunks_mut::<LANES>();
        for b in whole {
            let v = s.mul(s.load(b), inv);
            s.store(v, b);
        }
        let v = s.mul(load_tail(s, tail, 0.0), inv);
        store_tail(s, v, tail);
    }
}
