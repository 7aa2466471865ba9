//! One group: sorted weights, levels, and the two alternating steps.

use lutite_kernels::pack::GROUPS;

/// Most weights of a group.
pub(crate) const MAX_GROUP: usize = GROUPS[GROUPS.len() - 1];

/// Most levels of a group.
pub(crate) const MAX_LEVELS: usize = 256;

/// Most coefficients of a group.
pub(crate) const MAX_COEFS: usize = 9;

/// Pull towards the coefficients before a refit, relative to the group's total importance. It decides
/// where the codes leave a coefficient open (a plane whose bits are all alike), and being a pull to
/// where we are it cannot raise the error. Far above the rounding of f64 sums, far below any real
/// curvature, which is at least one weight in 256 except under extreme importances.
const RIDGE: f64 = 1e-9;

/// An iteration that lowers the error by less than this part of it is the last.
const LEAST_GAIN: f64 = 1e-3;

/// Iterations that a starting point gets before the best one is chosen. Measured: 1 % less error than with 2, at 15 %
/// more time.
const PROBE: usize = 3;

/// Coefficients of a group: `z`, then the scales of ascending planes. (Files have `z` last; here it is
/// first so that rounding, from the last to the first, ends with it.)
pub(crate) type Coefs = [f64; MAX_COEFS];

/// A row's groups, each sorted, with prefix sums.
pub(crate) struct Groups {
    group: usize,
    /// Weights, ascending within each group.
    x: Vec<f64>,
    /// Where in its group each of `x` came from.
    from: Vec<u8>,
    /// `[groups][n + 1]` sums of importance.
    p0: Vec<f64>,
    /// The same of importance times weight, the latter from the group's middle on: so sums of groups
    /// far from zero keep their precision.
    p1: Vec<f64>,
    /// Middle, and sum of importance times squared distance to it.
    middle: Vec<(f64, f64)>,
}

/// One of [`Groups`].
pub(crate) struct Group<'a> {
    pub(crate) x: &'a [f64],
    from: &'a [u8],
    p0: &'a [f64],
    p1: &'a [f64],
    middle: f64,
    squares: f64,
}

impl Groups {
    pub(crate) fn new(cols: usize, group: usize) -> Groups {
        let n = cols.div_ceil(group);
        Groups {
            group,
            x: vec![0.0; cols],
            from: vec![0; cols],
            p0: vec![0.0; cols + n],
            p1: vec![0.0; cols + n],
            middle: vec![(0.0, 0.0); n],
        }
    }

