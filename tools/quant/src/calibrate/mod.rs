//! Fitting with the inputs that matrices really get, one layer at a time (stage C).
//!
//! Sequences of tokens flow through the model. Layer by layer, and within a layer by groups of matrices that share an
//! input: sums over what flows in ([`Gram`]), then the group's matrices are fitted to it and take part as they were fitted,
//! so that all later ones see the errors of all earlier ones and can make up for them. Beside it the same tokens flow through
//! the model as it was, which says what the outputs should have been. One layer is in memory at a time; what
//! flows between layers lies in files, and finished layers are kept (`journal`), so that a calibration that was killed goes
//! on where it was, to the same bytes.

mod importance;
mod journal;
mod stream;

pub use importance::importance;
pub use journal::Fits;

use crate::als::FitSpec;
use crate::bitstack::{StackSpec, decompose};
use crate::cd::{self, Calibrated, Inputs};
use crate::error::{Error, Result};
use crate::gram::{Gram, zeros};
use crate::pack::{pool, spec};
use crate::plan::{Job, Plan, Step};
use crate::tile;
use journal::{Finished, Journal};
use lutite_kernels::ggml::dequantize_row;
use lutite_kernels::isa::Isa;
use lutite_kernels::pack::PlaneShape;
use lutite_kernels::pack::p32::TILE_ROWS;
use lutite_models::Blocks;
use lutite_models::blocks::{END, GROUPS, PART};
use lutite_models::config::Config;
use lutite_runtime::store::{Gguf, LevelsInfo, MatrixInfo, ModelFile, PackedInfo};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use stream::Stream;

/// A matrix that is to be fitted.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// `[rows][n]`
    pub w: &'a [f32],
    /// What it becomes.
    pub spec: FitSpec,
}

/// A way to fit matrices to their inputs.
pub trait Method: Sync {
    /// Its name and settings: two methods of one name make the same bytes.
    fn name(&self) -> String;

    /// Whether a layer's matrices see the errors of those before them in the layer, and not only of earlier layers.
    fn sequential(&self) -> bool {
        true
    }

    /// Whether it wants the inputs in the model as it was beside those in the model as it becomes.
    fn beside(&self) -> bool {
        false
    }

    /// Fits matrices that share their inputs. May use rayon's threads, and must not depend on how many there are.
    ///
    /// # Errors
    /// Weights or inputs that cannot be fitted.
    fn fit(&self, isa: Isa, gram: &Gram, targets: &[Target<'_>]) -> Result<Vec<Calibrated>>;
}

/// [`cd`], with targets moved towards the outputs that the model had on its own inputs.
#[derive(Clone, Copy, Debug)]
pub struct HlqCd {
    /// How far they are moved, in percent of the way; 0 is not at all. All the way fits the text and not the model.
    pub shift: u8,
}

impl Default for HlqCd {
    /// What had the least loss on a text that was not calibrated with (`docs/speed.md`).
    fn default() -> HlqCd {
        HlqCd { shift: 25 }
    }
}

impl Method for HlqCd {
    fn name(&self) -> String {
        match self.shift {
            shift if shift == HlqCd::default().shift => "cd".into(),
            shift => format!("cd{shift}"),
        }
    }

    fn beside(&self) -> bool {
        self.shift > 0
    }

    fn fit(&self, isa: Isa, gram: &Gram, targets: &[Target<'_>]) -> Result<Vec<Calibrated>> {
        let mut inputs: Vec<(usize, Inputs)> = Vec::new();
        let fit = |t: &Target<'_>| {
            let found = inputs.iter().position(|(group, _)| *group == t.spec.group);
            let at = match found {
                Some(at) => at,
                None => {
                    inputs.push((t.spec.group, Inputs::new(isa, gram, t.spec.group)?));
                    inputs.len() - 1
                }
            };
            let inputs = &inputs[at].1;
            let w = inputs.shifted(isa, t.w, gram, f32::from(self.shift) / 100.0)?;
            cd::fit(isa, &w, inputs, &t.spec)
        };
        targets.iter().map(fit).collect()
    }
}

/// Tokens of a sequence, as far as the model has positions.
pub const LENGTH: usize = 512;

/// Sequences of `length`, about `tokens` tokens in all, that are spread evenly over a text; fewer where the text is short.
pub fn spread(text: &[u32], bos: Option<u32>, length: usize, tokens: usize) -> Vec<Vec<u32>> {
    let wanted = tokens.div_ceil(length.max(1));
    let length = length.saturating_sub(usize::from(bos.is_some())).max(1);
    let count = wanted.min(text.len() / length);
    let room = text.len().saturating_sub(length);
    let part = |i: usize| {
        let at = if count > 1 { i * room / (count - 1) } else { 0 };
        bos.into_iter().chain(text[at..at + length].iter().copied()).collect()
    };
    (0..count).map(part).collect()
}

/// How far a calibration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Layers that an earlier run had finished.
    pub resumed: usize,
    /// Weights fitted by this run.
    pub done: u64,
    /// Weights that this run is to fit.
    pub total: u64,
}

/// What accompanies a calibration.
pub struct CalibrateJob<'a> {
    /// The source, parsed, and its bytes.
    pub source: &'a Gguf<'a>,
    /// See `source`.
    pub file: &'a ModelFile,
    /// What the source and the text are, in a line: another line is another job.
    pub name: &'a str,
    /// Sequences of tokens, none of them empty.
    pub sequences: &'a [Vec<u32>],
    /// How to fit.
    pub method: &'a dyn Method,
    /// Where to keep what is finished.
    pub folder: &'a Path,
    /// Instruction set.
    pub isa: Isa,
    /// Threads to compute on.
    pub threads: usize,
    /// Called when it begins, and with every fitted matrix.
    pub progress: &'a (dyn Fn(Progress) + Sync),
    /// Set from elsewhere to stop; what is finished stays.
    pub cancel: &'a AtomicBool,
}

