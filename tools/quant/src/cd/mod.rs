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
mod precision;
#[cfg(test)]
mod tests;

pub use inputs::Inputs;

use crate::als::{FitSpec, Fitted, check};
use crate::error::{Error, Result};
use crate::gram::zeros;
use group::{View, assign_for_all};
use lutite_kernels::isa::Isa;
use lutite_kernels::pack::{MAX_PLANES, ParamKind};
use lutite_kernels::plain::dots_of;
use precision::{Precision, Size, precision};
use rayon::prelude::*;

/// Rows that go through all steps together, so that `H` is read once for all of them.
const ROWS: usize = 48;

/// Times that coefficients and codes are improved in turn at each visit.
const TURNS: usize = 2;

/// Sweeps before coefficients are made storable, and after it.
const FREE_SWEEPS: usize = 2;
const STORED_SWEEPS: usize = 3;

/// A fitted matrix.
#[derive(Clone, Debug, Default)]
pub struct Calibrated {
    /// Its codes and parameters.
    pub fitted: Fitted,
    /// `tr((Q - W) H (Q - W)^T)`, with `H` as it is: what damping adds for the fit is left out.
    pub error: f64,
    /// The same of `Q = 0`.
    pub whole: f64,
}

/// What a matrix is fitted to beside [`FitSpec`]: the codes that it has to build on, and the precisions to look ahead to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nesting<'a> {
    /// Codes of all planes but the highest of [`FitSpec::planes`], `[rows][n]`; they stay as they are.
    pub lower: Option<&'a [u8]>,
    /// What the errors of one plane more, of two more, and so on count, when those of [`FitSpec::planes`] count 1.
    pub ahead: &'a [f32],
}

/// Fits `w`, `[rows][n]`, for its inputs. `spec.group` must be what `inputs` were made for; `spec.iterations` is not used.
///
/// # Errors
/// As [`crate::als::fit_rows`].
pub fn fit(isa: Isa, w: &[f32], inputs: &Inputs, spec: &FitSpec) -> Result<Calibrated> {
    let mut all = fit_nested(isa, w, inputs, spec, Nesting::default())?;
    all.pop().ok_or_else(|| Error::Options("no precision".into()))
}

/// Fits `w` as [`fit`] does, for several precisions at once: of `spec.planes` planes, and of as many more as `nesting` looks
/// ahead. Each has coefficients of its own; its codes are the lowest bits of those of the next.
///
/// # Errors
/// As [`fit`]; lower codes of another size than `w`'s, or too many planes.
pub fn fit_nested(
    isa: Isa,
    w: &[f32],
    inputs: &Inputs,
    spec: &FitSpec,
    nesting: Nesting<'_>,
) -> Result<Vec<Calibrated>> {
    check(w, inputs.n, None, spec)?;
    if spec.planes + nesting.ahead.len() > MAX_PLANES {
        let planes = spec.planes + nesting.ahead.len();
        return Err(Error::Options(format!("{planes} planes are not possible; 1 to {MAX_PLANES}")));
    }
    if let Some(lower) = nesting.lower
        && (lower.len() != w.len() || spec.planes < 2)
    {
        let why = format!("{} codes to build on, for {} weights", lower.len(), w.len());
        return Err(Error::Options(why));
    }
    let at_once = ROWS * inputs.n;
    let parts = w.par_chunks(at_once).enumerate().map(|(i, w)| {
        let lower = nesting.lower.map(|lower| &lower[i * at_once..][..w.len()]);
        let mut tile = Tile::new(isa, inputs, w, spec, Nesting { lower, ..nesting })?;
        tile.start()?;
        for _ in 0..FREE_SWEEPS {
            tile.sweep()?;
        }
        tile.store();
        for _ in 0..STORED_SWEEPS {
            tile.sweep()?;
        }
        tile.finish()
    });
    let mut out = vec![Calibrated::default(); 1 + nesting.ahead.len()];
    for part in parts.collect::<Result<Vec<_>>>()? {
        for (out, part) in out.iter_mut().zip(part) {
            out.fitted.codes.extend(part.fitted.codes);
            out.fitted.params.extend(part.fitted.params);
            out.fitted.row_scales.extend(part.fitted.row_scales);
            out.error += part.error;
            out.whole += part.whole;
        }
    }
    Ok(out)
}

/// Some rows on their way, columns by position.
struct Tile<'a> {
    isa: Isa,
    inputs: &'a Inputs,
    kind: ParamKind,
    /// `[rows][n]`
    w: Vec<f32>,
    /// `[rows][n]`, of the most planes; fewer planes are its lowest bits.
    codes: Vec<u8>,
    /// The lowest planes of the codes, which stay as they are.
    frozen: usize,
    /// Ascending by planes, one plane more each.
    precisions: Vec<Box<dyn Precision>>,
    /// What each precision's errors count.
    weights: Vec<f32>,
}

