//! A matrix as a stack of levels, each of signs and magnitudes of low rank: BitStack (arXiv 2410.23918), for CPUs.
//!
//! ```text
//! E = W
//! for each level
//!   S = signs of E, + for 0
//!   U V = rank-k approximation of |E| diag(s)                                                      [`low_rank`]
//!   u, v = U, V diag(1 / s), balanced and rounded to f16
//!   E = E - S o (u^T v)                as the format defines it (`lutite_kernels::pack::SignLevel`)
//! ```
//!
//! with `s_j = sqrt(H_jj)`, normalised to a geometric mean of 1: an input's errors count as much as the input is large. The paper
//! takes means of samples' norms, stores the scales in the norms before the matrices, and takes what is left over from
//! numbers that were not rounded. Here `v` holds the scales, so that any matrix may have them, and rounding is made up for by the
//! next level.
//!
//! Each level is fitted to what those before it leave, so that any number of them, from the first on, is a matrix; and whoever has
//! `i` levels cannot have better ones for less than `i`. Sums have fixed orders: the bytes depend neither on threads nor on the
//! instruction set.
//!
//! The paper's own checkpoints are of such levels as well: [`Checkpoint`] reads them, [`import_to_file`] makes stacked files of them.

mod import;
mod low_rank;
#[cfg(test)]
mod tests;
mod write;

use half::f16;
use lutite_kernels::isa::Isa;
use lutite_kernels::pack::p32::{self, TILE_ROWS};
use lutite_kernels::pack::{PlaneShape, RANKS, SignLevel};
use lutite_kernels::plain::dots_of;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::gram::{Gram, zeros};
use low_rank::Magnitudes;

pub use import::{Block, Checkpoint, LIST, Stacked};
pub use write::{ImportJob, import_to_file};

/// Rows that are multiplied together.
const ROWS: usize = 48;

/// Bits per weight that `u` and `v` may add to a level's sign.
const OVERHEAD: f64 = 0.1;

/// Scales of inputs are this far from their geometric mean at most. An input that is nearly always 0 would need numbers beyond f16
/// otherwise, for weights that do not matter.
const SCALES: f64 = 1024.0;

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackSpec {
    /// Levels, 1 at least.
    pub levels: usize,
    /// Rank of the magnitudes: one of [`RANKS`]. [`rank_for`] has one for a shape.
    pub rank: usize,
}

/// One level; `SignLevel::new(shape, rank, &signs, &u, &v)` multiplies with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// A plane in layout P32; a set bit is a plus.
    pub signs: Vec<u8>,
    /// f16, `[rank][rows]`.
    pub u: Vec<u8>,
    /// f16, `[rank][cols]`, the scales of inputs taken off.
    pub v: Vec<u8>,
    /// `tr((Q - W) H (Q - W)^T) / tr(W H W^T)` where `Q` is the sum of the levels up to this one; 0 where both are, NaN where
    /// `W` is not known.
    pub error: f64,
}

/// The largest rank with `u` and `v` of at most 0.1 bits per weight, and 1 at least.
pub fn rank_for(shape: PlaneShape) -> usize {
    let (m, n) = (shape.rows as f64, shape.cols as f64);
    let fits = |rank: &&usize| 16.0 * **rank as f64 * (m + n) <= OVERHEAD * m * n;
    RANKS.iter().rev().find(fits).copied().unwrap_or(1)
}

/// Takes `w`, `[rows][cols]`, apart into levels for inputs with the sums `gram`, or such as are all alike.
///
/// # Errors
/// [`Error::Setting`] for no levels, an unknown rank or an empty matrix, [`Error::Length`] where `w` or `gram` has another
/// shape, [`Error::Weight`] for weights that no f16 could stand for.
pub fn decompose(
    isa: Isa,
    w: &[f32],
    shape: PlaneShape,
    gram: Option<&Gram>,
    spec: &StackSpec,
) -> Result<Vec<Level>> {
    check(w, shape, gram, spec)?;
    let n = shape.cols;
    let s = scales(gram, n);
    let mut e = zeros(w.len(), "what is left of a matrix")?;
    e.copy_from_slice(w);
    let whole = energy(isa, &e, n, gram)?;
    (0..spec.levels)
        .map(|level| {
            let of = Magnitudes { isa, e: &e, shape, s: &s };
            let mut made = stored(&of.factors(spec.rank, level as u64)?, shape, &s, spec.rank);
            made.signs = signs(&e, shape)?;
            subtract(&mut e, &SignLevel::new(shape, spec.rank, &made.signs, &made.u, &made.v)?);
            made.error = if whole == 0.0 { 0.0 } else { energy(isa, &e, n, gram)? / whole };
            Ok(made)
        })
        .collect()
}

fn check(w: &[f32], shape: PlaneShape, gram: Option<&Gram>, spec: &StackSpec) -> Result<()> {
    let setting =
        |what, found: usize, allowed| Err(Error::Setting { what, found: found.to_string(), allowed });
    if spec.levels == 0 {
        return setting("number of levels", 0, "1 or more");
    }
    if !RANKS.contains(&spec.rank) {
        return setting("rank", spec.rank, "1, 2, 4, 8 or 16");
    }
    if shape.rows == 0 || shape.cols == 0 {
        return setting("rows or columns", 0, "a matrix with weights");
    }
    let length = |what, found, expected| match found == expected {
        true => Ok(()),
        false => Err(Error::Length { what, found, expected }),
    };
    length("matrix", w.len(), shape.rows.saturating_mul(shape.cols))?;
    if let Some(gram) = gram {
        length("sums of the inputs' products", gram.n(), shape.cols)?;
    }
    let limit = f16::MAX.to_f32();
    match w.iter().position(|w| w.is_nan() || w.abs() > limit) {
        None => Ok(()),
        Some(i) => Err(Error::Weight { row: i / shape.cols, col: i % shape.cols, value: w[i], limit }),
    }
}

