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
        for (planes, most) in [(2, 0.52), (3, 0.72), (4, 0.8), (5, 0.82), (6, 0.8), (8, 0.82)] {
            for kind in [ParamKind::Hlq16, ParamKind::Hlq8] {
                let s = spec(planes, 64, kind);
                let got = fit_rows(&w, cols, None, &s).unwrap().weights(cols, &s);
                let (e, rtn) = (error(&w, &got, None), round_to_nearest(&w, cols, &s));
                let signal: f64 = w.iter().map(|w| f64::from(w * w)).sum();
                println!(
                    "{name} q={planes} {}: error {:.6} of signal, {:.3} of rounding",
                    kind.name(),
                    e / signal,
                    e / rtn
                );
                assert!(e < most * rtn);
            }
        }
    }
}

/// Least squares error of fixed codes by Gaussian elimination: independent of the solver's normal equations.
fn error_of_codes(x: &[f64], codes: &[usize], planes: usize) -> f64 {
    let column = |i: usize, k: usize| if k == 0 || codes[i] >> (k - 1) & 1 == 1 { 1.0 } else { 0.0 };
    // Gram-Schmidt: what is left of x after all columns' directions are taken out of it.
    let mut rest = x.to_vec();
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for k in 0..=planes {
        let mut v: Vec<f64> = (0..x.len()).map(|i| column(i, k)).collect();
        for b in &basis {
            let dot: f64 = v.iter().zip(b).map(|(v, b)| v * b).sum();
            v.iter_mut().zip(b).for_each(|(v, b)| *v -= dot * b);
        }
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        if norm > 1e-6 {
            v.iter_mut().for_each(|v| *v /= norm);
            let dot: f64 = rest.iter().zip(&v).map(|(r, v)| r * v).sum();
            rest.iter_mut().zip(&v).for_each(|(r, v)| *r -= dot * v);
            basis.push(v);
        }
    }
    rest.iter().map(|r| r * r).sum()
}

/// The fit's error before rounding to storage.
fn fit_error<const Q: usize>(w: &[f32]) -> f64 {
    let (mut groups, mut solver) = (Groups::new(w.len(), 256), Solver::<Q>::new());
    groups.load(w, None);
    let g = groups.iter().next().unwrap();
    let c = solver.fit(&g, 20);
    let mut best = (f64::INFINITY, c);
    solver.descend(&g, c, 0, &mut best);
    best.0
}

/// Over all codes of tiny groups: never below the optimum, and near it.
#[test]
fn near_the_exhaustive_optimum() {
    let n = 7;
    let w = laplace(n * 24);
    let mut ratios = 0.0;
    for x in w.chunks(n) {
        let exact: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
        let optimum = (0..1usize << (2 * n))
            .map(|all| {
                let codes: Vec<usize> = (0..n).map(|i| all >> (2 * i) & 3).collect();
                error_of_codes(&exact, &codes, 2)
            })
            .fold(f64::INFINITY, f64::min);
        let e = fit_error::<2>(x);
        assert!(e >= optimum * (1.0 - 1e-6), "{e} below {optimum}");
        ratios += (e / optimum).ln();
    }
    let mean = (ratios / 24.0).exp();
    println!("tiny groups: {mean:.3} of the optimum's error");
    assert!(mean < 1.1);
}

/// Codes of two planes are four ranges of the sorted weights: over all of those, in groups of real size.
#[test]
fn near_the_optimal_ranges() {
    let n = 32;
    for (name, mut w) in [("gauss", gauss(n * 16)), ("laplace", laplace(n * 16))] {
        let mut ratios = 0.0;
        for x in w.chunks_mut(n) {
            x.sort_by(f32::total_cmp);
            let exact: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            let mut optimum = f64::INFINITY;
            for a in 0..=n {
                for b in a..=n {
                    for c in b..=n {
                        let codes: Vec<usize> = (0..n)
                            .map(|i| usize::from(i >= a) + usize::from(i >= b) + usize::from(i >= c))
                            .collect();
                        optimum = optimum.min(error_of_codes(&exact, &codes, 2));
                    }
                }
            }
            let e = fit_error::<2>(x);
            assert!(e >= optimum * (1.0 - 1e-6), "{e} below {optimum}");
            ratios += e / optimum;
        }
        println!("{name}: {:.4} of the optimum's error", ratios / 16.0);
        assert!(ratios / 16.0 < 1.02);
    }
}

