//! BitStack's checkpoints as stacked files: the first entry of a checkpoint's list is the model at its least, and what the entries
//! behind it raise are the blocks, in that order, one level of one matrix each.
//!
//! Nothing is rounded. Nothing is measured either: the model that the levels were taken off is not there. All but the layers'
//! matrices is copied as it is from the folder.

use super::import::{Block, Checkpoint, Stacked};
use crate::error::{Error, Result};
use crate::pack::pool;
use crate::stack::{self, Head};
use lutite_kernels::ggml::GgmlType;
use lutite_runtime::store::{Gguf, LEVEL_TENSORS, LevelsInfo, MatrixInfo, seal_checksums, version_name};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// What a stacked file is made of.
pub struct ImportJob<'a> {
    /// Its layers' matrices.
    pub checkpoint: &'a Checkpoint,
    /// The rest of the folder ([`lutite_models::hf::import_rest`]), parsed.
    pub rest: &'a Gguf<'a>,
    /// xxh3-64 of the folder's files, recorded in the result.
    pub source_hash: u64,
    /// Threads to compute on.
    pub threads: usize,
    /// Called with bytes of the file done and in all.
    pub progress: &'a dyn Fn(u64, u64),
    /// Set from elsewhere to stop early.
    pub cancel: &'a AtomicBool,
}

/// Writes a checkpoint as a stacked file: under its temporary name until it is whole. One level is in memory at a time.
///
/// # Errors
/// [`Error::Model`] for numbers that are none, a disk that is full, an interruption; nothing is left behind then.
pub fn import_to_file(job: &ImportJob<'_>, path: &Path) -> Result<stack::Stacked> {
    let pool = pool(job.threads)?;
    let matrices = job.checkpoint.matrices();
    let (first, rest) = job.checkpoint.ranking().split_at(job.checkpoint.least());
    // Levels of each matrix so far; one is there when those below it are.
    let mut held = vec![0; matrices.len()];
    first.iter().for_each(|block| held[block.matrix] += 1);
    let least: Vec<MatrixInfo> = matrices.iter().zip(&held).map(|(m, n)| version(m, 0, *n)).collect();
    let blocks: Vec<MatrixInfo> = (rest.iter())
        .map(|b| version(&matrices[b.matrix], b.level + 1 - held[b.matrix], b.level + 1))
        .collect();

    // The least levels matrix by matrix, so that a layer lies together.
    let mut levels = first.to_vec();
    levels.sort_unstable_by_key(|block| (block.matrix, block.level));
    levels.extend_from_slice(rest);
    let of_level = |block: &Block| tensors(&matrices[block.matrix], block.level);
    let described: Vec<_> = levels.iter().flat_map(of_level).collect();
    let plain = job.rest.tensors();
    let head = Head {
        model: job.rest,
        tag: "bitstack-checkpoint",
        source_hash: job.source_hash,
        least: &least,
        blocks: &blocks,
        points: &[],
    };
    let mut listing: Vec<_> = plain.iter().map(|t| (t.name, t.ty, t.shape())).collect();
    listing.extend(described.iter().map(|(name, ty, dims)| (name.as_str(), *ty, &dims[..])));
    let mut out = head.writer(listing.into_iter())?.begin(path)?;

    let mut sums = Vec::with_capacity(plain.len() + described.len());
    let (mut bytes, total) = (0, out.total_bytes());
    let mut put = |name: &str, data: &[u8]| -> Result<u64> {
        out.tensor(name, data)?;
        sums.push(xxh3_64(data));
        bytes += data.len() as u64;
        (job.progress)(bytes, total);
        Ok(bytes)
    };
    let (mut least, mut all) = (0, 0);
    for t in plain {
        least = put(t.name, &t.all_rows())?;
    }
    for (i, (block, tensors)) in levels.iter().zip(described.chunks(LEVEL_TENSORS)).enumerate() {
        if job.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let level = pool.install(|| matrices[block.matrix].level(block.level))?;
        for ((name, ..), data) in tensors.iter().zip([level.signs, level.u, level.v]) {
            all = put(name, &data)?;
        }
        if i < first.len() {
            least = all;
        }
    }
    seal_checksums(&mut out, &sums)?;
    out.finish()?;
    Ok(stack::Stacked { blocks: blocks.len(), least, all })
}

/// A version of a matrix with its first `levels` levels.
fn version(matrix: &Stacked, version: usize, levels: usize) -> MatrixInfo {
    let name = version_name(matrix.name(), version);
    LevelsInfo { name, shape: matrix.shape(), levels, rank: matrix.rank() }.into()
}

/// The tensors of a level: name, type, dimensions.
fn tensors(matrix: &Stacked, level: usize) -> Vec<(String, GgmlType, Vec<u64>)> {
    version(matrix, 0, level + 1).tensors().split_off(LEVEL_TENSORS * level)
}
