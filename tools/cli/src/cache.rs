//! Packed models: made once from a person's file, kept in the cache folder, mapped from then on.
//!
//! A packed file's name is its source's hash and size and the options, so that a changed source or a changed
//! option never meets an old result. Hashing a large source at every start would cost more than starting:
//! the hash is remembered under the source's path with its size and time of change.

use crate::ui::{self, Progress, Quit};
use crate::{interrupt, places};
use anyhow::Context;
use lutite_quant::{Imatrix, PackJob, PackOptions, Plan, pack_in_memory, pack_to_file};
use lutite_runtime::os::map::Map;
use lutite_runtime::store::{Bytes, Gguf};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};
use xxhash_rust::xxh3::xxh3_64;

/// The packed form of `source`, whose bytes are mapped as `bytes`: from the cache if it is there, else made
/// now and put there, or kept in memory only.
///
/// # Errors
/// What the packer says; [`Quit::Interrupted`] after Ctrl-C. Nothing half-written is left behind.
pub(crate) fn packed(
    source: &Path,
    bytes: &Bytes,
    options: &PackOptions,
    threads: usize,
    in_memory: bool,
) -> anyhow::Result<Bytes> {
    let gguf = Gguf::parse(bytes).with_context(|| format!("cannot read {}", source.display()))?;
    let plan = Plan::new(&gguf, options).with_context(|| format!("cannot pack {}", source.display()))?;
    let packing = |hash| Packing { source, bytes, hash, imatrix: None, threads };
    if in_memory {
        return Ok(Bytes::new(pack(&packing(xxh3_64(bytes)), &plan, &gguf, None)?));
    }
    let folder = places::home()?.join("packed");
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the cache folder {}; or use --no-cache", folder.display()))?;
    let hash = source_hash(source, bytes, &folder)?;
    let path = folder.join(format!("{hash:016x}-{}-{}.gguf", bytes.len(), options.tag()));
    if !path.exists() {
        pack(&packing(hash), &plan, &gguf, Some(&path))?;
    }
    Ok(Bytes::new(Map::open(&path)?))
}

/// What is packed, beside the plan.
pub(crate) struct Packing<'a> {
    /// The source's name, for messages.
    pub(crate) source: &'a Path,
    /// Its bytes.
    pub(crate) bytes: &'a [u8],
    /// xxh3-64 of these.
    pub(crate) hash: u64,
    /// Importance of columns, for fitted matrices.
    pub(crate) imatrix: Option<&'a Imatrix>,
    /// Threads to compute on.
    pub(crate) threads: usize,
}

/// Packs to `path`, or to memory and returns the bytes, with a progress bar.
pub(crate) fn pack(
    p: &Packing<'_>,
    plan: &Plan<'_>,
    gguf: &Gguf<'_>,
    path: Option<&Path>,
) -> anyhow::Result<Vec<u8>> {
    let name = p.source.file_name().unwrap_or_default().to_string_lossy();
    let bar = Mutex::new(Progress::bytes(&format!("packing {name}"), p.bytes.len() as u64));
    let progress = |done: u64, _total: u64| {
        if let Ok(mut bar) = bar.lock() {
            bar.set(done);
        }
    };
    let job = PackJob {
        source: gguf,
        source_hash: p.hash,
        imatrix: p.imatrix,
        threads: p.threads,
        progress: &progress,
        cancel: interrupt::flag(),
    };
    let packed = match path {
        None => pack_in_memory(plan, &job),
        Some(path) => pack_to_file(plan, &job, path).map(|()| Vec::new()),
    };
    packed.map_err(|e| match e {
        lutite_quant::Error::Interrupted => Quit::Interrupted.into(),
        e => anyhow::Error::new(e).context(format!("cannot pack {}", p.source.display())),
    })
}

/// xxh3-64 of the source, remembered by path, size and time of change.
fn source_hash(source: &Path, bytes: &Bytes, folder: &Path) -> anyhow::Result<u64> {
    let full = fs::canonicalize(source).with_context(|| format!("cannot find {}", source.display()))?;
    let changed = fs::metadata(&full).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let state = format!("{} {} {changed}", full.display(), bytes.len());
    let stamp: PathBuf = folder.join(format!("{:016x}.hash", xxh3_64(full.as_os_str().as_encoded_bytes())));
    if let Ok(text) = fs::read_to_string(&stamp)
        && let Some((hash, of)) = text.split_once(' ')
        && of == state
        && let Ok(hash) = u64::from_str_radix(hash, 16)
    {
        return Ok(hash);
    }
    let hash = xxh3_64(bytes);
    // Only a shortcut for the next time: a failure costs that one a hashing.
    if let Err(e) = fs::write(&stamp, format!("{hash:016x} {state}")) {
        ui::warn(format_args!("cannot remember the checksum in {}: {e}", stamp.display()));
    }
    Ok(hash)
}
