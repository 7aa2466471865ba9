//! Magnitudes of low rank: randomized subspace iteration (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1).
//!
//! ```text
//! A = |E| diag(s)                         made anew for each product; never stored
//! Y = A R^T, R random, [k + 8][cols]
//! repeat PASSES times:  Z = A^T orth(Y)   Y = A orth(Z)
//! B = orth(Y)^T A                         [k + 8][cols]
//! B B^T = X diag(l) X^T                   by Jacobi rotations
//! u_i = sqrt(sqrt(l_i)) orth(Y) X_i       v_i = B^T X_i / sqrt(sqrt(l_i))      of the k largest l
//! ```
//!
//! The magnitudes' first singular value is far above the others, which differ little; passes are for those. Sums over rows are of
//! f32, in order and without fused operations; sums over columns are those of [`dots_of`]; those of few numbers are of f64.

use lutite_kernels::isa::Isa;
use lutite_kernels::pack::PlaneShape;
use lutite_kernels::plain::dots_of;
use lutite_runtime::sample::rng::uniform;
use rayon::prelude::*;

use super::ROWS;
use crate::error::Result;
use crate::gram::zeros;

/// Directions beyond the rank.
const OVERSAMPLING: usize = 8;

/// Products with `A^T A`. On random matrices of some 100 rows, whose singular values are as alike as any, the rest is within 7e-4 of
/// the least that a rank leaves; with 4 directions more than the rank and 3 passes it was 1.2e-3 to 4e-3.
const PASSES: usize = 6;

/// Columns whose sums over rows stay in L1.
const STRIPE: usize = 256;

/// A direction that keeps less than this of its length, when those before it are taken off, is rounding.
const ROUNDING: f64 = 1e-5;

/// Rotations of all pairs; they converge quadratically, so that these are plenty for 24 directions.
const SWEEPS: usize = 12;

/// `|E| diag(s)`.
pub(super) struct Magnitudes<'a> {
    pub(super) isa: Isa,
    /// `[rows][cols]`
    pub(super) e: &'a [f32],
    pub(super) shape: PlaneShape,
    /// `[cols]`
    pub(super) s: &'a [f32],
}

impl Magnitudes<'_> {
    /// `(u_i, v_i)` for each `i` below `rank`; zeros from the matrix' own rank on. `seed` is for the random directions.
    pub(super) fn factors(&self, rank: usize, seed: u64) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
        let PlaneShape { rows, cols } = self.shape;
        let count = (rank + OVERSAMPLING).min(rows).min(cols);
        let mut z: Vec<Vec<f32>> = (0..count as u64)
            .map(|i| (0..cols as u64).map(|c| 2.0 * uniform(seed, i << 32 | c) as f32 - 1.0).collect())
            .collect();
        let mut y = self.times(&z)?;
        for _ in 0..PASSES {
            orthonormalize(&mut y);
            z = self.transposed_times(&y);
            orthonormalize(&mut z);
            y = self.times(&z)?;
        }
        orthonormalize(&mut y);
        let b = self.transposed_times(&y);
        let mut squares: Vec<Vec<f64>> = b.iter().map(|a| b.iter().map(|b| dot(a, b)).collect()).collect();
        let x = eigenvectors(&mut squares);
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|i, j| squares[*j][*j].total_cmp(&squares[*i][*i]).then(i.cmp(j)));
        let root = |i: usize| squares[i][i].max(0.0).sqrt().sqrt();
        let mut factors: Vec<_> = order
            .iter()
            .take(rank)
            .map(|i| {
                let root = root(*i);
                let inverse = if root > 0.0 { 1.0 / root } else { 0.0 };
                (mix(&y, &x, *i, root), mix(&b, &x, *i, inverse))
            })
            .collect();
        factors.resize_with(rank, || (vec![0.0; rows], vec![0.0; cols]));
        Ok(factors)
    }

    /// `A z` of each `z`, `[count][cols]` to `[count][rows]`.
    fn times(&self, z: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
        let PlaneShape { rows, cols } = self.shape;
        let flat = z.concat();
        let strips = self.e.par_chunks(ROWS * cols).map(|e| {
            let mut a = zeros(e.len(), "magnitudes")?;
            for (a, e) in a.chunks_exact_mut(cols).zip(e.chunks_exact(cols)) {
                magnitudes(e, self.s, a);
            }
            let count = e.len() / cols;
            let mut y = vec![0.0; z.len() * count];
            dots_of(self.isa, &a, cols, &flat, &mut |t, row, values| {
                y[t * count + row..][..values.len()].copy_from_slice(values);
            })?;
            Ok(y)
        });
        let strips = strips.collect::<Result<Vec<_>>>()?;
        Ok((0..z.len())
            .map(|t| {
                let mut y = Vec::with_capacity(rows);
                strips.iter().for_each(|strip| {
                    let count = strip.len() / z.len();
                    y.extend_from_slice(&strip[t * count..(t + 1) * count]);
                });
                y
            })
            .collect())
    }

    /// `A^T y` of each `y`, `[count][rows]` to `[count][cols]`.
    fn transposed_times(&self, y: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let cols = self.shape.cols;
        let stripes: Vec<Vec<f32>> = self
            .s
            .par_chunks(STRIPE)
            .enumerate()
            .map(|(i, s)| {
                let mut sums = vec![0.0; y.len() * s.len()];
                let mut a = [0.0; STRIPE];
                for (row, e) in self.e.chunks_exact(cols).enumerate() {
                    let a = &mut a[..s.len()];
                    magnitudes(&e[i * STRIPE..][..s.len()], s, a);
                    for (sums, y) in sums.chunks_exact_mut(s.len()).zip(y) {
                        let y = y[row];
                        sums.iter_mut().zip(&*a).for_each(|(sum, a)| *sum += y * a);
                    }
                }
                sums
            })
            .collect();
        let part =
            |t: usize, sums: &Vec<f32>| sums[sums.len() / y.len() * t..][..sums.len() / y.len()].to_vec();
        (0..y.len()).map(|t| stripes.iter().flat_map(|sums| part(t, sums)).collect()).collect()
    }
}

