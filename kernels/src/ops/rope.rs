//! Rotary position embedding (arXiv 2104.09864) with the scalings that model files ask for.
//!
//! Angles are formed in f64 with the software crate `libm`, so that every platform rotates by the same
//! bits; one position costs `dims / 2` sines and cosines, once per token for all heads and layers.

/// How the rotation's frequencies follow from the model's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Dimensions of a head that are rotated; even.
    pub dims: usize,
    /// Base of the frequencies, 10000 in the paper.
    pub base: f64,
    /// Divisors of the frequencies, one per pair (Llama 3's `rope_freqs`); empty for none.
    pub factors: Vec<f32>,
    /// Scaling of positions.
    pub scaling: RopeScaling,
}

/// Scaling of positions beyond the training length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Positions divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// YaRN (arXiv 2309.00071): high frequencies kept, low ones divided by the factor, a ramp between,
    /// and a magnitude of `attention * (1 + 0.1 ln factor)`.
    Yarn {
        /// The factor.
        factor: f64,
        /// Context length of the original training.
        original_context: f64,
        /// Number of rotations at which the ramp ends (32 in the paper).
        beta_fast: f64,
        /// Number of rotations at which the ramp starts (1 in the paper).
        beta_slow: f64,
        /// Further factor on the magnitude (1 in the paper).
        attention: f64,
    },
}

/// Ready frequencies.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Radians per position, one per pair.
    frequencies: Vec<f64>,
    /// Factor on sine and cosine.
    magnitude: f64,
}

impl Rope {
    /// Works the frequencies out.
    pub fn new(c: &RopeConfig) -> Rope {
        let pairs = c.dims / 2;
        let frequency = |i: usize| {
            let f = libm::pow(c.base, -2.0 * i as f64 / c.dims as f64);
            f / c.factors.get(i).map_or(1.0, |f| f64::from(*f))
        };
        let mut frequencies: Vec<f64> = (0..pairs).map(frequency).collect();
        let mut magnitude = 1.0;
        match c.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => frequencies.iter_mut().for_each(|f| *f /= factor),
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention } => {
                // The pair that makes `beta` rotations over the original context.
                let corner = |beta: f64| {
                    c.dims as f64 * libm::log(original_context / (beta * core::f64::consts::TAU))
                        / (2.0 * libm::log(c.base))
                };
                let low = libm::floor(corner(beta_fast)).max(0.0);
                let high = libm::ceil(corner(beta_slow)).min(c.dims as f64 - 1.0);
                for (i, f) in frequencies.iter_mut().enumerate() {
                    let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    *f = *f / factor * ramp + *f * (1.0 - ramp);
                }
                magnitude = attention * (1.0 + 0.1 * libm::log(factor));
            }
        }
        Rope { frequencies, magnitude }
    }

    /// Rotated dimensions of a head.
    pub fn dims(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Cosine and sine of each pair at a position, `[dims / 2][cos, sin]`.
    pub fn angles(&self, position: usize, out: &mut [f32]) {
        for (o, f) in out.chunks_exact_mut(2).zip(&self.frequencies) {
            let (sin, cos) = libm::sincos(position as f64 * f);
            o[0] = (cos * self.magnitude) as f32;
            o[1] = (sin * self.magnitude) as f32;
        }
    }
}

/// Rotates the pairs `(x[2i], x[2i+1])` of one head by `angles` (from [`Rope::angles`]); dimensions behind
/// the rotated ones stay. The order in which Llama's GGUF files keep their q and k rows.
pub fn rotate_adjacent(head: &mut [f32], angles: &[f32]) {
    for (x, a) in head.chunks_exact_mut(2).zip(angles.chunks_exact(2)) {
        let (x0, x1) = (x[0], x[1]);
        x[0] = x0 * a[0] - x1 * a[1];
        x[1] = x0 * a[1] + x1 * a[0];
    }
}
