//! The first part of a stacked file, as a file of its own.

use crate::error::{Error, Result};
use crate::pack::begin;
use lutite_runtime::store::{
    Block, Directory, Gguf, GgufWriter, MatrixInfo, Point, Stack, TensorInfo, announce_checksums,
    seal_checksums,
};
use std::collections::HashSet;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// What a trimmed file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trimmed {
    /// Blocks of the stack.
    pub blocks: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Writes `source` with as many of its first blocks as `size` bytes hold; also one that was cut off.
///
/// # Errors
/// A file without blocks, a size below that of the least model, a disk that is full; nothing is left behind then.
pub fn trim(source: &Gguf<'_>, size: u64, path: &Path) -> Result<Trimmed> {
    let directory = Directory::base(source)?;
    let stack = directory.stack();
    if stack.blocks().is_empty() {
        return Err(Error::Options("the file has no blocks; only stacked files can be trimmed".into()));
    }
    let trimmed = largest(source, &directory, size)?;
    let (writer, tensors) = header(source, &directory, trimmed.blocks)?;
    let mut out = writer.begin(path)?;
    let mut sums = Vec::with_capacity(tensors.len());
    for t in &tensors {
        out.tensor(t.name, t.data)?;
        sums.push(xxh3_64(t.data));
    }
    Stack::store_curve(&mut out, &curve(stack, trimmed.blocks))?;
    seal_checksums(&mut out, &sums)?;
    out.finish()?;
    Ok(trimmed)
}

/// The largest file of at most `size` bytes. A block more is never a smaller file: it adds its line to the head, its
/// tensors, and perhaps a point of the curve, and takes nothing away. So halving what may still fit finds it, with a
/// whole head made for each of a few numbers only.
fn largest(source: &Gguf<'_>, directory: &Directory, size: u64) -> Result<Trimmed> {
    let of = |blocks| -> Result<Trimmed> {
        Ok(Trimmed { blocks, bytes: header(source, directory, blocks)?.0.bytes()? })
    };
    let mut fits = of(0)?;
    if fits.bytes > size {
        return Err(Error::Options(format!("the least model has {} bytes, more than {size}", fits.bytes)));
    }
    let mut beyond = directory.stack().present() + 1;
    while beyond - fits.blocks > 1 {
        let middle = of(fits.blocks.midpoint(beyond))?;
        if middle.bytes <= size {
            fits = middle;
        } else {
            beyond = middle.blocks;
        }
    }
    Ok(fits)
}

/// What was measured of so many blocks.
fn curve(stack: &Stack, blocks: usize) -> Vec<Point> {
    stack.curve().iter().filter(|p| p.blocks <= blocks).copied().collect()
}

/// Metadata and descriptions, and the tensors.
fn header<'g, 'a>(
    source: &'g Gguf<'a>,
    directory: &Directory,
    blocks: usize,
) -> Result<(GgufWriter, Vec<&'g TensorInfo<'a>>)> {
    let stack = directory.stack();
    let mut w = begin(source)?;
    if let Some(by) = source.str("lutite.quantizer")? {
        w.set("lutite.quantizer", by)?;
    }
    if let Some(hash) = source.u64("lutite.source.xxh3")? {
        w.set("lutite.source.xxh3", hash)?;
    }
    let lines: Vec<String> =
        source.str_array("lutite.tensors")?.into_iter().flatten().map(str::to_owned).collect();
    w.set("lutite.tensors", lines.as_slice())?;
    let infos: Vec<MatrixInfo> = stack.blocks()[..blocks].iter().map(|b| b.info.clone()).collect();
    let left_out: HashSet<String> = stack.blocks()[blocks..].iter().flat_map(Block::tensor_names).collect();
    let points: Vec<usize> = curve(stack, blocks).iter().map(|p| p.blocks).collect();
    Stack::announce(&mut w, &infos, &points)?;
    let tensors: Vec<_> = source.tensors().iter().filter(|t| !left_out.contains(t.name)).collect();
    for t in &tensors {
        w.add_tensor(t.name, t.ty, t.shape())?;
    }
    announce_checksums(&mut w, tensors.len())?;
    Ok((w, tensors))
}
