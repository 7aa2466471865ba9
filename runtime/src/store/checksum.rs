//! Checksums of packed files: every bit counts, but for the padding between tensors.
//!
//! Two metadata arrays of `u64` hold xxh3-64 sums. `lutite.checksum.xxh3` has one for the data of each tensor, in
//! listing order. `lutite.checksum.head` has one, for all bytes before the data section (metadata, descriptions and
//! padding; the tensors' sums too) as they are while its own eight bytes are zero.

use super::gguf::Gguf;
use super::value::Value;
use super::write::{GgufStream, GgufWriter};
use crate::error::Result;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const TENSORS_KEY: &str = "lutite.checksum.xxh3";
const HEAD_KEY: &str = "lutite.checksum.head";

/// Makes room in the metadata for the sums of `tensors` tensors.
///
/// # Errors
/// As [`GgufWriter::set`].
pub fn announce_checksums(writer: &mut GgufWriter, tensors: usize) -> Result<()> {
    writer.set(TENSORS_KEY, vec![0u64; tensors].as_slice())?;
    writer.set(HEAD_KEY, [0u64].as_slice())?;
    Ok(())
}

/// Writes the sums, of all tensors' data and of the head, into the room made by [`announce_checksums`].
///
/// # Errors
/// As [`GgufStream::patch`].
pub fn seal_checksums(out: &mut GgufStream, tensors: &[u64]) -> Result<()> {
    out.patch(TENSORS_KEY, tensors)?;
    let head = xxh3_64(out.head());
    out.patch(HEAD_KEY, [head].as_slice())
}

/// Checks the head of a packed file, parsed from `bytes`, and returns the sums of its tensors' data in listing order.
///
/// # Errors
/// In words, if the sums are missing or the head's is wrong.
pub fn tensor_checksums(gguf: &Gguf<'_>, bytes: &[u8]) -> std::result::Result<Vec<u64>, String> {
    let missing = |key: &str| format!("has no checksums in {key}");
    let (head, place) = match gguf.get(HEAD_KEY) {
        Some(Value::Array(a)) if a.bytes().len() == 8 => {
            let sum = a.u64s().and_then(|mut sums| sums.next()).ok_or_else(|| missing(HEAD_KEY))?;
            // The array borrows from `bytes`, so that this is its offset.
            (sum, a.bytes().as_ptr() as usize - bytes.as_ptr() as usize)
        }
        _ => return Err(missing(HEAD_KEY)),
    };
    let end = usize::try_from(gguf.data_offset()).unwrap_or(usize::MAX).min(bytes.len());
    let mut hash = Xxh3::new();
    hash.update(&bytes[..place]);
    hash.update(&[0; 8]);
    hash.update(&bytes[place + 8..end]);
    if hash.digest() != head {
        return Err("has metadata that does not match its checksum".into());
    }
    let sums = gguf.u64_array(TENSORS_KEY).map_err(|e| e.to_string())?;
    let sums: Vec<u64> = sums.ok_or_else(|| missing(TENSORS_KEY))?.collect();
    if sums.len() != gguf.tensors().len() {
        return Err(format!("has {} checksums for {} tensors", sums.len(), gguf.tensors().len()));
    }
    Ok(sums)
}