/// Fits all matrices that the plan wants fitted: those of the layers, and then the head. A head that is the table of tokens'
/// vectors as well is fitted as a head; until then tokens have the vectors that they had.
///
/// # Errors
/// A model that cannot be read, a work folder that cannot be written; [`Error::Interrupted`].
pub fn calibrate(plan: &Plan<'_>, job: &CalibrateJob<'_>) -> Result<Fits> {
    pool(job.threads)?.install(|| Run::new(plan, job)?.run())
}

/// Bytes that a calibration takes at most, beside what is mapped: a layer's weights four times (as they were, as they become,
/// as targets, and packed; of the head so many rows as are a layer), the packed head, the sums over the widest input in their
/// eight forms, and a few copies of a sequence.
pub fn memory_bytes(c: &Config) -> u64 {
    let n = |x: usize| x as u64;
    let layer = layer_weights(c);
    let widest = n(c.dim.max(c.heads * c.head_dim).max(c.ffn));
    let sequence = n(LENGTH) * (4 * n(c.dim) + 8 * widest);
    // Up to 8 planes of the whole head, a byte for each weight.
    let head = n(c.dim).saturating_mul(n(c.vocab)) / 4;
    let terms = [layer.saturating_mul(4), head, widest.saturating_mul(widest).saturating_mul(8), sequence];
    terms.into_iter().fold(0, u64::saturating_add).saturating_mul(4)
}

/// Weights in a layer's matrices.
fn layer_weights(c: &Config) -> u64 {
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    c.dim as u64 * (2 * q + 2 * kv + 3 * c.ffn) as u64
}

/// Removes what a calibration kept in its folder.
///
/// # Errors
/// A file that cannot be removed.
pub fn forget(folder: &Path) -> Result<()> {
    Journal::at(folder).remove()
}

