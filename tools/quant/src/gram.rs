//! Sums of squares and products of a matrix' inputs: `H = sum over tokens of x x^T`.
//!
//! They are what a rounded matrix `Q` is judged by: `tr((Q - W) H (Q - W)^T)` is the squared error of its outputs.

use lutite_kernels::isa::Isa;
use lutite_kernels::plain::dots_of;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Rows of `H` that are summed up at a time: they and their share of the tokens stay in L2.
const STRIPE: usize = 48;

/// Sums over tokens; symmetric.
#[derive(Clone, Debug)]
pub struct Gram {
    n: usize,
    /// `[n][n]`; until [`Gram::finish`] only the upper triangle, and what of the lower falls into its blocks.
    h: Vec<f32>,
    /// `[n][n]`: `sum x r^T` with the inputs `r` that the tokens have in the model as it was; empty without such.
    cross: Vec<f32>,
}

impl Gram {
    /// No tokens of `n` numbers yet.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(n: usize) -> Result<Gram> {
        let len = n.saturating_mul(n);
        Ok(Gram { n, h: zeros(len, "sums of the inputs' products")?, cross: Vec::new() })
    }

    /// As [`Gram::add`], beside the inputs that the same tokens have in the model as it was.
    ///
    /// # Errors
    /// As [`Gram::add`].
    pub fn add_beside(&mut self, isa: Isa, x: &[f32], reference: &[f32]) -> Result<()> {
        let n = self.n;
        if reference.len() != x.len() {
            return Err(Error::Length {
                what: "reference inputs",
                found: reference.len(),
                expected: x.len(),
            });
        }
        self.add(isa, x)?;
        let tokens = x.len() / n;
        if tokens == 0 {
            return Ok(());
        }
        if self.cross.is_empty() {
            self.cross = zeros(n.saturating_mul(n), "sums of the inputs' products")?;
        }
        let (x, reference) = (columns(x, n)?, columns(reference, n)?);
        self.cross.par_chunks_mut(STRIPE * n).zip(x.par_chunks(STRIPE * tokens)).try_for_each(
            |(sums, x)| {
                dots_of(isa, &reference, tokens, x, &mut |row, from, products| {
                    let at = row * n + from;
                    sums[at..at + products.len()].iter_mut().zip(products).for_each(|(s, p)| *s += *p);
                })
            },
        )?;
        Ok(())
    }

    /// Adds tokens, `[tokens][n]`. The sums are of f32, tokens of a call first: hand over some hundred at a time. Their
    /// bits depend on how tokens are split into calls, and on nothing else.
    ///
    /// # Errors
    /// [`Error::Length`] for something else than whole tokens.
    pub fn add(&mut self, isa: Isa, x: &[f32]) -> Result<()> {
        let n = self.n;
        let tokens = x.len() / n;
        if tokens * n != x.len() {
            return Err(Error::Length { what: "inputs", found: x.len(), expected: (tokens + 1) * n });
        }
        if tokens == 0 {
            return Ok(());
        }
        let columns = columns(x, n)?;
        self.h.par_chunks_mut(STRIPE * n).enumerate().try_for_each(|(i, h)| {
            let first = i * STRIPE;
            let some = &columns[first * tokens..(first + h.len() / n) * tokens];
            dots_of(isa, &columns[first * tokens..], tokens, some, &mut |row, from, sums| {
                let at = row * n + first + from;
                h[at..at + sums.len()].iter_mut().zip(sums).for_each(|(h, s)| *h += *s);
            })
        })?;
        Ok(())
    }

    /// Mirrors the triangle; to be called when all tokens are in.
    pub fn finish(&mut self) {
        for i in 1..self.n {
            let (above, row) = self.h.split_at_mut(i * self.n);
            for (j, h) in row[..i].iter_mut().enumerate() {
                *h = above[j * self.n + i];
            }
        }
    }

    /// Numbers of a token.
    pub fn n(&self) -> usize {
        self.n
    }

    /// `[n][n]`: `sum x r^T`, if there were reference inputs `r`.
    pub fn cross(&self) -> Option<&[f32]> {
        (!self.cross.is_empty()).then_some(&self.cross)
    }

    /// `[n][n]`
    pub fn sums(&self) -> &[f32] {
        &self.h
    }
}

/// `[n][tokens]` of `[tokens][n]`.
fn columns(x: &[f32], n: usize) -> Result<Vec<f32>> {
    let mut columns = zeros(x.len(), "inputs")?;
    columns.par_chunks_exact_mut(x.len() / n).enumerate().for_each(|(j, column)| {
        column.iter_mut().zip(x[j..].iter().step_by(n)).for_each(|(c, x)| *c = *x);
    });
    Ok(columns)
}

/// `len` zeros.
pub(crate) fn zeros(len: usize, what: &str) -> Result<Vec<f32>> {
    let mut out = Vec::new();
    let size = len.saturating_mul(4) >> 20;
    out.try_reserve_exact(len)
        .map_err(|_| Error::Options(format!("{what}: {size} MiB of memory cannot be had")))?;
    out.resize(len, 0.0);
    Ok(out)
}
