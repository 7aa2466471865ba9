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

/// Times that coefficients and codes are improved in turn at each visit.
const TURNS: usize = 2;

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
    pub(super) fn start(&mut self, span: &Span, w: &[f32], carried: &[f32], codes: &mut [u8]) -> Coefs {
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
        // Only a row's last group may be shorter.
        if g != self.group {
            (self.groups, self.group) = (Groups::new(g, g), g);
        }
        self.groups.load(target, Some(&importance[..g]));
        let first = self.groups.iter().next().map(|group| self.solver.fit(&group, ITERATIONS));
        let mut c = first.unwrap_or_default();
        let mut best = (f32::INFINITY, c);
        let mut trial = [0; MAX_GROUP];
        let trial = &mut trial[..g];
        for _ in 0..ROUNDS {
            let levels = Levels::<Q>::new(&c);
            let error = round(span, target, &levels, trial);
            if error < best.0 {
                best = (error, c);
                codes.copy_from_slice(trial);
            }
            let mut d = [0.0; MAX_GROUP];
            (0..g).for_each(|j| d[j] = levels.of(trial[j]) - target[j]);
            let mut gradient = [0.0; MAX_GROUP];
            (0..g).for_each(|j| axpy(d[j], &span.conditional.matrix[j * g..(j + 1) * g], &mut gradient));
            c = self.sums.refit::<Q>(&span.conditional, trial, &gradient, &c).at;
        }
        best.1
    }

    /// Improves codes and coefficients in turn. `gradient` is that of the objective with all other groups as they are;
    /// `e` receives `Q - w`. With `steps` the coefficients become storable, and from then on stay so.
    pub(super) fn improve(
        &mut self,
        span: &Span,
        row: GroupOfRow<'_>,
        gradient: &mut [f32],
        steps: Option<(&Steps, bool)>,
    ) {
        let GroupOfRow { w, e, codes, c } = row;
        let g = w.len();
        let mut force = steps.is_some_and(|(_, first)| first);
        let mut levels = Levels::<Q>::new(c);
        for _ in 0..TURNS {
            let best = self.sums.refit::<Q>(&span.h, codes, gradient, c);
            let next = steps.map_or(best.at, |(steps, _)| steps.round_all::<Q>(&best));
            if force || best.excess::<Q>(&next) < best.excess::<Q>(c) {
                let moved = Levels::<Q>::new(&next);
                for j in 0..g {
                    let delta = moved.of(codes[j]) - levels.of(codes[j]);
                    axpy(delta, &span.h.matrix[j * g..(j + 1) * g], gradient);
                }
                (*c, levels, force) = (next, moved, false);
            }
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
            if !changed {
                break;
            }
        }
        (0..g).for_each(|j| e[j] = levels.of(codes[j]) - w[j]);
    }
}

/// What [`Worker::improve`] improves.
pub(super) struct GroupOfRow<'a> {
    pub(super) w: &'a [f32],
    pub(super) e: &'a mut [f32],
    pub(super) codes: &'a mut [u8],
    pub(super) c: &'a mut Coefs,
}

/// `y += a x`, as far as `x` goes.
fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
}

/// Rounds a target column by column, each making up for those before; returns the error, `|(Q - target) L_GG|^2`.
fn round<const Q: usize>(span: &Span, target: &[f32], levels: &Levels<Q>, codes: &mut [u8]) -> f32 {
    let g = target.len();
    let mut t = [0.0; MAX_GROUP];
    t[..g].copy_from_slice(target);
    let mut error = 0.0;
    for i in (0..g).rev() {
        codes[i] = levels.nearest(t[i]);
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
