//! Some rows of a matrix at one precision: coefficients, errors, and the steps that improve them.

use super::group::{Levels, View, Worker, assign};
use super::inputs::{Inputs, Span};
use super::product;
use crate::als::Fitted;
use crate::als::group::{Coefs, MAX_GROUP};
use crate::als::store::{Renumbering, Steps};
use crate::error::{Error, Result};
use crate::gram::zeros;
use lutite_kernels::isa::Isa;
use lutite_kernels::pack::ParamKind;

/// Rows at a number of planes. Codes are shared with other precisions: of each, the lowest bits count here.
pub(super) trait Precision {
    /// First coefficients of group `s`, and codes: of all planes, or of the highest only, `on_lower` ones.
    fn start(
        &mut self,
        isa: Isa,
        inputs: &Inputs,
        s: usize,
        w: &[f32],
        codes: &mut [u8],
        on_lower: bool,
    ) -> Result<()>;

    /// Begins a visit to group `s`: its gradients, all other groups given.
    fn open(&mut self, isa: Isa, inputs: &Inputs, s: usize) -> Result<()>;

    /// Improves the coefficients of row `r`; the `first` time in a visit even for the worse, where they have to become storable.
    fn refit(&mut self, span: &Span, s: usize, r: usize, codes: &[u8], first: bool);

    /// Improves the codes of row `r`, for this precision alone; whether any changed.
    fn assign(&mut self, span: &Span, r: usize, codes: &mut [u8]) -> bool;

    /// The same as seen by others.
    fn view(&mut self, span: &Span, r: usize, weight: f32) -> View<'_>;

    /// Ends the visit to row `r`, whose weights are `w`, `[n]`.
    fn close(&mut self, span: &Span, r: usize, codes: &[u8], w: &[f32]);

    /// Ends a sweep over all groups.
    fn swept(&mut self);

    /// How planes are best numbered, in row `r` and group `s`: all, or the highest only.
    fn renumbering(&self, r: usize, s: usize, last: bool) -> Renumbering;

    /// Numbers planes anew.
    fn renumber(&mut self, r: usize, s: usize, to: &Renumbering);

    /// Decides what coefficients are rounded to; the next visit rounds them.
    fn store(&mut self, kind: ParamKind);

    /// `[rows][n]`: the difference to the weights.
    fn errors(&self) -> &[f32];

    /// What the file holds, columns and groups in its order.
    fn fitted(&self, inputs: &Inputs, codes: &[u8]) -> Fitted;
}

/// Sizes of a [`Precision`].
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) rows: usize,
    pub(super) n: usize,
    pub(super) spans: usize,
    pub(super) group: usize,
}

/// Of so many planes, 1 to 8.
pub(super) fn precision(planes: usize, size: Size) -> Result<Box<dyn Precision>> {
    Ok(match planes {
        1 => Box::new(Rows::<1>::new(size)?),
        2 => Box::new(Rows::<2>::new(size)?),
        3 => Box::new(Rows::<3>::new(size)?),
        4 => Box::new(Rows::<4>::new(size)?),
        5 => Box::new(Rows::<5>::new(size)?),
        6 => Box::new(Rows::<6>::new(size)?),
        7 => Box::new(Rows::<7>::new(size)?),
        8 => Box::new(Rows::<8>::new(size)?),
        _ => return Err(Error::Options(format!("{planes} planes are not possible"))),
    })
}

struct Rows<const Q: usize> {
    size: Size,
    /// `[rows][n]`, `Q - W`.
    e: Vec<f32>,
    /// `[rows][spans]`
    coefs: Vec<Coefs>,
    /// `[rows][group]`, of the group that is visited.
    gradient: Vec<f32>,
    /// Of the row that is visited.
    levels: Levels<Q>,
    /// What each row's coefficients are rounded to, once they are.
    steps: Option<Vec<Steps>>,
    /// Whether they have not been rounded yet.
    unrounded: bool,
    worker: Worker<Q>,
}

impl<const Q: usize> Rows<Q> {
    const MASK: u8 = ((1 << Q) - 1) as u8;

    fn new(size: Size) -> Result<Self> {
        Ok(Rows {
            size,
            e: zeros(size.rows * size.n, "errors of a tile")?,
            coefs: vec![Coefs::default(); size.rows * size.spans],
            gradient: Vec::new(),
            levels: Levels::new(&Coefs::default()),
            steps: None,
            unrounded: false,
            worker: Worker::new(size.group),
        })
    }