struct Run<'a> {
    plan: &'a Plan<'a>,
    job: &'a CalibrateJob<'a>,
    /// The model as it becomes.
    blocks: Blocks<'a>,
    /// The model as it was, where the method wants to see it.
    reference: Option<Blocks<'a>>,
    journal: Journal,
    progress: Progress,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan<'a>, job: &'a CalibrateJob<'a>) -> Result<Run<'a>> {
        let context = job.sequences.iter().map(Vec::len).max().unwrap_or(0);
        if job.sequences.iter().any(Vec::is_empty) || context == 0 {
            return Err(Error::Options("no text to calibrate with; name one with --calib".into()));
        }
        let blocks = || Blocks::new(job.source, job.file, job.isa, job.threads, context);
        let reference = if job.method.beside() { Some(blocks()?) } else { None };
        let blocks = blocks()?;
        let mut tokens = xxhash_rust::xxh3::Xxh3::new();
        for sequence in job.sequences {
            tokens.update(&(sequence.len() as u64).to_le_bytes());
            sequence.iter().for_each(|t| tokens.update(&t.to_le_bytes()));
        }
        let name = format!(
            "{} {} {} {} {:016x}\n",
            env!("CARGO_PKG_VERSION"),
            job.method.name(),
            plan.options.tag(),
            job.name,
            tokens.digest()
        );
        let journal = Journal::open(job.folder, &name)?;
        Ok(Run {
            plan,
            job,
            blocks,
            reference,
            journal,
            progress: Progress { resumed: 0, done: 0, total: 0 },
        })
    }

    fn run(mut self) -> Result<Fits> {
        let layers = self.blocks.config().layers;
        let dim = self.blocks.config().dim;
        let plan = self.plan;
        let head = fitted_head(plan);
        let all = layers + usize::from(head.is_some());
        let mut fits = self.journal.finished(all, dim)?;
        fits.method = self.job.method.name();
        self.progress.resumed = fits.layers();
        let left = (fits.layers()..layers)
            .flat_map(|layer| GROUPS.concat().into_iter().map(move |p| name(layer, p)));
        let left = left.filter_map(|name| find(plan, &name));
        let left = left.chain(head.filter(|_| fits.layers() < all).map(|j| j.info.clone().into()));
        self.progress.total = left.map(|info| size(info.shape())).sum();
        (self.job.progress)(self.progress);
        if fits.layers() == 0 {
            self.embed()?;
        }
        for layer in fits.layers()..layers {
            self.blocks.load(layer)?;
            self.reference.iter_mut().try_for_each(|r| r.load(layer))?;
            let mut finished = Vec::new();
            for group in 0..GROUPS.len() {
                self.group(layer, group, &mut finished)?;
            }
            if !self.job.method.sequential() {
                for m in &finished {
                    let part = m.info.name().rsplit('.').next().unwrap_or_default();
                    self.blocks.replace(part, &dequantized(&m.info, &m.parts)?)?;
                }
                for group in 0..GROUPS.len() {
                    self.flow(layer, group, None)?;
                }
            }
            let next = self.flow(layer, END, None)?;
            self.journal.finish(layer, &finished, next, &mut fits)?;
        }
        if let Some(head) = head.filter(|_| fits.layers() == layers) {
            let finished = self.head(head)?;
            self.journal.finish(layers, &[finished], 0, &mut fits)?;
        }
        Ok(fits)
    }

    /// Fits the head, so many rows at a time as are about a layer.
    fn head(&mut self, head: &Job<'_>) -> Result<Finished> {
        let (layers, dim) = (self.blocks.config().layers, self.blocks.config().dim);
        let mut gram = Gram::new(dim)?;
        let mut stream = Stream::open(&self.journal.input(layers), dim)?;
        let mut beside = match &self.reference {
            Some(_) => Some(Stream::open(&self.journal.reference(layers), dim)?),
            None => None,
        };
        let mut first = 0;
        for tokens in self.job.sequences {
            let read = |stream: &mut Stream| {
                let mut x = vec![0.0; tokens.len() * dim];
                stream.read(first, &mut x)?;
                self.blocks.normalize(&mut x);
                Ok::<_, Error>(x)
            };
            let x = read(&mut stream)?;
            match &mut beside {
                Some(beside) => gram.add_beside(self.job.isa, &x, &read(beside)?)?,
                None => gram.add(self.job.isa, &x)?,
            }
            first += tokens.len();
        }
        gram.finish();
        let info = &head.info;
        let mut parts = vec![Vec::new(); info.tensors().len()];
        let (mut error, mut whole) = (0.0, 0.0);
        let at_once = (layer_weights(self.blocks.config()) as usize / dim).next_multiple_of(TILE_ROWS);
        for start in (0..info.shape.rows).step_by(at_once) {
            if self.job.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let rows = start..info.shape.rows.min(start + at_once);
            let some = PackedInfo { shape: PlaneShape { rows: rows.len(), ..info.shape }, ..info.clone() };
            let mut w = zeros(rows.len() * dim, "weights")?;
            dequantize_row(head.source.ty, &head.source.row_bytes(rows), &mut w)
                .map_err(|e| Error::Tensor { name: info.name.clone(), why: e.to_string() })?;
            let targets = [Target { w: &w, spec: spec(&some) }];
            for fit in self.job.method.fit(self.job.isa, &gram, &targets)? {
                // Parts are made of tiles of rows, one behind the other.
                for (all, part) in parts.iter_mut().zip(tile::pack_fitted(&some, &fit.fitted)?) {
                    all.extend(part);
                }
                (error, whole) = (error + fit.error, whole + fit.whole);
            }
            self.progress.done += size(some.shape);
            (self.job.progress)(self.progress);
        }
        let error = (error / whole.max(f64::MIN_POSITIVE)) as f32;
        Ok(Finished { info: info.clone().into(), parts, errors: vec![error] })
    }

    /// Writes the input of layer 0.
    fn embed(&self) -> Result<()> {
        let dim = self.blocks.config().dim;
        let mut files = vec![Stream::create(&self.journal.input(0), dim)?];
        if self.reference.is_some() {
            files.push(Stream::create(&self.journal.reference(0), dim)?);
        }
        let mut first = 0;
        for tokens in self.job.sequences {
            let mut rows = vec![0.0; tokens.len() * dim];
            self.blocks.embed(tokens, &mut rows)?;
            files.iter_mut().try_for_each(|x| x.write(first, &rows))?;
            first += tokens.len();
        }
        files.iter().try_for_each(Stream::sync)
    }

    /// Takes all sequences to the input of `group`, which is added to `gram`; or to the end of the layer, which is
    /// synced and whose hash is returned.
    fn flow(&mut self, layer: usize, group: usize, mut gram: Option<&mut Gram>) -> Result<u64> {
        let journal = &self.journal;
        let ends = |layer| (journal.input(layer), journal.reference(layer));
        let (from, to) = (ends(layer), ends(layer + 1));
        let mut passage = Passage::open(journal, "", &self.blocks, group, &from.0, &to.0)?;
        let mut beside = match &self.reference {
            Some(blocks) => Some(Passage::open(journal, "reference-", blocks, group, &from.1, &to.1)?),
            None => None,
        };
        let mut first = 0;
        for tokens in self.job.sequences {
            if self.job.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let inputs = passage.pass(&mut self.blocks, first, tokens.len())?;
            let reference = match (&mut beside, &mut self.reference) {
                (Some(passage), Some(blocks)) => Some(passage.pass(blocks, first, tokens.len())?),
                _ => None,
            };
            match (&mut gram, reference) {
                (Some(gram), None) => gram.add(self.job.isa, &inputs)?,
                (Some(gram), Some(reference)) => gram.add_beside(self.job.isa, &inputs, &reference)?,
                (None, _) => {}
            }
            first += tokens.len();
        }
        let hash = passage.end()?;
        Ok(hash ^ beside.map_or(Ok(0), Passage::end)?.rotate_left(1))
    }

    /// Fits the matrices of a group that the plan wants fitted, and puts what they became into the layer.
    fn group(&mut self, layer: usize, group: usize, finished: &mut Vec<Finished>) -> Result<()> {
        let parts: Vec<(&str, MatrixInfo)> = GROUPS[group]
            .iter()
            .filter_map(|part| Some((*part, find(self.plan, &name(layer, part))?)))
            .collect();
        if parts.is_empty() {
            return self.flow(layer, group, None).map(|_| ());
        }
        let mut gram = Gram::new(self.blocks.width(group))?;
        self.flow(layer, group, Some(&mut gram))?;
        gram.finish();
        let weights =
            parts.iter().map(|(part, _)| self.blocks.matrix(part)).collect::<Result<Vec<_>, _>>()?;
        let infos: Vec<MatrixInfo> = parts.iter().map(|(_, info)| info.clone()).collect();
        for ((part, _), matrix) in parts.iter().zip(self.fit(&gram, &infos, &weights)?) {
            if self.job.method.sequential() {
                self.blocks.replace(part, &dequantized(&matrix.info, &matrix.parts)?)?;
            }
            self.progress.done += size(matrix.info.shape());
            (self.job.progress)(self.progress);
            finished.push(matrix);
        }
        Ok(())
    }

    /// Fits matrices that share their inputs: planes by the method, levels one after the other.
    fn fit(&self, gram: &Gram, infos: &[MatrixInfo], weights: &[Vec<f32>]) -> Result<Vec<Finished>> {
        let mut of_planes = Vec::new();
        let mut targets = Vec::new();
        let mut finished = Vec::new();
        for (info, w) in infos.iter().zip(weights) {
            match info {
                MatrixInfo::Packed(packed) => {
                    of_planes.push(packed);
                    targets.push(Target { w, spec: spec(packed) });
                }
                MatrixInfo::Levels(LevelsInfo { shape, levels, rank, .. }) => {
                    let spec = StackSpec { levels: *levels, rank: *rank };
                    let made = decompose(self.job.isa, w, *shape, Some(gram), &spec)?;
                    let errors = made.iter().map(|level| level.error as f32).collect();
                    let parts = made.into_iter().flat_map(|level| [level.signs, level.u, level.v]).collect();
                    finished.push(Finished { info: info.clone(), parts, errors });
                }
            }
        }
        if !targets.is_empty() {
            let fits = self.job.method.fit(self.job.isa, gram, &targets)?;
            for (info, fit) in of_planes.into_iter().zip(fits) {
                let parts = tile::pack_fitted(info, &fit.fitted)?;
                let error = (fit.error / fit.whole.max(f64::MIN_POSITIVE)) as f32;
                finished.push(Finished { info: info.clone().into(), parts, errors: vec![error] });
            }
        }
        // As they were asked for.
        let place = |m: &Finished| infos.iter().position(|info| *info == m.info);
        finished.sort_by_key(place);
        Ok(finished)
    }
}

