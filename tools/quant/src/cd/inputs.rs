//! What fitting needs to know of a matrix' inputs: the Hessian in the order of rounding, and its triangular factor.
//!
//! Rounding goes through the columns one after the other, and each makes up for the errors of those before it. So the ones
//! with the largest inputs come first, when all others can still make up for them: groups by their largest column, columns
//! within a group by themselves (BPDQ's group-aware order, arXiv 2602.04163). A group stays a group.
//!
//! Positions are counted against the order of rounding: the *last* is rounded first. With `H = L L^T`, `L` lower
//! triangular, and errors `E = Q - W`, the objective is then a sum of squares of
//!
//! ```text
//! (E L)_j = L_jj (E_j + sum over i > j of E_i L_ij / L_jj)
//! ```
//!
//! and the best that position `j` can do, given all that was rounded before it, is to come as near as it can to
//! `W_j - sum E_i L_ij / L_jj`. That is GPTQ's feedback (arXiv 2210.17323), without an inverse.

use lutite_kernels::isa::Isa;
use lutite_kernels::plain::dots_of;
use rayon::prelude::*;
use std::ops::Range;

use super::product;
use crate::error::{Error, Result};
use crate::gram::{Gram, zeros};

/// Columns that are factored at a time.
const PANEL: usize = 48;

/// What is added to the diagonal, relative to its mean: the least, and the factor and number of further tries.
const DAMPING: f32 = 0.01;
const TRIES: usize = 3;

/// See the module's head.
#[derive(Debug)]
pub struct Inputs {
    pub(crate) n: usize,
    /// The column of each position.
    pub(crate) columns: Vec<usize>,
    /// By position; to be rounded from the last to the first.
    pub(crate) spans: Vec<Span>,
    /// `[n][n]` by position, damped.
    pub(crate) h: Vec<f32>,
    /// What its diagonal has too much for that.
    pub(crate) damping: f32,
    /// `[n][n]`: `L` transposed, zero below the diagonal.
    pub(crate) upper: Vec<f32>,
}

/// A quadratic form over a group's columns.
#[derive(Debug)]
pub(crate) struct Form {
    /// `[g][g]`, symmetric.
    pub(crate) matrix: Vec<f32>,
    /// `[g]`: sums of its rows.
    pub(crate) sums: Vec<f32>,
    /// Sum of its diagonal.
    pub(crate) trace: f64,
}

impl Form {
    fn new(matrix: Vec<f32>, g: usize) -> Form {
        let sums = matrix.chunks_exact(g).map(|row| row.iter().sum()).collect();
        let trace = (0..g).map(|i| f64::from(matrix[i * g + i])).sum();
        Form { matrix, sums, trace }
    }
}

/// A group among the positions.
#[derive(Debug)]
pub(crate) struct Span {
    /// Where it lies.
    pub(crate) at: Range<usize>,
    /// Which of the file's groups it is.
    pub(crate) index: usize,
    /// Its part of `h`.
    pub(crate) h: Form,
    /// What `h` is once all later columns make up for this group's errors, `L_GG L_GG^T`.
    pub(crate) conditional: Form,
    /// `[g]`: the diagonal of `L_GG`.
    pub(crate) diagonal: Vec<f32>,
    /// `[g][g]`: row `i` has `L_ij / L_jj` for `j < i`, by which position `j` makes up for position `i`.
    pub(crate) feedback: Vec<f32>,
}

impl Span {
    fn new(at: Range<usize>, index: usize, h: &[f32], upper: &[f32], n: usize) -> Span {
        let block =
            |m: &[f32]| at.clone().flat_map(|i| m[i * n..][at.clone()].to_vec()).collect::<Vec<f32>>();
        let (g, h, u) = (at.len(), block(h), block(upper));
        let diagonal: Vec<f32> = (0..g).map(|j| u[j * g + j]).collect();
        let (mut conditional, mut feedback) = (vec![0.0; g * g], vec![0.0; g * g]);
        for i in 0..g {
            for j in 0..g {
                if j < i {
                    feedback[i * g + j] = u[j * g + i] / diagonal[j];
                }
                conditional[i * g + j] = (0..=i.min(j)).map(|k| u[k * g + i] * u[k * g + j]).sum();
            }
        }
        Span { at, index, h: Form::new(h, g), conditional: Form::new(conditional, g), diagonal, feedback }
    }
}

