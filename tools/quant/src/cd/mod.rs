//! HLQ against the errors of outputs (`hlq-cd`): coordinate descent on codes and coefficients.
//!
//! The objective for a matrix `W` with inputs `x` is `f = tr((Q - W) H (Q - W)^T)`, `H = sum x x^T`. Per row:
//!
//! 1. Groups are fitted one after the other in the order of [`Inputs`], each to what makes up for the errors of those
//!    before. Within a group: coefficients by alternating least squares with weights, then rounds of rounding with feedback
//!    from column to column and refitting in the metric of what later columns cannot make up for.
//! 2. Sweeps over all groups against the whole of `H`: coefficients in closed form, then each code to its best level given
//!    all others. `f` falls with every step.
//! 3. Coefficients become what a file can hold, group by group, and further sweeps adapt codes and coefficients to that.
//!
//! Sources: ELUTQ (arXiv 2510.19482) for the format, which fits and rounds a whole group at once; GPTQ (2210.17323), QuantEase
//! (2309.01885) for the sweeps over codes, BPDQ (2602.04163) for order and metric. Rows do not depend on each other, and the
//! result depends on nothing but the arguments: not on threads, nor on the instruction set.

mod group;
mod inputs;
#[cfg(test)]
mod tests;

pub use inputs::Inputs;

use crate::als::group::Coefs;
use crate::als::store::{Steps, canonical};
use crate::als::{FitSpec, Fitted, check};
use crate::error::Result;
use crate::gram::zeros;
use group::{GroupOfRow, Levels, Worker};
use lutite_kernels::isa::Isa;
use lutite_kernels::plain::dots_of;
use rayon::prelude::*;

/// Rows that go through all steps together, so that `H` is read once for all of them.
const ROWS: usize = 48;

/// Sweeps before coefficients are made storable, and after it.
const FREE_SWEEPS: usize = 2;
const STORED_SWEEPS: usize = 3;

/// A fitted matrix.
#[derive(Clone, Debug)]
pub struct Calibrated {
    /// Its codes and parameters.
    pub fitted: Fitted,
    /// `tr((Q - W) H (Q - W)^T)`, with `H` as it is: what damping adds for the fit is left out.
    pub error: f64,
    /// The same of `Q = 0`.
    pub whole: f64,
}

/// Fits `w`, `[rows][n]`, for its inputs. `spec.group` must be what `inputs` were made for; `spec.iterations` is not used.
///
/// # Errors
/// As [`crate::als::fit_rows`].
pub fn fit(isa: Isa, w: &[f32], inputs: &Inputs, spec: &FitSpec) -> Result<Calibrated> {
    check(w, inputs.n, None, spec)?;
    match spec.planes {
        1 => all::<1>(isa, w, inputs, spec),
        2 => all::<2>(isa, w, inputs, spec),
        3 => all::<3>(isa, w, inputs, spec),
        4 => all::<4>(isa, w, inputs, spec),
        5 => all::<5>(isa, w, inputs, spec),
        6 => all::<6>(isa, w, inputs, spec),
        7 => all::<7>(isa, w, inputs, spec),
        _ => all::<8>(isa, w, inputs, spec),
    }
}

fn all<const Q: usize>(isa: Isa, w: &[f32], inputs: &Inputs, spec: &FitSpec) -> Result<Calibrated> {
    let parts = w.par_chunks(ROWS * inputs.n).map(|w| {
        let mut tile = Tile::<Q>::new(isa, inputs, w, spec)?;
        tile.start()?;
        for _ in 0..FREE_SWEEPS {
            tile.sweep()?;
        }
        tile.store();
        for _ in 0..STORED_SWEEPS {
            tile.sweep()?;
        }
        let undamped = |e: &[f32]| -> Result<f64> {
            let squares: f64 = e.iter().map(|e| f64::from(*e).powi(2)).sum();
            Ok(tile.error(e)? - f64::from(inputs.damping) * squares)
        };
        Ok((tile.fitted(), undamped(&tile.e)?, undamped(&tile.w)?))
    });
    let mut out = Calibrated { fitted: Fitted::default(), error: 0.0, whole: 0.0 };
    for (fitted, error, whole) in parts.collect::<Result<Vec<_>>>()? {
        out.fitted.codes.extend(fitted.codes);
        out.fitted.params.extend(fitted.params);
        out.fitted.row_scales.extend(fitted.row_scales);
        out.error += error;
        out.whole += whole;
    }
    Ok(out)
}

/// Some rows on their way, columns by position.
struct Tile<'a, const Q: usize> {
    isa: Isa,
    inputs: &'a Inputs,
    spec: FitSpec,
    /// `[rows][n]`
    w: Vec<f32>,
    /// `[rows][n]`, `Q - W`.
    e: Vec<f32>,
    /// `[rows][n]`
    codes: Vec<u8>,
    /// `[rows][spans]`
    coefs: Vec<Coefs>,
    /// What each row's coefficients are rounded to, once they are; and whether that has not been done yet.
    steps: Option<(Vec<Steps>, bool)>,
    worker: Worker<Q>,
}

