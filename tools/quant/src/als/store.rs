//! From coefficients in f64 to those that a file holds.

use half::f16;
use lutite_kernels::pack::ParamKind;

use super::group::{Coefs, Group, MAX_COEFS, MAX_LEVELS, Optimum, Solver};

/// Times that coefficients are fitted anew to the codes that the stored levels led to.
const ROUNDS: usize = 3;

/// Largest int8 that is used: the range is symmetric.
const INT8_MAX: f64 = 127.0;

/// The f16 nearest to `v`, ties to even, by one rounding. `f16::from_f64` rounds once or twice as the processor has it, so
/// that files packed on two of them could differ.
fn to_f16(v: f64) -> f16 {
    let near = v as f32;
    let (bits, back) = (near.to_bits(), f64::from(near));
    // Rounding to odd first loses nothing that the second rounding needs (Boldo and Melquiond 2008).
    let odd = match (bits & 1 == 1 || back == v || v.is_nan(), back.abs() > v.abs()) {
        (true, _) => bits,
        (false, true) => bits - 1,
        (false, false) => bits + 1,
    };
    f16::from_f32(f32::from_bits(odd))
}

/// What a row's coefficients are rounded to.
pub(crate) enum Steps {
    /// The nearest f16.
    F16,
    /// A multiple of an f16 per coefficient, in the order of [`Coefs`].
    Int8([f16; MAX_COEFS]),
}

impl Steps {
    /// For a row whose groups have these coefficients, in [`canonical`] form.
    pub(crate) fn of_row<const Q: usize>(groups: &[Coefs], kind: ParamKind) -> Steps {
        if kind != ParamKind::Hlq8 {
            return Steps::F16;
        }
        let mut steps = [f16::ZERO; MAX_COEFS];
        for (k, step) in steps[..=Q].iter_mut().enumerate() {
            let largest = groups.iter().fold(0.0, |m: f64, c| m.max(c[k].abs()));
            *step = to_f16(largest / INT8_MAX).min(f16::MAX);
            // A step that was rounded down is kept while 127 of it are nearer to the largest than 128 would be.
            // Among subnormals, or at 0, rounding loses more: take the next.
            if (INT8_MAX + 0.5) * step.to_f64() < largest && *step < f16::MAX {
                *step = f16::from_bits(step.to_bits() + 1);
            }
        }
        Steps::Int8(steps)
    }

    /// The storable value nearest to coefficient `k` = `v`.
    fn round(&self, k: usize, v: f64) -> f64 {
        match self {
            Steps::F16 => to_f16(v).clamp(f16::MIN, f16::MAX).to_f64(),
            Steps::Int8(steps) => self.int8(k, v) * steps[k].to_f64(),
        }
    }

    fn int8(&self, k: usize, v: f64) -> f64 {
        match self {
            Steps::Int8(steps) if steps[k] > f16::ZERO => {
                (v / steps[k].to_f64()).round().clamp(-INT8_MAX, INT8_MAX)
            }
            _ => 0.0,
        }
    }

    /// The nearest storable coefficients in the metric of the normal equations.
    pub(crate) fn round_all<const Q: usize>(&self, to: &Optimum) -> Coefs {
        to.round_all::<Q>(|k, v| self.round(k, v))
    }

    /// Appends coefficients that [`fit_stored`] returned: scales, then `z`.
    pub(crate) fn write<const Q: usize>(&self, c: &Coefs, out: &mut Vec<u8>) {
        for k in (1..=Q).chain([0]) {
            match self {
                Steps::F16 => out.extend_from_slice(&to_f16(c[k]).to_le_bytes()),
                Steps::Int8(_) => out.push((self.int8(k, c[k]) as i8).cast_unsigned()),
            }
        }
    }

    /// Appends the row's scales, those of scales and then that of `z`, if there are any.
    pub(crate) fn write_scales<const Q: usize>(&self, out: &mut Vec<u16>) {
        if let Steps::Int8(steps) = self {
            out.extend((1..=Q).chain([0]).map(|k| steps[k].to_bits()));
        }
    }
}

/// The same levels with planes in the order of their magnitudes and `z` the level nearest to zero: a flipped bit
/// turns `(z, s)` into `(z + s, -s)`. That makes a row's groups alike and `z` small, so that int8 steps are small.
pub(crate) fn canonical<const Q: usize>(c: &Coefs) -> Coefs {
    let mut out = *c;
    out[1..=Q].sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let mut levels = [out[0]; MAX_LEVELS];
    for p in 0..Q {
        for code in 0..1 << p {
            levels[code | 1 << p] = levels[code] + out[p + 1];
        }
    }
    let mut nearest = 0;
    for code in 1..1 << Q {
        if levels[code].abs() < levels[nearest].abs() {
            nearest = code;
        }
    }
    out[0] = levels[nearest];
    for p in 0..Q {
        if nearest >> p & 1 == 1 {
            out[p + 1] = -out[p + 1];
        }
    }
    out
}

/// The best storable coefficients found from `start` on, and the codes of `g` under them.
pub(crate) fn fit_stored<const Q: usize>(
    solver: &mut Solver<Q>,
    g: &Group<'_>,
    start: &Coefs,
    steps: &Steps,
    codes: &mut [u8],
) -> Coefs {
    solver.set_levels(start);
    solver.sort_levels();
    solver.assign(g);
    let mut next = solver.optimum(start);
    let mut best = (f64::INFINITY, *start);
    for _ in 0..ROUNDS {
        let c = steps.round_all::<Q>(&next);
        solver.set_stored_levels(&c);
        let error = solver.assign(g);
        if error >= best.0 {
            break;
        }
        best = (error, c);
        solver.write_assigned(g, codes);
        next = solver.optimum(&c);
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition: no other f16 is nearer, and of two that are as near the even one is taken.
    #[test]
    fn to_f16_rounds_once() {
        for bits in 0..0x7bff {
            let (low, high) = (f16::from_bits(bits), f16::from_bits(bits + 1));
            let middle = (low.to_f64() + high.to_f64()) / 2.0;
            let even = if bits % 2 == 0 { low } else { high };
            let (below, above) = (middle.next_down(), middle.next_up());
            for sign in [1.0, -1.0] {
                let is = |v: f64, f: f16| assert_eq!(to_f16(sign * v).to_f64(), sign * f.to_f64(), "{v:e}");
                is(low.to_f64(), low);
                is(below, low);
                is(middle, even);
                is(above, high);
            }
        }
        assert_eq!([to_f16(1e300), to_f16(-1e300)], [f16::INFINITY, f16::NEG_INFINITY]);
        assert!(to_f16(f64::NAN).is_nan());
    }
}