/// The files of one stream between two groups.
struct Passage {
    group: usize,
    from: Stream,
    to: Option<Stream>,
    aux: Option<Stream>,
}

impl Passage {
    /// `input` and `output` are the layer's.
    fn open(
        journal: &Journal,
        prefix: &str,
        blocks: &Blocks<'_>,
        group: usize,
        input: &Path,
        output: &Path,
    ) -> Result<Passage> {
        let (dim, aux_width) = (blocks.config().dim, blocks.aux_width());
        let (work, aux) = (journal.path(&format!("{prefix}work")), journal.path(&format!("{prefix}aux")));
        Ok(Passage {
            group,
            // Only the second half of a layer changes `x`, and not in place.
            from: Stream::open(if group <= 2 { input } else { &work }, dim)?,
            to: match group {
                2 => Some(Stream::create(&work, dim)?),
                END => Some(Stream::create(output, dim)?),
                _ => None,
            },
            aux: match group {
                0 => None,
                1 | 3 => Some(Stream::create(&aux, aux_width)?),
                _ => Some(Stream::open(&aux, aux_width)?),
            },
        })
    }

    /// The group's inputs for the `n` tokens of a sequence, whose first is token `first` of all.
    fn pass(&mut self, blocks: &mut Blocks<'_>, first: usize, n: usize) -> Result<Vec<f32>> {
        let Passage { group, from, to, aux } = self;
        let (dim, width, aux_width) = (blocks.config().dim, blocks.width(*group), blocks.aux_width());
        let (mut x, mut carried) = (vec![0.0; n * dim], vec![0.0; n * aux_width]);
        from.read(first, &mut x)?;
        if let Some(aux) = aux.as_mut().filter(|_| matches!(*group, 2 | END)) {
            aux.read(first, &mut carried)?;
        }
        let mut inputs = zeros(n * width, "inputs")?;
        let parts = x.chunks_mut(PART * dim).zip(carried.chunks_mut(PART * aux_width));
        for (i, (x, carried)) in parts.enumerate() {
            let seen = blocks.advance(*group, i * PART, x, carried);
            inputs[i * PART * width..][..seen.len()].copy_from_slice(seen);
        }
        if let Some(to) = to {
            to.write(first, &x)?;
        }
        if let Some(aux) = aux.as_mut().filter(|_| matches!(*group, 1 | 3)) {
            aux.write(first, &carried)?;
        }
        Ok(inputs)
    }