#[test]
fn error_never_rises() {
    let w = laplace(64 * 50);
    let imp: Vec<f32> = gauss(64).iter().map(|v| v * v).collect();
    for imp in [None, Some(imp.as_slice())] {
        for x in w.chunks(64) {
            let (mut groups, mut solver) = (Groups::new(64, 64), Solver::<3>::new());
            groups.load(x, imp);
            let g = groups.iter().next().unwrap();
            let mut c = uniform::<3>(g.x[0], g.x[63], 1.0);
            let mut last = f64::INFINITY;
            for _ in 0..30 {
                solver.set_levels(&c);
                solver.sort_levels();
                let e = solver.assign(&g);
                assert!(e <= last * (1.0 + 1e-12), "{last} rose to {e}");
                last = e;
                c = solver.optimum(&c).at;
            }
        }
    }
}

#[test]
fn grids_are_recovered() {
    for planes in 1..=6 {
        // Scales and middle of few bits, so that f16 holds them, and all levels are met.
        let level = |code: usize| {
            0.25 + (0..planes).map(|p| (code >> p & 1) as f32 * 0.0625 * (1 << p) as f32).sum::<f32>()
        };
        let w: Vec<f32> = (0..128).map(|i| level(i * 37 % (1 << planes))).collect();
        let s = spec(planes, 64, ParamKind::Hlq16);
        assert_eq!(fit_rows(&w, 128, None, &s).unwrap().weights(128, &s), w, "{planes} planes");
        let s = spec(planes, 64, ParamKind::Hlq8);
        let got = fit_rows(&w, 128, None, &s).unwrap().weights(128, &s);
        // A step is an f16 of a coefficient's 127th part: 127 of them are within 2^-11 of it.
        let far = got.iter().zip(&w).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 4.0 / 2048.0, "{planes} planes: {far}");
    }
}

#[test]
fn packed_matrix_means_the_same() {
    // 2 tiles, the second short; columns end within a group.
    let (rows, cols) = (40, 100);
    let w = laplace(rows * cols);
    let shape = PlaneShape { rows, cols };
    for kind in [ParamKind::Hlq16, ParamKind::Hlq8] {
        let s = spec(3, 64, kind);
        let fitted = fit_rows(&w, cols, None, &s).unwrap();
        let mut planes = vec![vec![0; shape.plane_bytes().unwrap()]; 3];
        for (t, codes) in fitted.codes.chunks(TILE_ROWS * cols).enumerate() {
            let tile = t * shape.tile_bytes()..(t + 1) * shape.tile_bytes();
            let mut tiles: Vec<&mut [u8]> = planes.iter_mut().map(|p| &mut p[tile.clone()]).collect();
            pack_tile(shape, codes, &mut tiles).unwrap();
        }
        let (n, groups, bytes) = (s.coefficients(), shape.groups(64), kind.coefficient_bytes());
        let mut params = vec![0; kind.set_bytes(shape, 3, 64).unwrap()];
        let mut scales = vec![0; kind.row_scale_bytes(shape, 3)];
        for row in 0..rows {
            let (t, r) = (row / TILE_ROWS, row % TILE_ROWS);
            for k in 0..n {
                for g in 0..groups {
                    let to = (((t * groups + g) * n + k) * TILE_ROWS + r) * bytes;
                    let from = ((row * groups + g) * n + k) * bytes;
                    params[to..to + bytes].copy_from_slice(&fitted.params[from..from + bytes]);
                }
                if kind == ParamKind::Hlq8 {
                    let to = ((t * n + k) * TILE_ROWS + r) * 2;
                    scales[to..to + 2].copy_from_slice(&fitted.row_scales[row * n + k].to_le_bytes());
                }
            }
        }
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        let packed = Packed::new(shape, 64, kind, 3, &planes, &params, &scales).unwrap();
        let mut got = vec![0.0; cols];
        for (row, expected) in fitted.weights(cols, &s).chunks(cols).enumerate() {
            packed.dequantize_row(row, &mut got).unwrap();
            assert_eq!(got, expected, "{kind:?} row {row}");
        }
    }
}

#[test]
fn importance_lowers_the_weighted_error() {
    let (w, cols) = (gauss(64 * 128), 128);
    let mut r = Random(3);
    // As uneven as activations are.
    let imp: Vec<f32> = (0..cols).map(|_| (2.0 * r.gauss()).exp()).collect();
    for (planes, most) in [(2, 0.7), (3, 0.7), (4, 0.7)] {
        let s = spec(planes, 64, ParamKind::Hlq8);
        let of = |given| error(&w, &fit_rows(&w, cols, given, &s).unwrap().weights(cols, &s), Some(&imp));
        let ratio = of(Some(&imp)) / of(None);
        println!("q={planes}: weighted error {ratio:.3} of that without importance");
        assert!(ratio < most);
    }
}

