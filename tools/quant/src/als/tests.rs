//! Tests of the fit: against exhaustive search, against plain rounding, and through the packed reader.

use half::f16;
use lutite_kernels::pack::p32::{PlaneShape, TILE_ROWS, pack_tile};
use lutite_kernels::pack::{Packed, ParamKind};

use super::group::{Groups, Solver, uniform};
use super::*;

fn spec(planes: usize, group: usize, kind: ParamKind) -> FitSpec {
    FitSpec { planes, group, kind, iterations: 20 }
}

/// xorshift64*, uniform in 0..1.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }
    fn gauss(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.unit()).cos()) as f32
    }
    fn laplace(&mut self) -> f32 {
        let u = self.unit() - 0.5;
        -(u.signum() * (1.0 - 2.0 * u.abs()).ln()) as f32
    }
}

fn gauss(n: usize) -> Vec<f32> {
    let mut r = Random(7);
    (0..n).map(|_| 0.02 * r.gauss()).collect()
}

fn laplace(n: usize) -> Vec<f32> {
    let mut r = Random(7);
    (0..n).map(|_| 0.02 * r.laplace()).collect()
}

impl Fitted {
    /// The level of each code of a row and group, as the format defines it.
    fn levels(&self, cols: usize, s: &FitSpec, row: usize, group: usize) -> Vec<f32> {
        let n = s.coefficients();
        let at = (row * cols.div_ceil(s.group) + group) * n;
        let coef = |k: usize| match s.kind {
            ParamKind::Hlq8 => {
                let scale = f16::from_bits(self.row_scales[row * n + k]).to_f32();
                f32::from(self.params[at + k].cast_signed()) * scale
            }
            _ => f16::from_le_bytes([self.params[2 * (at + k)], self.params[2 * (at + k) + 1]]).to_f32(),
        };
        let bit = |code: usize, p: usize| if code >> p & 1 == 1 { coef(p) } else { 0.0 };
        (0..1 << s.planes).map(|code| (0..s.planes).fold(coef(s.planes), |w, p| w + bit(code, p))).collect()
    }

    fn weights(&self, cols: usize, s: &FitSpec) -> Vec<f32> {
        let mut out = Vec::new();
        for (row, codes) in self.codes.chunks(cols).enumerate() {
            for (group, codes) in codes.chunks(s.group).enumerate() {
                let levels = self.levels(cols, s, row, group);
                out.extend(codes.iter().map(|c| levels[usize::from(*c)]));
            }
        }
        out
    }
}

fn error(a: &[f32], b: &[f32], imp: Option<&[f32]>) -> f64 {
    let weight = |i: usize| imp.map_or(1.0, |v| f64::from(v[i % v.len()]));
    (0..a.len()).map(|i| weight(i) * (f64::from(a[i]) - f64::from(b[i])).powi(2)).sum()
}

/// Round to nearest on each group's uniform grid from least to largest, parameters not rounded.
fn round_to_nearest(w: &[f32], cols: usize, s: &FitSpec) -> f64 {
    let mut sum = 0.0;
    for g in w.chunks(cols).flat_map(|row| row.chunks(s.group)) {
        let low = g.iter().copied().fold(f32::INFINITY, f32::min);
        let high = g.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let d = (high - low) / ((1 << s.planes) - 1) as f32;
        sum += g.iter().map(|w| f64::from(w - (low + d * ((w - low) / d).round())).powi(2)).sum::<f64>();
    }
    sum
}

#[test]
fn codes_are_the_nearest_stored_levels() {
    let (w, cols) = (laplace(12 * 200), 200);
    for kind in [ParamKind::Hlq16, ParamKind::Hlq8] {
        for planes in 1..=8 {
            let s = spec(planes, 64, kind);
            let fitted = fit_rows(&w, cols, None, &s).unwrap();
            let got = fitted.weights(cols, &s);
            for (i, w) in w.iter().enumerate() {
                let levels = fitted.levels(cols, &s, i / cols, i % cols / 64);
                let nearest = levels.iter().map(|l| (l - w).abs()).fold(f32::INFINITY, f32::min);
                assert!((got[i] - w).abs() <= nearest, "{kind:?} {planes} planes, weight {i}");
            }
        }
    }
}

/// Prints the numbers that decide between ways to fit.
#[test]
fn beats_rounding_to_nearest() {
    let (n, cols) = (64 * 576, 576);
    for (name, w) in [("gauss", gauss(n)), ("laplace", laplace(n))] {
        for (planes, most) in [(2, 0.6), (3, 0.75), (4, 0.85), (8, 1.0)] {
            for kind in [ParamKind::Hlq16, ParamKind::Hlq8] {
                let s = spec(planes, 64, kind);
                let got = fit_rows(&w, cols, None, &s).unwrap().weights(cols, &s);
                let (e, rtn) = (error(&w, &got, None), round_to_nearest(&w, cols, &s));
                let signal: f64 = w.iter().map(|w| f64::from(w * w)).sum();
                println!("{name} q={planes} {}: error {:.6} of signal, {:.3} of rounding", kind.name(), e / signal, e / rtn);
                assert!(e < most * rtn);
            }
        }
    }
}

#[test]
#[ignore = "measures time"]
fn speed() {
    let (n, cols) = (1024 * 576, 576);
    let w = gauss(n);
    for planes in [1, 2, 3, 4, 5, 6, 8] {
        for kind in [ParamKind::Hlq16, ParamKind::Hlq8] {
            let start = std::time::Instant::now();
            fit_rows(&w, cols, None, &spec(planes, 64, kind)).unwrap();
            let ns = start.elapsed().as_nanos() as f64 / n as f64;
            println!("q={planes} {}: {ns:.1} ns per weight", kind.name());
        }
    }
}
