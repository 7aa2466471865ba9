//! RMS normalisation.

use crate::isa::Isa;
use crate::simd::{Kernel, Simd, blocks, load_tail};

/// `1 / sqrt(mean(x^2) + eps)`: the factor that [`apply`] multiplies by. An empty `x` gives
/// `1 / sqrt(eps)`.
pub fn inverse_rms(isa: Isa, x: &[f32], eps: f32) -> f32 {
    let squares = isa.run(SumSquares { x });
    1.0 / (squares / x.len().max(1) as f32 + eps).sqrt()
}

/// `out[i] = x[i] * factor * weight[i]`, over the shortest slice.
pub fn apply(x: &[f32], factor: f32, weight: &[f32], out: &mut [f32]) {
    for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * factor * w;
    }
}

struct SumSquares<'a> {
    x: &'a [f32],
}

impl Kernel for SumSquares<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (whole, tail) = blocks(self.x);
        let mut acc = s.splat(0.0);
        for b in whole {
            let v = s.load(b);
            acc = s.fma(v, v, acc);
        }
        let v = load_tail(s, tail, 0.0);
        s.sum(s.fma(v, v, acc))
    }
}