    /// This precision's bits of `codes`.
    fn masked(codes: &[u8]) -> ([u8; MAX_GROUP], usize) {
        let mut own = [0; MAX_GROUP];
        own.iter_mut().zip(codes).for_each(|(own, code)| *own = code & Self::MASK);
        (own, codes.len())
    }
}

impl<const Q: usize> Precision for Rows<Q> {
    fn start(
        &mut self,
        isa: Isa,
        inputs: &Inputs,
        s: usize,
        w: &[f32],
        codes: &mut [u8],
        on_lower: bool,
    ) -> Result<()> {
        let Size { n, spans, .. } = self.size;
        let span = &inputs.spans[s];
        // Errors of groups that are not rounded yet, this one's included, are 0.
        let carried = product(isa, &inputs.upper[span.at.start * n..span.at.end * n], n, &self.e)?;
        for (r, carried) in carried.chunks_exact(span.at.len()).enumerate() {
            let at = r * n + span.at.start..r * n + span.at.end;
            let c = self.worker.start(span, &w[at.clone()], carried, &mut codes[at.clone()], on_lower);
            let levels = Levels::<Q>::new(&c);
            for j in at {
                self.e[j] = levels.of(codes[j]) - w[j];
            }
            self.coefs[r * spans + s] = c;
        }
        Ok(())
    }

    fn open(&mut self, isa: Isa, inputs: &Inputs, s: usize) -> Result<()> {
        let (n, at) = (self.size.n, &inputs.spans[s].at);
        self.gradient = product(isa, &inputs.h[at.start * n..at.end * n], n, &self.e)?;
        Ok(())
    }

    fn refit(&mut self, span: &Span, s: usize, r: usize, codes: &[u8], first: bool) {
        let (codes, g) = Self::masked(codes);
        let steps = self.steps.as_ref().map(|steps| &steps[r]);
        let gradient = &mut self.gradient[r * g..(r + 1) * g];
        let c = &mut self.coefs[r * self.size.spans + s];
        self.levels = self.worker.refit(span, &codes[..g], c, gradient, steps, first && self.unrounded);
    }

    fn assign(&mut self, span: &Span, r: usize, codes: &mut [u8]) -> bool {
        let g = span.at.len();
        assign(span, codes, &self.levels, &mut self.gradient[r * g..(r + 1) * g])
    }

    fn view(&mut self, span: &Span, r: usize, weight: f32) -> View<'_> {
        let g = span.at.len();
        View { levels: self.levels.all(), gradient: &mut self.gradient[r * g..(r + 1) * g], weight }
    }

    fn close(&mut self, span: &Span, r: usize, codes: &[u8], w: &[f32]) {
        let e = &mut self.e[r * self.size.n..(r + 1) * self.size.n];
        for (j, code) in span.at.clone().zip(codes) {
            e[j] = self.levels.of(code & Self::MASK) - w[j];
        }
    }

    fn swept(&mut self) {
        self.unrounded = false;
    }

    fn renumbering(&self, r: usize, s: usize, last: bool) -> Renumbering {
        let c = &self.coefs[r * self.size.spans + s];
        if last { Renumbering::of_last(c, Q) } else { Renumbering::canonical::<Q>(c) }
    }

    fn renumber(&mut self, r: usize, s: usize, to: &Renumbering) {
        let c = &mut self.coefs[r * self.size.spans + s];
        *c = to.coefs(c);
    }

    fn store(&mut self, kind: ParamKind) {
        let rows = self.coefs.chunks_exact(self.size.spans);
        self.steps = Some(rows.map(|row| Steps::of_row::<Q>(row, kind)).collect());
        self.unrounded = true;
    }

    fn errors(&self) -> &[f32] {
        &self.e
    }

    fn fitted(&self, inputs: &Inputs, codes: &[u8]) -> Fitted {
        let Size { n, spans, .. } = self.size;
        let mut out = Fitted { codes: vec![0; codes.len()], ..Fitted::default() };
        let mut in_file = vec![0; spans];
        (0..spans).for_each(|s| in_file[inputs.spans[s].index] = s);
        for (r, steps) in self.steps.iter().flatten().enumerate() {
            for (p, column) in inputs.columns.iter().enumerate() {
                out.codes[r * n + column] = codes[r * n + p] & Self::MASK;
            }
            for s in &in_file {
                steps.write::<Q>(&self.coefs[r * spans + s], &mut out.params);
            }
            steps.write_scales::<Q>(&mut out.row_scales);
        }
        out
    }
}
