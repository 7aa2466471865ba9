//! Stacked files: a model at its least, and blocks that bring its matrices up, one version after the other.
//!
//! Every version is a matrix fitted for itself, with all others at its own number of planes, and takes the place of the one
//! before. (Planes that are added to codes that stay were tried: `docs/speed.md`. They take less room on a disk and lose two
//! to five times as much in memory.) Blocks come in the order of what they save for their bytes ([`crate::allocate::rank`]).

use crate::allocate::{Held, Sensitivity, rank};
use crate::calibrate::Fits;
use crate::error::{Error, Result};
use crate::pack::{begin, parts};
use crate::plan::{Bits, Job, PackOptions, Plan, Step};
use lutite_runtime::store::{
    Bytes, Gguf, GgufWriter, PackedInfo, Point, Stack, TensorInfo, announce_checksums, seal_checksums,
    version_name,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// Points of the curve, as many as there are blocks at most.
const POINTS: usize = 17;

/// What lies in a stacked file, in its order.
#[derive(Clone, Debug)]
pub struct StackPlan<'a> {
    least: Vec<Step<'a>>,
    /// With the names of versions.
    blocks: Vec<(PackedInfo, Job<'a>)>,
    levels: Vec<Bits>,
    options: PackOptions,
}

impl<'a> StackPlan<'a> {
    /// Plans a stack of a source's matrices at `levels`, ascending; `options` say the rest.
    ///
    /// # Errors
    /// As [`Plan::new`] and [`rank`]; exact versions of matrices that have no codes.
    pub fn new(
        source: &Gguf<'a>,
        options: &PackOptions,
        sensitivities: &[Sensitivity],
        levels: &[Bits],
    ) -> Result<StackPlan<'a>> {
        let (least, rises) = rank(source, options, sensitivities, levels)?;
        let plan = |all: &[Held]| {
            let each = all.iter().cloned().collect();
            Plan::new(source, &PackOptions { bits: Bits::Exact, head: None, each, ..options.clone() })
        };
        let mut at_level = BTreeMap::new();
        for bits in levels {
            let held: Vec<Held> = sensitivities.iter().map(|s| (s.name.clone(), *bits)).collect();
            for step in plan(&held)?.steps {
                if let Step::Pack(job) = step {
                    at_level.insert((job.info.name.clone(), planes(*bits)), job);
                }
            }
        }
        let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
        let mut blocks = Vec::new();
        for (name, bits) in &rises {
            let version = versions.entry(name).or_insert(0);
            *version += 1;
            let job = at_level.get(&(name.clone(), planes(*bits))).cloned().ok_or_else(|| Error::Tensor {
                name: name.clone(),
                why: "is of plain numbers, which cannot be a block; leave `exact` out of --stack".into(),
            })?;
            let info = PackedInfo { name: version_name(name, *version), ..job.info.clone() };
            blocks.push((info, job));
        }
        Ok(StackPlan {
            least: plan(&least)?.steps,
            blocks,
            levels: levels.to_vec(),
            options: options.clone(),
        })
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes of tensor data: of the model at its least, and of all.
    pub fn bytes(&self) -> (u64, u64) {
        let size = |s: &Step<'_>| match s {
            Step::Pack(j) => j.info.bytes().unwrap_or(usize::MAX) as u64,
            Step::Copy(t) => t.data.len() as u64,
        };
        let least = self.least.iter().map(size).sum();
        let blocks = self.blocks.iter().map(|(i, _)| i.bytes().unwrap_or(usize::MAX) as u64);
        (least, blocks.fold(least, u64::saturating_add))
    }

    /// Bytes of source tensors that are gone through.
    pub fn source_bytes(&self) -> u64 {
        let size = |s: &Step<'_>| match s {
            Step::Pack(j) => j.source.data.len() as u64,
            Step::Copy(t) => t.data.len() as u64,
        };
        let blocks = self.blocks.iter().map(|(_, j)| j.source.data.len() as u64);
        self.least.iter().map(size).chain(blocks).sum()
    }

    /// Everything, in the order of the file.
    fn entries(&self) -> impl Iterator<Item = Entry<'_, 'a>> {
        let least = self.least.iter().map(|step| match step {
            Step::Pack(j) => Entry::Matrix(&j.info, j),
            Step::Copy(t) => Entry::Copy(t),
        });
        least.chain(self.blocks.iter().map(|(info, j)| Entry::Matrix(info, j)))
    }

    /// Packed matrices of the model at its least.
    fn matrices(&self) -> usize {
        self.least.iter().filter(|step| matches!(step, Step::Pack(_))).count()
    }

    /// The numbers of blocks that the curve is measured at: none, all, and between them at even distances in bytes.
    fn points(&self) -> Vec<usize> {
        let ends: Vec<u64> = self
            .blocks
            .iter()
            .scan(0, |end, (info, _)| {
                *end += info.bytes().unwrap_or(usize::MAX) as u64;
                Some(*end)
            })
            .collect();
        let all = ends.last().copied().unwrap_or(0) as f64;
        let at = |k: usize| {
            let wanted = all * k as f64 / (POINTS - 1) as f64;
            ends.partition_point(|end| *end as f64 <= wanted + 0.5)
        };
        let mut points: Vec<usize> = (0..POINTS).map(at).collect();
        points.dedup();
        points
    }

    /// The options in one word: `stack-2-3-4-exact-g64-hlq8`.
    fn tag(&self) -> String {
        let level = |bits: &Bits| match bits {
            Bits::Exact => "exact".to_owned(),
            Bits::Planes(planes) => planes.to_string(),
        };
        let levels: Vec<String> = self.levels.iter().map(level).collect();
        format!("stack-{}-g{}-{}", levels.join("-"), self.options.group, self.options.kind.name())
    }
}