    /// Syncs the layer's output and returns its hash, if this was the way there.
    fn end(self) -> Result<u64> {
        match self.to {
            Some(mut to) if self.group == END => {
                to.sync()?;
                to.hash()
            }
            _ => Ok(0),
        }
    }
}

fn name(layer: usize, part: &str) -> String {
    format!("blk.{layer}.{part}")
}

fn size(shape: PlaneShape) -> u64 {
    (shape.rows * shape.cols) as u64
}

/// The head, if it is to be fitted.
fn fitted_head<'p>(plan: &'p Plan<'_>) -> Option<&'p Job<'p>> {
    plan.steps.iter().find_map(|s| match s {
        Step::Pack(j) if !j.exact && !j.info.name.starts_with("blk.") => Some(j),
        _ => None,
    })
}

/// The matrix of that name, if it is to be fitted.
fn find(plan: &Plan<'_>, name: &str) -> Option<MatrixInfo> {
    plan.steps.iter().find_map(|s| match s {
        Step::Pack(j) if !j.exact && j.info.name == name => Some(j.info.clone().into()),
        Step::Levels(j) if j.info.name == name => Some(j.info.clone().into()),
        _ => None,
    })
}

/// The numbers that a packed matrix stands for.
fn dequantized(i: &MatrixInfo, parts: &[Vec<u8>]) -> Result<Vec<f32>> {
    let (packed, PlaneShape { rows, cols }) = (i.view(parts.iter().map(Vec::as_slice))?, i.shape());
    let mut out = zeros(rows * cols, "weights")?;
    out.chunks_exact_mut(cols).enumerate().try_for_each(|(r, row)| packed.dequantize_row(r, row))?;
    Ok(out)
}
