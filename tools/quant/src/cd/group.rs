//! One group of one row: codes and coefficients against a quadratic form.
//!
//! The error of outputs is `D H D^T` with `D = Q - target`; its gradient, `D H`, goes along with every change.

use crate::als::MAX_GROUP;
use crate::als::group::{Coefs, Groups, MAX_COEFS, MAX_LEVELS, Normal, Optimum, Solver};
use crate::als::store::Steps;
use crate::cd::inputs::{Form, Span};

/// Pull of a refit towards the coefficients before, relative to the sum of the quadratic form's diagonal. It decides where
/// codes leave a coefficient open, and cannot raise the error.
const RIDGE: f64 = 1e-6;

/// Rounds of rounding and refitting before a group's errors are handed on.
const ROUNDS: usize = 5;

/// Iterations of alternating least squares for the first coefficients.
const ITERATIONS: usize = 10;

/// What a group of `Q` planes is, with its coefficients in the order of [`Coefs`].
#[derive(Clone, Copy)]
pub(super) struct Levels<const Q: usize> {
    /// By code, as a reader has them.
    by_code: [f32; MAX_LEVELS],
    /// Codes by ascending level.
    order: [u8; MAX_LEVELS],
    /// Between the levels of `order[k]` and `order[k + 1]`.
    bounds: [f32; MAX_LEVELS],
}

impl<const Q: usize> Levels<Q> {
    const COUNT: usize = 1 << Q;
    const TOP: u8 = 1 << (Q - 1);

    pub(super) fn new(c: &Coefs) -> Self {
        let mut levels = Levels { by_code: [c[0] as f32; _], order: [0; _], bounds: [0.0; _] };
        for p in 0..Q {
            let (low, high) = levels.by_code.split_at_mut(1 << p);
            high.iter_mut().zip(low).for_each(|(h, l)| *h = *l + c[p + 1] as f32);
        }
        for code in 0..Self::COUNT {
            levels.order[code] = code as u8;
        }
        let by_code = &levels.by_code;
        let of = |code: u8| by_code[usize::from(code)];
        levels.order[..Self::COUNT].sort_unstable_by(|a, b| of(*a).total_cmp(&of(*b)).then(a.cmp(b)));
        for k in 1..Self::COUNT {
            levels.bounds[k - 1] = 0.5 * (of(levels.order[k - 1]) + of(levels.order[k]));
        }
        levels
    }

    pub(super) fn of(&self, code: u8) -> f32 {
        self.by_code[usize::from(code)]
    }

    /// The code of the nearest level.
    pub(super) fn nearest(&self, t: f32) -> u8 {
        let bounds = &self.bounds[..Self::COUNT - 1];
        let k = match Q {
            1..=3 => bounds.iter().map(|b| usize::from(t > *b)).sum(),
            _ => bounds.partition_point(|b| t > *b),
        };
        self.order[k]
    }

    /// The code of the nearest level of those whose lower planes are `code`'s, the highest plane being open.
    fn nearest_on(&self, code: u8, t: f32) -> u8 {
        let (low, high) = (code & !Self::TOP, code | Self::TOP);
        if (self.of(high) - t).abs() < (self.of(low) - t).abs() { high } else { low }
    }

    /// By code.
    pub(super) fn all(&self) -> &[f32] {
        &self.by_code[..Self::COUNT]
    }
}

/// Work space.
pub(super) struct Worker<const Q: usize> {
    solver: Solver<Q>,
    groups: Groups,
    group: usize,
    sums: Sums,
}

/// Numbers of a group.
type Row = [f32; MAX_GROUP];

impl<const Q: usize> Worker<Q> {
    /// For groups of `group` columns.
    pub(super) fn new(group: usize) -> Self {
        Worker { solver: Solver::new(), groups: Groups::new(group, group), group, sums: Sums::new() }
    }

