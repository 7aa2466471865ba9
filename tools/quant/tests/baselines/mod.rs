//! Methods of others, as published, to be beaten: slow and obvious, in f64.
//!
//! * [`Rtn`]: rounding to the nearest point of a uniform grid over each group.
//! * [`Gptq`]: GPTQ (arXiv 2210.17323) on that grid: damping 1 %, no act-order, the grid of a group from its weights as
//!   they are when its first column is rounded.
//! * [`Elutq`]: HLQ-GPTQ of ELUTQ (arXiv 2510.19482), as its public code has it (`GPTQ/HLQ.py`, `GPTQ/quant.py`): a group
//!   is fitted by alternating least squares and rounded at once, and only later groups make up for its errors. All matrices
//!   of a layer see the inputs that they get in the layer before it is quantized.

use half::f16;
use lutite_kernels::isa::Isa;
use lutite_quant::als::Fitted;
use lutite_quant::calibrate::{Method, Target};
use lutite_quant::cd::Calibrated;
use lutite_quant::gram::Gram;
use rayon::prelude::*;

/// A group's levels: `z` and the scales of planes.
type Params = Vec<f64>;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Baseline {
    Rtn,
    Gptq,
    Elutq,
}

impl Method for Baseline {
    fn name(&self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn sequential(&self) -> bool {
        !matches!(self, Baseline::Elutq)
    }

    fn fit(&self, _: Isa, gram: &Gram, targets: &[Target<'_>]) -> lutite_quant::Result<Vec<Calibrated>> {
        let feedback = Feedback::new(gram);
        Ok(targets.iter().map(|t| self.matrix(t, gram, &feedback)).collect())
    }
}

impl Baseline {
    fn matrix(&self, t: &Target<'_>, gram: &Gram, feedback: &Feedback) -> Calibrated {
        let n = gram.n();
        let rows: Vec<_> = t.w.par_chunks_exact(n).map(|w| self.row(w, t, feedback)).collect();
        let mut fitted = Fitted::default();
        let (mut error, mut whole) = (0.0, 0.0);
        let judged: Vec<(f64, f64)> = (rows.par_iter().zip(t.w.par_chunks_exact(n)))
            .map(|((codes, params), w)| {
                let q = dequantized(codes, params, t.spec.group);
                let e: Vec<f64> = q.iter().zip(w).map(|(q, w)| q - f64::from(*w)).collect();
                let w: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
                (form(gram, &e), form(gram, &w))
            })
            .collect();
        for ((codes, params), (e, w)) in rows.into_iter().zip(judged) {
            fitted.codes.extend(codes);
            for p in params {
                // The file has scales first, and f16 of them.
                let scales = p[1..].iter().chain([&p[0]]);
                fitted.params.extend(scales.flat_map(|v| f16::from_f64(*v).to_le_bytes()));
            }
            error += e;
            whole += w;
        }
        Calibrated { fitted, error, whole }
    }

    /// Codes and parameters (as f16) of one row.
    fn row(&self, w: &[f32], t: &Target<'_>, feedback: &Feedback) -> (Vec<u8>, Vec<Params>) {
        let (n, q) = (w.len(), t.spec.planes);
        let mut w: Vec<f64> =
            w.iter().zip(&feedback.dead).map(|(w, d)| if *d { 0.0 } else { f64::from(*w) }).collect();
        let mut codes = vec![0; n];
        let mut params = Vec::new();
        for start in (0..n).step_by(t.spec.group) {
            let end = (start + t.spec.group).min(n);
            let grid = grid(&w[start..end], q);
            let p = match self {
                Baseline::Rtn | Baseline::Gptq => stored(&grid),
                Baseline::Elutq => stored(&alternating(&w[start..end], grid, 10)),
            };
            // ELUTQ rounds the group as it is now; the others each column as it comes.
            let at_once: Vec<u8> = w[start..end].iter().map(|w| nearest(*w, &p)).collect();
            for i in start..end {
                codes[i] = match self {
                    Baseline::Gptq => nearest(w[i], &p),
                    Baseline::Rtn | Baseline::Elutq => at_once[i - start],
                };
                if !matches!(self, Baseline::Rtn) {
                    let u = &feedback.upper[i * n..(i + 1) * n];
                    let error = (w[i] - level(codes[i], &p)) / u[i];
                    (i..n).for_each(|j| w[j] -= error * u[j]);
                }
            }
            params.push(p);
        }
        (codes, params)
    }
}

/// A uniform grid from the least to the largest weight.
fn grid(w: &[f64], q: usize) -> Params {
    let (low, high) = w.iter().fold((f64::MAX, f64::MIN), |(l, h), w| (l.min(*w), h.max(*w)));
    let step = (high - low) / ((1 << q) - 1) as f64;
    [low].into_iter().chain((0..q).map(|p| step * (1 << p) as f64)).collect()
}

/// Levels fitted to codes and codes to levels in turn, without weights.
fn alternating(w: &[f64], mut p: Params, iterations: usize) -> Params {
    for _ in 0..iterations {
        let codes: Vec<u8> = w.iter().map(|w| nearest(*w, &p)).collect();
        p = least_squares(w, &codes, p.len());
    }
    p
}

/// `pinv(B^T B) B^T w`, with a column of ones first: by a ridge that stands for the pseudo-inverse.
fn least_squares(w: &[f64], codes: &[u8], k: usize) -> Params {
    let bit = |code: u8, i: usize| if i == 0 { 1.0 } else { f64::from(code >> (i - 1) & 1) };
    let mut a = vec![vec![0.0; k + 1]; k];
    for (w, code) in w.iter().zip(codes) {
        for i in 0..k {
            for j in 0..k {
                a[i][j] += bit(*code, i) * bit(*code, j);
            }
            a[i][k] += bit(*code, i) * w;
        }
    }
    (0..k).for_each(|i| a[i][i] += 1e-9);
    for i in 0..k {
        for j in i + 1..k {
            let f = a[j][i] / a[i][i];
            for c in i..=k {
                a[j][c] -= f * a[i][c];
            }
        }
    }
    let mut x = vec![0.0; k];
    for i in (0..k).rev() {
        x[i] = (a[i][k] - (i + 1..k).map(|j| a[i][j] * x[j]).sum::<f64>()) / a[i][i];
    }
    x
}

fn stored(p: &Params) -> Params {
    p.iter().map(|v| f16::from_f64(*v).to_f64()).collect()
}

fn level(code: u8, p: &Params) -> f64 {
    p[0] + p[1..].iter().enumerate().map(|(k, s)| f64::from(code >> k & 1) * s).sum::<f64>()
}

fn nearest(w: f64, p: &Params) -> u8 {
    let far = |code: &u8| (w - level(*code, p)).abs();
    (0..1u8 << (p.len() - 1)).min_by(|a, b| far(a).total_cmp(&far(b))).unwrap()
}

fn dequantized(codes: &[u8], params: &[Params], group: usize) -> Vec<f64> {
    codes
        .chunks(group)
        .zip(params)
        .flat_map(|(codes, p)| codes.iter().map(|c| level(*c, p)).collect::<Vec<_>>())
        .collect()
}

/// `e H e`
fn form(gram: &Gram, e: &[f64]) -> f64 {
    let rows = gram.sums().chunks_exact(gram.n());
    rows.zip(e).map(|(h, a)| a * h.iter().zip(e).map(|(h, b)| f64::from(*h) * b).sum::<f64>()).sum()
}

/// GPTQ's `chol(inv(H + damping))`, upper triangular, and the columns that have no input.
struct Feedback {
    upper: Vec<f64>,
    dead: Vec<bool>,
}

impl Feedback {
    fn new(gram: &Gram) -> Feedback {
        let n = gram.n();
        let mut h: Vec<f64> = gram.sums().iter().map(|h| f64::from(*h)).collect();
        let dead: Vec<bool> = (0..n).map(|i| h[i * n + i] == 0.0).collect();
        (0..n).filter(|i| dead[*i]).for_each(|i| h[i * n + i] = 1.0);
        let damping = 0.01 * (0..n).map(|i| h[i * n + i]).sum::<f64>() / n as f64;
        (0..n).for_each(|i| h[i * n + i] += damping);
        // inv(H) = U^T U with U = inv(R), where H = R R^T and R is upper triangular: the Cholesky factor from the end.
        let mut r = vec![0.0; n * n];
        for j in (0..n).rev() {
            let (head, tail) = r.split_at_mut(j * n);
            let row_j = &mut tail[..n];
            let d = h[j * n + j] - row_j[j + 1..].iter().map(|v| v * v).sum::<f64>();
            row_j[j] = d.sqrt();
            let row_j = &*row_j;
            head.par_chunks_exact_mut(n).enumerate().for_each(|(i, row)| {
                let sum: f64 = row[j + 1..].iter().zip(&row_j[j + 1..]).map(|(a, b)| a * b).sum();
                row[j] = (h[i * n + j] - sum) / row_j[j];
            });
        }
        // Column j of the inverse by back substitution; kept as rows of the transpose.
        let columns: Vec<Vec<f64>> = (0..n)
            .into_par_iter()
            .map(|j| {
                let mut x = vec![0.0; n];
                x[j] = 1.0 / r[j * n + j];
                for i in (0..j).rev() {
                    let sum: f64 = (i + 1..=j).map(|k| r[i * n + k] * x[k]).sum();
                    x[i] = -sum / r[i * n + i];
                }
                x
            })
            .collect();
        let mut upper = vec![0.0; n * n];
        for (j, x) in columns.iter().enumerate() {
            (0..=j).for_each(|i| upper[i * n + j] = x[i]);
        }
        Feedback { upper, dead }
    }
}
