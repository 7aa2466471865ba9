//! Stacked files: a model at its least, and blocks that bring its matrices up, one version after the other.
//!
//! They are made of packed files of one model, one for each level, whose matrices were fitted with all others at the same
//! level. A block takes the place of the version before; of a matrix of levels it holds those that came to it. (Planes that are
//! added to codes that stay were tried: `docs/speed.md`. They take less room on a disk and lose two to five times as much in memory.)
//!
//! Matrices of a layer come up together: they were fitted to make up for each other's errors, and one of them alone at a better
//! level, among others at a lesser one, is worth next to nothing or less (`docs/speed.md`). Those that come behind are first.

use crate::error::{Error, Result};
use crate::mix::Opened;
use crate::pack::begin;
use crate::rank::Rise;
use lutite_kernels::ggml::GgmlType;
use lutite_models::blocks::matrices;
use lutite_runtime::store::{
    Bytes, Directory, Gguf, GgufWriter, MatrixInfo, Part, Point, Stack, TensorInfo, announce_checksums,
    seal_checksums, version_name,
};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// Points of the curve, as many as there are blocks at most.
const POINTS: usize = 17;

/// Matrices that come up together, by name, in the order in which they do: those of a layer, or one that is of none.
///
/// # Errors
/// A file that is damaged.
pub fn parts(model: Opened<'_>) -> Result<Vec<Vec<String>>> {
    let directory = Directory::read(model.gguf)?;
    let mut parts: Vec<(String, Vec<String>)> = Vec::new();
    for part in directory.parts(model.gguf)? {
        let Part::Packed(name, _) = part else { continue };
        let of_layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let key = of_layer.map_or(name, |(layer, _)| layer).to_owned();
        match parts.iter_mut().find(|(k, _)| *k == key) {
            Some((_, names)) => names.push(name.to_owned()),
            None => parts.push((key, vec![name.to_owned()])),
        }
    }
    // The way back through a layer.
    let place = |name: &String| {
        let part = name.rsplit('.').next().unwrap_or_default();
        Reverse(matrices().position(|p| p == part))
    };
    for (_, names) in &mut parts {
        names.sort_by_key(place);
    }
    Ok(parts.into_iter().map(|(_, names)| names).collect())
}

/// Bytes that the matrices `names` take in a file.
///
/// # Errors
/// A file that is damaged, or does not have them packed.
pub fn bytes(model: Opened<'_>, names: &[String]) -> Result<u64> {
    let directory = Directory::read(model.gguf)?;
    names.iter().map(|name| Ok(find(&directory, name)?.bytes().unwrap_or(usize::MAX) as u64)).sum()
}

fn find<'d>(directory: &'d Directory, name: &str) -> Result<&'d MatrixInfo> {
    let why = || "is not packed at every level; leave `exact` out of the levels".to_owned();
    directory.get(name).ok_or_else(|| Error::Tensor { name: name.to_owned(), why: why() })
}

/// Measures the loss of a file with its first so many blocks, for each of some numbers.
pub type Measure<'a> = dyn Fn(Bytes, &[usize]) -> Result<Vec<Point>> + 'a;

/// What a stack is made of.
pub struct StackJob<'a> {
    /// The model at each level, packed, ascending.
    pub levels: &'a [Opened<'a>],
    /// What comes up together.
    pub parts: &'a [Vec<String>],
    /// In which order.
    pub order: &'a [Rise],
    /// Program and options, for people.
    pub tag: &'a str,
    /// xxh3-64 of the source file, recorded in the result.
    pub source_hash: u64,
    /// Called with the file, whole but for its name.
    pub measure: Option<&'a Measure<'a>>,
    /// Set from elsewhere to stop early.
    pub cancel: &'a AtomicBool,
}

/// What a stacked file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stacked {
    /// Blocks behind the least model.
    pub blocks: usize,
    /// Bytes of tensors without any block, and with all.
    pub least: u64,
    /// See `least`.
    pub all: u64,
}

/// A tensor of the result, and which of a level's it is.
struct Entry<'a> {
    name: String,
    from: TensorInfo<'a>,
}