    /// Takes in a row.
    pub(crate) fn load(&mut self, row: &[f32], importance: Option<&[f32]>) {
        let mut keys = [0u64; MAX_GROUP];
        for (i, w) in row.chunks(self.group).enumerate() {
            let at = i * self.group;
            let imp = importance.map(|v| &v[at..at + w.len()]).filter(|v| v.iter().any(|v| *v > 0.0));
            let keys = &mut keys[..w.len()];
            for (j, (key, w)) in keys.iter_mut().zip(w).enumerate() {
                // Floats in the order of their values as integers, with the place below: keys differ, so
                // an unstable sort has one result.
                let b = w.to_bits();
                let ascending = if b >> 31 == 1 { !b } else { b | 1 << 31 };
                *key = u64::from(ascending) << 32 | j as u64;
            }
            keys.sort_unstable();
            let place = |key: u64| (key & 0xff) as usize;
            let (low, high) = (f64::from(w[place(keys[0])]), f64::from(w[place(keys[w.len() - 1])]));
            let middle = 0.5 * (low + high);
            let (mut a, mut b, mut squares) = (0.0, 0.0, 0.0);
            let p0 = &mut self.p0[at + i..=at + i + w.len()];
            let p1 = &mut self.p1[at + i..=at + i + w.len()];
            for (j, key) in keys.iter().enumerate() {
                let k = place(*key);
                let x = f64::from(w[k]);
                let m = imp.map_or(1.0, |v| f64::from(v[k]));
                let d = x - middle;
                self.x[at + j] = x;
                self.from[at + j] = k as u8;
                a += m;
                b += m * d;
                squares += m * d * d;
                p0[j + 1] = a;
                p1[j + 1] = b;
            }
            self.middle[i] = (middle, squares);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Group<'_>> {
        self.x.chunks(self.group).enumerate().map(|(i, x)| {
            let at = i * self.group;
            let sums = at + i..=at + i + x.len();
            Group {
                x,
                from: &self.from[at..at + x.len()],
                p0: &self.p0[sums.clone()],
                p1: &self.p1[sums],
                middle: self.middle[i].0,
                squares: self.middle[i].1,
            }
        })
    }
}

/// Normal equations around coefficients `c`: the error of `c + d` for the same codes is `const + d n d - 2 d r`.
#[derive(Default)]
pub(crate) struct Normal {
    /// Lower triangle, `[row][column]`.
    pub(crate) n: [[f64; MAX_COEFS]; MAX_COEFS],
    pub(crate) r: Coefs,
}

impl Normal {
    /// The least squares fit, with a pull of `ridge` towards `c`.
    pub(crate) fn solve<const Q: usize>(&self, c: &Coefs, ridge: f64) -> Optimum {
        let mut l = [[0.0; MAX_COEFS]; MAX_COEFS];
        let mut y = [0.0; MAX_COEFS];
        let mut inverse = [0.0; MAX_COEFS];
        for i in 0..=Q {
            for j in 0..i {
                let mut v = self.n[i][j];
                for k in 0..j {
                    v -= l[i][k] * l[j][k];
                }
                l[i][j] = v * inverse[j];
            }
            let (mut v, mut r) = (self.n[i][i], self.r[i]);
            for k in 0..i {
                v -= l[i][k] * l[i][k];
                r -= l[i][k] * y[k];
            }
            // The matrix is positive semidefinite; what is below zero is rounding.
            l[i][i] = (v.max(0.0) + ridge).sqrt();
            inverse[i] = 1.0 / l[i][i];
            y[i] = r * inverse[i];
        }
        let mut at = *c;
        for i in (0..=Q).rev() {
            let mut v = y[i];
            for k in i + 1..=Q {
                v -= l[k][i] * y[k];
            }
            y[i] = v * inverse[i];
            at[i] += y[i];
        }
        Optimum { at, factor: l }
    }
}

/// A coefficient vector and the triangular factor of the normal equations around it:
/// the error of `c` for the same codes is `const + |factor^T (c - at)|^2`.
pub(crate) struct Optimum {
    pub(crate) at: Coefs,
    /// Lower triangular, `[row][column]`.
    factor: [[f64; MAX_COEFS]; MAX_COEFS],
}

impl Optimum {
    /// The error of `c` above that of the optimum.
    pub(crate) fn excess<const Q: usize>(&self, c: &Coefs) -> f64 {
        (0..=Q).map(|k| (k..=Q).map(|j| self.factor[j][k] * (c[j] - self.at[j])).sum::<f64>().powi(2)).sum()
    }

    /// The nearest coefficients that `round(k, value)` makes, in the metric of the normal equations, one after the other
    /// from the largest scale to `z`: each makes up for what those before it lost (Babai's nearest plane).
    pub(crate) fn round_all<const Q: usize>(&self, round: impl Fn(usize, f64) -> f64) -> Coefs {
        let (at, l) = (&self.at, &self.factor);
        let mut c = [0.0; MAX_COEFS];
        for k in (0..=Q).rev() {
            let pull: f64 = (k + 1..=Q).map(|j| l[j][k] * (c[j] - at[j])).sum();
            c[k] = round(k, at[k] - pull / l[k][k]);
        }
        c
    }
}

/// Work space for groups of `Q` planes.
pub(crate) struct Solver<const Q: usize> {
    /// Levels by code.
    level: [f64; MAX_LEVELS],
    /// Codes, by ascending level.
    order: [u8; MAX_LEVELS],
    /// Code `order[k]` has the sorted weights `bound[k]..bound[k + 1]`.
    bound: [u16; MAX_LEVELS + 1],
    /// Importance by code.
    n0: [f64; MAX_LEVELS],
    /// Importance times residual by code.
    n1: [f64; MAX_LEVELS],
}

impl<const Q: usize> Solver<Q> {
    const LEVELS: usize = 1 << Q;