    /// First codes and coefficients of `w`, given `carried`, what the errors of earlier groups are in this one's `E L`.
    /// With `on_lower` codes have all planes but the highest, and keep them.
    pub(super) fn start(
        &mut self,
        span: &Span,
        w: &[f32],
        carried: &[f32],
        codes: &mut [u8],
        on_lower: bool,
    ) -> Coefs {
        let g = w.len();
        // What this group would have to be to make up for the errors of the earlier ones.
        let mut target = [0.0; MAX_GROUP];
        let mut open: Row = [0.0; MAX_GROUP];
        (0..g).for_each(|j| open[j] = carried[j] / span.diagonal[j]);
        for i in (0..g).rev() {
            target[i] = w[i] - open[i];
            let x = open[i];
            axpy(-x, &span.feedback[i * g..i * g + i], &mut open);
        }
        let target = &target[..g];
        let mut importance = [0.0; MAX_GROUP];
        (0..g).for_each(|j| importance[j] = span.conditional.matrix[j * g + j]);
        let mut c = match on_lower {
            true => self.split(span, target, &importance[..g], codes),
            false => self.free(target, &importance[..g]),
        };
        let mut best = (f32::INFINITY, c);
        let mut trial = [0; MAX_GROUP];
        let trial = &mut trial[..g];
        for _ in 0..ROUNDS {
            let levels = Levels::<Q>::new(&c);
            trial.copy_from_slice(codes);
            let error = round(span, target, &levels, trial, on_lower);
            if error < best.0 {
                best = (error, c);
                codes.copy_from_slice(trial);
            }
            let gradient = gradient(span, target, &levels, trial);
            c = self.sums.refit::<Q>(&span.conditional, trial, &gradient, &c).at;
        }
        best.1
    }

    /// Coefficients for codes that are all open.
    fn free(&mut self, target: &[f32], importance: &[f32]) -> Coefs {
        // Only a row's last group may be shorter.
        let g = target.len();
        if g != self.group {
            (self.groups, self.group) = (Groups::new(g, g), g);
        }
        self.groups.load(target, Some(importance));
        let first = self.groups.iter().next().map(|group| self.solver.fit(&group, ITERATIONS));
        first.unwrap_or_default()
    }

    /// Coefficients for codes whose highest plane is open, and 0: the best without it, with each level split in two.
    fn split(&mut self, span: &Span, target: &[f32], importance: &[f32], codes: &[u8]) -> Coefs {
        let none = Coefs::default();
        let gradient = gradient(span, target, &Levels::<Q>::new(&none), codes);
        let mut c = self.sums.refit::<Q>(&span.conditional, codes, &gradient, &none).at;
        c[Q] = 0.0;
        let levels = Levels::<Q>::new(&c);
        let (mut distance, mut total) = (0.0, 0.0);
        for ((t, i), code) in target.iter().zip(importance).zip(codes) {
            distance += f64::from(i * (t - levels.of(*code)).abs());
            total += f64::from(*i);
        }
        let half = if total > 0.0 { distance / total } else { 0.0 };
        c[Q] = 2.0 * half;
        c[0] -= half;
        c
    }

    /// The best coefficients for the codes, made storable with `steps`, if they are better or `force` is said. `gradient` is
    /// that of the objective with all other groups as they are. Returns the levels.
    pub(super) fn refit(
        &mut self,
        span: &Span,
        codes: &[u8],
        c: &mut Coefs,
        gradient: &mut [f32],
        steps: Option<&Steps>,
        force: bool,
    ) -> Levels<Q> {
        let g = codes.len();
        let best = self.sums.refit::<Q>(&span.h, codes, gradient, c);
        let next = steps.map_or(best.at, |steps| steps.round_all::<Q>(&best));
        let levels = Levels::<Q>::new(c);
        if !force && best.excess::<Q>(&next) >= best.excess::<Q>(c) {
            return levels;
        }
        let moved = Levels::<Q>::new(&next);
        for j in 0..g {
            let delta = moved.of(codes[j]) - levels.of(codes[j]);
            axpy(delta, &span.h.matrix[j * g..(j + 1) * g], gradient);
        }
        *c = next;
        moved
    }
}

/// Gives each code, one after the other, the level that is best given all others; whether any changed.
pub(super) fn assign<const Q: usize>(
    span: &Span,
    codes: &mut [u8],
    levels: &Levels<Q>,
    gradient: &mut [f32],
) -> bool {
    let g = codes.len();
    let mut changed = false;
    for j in (0..g).rev() {
        let h = &span.h.matrix[j * g..(j + 1) * g];
        let now = levels.of(codes[j]);
        let code = levels.nearest(now - gradient[j] / h[j]);
        if code != codes[j] {
            axpy(levels.of(code) - now, h, gradient);
            codes[j] = code;
            changed = true;
        }
    }
    changed
}

