//! HLQ by alternating least squares: each group of a row becomes `z + sum over p of s_p b_p`.
//!
//! The alternation is that of ELUTQ (arXiv 2510.19482): codes to the nearest of the `2^q` levels, then
//! levels to the least squares fit of the codes. What is done differently:
//!
//! * Groups are sorted once. A code is then a range of the sorted weights, its sums are differences of
//!   prefix sums, and an iteration costs `2^q` steps instead of one per weight and level.
//! * Several starting points; the most promising one is iterated on, and the best state is kept.
//! * Columns may be weighted by their importance (mean square of their activations).
//! * Parameters are rounded to their storage type one after the other, each making up for those
//!   rounded before it, and codes are assigned to the *stored* levels.
//!
//! A group's planes are ordered by the magnitude of their scales, and `z` is the level nearest to zero,
//! so that a row's coefficients are alike and an int8 step for `z` is small. Scales may be negative.
//!
//! Rows do not depend on each other: callers may split them among threads as they like.

pub(crate) mod group;
pub(crate) mod store;
#[cfg(test)]
mod tests;

pub(crate) use group::MAX_GROUP;
use group::{Groups, Solver};
use lutite_kernels::pack::{GROUPS, GROUPS_LIST, MAX_PLANES, ParamKind};

use crate::error::{Error, Result};
use store::Steps;

/// Largest magnitude of a weight: scales span the difference of two weights, and f16 ends at 65504.
pub const MAX_WEIGHT: f32 = 32752.0;

/// How rows are to be fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FitSpec {
    /// Planes, 1 to 8.
    pub planes: usize,
    /// Columns of a group, one of [`GROUPS`]. May exceed the row.
    pub group: usize,
    /// [`ParamKind::Hlq16`] or [`ParamKind::Hlq8`].
    pub kind: ParamKind,
    /// Most iterations on a group's best starting point; 0 keeps that as it is. Few groups need 20.
    pub iterations: usize,
}

impl FitSpec {
    /// Coefficients of a row and group: the scales, then `z`.
    pub fn coefficients(&self) -> usize {
        self.planes + 1
    }
}

/// Rows in bit planes, before they are packed into tiles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fitted {
    /// `[rows][cols]`: bit `p` of a code belongs to plane `p`.
    pub codes: Vec<u8>,
    /// `[rows][groups][planes + 1]`, scales of ascending planes and then `z`: little-endian f16, or int8
    /// under the row's scales.
    pub params: Vec<u8>,
    /// `[rows][planes + 1]` as bits of f16; empty for [`ParamKind::Hlq16`].
    pub row_scales: Vec<u16>,
}

/// Fits rows of weights.
///
/// `w` is `[rows][cols]`; `importance` is `[cols]`, all at least 0, and weighs the squared errors of
/// its column. A group without any importance counts all its columns alike. The result depends on
/// nothing but the arguments, and a row's on nothing but its row.
///
/// # Errors
/// [`Error::Setting`] for planes, a group or a kind that this is not for, [`Error::Length`] where `w` has
/// no whole rows or `importance` another length than a row, [`Error::Weight`] and [`Error::Importance`]
/// for values that are not finite or out of range.
pub fn fit_rows(w: &[f32], cols: usize, importance: Option<&[f32]>, spec: &FitSpec) -> Result<Fitted> {
    check(w, cols, importance, spec)?;
    Ok(match spec.planes {
        1 => fit::<1>(w, cols, importance, spec),
        2 => fit::<2>(w, cols, importance, spec),
        3 => fit::<3>(w, cols, importance, spec),
        4 => fit::<4>(w, cols, importance, spec),
        5 => fit::<5>(w, cols, importance, spec),
        6 => fit::<6>(w, cols, importance, spec),
        7 => fit::<7>(w, cols, importance, spec),
        _ => fit::<8>(w, cols, importance, spec),
    })
}

pub(crate) fn check(w: &[f32], cols: usize, importance: Option<&[f32]>, spec: &FitSpec) -> Result<()> {
    let setting = |what, found, allowed| Err(Error::Setting { what, found, allowed });
    if spec.planes == 0 || spec.planes > MAX_PLANES {
        return setting("number of planes", spec.planes.to_string(), "1 to 8");
    }
    if !GROUPS.contains(&spec.group) {
        return setting("group size", spec.group.to_string(), GROUPS_LIST);
    }
    if !matches!(spec.kind, ParamKind::Hlq16 | ParamKind::Hlq8) {
        return setting("parameter kind", spec.kind.name().into(), "hlq16 or hlq8");
    }
    if cols == 0 {
        return setting("number of columns", "0".into(), "1 or more");
    }
    let expected = w.len().next_multiple_of(cols);
    if w.len() != expected {
        return Err(Error::Length { what: "weights", found: w.len(), expected });
    }
    // Of NaN this is false as well.
    if let Some(i) = w.iter().position(|v| !(-MAX_WEIGHT..=MAX_WEIGHT).contains(v)) {
        return Err(Error::Weight { row: i / cols, col: i % cols, value: w[i], limit: MAX_WEIGHT });
    }
    if let Some(imp) = importance {
        if imp.len() != cols {
            return Err(Error::Length { what: "importance", found: imp.len(), expected: cols });
        }
        if let Some(col) = imp.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
            return Err(Error::Importance { col, value: imp[col] });
        }
    }
    Ok(())
}

fn fit<const Q: usize>(w: &[f32], cols: usize, importance: Option<&[f32]>, spec: &FitSpec) -> Fitted {
    let rows = w.len() / cols;
    let per_group = (Q + 1) * spec.kind.coefficient_bytes();
    let mut out = Fitted {
        codes: vec![0; w.len()],
        params: Vec::with_capacity(rows * cols.div_ceil(spec.group) * per_group),
        row_scales: Vec::new(),
    };
    let mut solver = Solver::<Q>::new();
    let mut groups = Groups::new(cols, spec.group);
    let mut best = Vec::new();
    for (row, codes) in w.chunks_exact(cols).zip(out.codes.chunks_exact_mut(cols)) {
        groups.load(row, importance);
        best.clear();
        best.extend(groups.iter().map(|g| store::canonical::<Q>(&solver.fit(&g, spec.iterations))));
        let steps = Steps::of_row::<Q>(&best, spec.kind);
        for ((g, start), codes) in groups.iter().zip(&best).zip(codes.chunks_mut(spec.group)) {
            let stored = store::fit_stored(&mut solver, &g, start, &steps, codes);
            steps.write::<Q>(&stored, &mut out.params);
        }
        steps.write_scales::<Q>(&mut out.row_scales);
    }
    out
}