    pub(crate) fn new() -> Solver<Q> {
        Solver {
            level: [0.0; MAX_LEVELS],
            order: [0; MAX_LEVELS],
            bound: [0; MAX_LEVELS + 1],
            n0: [0.0; MAX_LEVELS],
            n1: [0.0; MAX_LEVELS],
        }
    }

    /// The best coefficients that were found, not yet rounded to their storage.
    pub(crate) fn fit(&mut self, g: &Group<'_>, iterations: usize) -> Coefs {
        let (low, high) = (g.x[0], g.x[g.x.len() - 1]);
        let mut best = (f64::INFINITY, uniform::<Q>(low, high, 1.0));
        if low == high {
            return best.1;
        }
        for start in starts::<Q>(g) {
            self.descend(g, start, PROBE.min(iterations), &mut best);
        }
        let start = best.1;
        best.0 = f64::INFINITY;
        self.descend(g, start, iterations, &mut best);
        best.1
    }

    /// Alternates from `c`; `best` takes the error and the coefficients of any state that is better.
    pub(crate) fn descend(
        &mut self,
        g: &Group<'_>,
        mut c: Coefs,
        iterations: usize,
        best: &mut (f64, Coefs),
    ) {
        self.set_levels(&c);
        self.sort_levels();
        let mut last = f64::INFINITY;
        for i in 0..=iterations {
            let error = self.assign(g);
            if error < best.0 {
                *best = (error, c);
            }
            if i == iterations || error >= last - LEAST_GAIN * error {
                return;
            }
            last = error;
            c = self.optimum(&c).at;
            self.set_levels(&c);
            self.resort_levels();
        }
    }

    /// Levels by code.
    pub(crate) fn set_levels(&mut self, c: &Coefs) {
        self.level[0] = c[0];
        for p in 0..Q {
            let (low, high) = self.level.split_at_mut(1 << p);
            for (h, l) in high.iter_mut().zip(low) {
                *h = *l + c[p + 1];
            }
        }
    }

    /// Levels by code as a reader has them: `z` and then scales of ascending planes in f32. The
    /// coefficients are f32.
    pub(crate) fn set_stored_levels(&mut self, c: &Coefs) {
        self.level[0] = c[0];
        for p in 0..Q {
            let (low, high) = self.level.split_at_mut(1 << p);
            for (h, l) in high.iter_mut().zip(low) {
                *h = f64::from(*l as f32 + c[p + 1] as f32);
            }
        }
        self.sort_levels();
    }

    /// Orders codes by level: the codes with bit `p` are those without it, shifted, so each plane merges two
    /// sorted lists. (Rounding is monotone: stored levels merge as well.) Of equal levels the lower
    /// code comes first.
    pub(crate) fn sort_levels(&mut self) {
        let mut old = [0u8; MAX_LEVELS / 2];
        self.order[0] = 0;
        for p in 0..Q {
            let n = 1 << p;
            old[..n].copy_from_slice(&self.order[..n]);
            let (mut i, mut j) = (0, 0);
            for out in &mut self.order[..2 * n] {
                let first =
                    j == n || i < n && self.level[usize::from(old[i])] <= self.level[usize::from(old[j]) | n];
                *out = if first { old[i] } else { old[j] | n as u8 };
                i += usize::from(first);
                j += usize::from(!first);
            }
        }
    }

    /// As [`sort_levels`](Self::sort_levels), from an order that is nearly right.
    fn resort_levels(&mut self) {
        for k in 1..Self::LEVELS {
            let code = self.order[k];
            let level = self.level[usize::from(code)];
            let mut i = k;
            while i > 0 && self.level[usize::from(self.order[i - 1])] > level {
                self.order[i] = self.order[i - 1];
                i -= 1;
            }
            self.order[i] = code;
        }
    }