/// What [`assign_for_all`] sees of one precision: levels by code, the gradient, and what an error counts.
pub(super) struct View<'a> {
    pub(super) levels: &'a [f32],
    pub(super) gradient: &'a mut [f32],
    pub(super) weight: f32,
}

/// As [`assign`], for several precisions at once: each has the lowest bits of a code, and the sum of their weighted errors
/// falls. The lowest `frozen` bits stay.
pub(super) fn assign_for_all(span: &Span, codes: &mut [u8], views: &mut [View<'_>], frozen: usize) -> bool {
    let g = codes.len();
    let count = views.iter().map(|v| v.levels.len()).max().unwrap_or(1);
    let (low, step) = ((1 << frozen) - 1, 1 << frozen);
    let mut changed = false;
    for j in (0..g).rev() {
        let h = &span.h.matrix[j * g..(j + 1) * g];
        let old = usize::from(codes[j]);
        let mut costs = [0.0; MAX_LEVELS];
        for v in views.iter() {
            let mask = v.levels.len() - 1;
            let target = v.levels[old & mask] - v.gradient[j] / h[j];
            for code in (old & low..count).step_by(step) {
                costs[code] += v.weight * (v.levels[code & mask] - target).powi(2);
            }
        }
        let mut best = old;
        for code in (old & low..count).step_by(step) {
            if costs[code] < costs[best] {
                best = code;
            }
        }
        if best != old {
            for v in views.iter_mut() {
                let mask = v.levels.len() - 1;
                let delta = v.levels[best & mask] - v.levels[old & mask];
                if delta != 0.0 {
                    axpy(delta, h, v.gradient);
                }
            }
            codes[j] = best as u8;
            changed = true;
        }
    }
    changed
}

/// `y += a x`, as far as `x` goes.
fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
}

/// The gradient of the conditional form at codes.
fn gradient<const Q: usize>(span: &Span, target: &[f32], levels: &Levels<Q>, codes: &[u8]) -> Row {
    let g = target.len();
    let mut gradient = [0.0; MAX_GROUP];
    for j in 0..g {
        let d = levels.of(codes[j]) - target[j];
        axpy(d, &span.conditional.matrix[j * g..(j + 1) * g], &mut gradient);
    }
    gradient
}

/// Rounds a target column by column, each making up for those before; returns the error, `|(Q - target) L_GG|^2`.
fn round<const Q: usize>(
    span: &Span,
    target: &[f32],
    levels: &Levels<Q>,
    codes: &mut [u8],
    on_lower: bool,
) -> f32 {
    let g = target.len();
    let mut t = [0.0; MAX_GROUP];
    t[..g].copy_from_slice(target);
    let mut error = 0.0;
    for i in (0..g).rev() {
        codes[i] = if on_lower { levels.nearest_on(codes[i], t[i]) } else { levels.nearest(t[i]) };
        let q = levels.of(codes[i]);
        error += ((q - t[i]) * span.diagonal[i]).powi(2);
        axpy(target[i] - q, &span.feedback[i * g..i * g + i], &mut t);
    }
    error
}

/// Sums of a quadratic form's rows: of those whose codes have a plane's bit, for each plane.
struct Sums(Box<[[f32; MAX_GROUP]; MAX_COEFS]>);

impl Sums {
    fn new() -> Sums {
        Sums(Box::new([[0.0; MAX_GROUP]; MAX_COEFS]))
    }

    /// The best coefficients for codes, near `c`, where the objective's gradient is `gradient`.
    fn refit<const Q: usize>(&mut self, h: &Form, codes: &[u8], gradient: &[f32], c: &Coefs) -> Optimum {
        let g = codes.len();
        let sums = &mut *self.0;
        sums[0][..g].copy_from_slice(&h.sums);
        sums[1..=Q].iter_mut().for_each(|s| s[..g].fill(0.0));
        for (row, code) in h.matrix.chunks_exact(g).zip(codes) {
            for p in 0..Q {
                if code >> p & 1 == 1 {
                    axpy(1.0, row, &mut sums[p + 1]);
                }
            }
        }
        let mut normal = Normal::default();
        for i in 0..=Q {
            for j in 0..g {
                if i == 0 || codes[j] >> (i - 1) & 1 == 1 {
                    normal.r[i] -= f64::from(gradient[j]);
                    for k in 0..=i {
                        normal.n[i][k] += f64::from(sums[k][j]);
                    }
                }
            }
        }
        normal.solve::<Q>(c, RIDGE * h.trace)
    }
}
