//! Whether a packed file is the one that was written.

use crate::error::{Error, Result};
use lutite_runtime::pool::{Pool, PoolConfig};
use lutite_runtime::store::{Gguf, TensorInfo, check_version, is_packed, tensor_checksums};
use std::sync::atomic::{AtomicUsize, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// Holds a packed file against its checksums, on `workers` threads: reads all of it once. A file that is not
/// packed has none and passes.
///
/// # Errors
/// What is wrong with the container; [`lutite_runtime::Error::Packed`] for a format that this version cannot read;
/// [`Error::Damaged`] with the first tensor whose data was changed.
pub fn verify(bytes: &[u8], workers: usize) -> Result<()> {
    let gguf = Gguf::parse(bytes)?;
    // Also where the damage is in the very words that say that it is packed.
    if !is_packed(&gguf)? && !gguf.metadata().iter().any(|(key, _)| *key == "lutite.checksum.head") {
        return Ok(());
    }
    check_version(&gguf)?;
    let pool = &mut Pool::new(&PoolConfig { workers, ..PoolConfig::default() })?;
    verify_on(&gguf, bytes, pool)
}

/// As [`verify`], of metadata and descriptions only: what tensors are is for those to check who read them.
///
/// # Errors
/// As [`verify`], without its last.
pub fn verify_head(bytes: &[u8]) -> Result<()> {
    let gguf = Gguf::parse(bytes)?;
    if is_packed(&gguf)? {
        check_version(&gguf)?;
        tensor_checksums(&gguf, bytes).map_err(Error::Damaged)?;
    }
    Ok(())
}

/// As [`verify`], for a packed file whose version has been checked.
pub(crate) fn verify_on(gguf: &Gguf<'_>, bytes: &[u8], pool: &mut Pool) -> Result<()> {
    let sums = tensor_checksums(gguf, bytes).map_err(Error::Damaged)?;
    let tensors = gguf.tensors();
    // What a file that was cut off lacks is nobody's.
    let mut order: Vec<usize> = (0..tensors.len()).filter(|i| !tensors[*i].is_absent()).collect();
    // The largest first, so that all workers finish at about the same time.
    order.sort_by_key(|&i| std::cmp::Reverse(tensors[i].data.len()));
    let first_bad = AtomicUsize::new(usize::MAX);
    pool.each(order.len(), |i| {
        let i = order[i];
        if xxh3_64(tensors[i].data) != sums[i] {
            first_bad.fetch_min(i, Ordering::Relaxed);
        }
    });
    match tensors.get(first_bad.into_inner()) {
        None => Ok(()),
        Some(t) => Err(damaged(t)),
    }
}

/// As [`verify`], for one tensor, whose sum is to be `sum`.
pub(crate) fn verify_tensor(t: &TensorInfo<'_>, sum: u64) -> Result<()> {
    if xxh3_64(t.data) == sum { Ok(()) } else { Err(damaged(t)) }
}

fn damaged(t: &TensorInfo<'_>) -> Error {
    let at = format!("bytes {} to {}", t.offset, t.offset + t.data.len() as u64);
    Error::Damaged(format!("has a tensor `{}` ({at}) that does not match its checksum", t.name))
}