    /// Gives each weight the nearest level, ties to the lower one. Returns the weighted squared error.
    pub(crate) fn assign(&mut self, g: &Group<'_>) -> f64 {
        let n = g.x.len();
        let (mut error, mut start) = (g.squares, 0);
        let (mut s0, mut s1) = (g.p0[0], g.p1[0]);
        for k in 0..Self::LEVELS {
            let code = usize::from(self.order[k]);
            let level = self.level[code];
            let mut end = n;
            if k + 1 < Self::LEVELS {
                let t = 0.5 * (level + self.level[usize::from(self.order[k + 1])]);
                // Bounds move little between iterations: walk from the last one.
                end = usize::from(self.bound[k + 1]).clamp(start, n);
                while end < n && g.x[end] <= t {
                    end += 1;
                }
                while end > start && g.x[end - 1] > t {
                    end -= 1;
                }
            }
            let (e0, e1) = (g.p0[end], g.p1[end]);
            let (n0, n1, l) = (e0 - s0, e1 - s1, level - g.middle);
            error += l * (l * n0 - 2.0 * n1);
            self.n0[code] = n0;
            self.n1[code] = n1 - l * n0;
            self.bound[k + 1] = end as u16;
            (start, s0, s1) = (end, e0, e1);
        }
        // Below zero by rounding only.
        error.max(0.0)
    }

    /// The least squares fit to the codes of the last [`assign`](Self::assign), whose levels were those of `c`.
    pub(crate) fn optimum(&mut self, c: &Coefs) -> Optimum {
        // Sums over all codes that have at least the bits of a mask: what normal equations are made of.
        for sums in [&mut self.n0, &mut self.n1] {
            for p in 0..Q {
                for pair in sums[..Self::LEVELS].chunks_exact_mut(2 << p) {
                    let (without, with) = pair.split_at_mut(1 << p);
                    without.iter_mut().zip(with).for_each(|(a, b)| *a += *b);
                }
            }
        }
        let mask = |i: usize| if i == 0 { 0 } else { 1 << (i - 1) };
        let mut normal = Normal::default();
        for i in 0..=Q {
            normal.r[i] = self.n1[mask(i)];
            for j in 0..=i {
                normal.n[i][j] = self.n0[mask(i) | mask(j)];
            }
        }
        normal.solve::<Q>(c, RIDGE * self.n0[0])
    }

    /// Codes of the last [`assign`](Self::assign), in the order of the columns.
    pub(crate) fn write_assigned(&self, g: &Group<'_>, codes: &mut [u8]) {
        let mut start = 0;
        for k in 0..Self::LEVELS {
            let end = usize::from(self.bound[k + 1]);
            for from in &g.from[start..end] {
                codes[usize::from(*from)] = self.order[k];
            }
            start = end;
        }
    }
}

/// A grid of equal steps that spans `shrink` of the range.
pub(crate) fn uniform<const Q: usize>(low: f64, high: f64, shrink: f64) -> Coefs {
    let step = (high - low) * shrink / ((1 << Q) - 1) as f64;
    let mut c = [0.0; MAX_COEFS];
    c[0] = low + 0.5 * (high - low) * (1.0 - shrink);
    for p in 0..Q {
        c[p + 1] = step * (1 << p) as f64;
    }
    c
}

/// Starting points: grids over the whole range and over parts of it. The fewer the levels, the less of the tails
/// an optimal grid covers; from six planes on other points than the whole
/// range gained nothing.
fn starts<const Q: usize>(g: &Group<'_>) -> impl Iterator<Item = Coefs> {
    let (low, high) = (g.x[0], g.x[g.x.len() - 1]);
    let shrinks: &[f64] = match Q {
        1..=2 => &[1.0, 0.85, 0.7, 0.55],
        3 => &[1.0, 0.85, 0.7],
        4 => &[1.0, 0.9, 0.8],
        5 => &[1.0, 0.92],
        _ => &[1.0],
    };
    shrinks.iter().map(move |shrink| uniform::<Q>(low, high, *shrink))
}