/// `s`, `[cols]`.
fn scales(gram: Option<&Gram>, n: usize) -> Vec<f32> {
    let Some(gram) = gram else { return vec![1.0; n] };
    let diagonal: Vec<f64> = (0..n).map(|j| f64::from(gram.sums()[j * n + j])).collect();
    let mean = diagonal.iter().sum::<f64>() / n as f64;
    if !(mean > 0.0 && mean.is_finite()) {
        return vec![1.0; n];
    }
    // Far below what the clamp leaves, and away from the logarithm of 0. Logarithms in software have the same bits everywhere.
    let roots: Vec<f64> = diagonal.iter().map(|d| (d / mean).max(1e-12).sqrt()).collect();
    let center = libm::exp(roots.iter().map(|root| libm::log(*root)).sum::<f64>() / n as f64);
    roots.iter().map(|root| (root / center).clamp(1.0 / SCALES, SCALES) as f32).collect()
}

/// The factors of the scaled magnitudes as a level stores them, without signs and error.
fn stored(factors: &[(Vec<f32>, Vec<f32>)], shape: PlaneShape, s: &[f32], rank: usize) -> Level {
    let halves = |n: usize| Vec::with_capacity(2 * rank * n);
    let (mut u_all, mut v_all) = (halves(shape.rows), halves(shape.cols));
    for (u, v) in factors {
        let v: Vec<f32> = v.iter().zip(s).map(|(v, s)| v / s).collect();
        let largest = |x: &[f32]| x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        // A power of 2 that makes the largest of both about as large: both are then farthest from both ends of f16.
        let by = match largest(u) / largest(&v) {
            ratio if ratio.is_normal() => f32::powi(2.0, exponent(ratio) / 2),
            _ => 1.0,
        };
        put_halves(u.iter().map(|u| u / by), &mut u_all);
        put_halves(v.iter().map(|v| v * by), &mut v_all);
    }
    Level { signs: vec![], u: u_all, v: v_all, error: 0.0 }
}

/// `floor(log2 x)` of a normal number.
fn exponent(x: f32) -> i32 {
    (x.to_bits() >> 23 & 255) as i32 - 127
}

/// Rounds to f16. What is beyond its range becomes its end: the next level makes up for it, as for all rounding, and infinity
/// would be in the way of that.
fn put_halves(x: impl Iterator<Item = f32>, out: &mut Vec<u8>) {
    let limit = f16::MAX.to_f32();
    out.extend(x.flat_map(|x| f16::from_f32(x.clamp(-limit, limit)).to_le_bytes()));
}

/// The plane of `e`'s signs.
fn signs(e: &[f32], shape: PlaneShape) -> Result<Vec<u8>> {
    let bytes = shape.tile_bytes();
    let mut plane = vec![0; shape.tiles() * bytes];
    let tiles = plane.par_chunks_exact_mut(bytes).zip(e.par_chunks(TILE_ROWS * shape.cols));
    tiles.try_for_each(|(tile, e)| {
        let codes: Vec<u8> = e.iter().map(|e| u8::from(*e >= 0.0)).collect();
        p32::pack_tile(shape, &codes, &mut [tile])
    })?;
    Ok(plane)
}

/// `e - level`, whose signs are those of `e`.
fn subtract(e: &mut [f32], level: &SignLevel<'_>) {
    let PlaneShape { cols, .. } = level.shape();
    let v: Vec<Vec<f32>> = (0..level.rank()).map(|i| (0..cols).map(|c| level.v(i, c)).collect()).collect();
    e.par_chunks_exact_mut(cols).enumerate().for_each(|(row, e)| {
        let mut m = vec![0.0; cols];
        for (i, v) in v.iter().enumerate() {
            let u = level.u(i, row);
            m.iter_mut().zip(v).for_each(|(m, v)| *m += u * v);
        }
        e.iter_mut().zip(m).for_each(|(e, m)| *e -= if *e >= 0.0 { m } else { -m });
    });
}

/// `tr(E H E^T)`, or the sum of squares without `H`.
fn energy(isa: Isa, e: &[f32], n: usize, gram: Option<&Gram>) -> Result<f64> {
    let parts = e.par_chunks(ROWS * n).map(|e| {
        let Some(gram) = gram else {
            return Ok(e.iter().map(|e| f64::from(*e).powi(2)).sum());
        };
        let mut sum = 0.0;
        dots_of(isa, gram.sums(), n, e, &mut |row, from, products| {
            let e = &e[row * n + from..];
            sum += e.iter().zip(products).map(|(e, p)| f64::from(*e) * f64::from(*p)).sum::<f64>();
        })?;
        Ok(sum)
    });
    // One after the other, in order.
    Ok(parts.collect::<Result<Vec<f64>>>()?.iter().sum())
}