#[test]
fn odd_rows() {
    for kind in [ParamKind::Hlq16, ParamKind::Hlq8] {
        for planes in [1, 2, 4, 8] {
            let s = spec(planes, 256, kind);
            let fit =
                |w: &[f32], imp: Option<&[f32]>| fit_rows(w, w.len(), imp, &s).unwrap().weights(w.len(), &s);
            assert_eq!(fit(&[0.0; 70], None), [0.0; 70]);
            // To the step that 127 of make up the coefficient: an f16.
            assert!(fit(&[0.5; 300], None).iter().all(|v| (v - 0.5).abs() < 0.5 / 2048.0));
            assert!((fit(&[-0.5], None)[0] + 0.5).abs() < 0.5 / 2048.0);
            // One weight apart from all others, nearly the least and the largest that there are.
            for far in [-MAX_WEIGHT, MAX_WEIGHT, 1e-7, f32::MIN_POSITIVE] {
                let mut w = [0.0; 100];
                w[31] = far;
                let got = fit(&w, None);
                assert!((got[31] - far).abs() <= far.abs() * 0.01 + 3e-8, "{far}: {}", got[31]);
                assert!(got[0].abs() <= far.abs() * 0.01, "{far}: {}", got[0]);
            }
            let ends = [-MAX_WEIGHT, MAX_WEIGHT];
            assert!(fit(&ends, None).iter().zip(ends).all(|(a, b)| (a - b).abs() < 400.0));
            // No importance at all is as good as none given; importances of any size.
            let w = gauss(100);
            assert_eq!(fit(&w, Some(&[0.0; 100])), fit(&w, None));
            assert!(fit(&w, Some(&[f32::MAX; 100])).iter().all(|v| v.is_finite()));
            let mut one = [0.0; 100];
            one[5] = f32::MIN_POSITIVE;
            assert!((fit(&w, Some(&one))[5] - w[5]).abs() < 1e-3);
        }
    }
    assert_eq!(fit_rows(&[], 5, None, &spec(2, 64, ParamKind::Hlq8)).unwrap().codes, [0u8; 0]);
}

#[test]
fn bad_arguments_are_named() {
    let (w, s) = (vec![0.0; 64], spec(2, 64, ParamKind::Hlq16));
    let says = |r: Result<Fitted>, text: &str| {
        let message = r.unwrap_err().to_string();
        assert!(message.contains(text), "{message:?} does not say {text:?}");
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 40000.0] {
        let mut w = w.clone();
        w[37] = bad;
        says(fit_rows(&w, 32, None, &s), "row 1, column 5");
    }
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let mut imp = vec![1.0; 64];
        imp[3] = bad;
        says(fit_rows(&w, 64, Some(&imp), &s), "importance of column 3");
    }
    says(fit_rows(&w, 64, Some(&[1.0]), &s), "importance has 1 values, its shape asks for 64");
    says(fit_rows(&w, 60, None, &s), "weights has 64 values, its shape asks for 120");
    says(fit_rows(&w, 0, None, &s), "columns is 0");
    says(fit_rows(&w, 64, None, &FitSpec { planes: 9, ..s }), "planes is 9");
    says(fit_rows(&w, 64, None, &FitSpec { group: 48, ..s }), "group size is 48");
    says(fit_rows(&w, 64, None, &FitSpec { kind: ParamKind::Uniform, ..s }), "kind is uniform");
}

#[test]
fn rows_do_not_depend_on_each_other() {
    let (w, cols) = (gauss(6 * 100), 100);
    let s = spec(3, 32, ParamKind::Hlq8);
    let whole = fit_rows(&w, cols, None, &s).unwrap();
    let mut parts = Fitted { codes: vec![], params: vec![], row_scales: vec![] };
    for rows in w.chunks(cols) {
        let part = fit_rows(rows, cols, None, &s).unwrap();
        parts.codes.extend(part.codes);
        parts.params.extend(part.params);
        parts.row_scales.extend(part.row_scales);
    }
    assert_eq!(whole, parts);
}

#[test]
#[ignore = "measures time"]
fn speed() {
    let (n, cols) = (32 * 576, 576);
    let w = gauss(n);
    for planes in [1, 2, 3, 4, 5, 6, 8] {
        for kind in [ParamKind::Hlq16, ParamKind::Hlq8] {
            let time = |_| {
                let start = std::time::Instant::now();
                fit_rows(&w, cols, None, &spec(planes, 64, kind)).unwrap();
                start.elapsed().as_nanos() as f64 / n as f64
            };
            // Short runs, and the least of many: others use the machine.
            let ns = (0..60).map(time).fold(f64::INFINITY, f64::min);
            println!("q={planes} {}: {ns:.1} ns per weight", kind.name());
        }
    }
}