impl<'a, const Q: usize> Tile<'a, Q> {
    fn new(isa: Isa, inputs: &'a Inputs, w: &[f32], spec: &FitSpec) -> Result<Self> {
        let n = inputs.n;
        let rows = w.len() / n;
        let w = w.chunks_exact(n).flat_map(|row| inputs.columns.iter().map(|c| row[*c])).collect();
        Ok(Tile {
            isa,
            inputs,
            spec: *spec,
            w,
            e: zeros(rows * n, "errors of a tile")?,
            codes: vec![0; rows * n],
            coefs: vec![Coefs::default(); rows * inputs.spans.len()],
            steps: None,
            worker: Worker::new(spec.group),
        })
    }

    /// Fits one group after the other.
    fn start(&mut self) -> Result<()> {
        let Tile { inputs, w, e, codes, coefs, worker, .. } = self;
        let (n, spans) = (inputs.n, inputs.spans.len());
        for (s, span) in inputs.spans.iter().enumerate().rev() {
            // Errors of groups that are not rounded yet, this one's included, are 0.
            let carried = product(self.isa, &inputs.upper[span.at.start * n..span.at.end * n], n, e)?;
            for (r, carried) in carried.chunks_exact(span.at.len()).enumerate() {
                let at = r * n + span.at.start..r * n + span.at.end;
                let c = worker.start(span, &w[at.clone()], carried, &mut codes[at.clone()]);
                let levels = Levels::<Q>::new(&c);
                for j in at {
                    e[j] = levels.of(codes[j]) - w[j];
                }
                coefs[r * spans + s] = c;
            }
        }
        Ok(())
    }

    /// Improves one group after the other, all others given.
    fn sweep(&mut self) -> Result<()> {
        let Tile { inputs, w, e, codes, coefs, steps, worker, .. } = self;
        let (n, spans) = (inputs.n, inputs.spans.len());
        for (s, span) in inputs.spans.iter().enumerate().rev() {
            let mut gradient = product(self.isa, &inputs.h[span.at.start * n..span.at.end * n], n, e)?;
            for (r, gradient) in gradient.chunks_exact_mut(span.at.len()).enumerate() {
                let at = r * n + span.at.start..r * n + span.at.end;
                let c = &mut coefs[r * spans + s];
                let (w, e, codes) = (&w[at.clone()], &mut e[at.clone()], &mut codes[at]);
                let steps = steps.as_ref().map(|(steps, first)| (&steps[r], *first));
                worker.improve(span, GroupOfRow { w, e, codes, c }, gradient, steps);
            }
        }
        if let Some((_, first)) = &mut self.steps {
            *first = false;
        }
        Ok(())
    }

    /// Decides what coefficients are rounded to; the next sweep rounds them.
    fn store(&mut self) {
        let (n, spans) = (self.inputs.n, self.inputs.spans.len());
        let rows = self.coefs.chunks_exact_mut(spans).zip(self.codes.chunks_exact_mut(n));
        let steps = rows.map(|(coefs, codes)| {
            for (c, span) in coefs.iter_mut().zip(&self.inputs.spans) {
                let (before, next) = (Levels::<Q>::new(c), canonical::<Q>(c));
                let after = Levels::<Q>::new(&next);
                // The same levels by other codes.
                codes[span.at.clone()].iter_mut().for_each(|code| *code = after.nearest(before.of(*code)));
                *c = next;
            }
            Steps::of_row::<Q>(coefs, self.spec.kind)
        });
        self.steps = Some((steps.collect(), true));
    }

    /// The objective for errors of the tile's rows, damping included.
    fn error(&self, e: &[f32]) -> Result<f64> {
        let n = self.inputs.n;
        let mut sum = 0.0;
        dots_of(self.isa, &self.inputs.h, n, e, &mut |row, from, products| {
            let e = &e[row * n + from..];
            sum += e.iter().zip(products).map(|(e, p)| f64::from(*e) * f64::from(*p)).sum::<f64>();
        })?;
        Ok(sum)
    }

    /// What the file holds, columns and groups in its order.
    fn fitted(&self) -> Fitted {
        let (n, spans) = (self.inputs.n, self.inputs.spans.len());
        let mut out = Fitted { codes: vec![0; self.codes.len()], ..Fitted::default() };
        let Some((steps, _)) = &self.steps else { return out };
        let mut in_file = vec![0; spans];
        (0..spans).for_each(|s| in_file[self.inputs.spans[s].index] = s);
        for (r, steps) in steps.iter().enumerate() {
            for (p, column) in self.inputs.columns.iter().enumerate() {
                out.codes[r * n + column] = self.codes[r * n + p];
            }
            for s in &in_file {
                steps.write::<Q>(&self.coefs[r * spans + s], &mut out.params);
            }
            steps.write_scales::<Q>(&mut out.row_scales);
        }
        out
    }
}

/// `[rows of x][rows of a]`: `x a^T`.
fn product(isa: Isa, a: &[f32], n: usize, x: &[f32]) -> Result<Vec<f32>> {
    let width = a.len() / n;
    let mut out = zeros(x.len() / n * width, "a product")?;
    dots_of(isa, a, n, x, &mut |row, from, products| {
        out[row * width + from..][..products.len()].copy_from_slice(products);
    })?;
    Ok(out)
}