fn planes(bits: Bits) -> usize {
    match bits {
        Bits::Exact => 0,
        Bits::Planes(planes) => planes,
    }
}

/// Measures the loss of a file with its first so many blocks, for each of some numbers.
pub type Measure<'a> = dyn Fn(Bytes, &[usize]) -> Result<Vec<Point>> + 'a;

/// What accompanies the writing of a stack.
pub struct StackJob<'a> {
    /// The source, parsed.
    pub source: &'a Gguf<'a>,
    /// xxh3-64 of the source file, recorded in the result.
    pub source_hash: u64,
    /// For each number of planes, matrices fitted beforehand; the others are fitted by their weights alone.
    pub fits: &'a BTreeMap<usize, Fits>,
    /// Threads to compute on.
    pub threads: usize,
    /// Called with the file, whole but for its name.
    pub measure: Option<&'a Measure<'a>>,
    /// Called from any thread with bytes of source tensors done and in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
    /// Set from elsewhere to stop early.
    pub cancel: &'a AtomicBool,
}

/// Writes a stacked file: under its temporary name until it is whole.
///
/// # Errors
/// As [`crate::pack_to_file`], and those of the measurement.
pub fn stack_to_file(plan: &StackPlan<'_>, job: &StackJob<'_>, path: &Path) -> Result<()> {
    let points = if job.measure.is_some() { plan.points() } else { Vec::new() };
    let (writer, count) = header(plan, job, &points)?;
    let mut out = writer.begin(path)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(job.threads)
        .build()
        .map_err(|e| Error::Options(format!("cannot start {} threads: {e}", job.threads)))?;
    let (total, done) = (plan.source_bytes(), AtomicU64::new(0));
    let progress = job.progress;
    let advance = |bytes: u64| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
    let mut sums = Vec::with_capacity(count);
    for entry in plan.entries() {
        if job.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        match entry {
            Entry::Copy(t) => {
                let data = t.all_rows();
                out.tensor(t.name, &data)?;
                sums.push(xxh3_64(&data));
                advance(data.len() as u64);
            }
            Entry::Matrix(info, j) => {
                let (fits, cancel) = (job.fits.get(&j.info.planes), job.cancel);
                let parts = pool.install(|| parts(j, fits, None, &advance, cancel))?;
                for ((name, _, _), data) in info.tensors().iter().zip(&parts) {
                    out.tensor(name, data)?;
                    sums.push(xxh3_64(data));
                }
            }
        }
    }
    if let Some(measure) = job.measure {
        let curve = out.look(|file| measure(file, &points))??;
        Stack::store_curve(&mut out, &curve)?;
    }
    seal_checksums(&mut out, &sums)?;
    out.finish()?;
    Ok(())
}

/// Metadata and tensor descriptions; also the number of tensors.
fn header(plan: &StackPlan<'_>, job: &StackJob<'_>, points: &[usize]) -> Result<(GgufWriter, usize)> {
    let mut w = begin(job.source)?;
    let method = job.fits.values().next().map_or(String::new(), |f| format!("-{}", f.method()));
    w.set("lutite.quantizer", format!("lutite {} {}{method}", env!("CARGO_PKG_VERSION"), plan.tag()))?;
    w.set("lutite.source.xxh3", job.source_hash)?;
    let mut count = 0;
    let mut lines = Vec::new();
    for entry in plan.entries() {
        match entry {
            Entry::Copy(t) => {
                w.add_tensor(t.name, t.ty, t.shape())?;
                count += 1;
            }
            Entry::Matrix(info, _) => {
                if lines.len() < plan.matrices() {
                    lines.push(info.line());
                }
                for (name, ty, dims) in info.tensors() {
                    w.add_tensor(&name, ty, &dims)?;
                    count += 1;
                }
            }
        }
    }
    w.set("lutite.tensors", lines.as_slice())?;
    let blocks: Vec<PackedInfo> = plan.blocks.iter().map(|(info, _)| info.clone()).collect();
    Stack::announce(&mut w, &blocks, points)?;
    announce_checksums(&mut w, count)?;
    Ok((w, count))
}

/// What a file has one after the other.
enum Entry<'p, 'a> {
    /// A tensor of the source.
    Copy(&'p TensorInfo<'a>),
    /// A matrix under a name.
    Matrix(&'p PackedInfo, &'p Job<'a>),
}