impl<'a> Tile<'a> {
    fn new(isa: Isa, inputs: &'a Inputs, w: &[f32], spec: &FitSpec, nesting: Nesting<'_>) -> Result<Self> {
        let n = inputs.n;
        let size = Size { rows: w.len() / n, n, spans: inputs.spans.len(), group: spec.group };
        let precisions = (0..=nesting.ahead.len()).map(|more| precision(spec.planes + more, size));
        let by_position =
            |all: &[u8]| all.chunks_exact(n).flat_map(|row| inputs.columns.iter().map(|c| row[*c])).collect();
        let frozen = if nesting.lower.is_some() { spec.planes - 1 } else { 0 };
        Ok(Tile {
            isa,
            inputs,
            kind: spec.kind,
            w: w.chunks_exact(n).flat_map(|row| inputs.columns.iter().map(|c| row[*c])).collect(),
            codes: nesting.lower.map_or_else(|| vec![0; w.len()], by_position),
            frozen,
            precisions: precisions.collect::<Result<_>>()?,
            weights: [1.0].iter().chain(nesting.ahead).copied().collect(),
        })
    }

    /// Fits one group after the other; each precision on the codes of the one before.
    fn start(&mut self) -> Result<()> {
        let Tile { isa, inputs, w, codes, frozen, precisions, .. } = self;
        for (i, precision) in precisions.iter_mut().enumerate() {
            let on_lower = i > 0 || *frozen > 0;
            for s in (0..inputs.spans.len()).rev() {
                precision.start(*isa, inputs, s, w, codes, on_lower)?;
            }
        }
        Ok(())
    }

    /// Improves one group after the other, all others given.
    fn sweep(&mut self) -> Result<()> {
        let Tile { isa, inputs, w, codes, frozen, precisions, weights, .. } = self;
        let n = inputs.n;
        for (s, span) in inputs.spans.iter().enumerate().rev() {
            precisions.iter_mut().try_for_each(|p| p.open(*isa, inputs, s))?;
            for (r, codes) in codes.chunks_exact_mut(n).enumerate() {
                let codes = &mut codes[span.at.clone()];
                for turn in 0..TURNS {
                    precisions.iter_mut().for_each(|p| p.refit(span, s, r, codes, turn == 0));
                    let changed = match &mut precisions[..] {
                        [one] if *frozen == 0 => one.assign(span, r, codes),
                        all => {
                            let with_weights = all.iter_mut().zip(&*weights);
                            let mut views: Vec<View<'_>> =
                                with_weights.map(|(p, weight)| p.view(span, r, *weight)).collect();
                            assign_for_all(span, codes, &mut views, *frozen)
                        }
                    };
                    if !changed {
                        break;
                    }
                }
                precisions.iter_mut().for_each(|p| p.close(span, r, codes, &w[r * n..(r + 1) * n]));
            }
        }
        precisions.iter_mut().for_each(|p| p.swept());
        Ok(())
    }

    /// Decides what coefficients are rounded to; the next sweep rounds them.
    fn store(&mut self) {
        let Tile { inputs, codes, frozen, precisions, .. } = self;
        for r in 0..codes.len() / inputs.n {
            for (s, span) in inputs.spans.iter().enumerate() {
                let codes = &mut codes[r * inputs.n..][span.at.clone()];
                // Planes are numbered anew where they are first open: for all precisions alike.
                for i in 0..precisions.len() {
                    let to = precisions[i].renumbering(r, s, i > 0 || *frozen > 0);
                    codes.iter_mut().for_each(|code| *code = to.code(*code));
                    precisions[i..].iter_mut().for_each(|p| p.renumber(r, s, &to));
                }
            }
        }
        precisions.iter_mut().for_each(|p| p.store(self.kind));
    }

    /// What the file holds at each precision, and its errors.
    fn finish(&self) -> Result<Vec<Calibrated>> {
        let undamped = |e: &[f32]| -> Result<f64> {
            let squares: f64 = e.iter().map(|e| f64::from(*e).powi(2)).sum();
            Ok(self.error(e)? - f64::from(self.inputs.damping) * squares)
        };
        let whole = undamped(&self.w)?;
        let calibrated = |p: &Box<dyn Precision>| {
            let fitted = p.fitted(self.inputs, &self.codes);
            Ok(Calibrated { fitted, error: undamped(p.errors())?, whole })
        };
        self.precisions.iter().map(calibrated).collect()
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