impl Inputs {
    /// Orders and factors the sums over the inputs' tokens for groups of `group` columns.
    ///
    /// # Errors
    /// When the memory cannot be had, or when sums are not finite.
    pub fn new(isa: Isa, gram: &Gram, group: usize) -> Result<Inputs> {
        let n = gram.n();
        let h = gram.sums();
        let diagonal: Vec<f32> = (0..n).map(|i| h[i * n + i]).collect();
        let mean = diagonal.iter().map(|d| f64::from(*d)).sum::<f64>() / n as f64;
        if !mean.is_finite() {
            return Err(Error::Options("activations are not finite; the model is damaged".into()));
        }
        let (columns, groups) = order(&diagonal, group);
        let mut permuted = zeros(n * n, "sums of the inputs' products")?;
        permuted.par_chunks_exact_mut(n).zip(&columns).for_each(|(row, i)| {
            row.iter_mut().zip(&columns).for_each(|(to, j)| *to = h[i * n + j]);
        });
        // Inputs that are all zero: any rounding will do, so all count alike.
        let mean = if mean > 0.0 { mean as f32 } else { 1.0 };
        let (mut damping, mut more) = (0.0, DAMPING * mean);
        for _ in 0..TRIES {
            (0..n).for_each(|i| permuted[i * n + i] += more);
            damping += more;
            if let Some(upper) = factor(isa, &permuted, n)? {
                let span = |(at, index): (Range<usize>, usize)| Span::new(at, index, &permuted, &upper, n);
                let spans = groups.into_par_iter().map(span).collect();
                return Ok(Inputs { n, columns, spans, h: permuted, damping, upper });
            }
            more *= 10.0;
        }
        Err(Error::Options("inputs cannot be factored; calibrate with more text".into()))
    }
}

impl Inputs {
    /// What weights would have to be to give, on these inputs, the outputs that `w` gives on the reference inputs: `w` moved
    /// by `share` of `w (C - H) inv(H)`, with `C = sum r x^T` (GPTAQ, arXiv 2504.02692, as a shift of the target).
    pub(crate) fn shifted(&self, isa: Isa, w: &[f32], gram: &Gram, share: f32) -> Result<Vec<f32>> {
        let n = self.n;
        let Some(cross) = gram.cross() else { return Ok(w.to_vec()) };
        // Transposed, as products want it.
        let mut moved = cross.to_vec();
        moved.par_iter_mut().zip(gram.sums()).for_each(|(c, h)| *c -= h);
        let mut lower = zeros(n * n, "a factor")?;
        lower.par_chunks_exact_mut(n).enumerate().for_each(|(i, row)| {
            (0..=i).for_each(|j| row[j] = self.upper[j * n + i]);
        });
        let mut out = w.to_vec();
        out.par_chunks_mut(PANEL * n).try_for_each(|w| -> Result<()> {
            let b = product(isa, &moved, n, w)?;
            let mut x: Vec<f32> =
                b.chunks_exact(n).flat_map(|b| self.columns.iter().map(|c| b[*c])).collect();
            // x L L^T = b: first z L^T = b, then x L = z.
            for x in x.chunks_exact_mut(n) {
                for j in 0..n {
                    let sum = dot(&lower[j * n..j * n + j], &x[..j]);
                    x[j] = (x[j] - sum) / lower[j * n + j];
                }
                for j in (0..n).rev() {
                    let sum = dot(&self.upper[j * n + j + 1..(j + 1) * n], &x[j + 1..]);
                    x[j] = (x[j] - sum) / self.upper[j * n + j];
                }
            }
            for (w, x) in w.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
                self.columns.iter().zip(x).for_each(|(c, x)| w[*c] += share * x);
            }
            Ok(())
        })?;
        Ok(out)
    }
}

/// In eight sums side by side.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (whole, rest) = a.as_chunks::<8>();
    let (others, last) = b.as_chunks::<8>();
    for (a, b) in whole.iter().zip(others) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + rest.iter().zip(last).map(|(a, b)| a * b).sum::<f32>()
}