/// Writes a stacked file: under its temporary name until it is whole.
///
/// # Errors
/// Levels that are not of one model, a disk that is full, an interruption, and those of the measurement; nothing is left
/// behind then.
pub fn stack_to_file(job: &StackJob<'_>, path: &Path) -> Result<Stacked> {
    let [least, ..] = job.levels else { return Err(Error::Options("no levels".into())) };
    let directories = job.levels.iter().map(|l| Ok(Directory::read(l.gguf)?)).collect::<Result<Vec<_>>>()?;
    let mut first = Vec::new();
    let mut entries = Vec::new();
    for part in directories[0].parts(least.gguf)? {
        match part {
            Part::Plain(t) => entries.push(Entry { name: t.name.to_owned(), from: *t }),
            Part::Packed(_, info) => {
                first.push(info.clone());
                let found = info.find(least.gguf)?;
                entries.extend(found.into_iter().map(|t| Entry { name: t.name.to_owned(), from: *t }));
            }
        }
    }
    let size = |entries: &[Entry<'_>]| entries.iter().map(|e| e.from.data.len() as u64).sum::<u64>();
    let base = size(&entries);
    // Versions of each matrix so far.
    let mut versions: BTreeMap<&str, (usize, &MatrixInfo)> = BTreeMap::new();
    let mut blocks: Vec<MatrixInfo> = Vec::new();
    // Blocks behind each rise, and their bytes.
    let mut ends = vec![(0, 0)];
    for rise in job.order {
        for name in &job.parts[rise.part] {
            let info = find(&directories[rise.level], name)?;
            let before = versions.get(name.as_str()).copied();
            let (version, older) =
                before.map_or_else(|| Ok((0, find(&directories[0], name)?)), Ok::<_, Error>)?;
            versions.insert(name, (version + 1, info));
            let block = info.renamed(version_name(name, version + 1));
            let names = block.tensors().into_iter().map(|(name, _, _)| name);
            let found = info.find(job.levels[rise.level].gguf)?;
            entries
                .extend(names.zip(found).skip(info.shared(older)).map(|(name, t)| Entry { name, from: *t }));
            blocks.push(block);
        }
        ends.push((blocks.len(), size(&entries) - base));
    }
    let points = if job.measure.is_some() { points(&ends) } else { Vec::new() };
    let head = Head {
        model: least.gguf,
        tag: job.tag,
        source_hash: job.source_hash,
        least: &first,
        blocks: &blocks,
        points: &points,
    };
    let tensors = entries.iter().map(|e| (e.name.as_str(), e.from.ty, e.from.shape()));
    let mut out = head.writer(tensors)?.begin(path)?;
    let mut sums = Vec::with_capacity(entries.len());
    for entry in &entries {
        if job.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let data = entry.from.all_rows();
        out.tensor(&entry.name, &data)?;
        sums.push(xxh3_64(&data));
    }
    if let Some(measure) = job.measure {
        let curve = out.look(|file| measure(file, &points))??;
        Stack::store_curve(&mut out, &curve)?;
    }
    seal_checksums(&mut out, &sums)?;
    out.finish()?;
    Ok(Stacked { blocks: blocks.len(), least: base, all: size(&entries) })
}

/// What a stacked file says in front of its tensors.
pub(crate) struct Head<'a> {
    /// A file of the model, for the metadata.
    pub(crate) model: &'a Gguf<'a>,
    /// See [`StackJob::tag`].
    pub(crate) tag: &'a str,
    /// See [`StackJob::source_hash`].
    pub(crate) source_hash: u64,
    /// The least matrices.
    pub(crate) least: &'a [MatrixInfo],
    /// The versions behind them.
    pub(crate) blocks: &'a [MatrixInfo],
    /// Numbers of blocks that are to be measured.
    pub(crate) points: &'a [usize],
}

impl Head<'_> {
    /// The writer of such a file with these tensors: name, type, dimensions.
    pub(crate) fn writer<'t>(
        &self,
        tensors: impl ExactSizeIterator<Item = (&'t str, GgmlType, &'t [u64])>,
    ) -> Result<GgufWriter> {
        let mut w = begin(self.model)?;
        w.set("lutite.quantizer", format!("lutite {} {}", env!("CARGO_PKG_VERSION"), self.tag))?;
        w.set("lutite.source.xxh3", self.source_hash)?;
        w.set("lutite.tensors", self.least.iter().map(MatrixInfo::line).collect::<Vec<_>>().as_slice())?;
        Stack::announce(&mut w, self.blocks, self.points)?;
        let count = tensors.len();
        for (name, ty, dims) in tensors {
            w.add_tensor(name, ty, dims)?;
        }
        announce_checksums(&mut w, count)?;
        Ok(w)
    }
}

/// The numbers of blocks that the curve is measured at: none, all, and between them at ends of rises, at about even distances
/// in bytes.
fn points(ends: &[(usize, u64)]) -> Vec<usize> {
    let all = ends.last().map_or(0, |e| e.1) as f64;
    let at = |k: usize| {
        let wanted = all * k as f64 / (POINTS - 1) as f64;
        let distance = |e: &(usize, u64)| (e.1 as f64 - wanted).abs();
        ends.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).map_or(0, |e| e.0)
    };
    let mut points: Vec<usize> = (0..POINTS).map(at).collect();
    points.dedup();
    points
}