fn magnitudes(e: &[f32], s: &[f32], out: &mut [f32]) {
    out.iter_mut().zip(e.iter().zip(s)).for_each(|(a, (e, s))| *a = e.abs() * s);
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Modified Gram-Schmidt, each direction twice: once leaves what rounding has put back. What depends on others becomes zeros.
fn orthonormalize(vectors: &mut [Vec<f32>]) {
    for i in 0..vectors.len() {
        let (before, rest) = vectors.split_at_mut(i);
        let this = &mut rest[0];
        let length = dot(this, this).sqrt();
        for _ in 0..2 {
            for other in &*before {
                let along = dot(this, other) as f32;
                this.iter_mut().zip(other).for_each(|(x, other)| *x -= along * other);
            }
        }
        let left = dot(this, this).sqrt();
        // In f64: the inverse of a small length may be beyond f32.
        let inverse = if left > ROUNDING * length { 1.0 / left } else { 0.0 };
        this.iter_mut().for_each(|x| *x = (f64::from(*x) * inverse) as f32);
    }
}

/// The eigenvectors of a symmetric matrix, as columns; it becomes diagonal. Cyclic Jacobi rotations (Golub, Van Loan, Matrix
/// Computations, 8.5).
fn eigenvectors(a: &mut [Vec<f64>]) -> Vec<Vec<f64>> {
    let n = a.len();
    let mut x: Vec<Vec<f64>> =
        (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..SWEEPS {
        for p in 0..n {
            for q in p + 1..n {
                if a[p][q] == 0.0 {
                    continue;
                }
                let tau = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                let s = t * c;
                for row in a.iter_mut().chain(&mut x) {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
                for k in 0..n {
                    (a[p][k], a[q][k]) = (c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]);
                }
            }
        }
    }
    x
}

/// `by sum_j x[j][i] vectors[j]`.
fn mix(vectors: &[Vec<f32>], x: &[Vec<f64>], i: usize, by: f64) -> Vec<f32> {
    let mut sum = vec![0.0f64; vectors.first().map_or(0, Vec::len)];
    for (vector, x) in vectors.iter().zip(x) {
        sum.iter_mut().zip(vector).for_each(|(sum, v)| *sum += x[i] * f64::from(*v));
    }
    sum.iter().map(|sum| (by * sum) as f32).collect()
}