/// Columns and groups by position.
fn order(diagonal: &[f32], group: usize) -> (Vec<usize>, Vec<(Range<usize>, usize)>) {
    let n = diagonal.len();
    // Of NaN there is none; ties go by number.
    let ascending = |a: &f32, b: &f32| a.total_cmp(b);
    let mut groups: Vec<(f32, usize)> = (diagonal.chunks(group).enumerate())
        .map(|(i, d)| (d.iter().copied().fold(0.0, f32::max), i))
        .collect();
    groups.sort_by(|a, b| ascending(&a.0, &b.0).then(b.1.cmp(&a.1)));
    let mut columns = Vec::with_capacity(n);
    let mut spans = Vec::with_capacity(groups.len());
    for (_, index) in groups {
        let start = columns.len();
        columns.extend(index * group..((index + 1) * group).min(n));
        columns[start..].sort_by(|a, b| ascending(&diagonal[*a], &diagonal[*b]).then(b.cmp(a)));
        spans.push((start..columns.len(), index));
    }
    (columns, spans)
}

/// The transposed Cholesky factor, or `None` where `h` is not positive definite in f32.
fn factor(isa: Isa, h: &[f32], n: usize) -> Result<Option<Vec<f32>>> {
    let mut l = h.to_vec();
    for b in (0..n).step_by(PANEL) {
        let width = PANEL.min(n - b);
        // What the columns before say of these ones.
        if b > 0 {
            let panel: Vec<f32> =
                l[b * n..(b + width) * n].chunks_exact(n).flat_map(|r| r[..b].to_vec()).collect();
            l[b * n..].par_chunks_mut(PANEL * n).try_for_each(|rows| {
                let x: Vec<f32> = rows.chunks_exact(n).flat_map(|r| r[..b].to_vec()).collect();
                dots_of(isa, &panel, b, &x, &mut |row, from, sums| {
                    let at = row * n + b + from;
                    rows[at..at + sums.len()].iter_mut().zip(sums).for_each(|(l, s)| *l -= *s);
                })
            })?;
        }
        let (top, below) = l[b * n..].split_at_mut(width * n);
        for i in 0..width {
            for j in 0..=i {
                let sum: f64 =
                    (0..j).map(|k| f64::from(top[i * n + b + k]) * f64::from(top[j * n + b + k])).sum();
                let v = f64::from(top[i * n + b + j]) - sum;
                if i > j {
                    top[i * n + b + j] = (v / f64::from(top[j * n + b + j])) as f32;
                } else if v > 0.0 && v.is_finite() {
                    top[i * n + b + i] = v.sqrt() as f32;
                } else {
                    return Ok(None);
                }
            }
        }
        let top = &*top;
        below.par_chunks_exact_mut(n).for_each(|row| {
            for j in 0..width {
                let (done, rest) = row[b..b + width].split_at_mut(j);
                let sum: f32 = done.iter().zip(&top[j * n + b..]).map(|(a, b)| a * b).sum();
                rest[0] = (rest[0] - sum) / top[j * n + b + j];
            }
        });
    }
    let mut upper = zeros(n * n, "a factor")?;
    upper.par_chunks_exact_mut(n).enumerate().for_each(|(j, row)| {
        (j..n).for_each(|i| row[i] = l[i * n + j]);
    });
    Ok(Some(upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums over random tokens that are alike, of which there are fewer than columns.
    fn gram(n: usize, tokens: usize) -> Gram {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let x: Vec<f32> = (0..tokens)
            .flat_map(|_| {
                let common = random();
                (0..n).map(|j| common + random() * (1.0 + j as f32 / 7.0)).collect::<Vec<_>>()
            })
            .collect();
        let mut gram = Gram::new(n).unwrap();
        x.chunks(n * 16).for_each(|x| gram.add(Isa::detect(), x).unwrap());
        gram.finish();
        for i in 0..n {
            for j in 0..n {
                let exact: f64 = x.chunks_exact(n).map(|x| f64::from(x[i]) * f64::from(x[j])).sum();
                let found = f64::from(gram.sums()[i * n + j]);
                assert!((found - exact).abs() < 1e-4 * (1.0 + exact.abs()), "{found} is not {exact}");
            }
        }
        gram
    }

    #[test]
    fn factor_times_itself_is_the_matrix() {
        for (n, tokens, group) in [(1, 1, 32), (31, 8, 16), (100, 64, 32), (131, 400, 64)] {
            let gram = gram(n, tokens);
            let inputs = Inputs::new(Isa::detect(), &gram, group).unwrap();
            for i in 0..n {
                for j in 0..n {
                    let of = |k: usize, i: usize| f64::from(inputs.upper[k * n + i]);
                    let product: f64 = (0..n).map(|k| of(k, i) * of(k, j)).sum();
                    let h = f64::from(inputs.h[i * n + j]);
                    let scale = f64::from(inputs.h[i * n + i] * inputs.h[j * n + j]).sqrt();
                    assert!((product - h).abs() <= 1e-5 * scale, "{product} is not {h}");
                    if i != j {
                        let (a, b) = (inputs.columns[i], inputs.columns[j]);
                        assert_eq!(inputs.h[i * n + j], gram.sums()[a * n + b]);
                    }
                }
            }
            // Groups keep their columns, and the largest is last.
            let mut seen = vec![false; n];
            for span in &inputs.spans {
                for c in &inputs.columns[span.at.clone()] {
                    assert_eq!(c / group, span.index);
                    assert!(!std::mem::replace(&mut seen[*c], true));
                }
            }
            assert!(seen.iter().all(|s| *s));
            let largest = (0..n).max_by(|a, b| gram.sums()[a * n + a].total_cmp(&gram.sums()[b * n + b]));
            assert_eq!(inputs.columns.last().copied(), largest);
        }
    }

    #[test]
    fn shifted_weights_give_the_outputs_of_the_reference_inputs() {
        let (n, tokens, isa) = (70, 200, Isa::detect());
        let mut state = 3u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let reference: Vec<f32> = (0..tokens * n).map(|_| random()).collect();
        let x: Vec<f32> = reference.iter().map(|r| r + 0.3 * random()).collect();
        let w: Vec<f32> = (0..3 * n).map(|_| random()).collect();
        let mut gram = Gram::new(n).unwrap();
        gram.add_beside(isa, &[], &[]).unwrap();
        for (x, r) in x.chunks(90 * n).zip(reference.chunks(90 * n)) {
            gram.add_beside(isa, x, r).unwrap();
        }
        assert!(gram.add_beside(isa, &x, &reference[n..]).is_err());
        gram.finish();
        let inputs = Inputs::new(isa, &gram, 32).unwrap();
        let found = inputs.shifted(isa, &w, &gram, 0.5).unwrap();
        for (w, found) in w.chunks_exact(n).zip(found.chunks_exact(n)) {
            // The normal equations: `(found - w) (H + damping) = share (sum over tokens of w (r - x) x^T)`.
            for (p, c) in inputs.columns.iter().enumerate() {
                let left: f64 = (inputs.columns.iter().enumerate())
                    .map(|(q, d)| f64::from(found[*d] - w[*d]) * f64::from(inputs.h[q * n + p]))
                    .sum();
                let right: f64 = (x.chunks_exact(n).zip(reference.chunks_exact(n)))
                    .map(|(x, r)| {
                        let missing: f64 = (0..n).map(|i| f64::from(w[i]) * f64::from(r[i] - x[i])).sum();
                        0.5 * missing * f64::from(x[*c])
                    })
                    .sum();
                assert!((left - right).abs() < 1e-2 * (1.0 + right.abs()), "{left} is not {right}");
            }
        }
    }

    #[test]
    fn inputs_of_zero_count_alike() {
        let mut gram = Gram::new(40).unwrap();
        gram.add(Isa::detect(), &[0.0; 80]).unwrap();
        gram.finish();
        let inputs = Inputs::new(Isa::detect(), &gram, 32).unwrap();
        assert!(inputs.h.iter().enumerate().all(|(i, h)| (*h > 0.0) == (i % 41 == 0)));
    }
}
