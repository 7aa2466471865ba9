//! Packed models: made once from a person's file, kept in the cache folder, mapped from then on.
//!
//! A packed file's name is its source's hash and size and the options, so that a changed source or a changed
//! option never meets an old result. Hashing a large source at every start would cost more than starting:
//! the hash is remembered under the source's path with its size and time of change, or those of a folder's files.
//!
//! A file is made under a lock of its own, so that of two processes one packs and the other waits for it. What a
//! killed process left under a temporary name is removed by the next one that packs: the lock tells that nobody is
//! still writing it. A file that no longer matches its checksums is removed and packed again.

use crate::judge::loss;
use crate::load::{self, Source};
use crate::ui::{self, Progress, Quit};
use crate::{interrupt, lock, places};
use anyhow::Context;
use lutite_quant::{Fits, Imatrix, Loss, PackJob, Plan, pack_in_memory, pack_to_file};
use lutite_runtime::os::map::Map;
use lutite_runtime::os::memory;
use lutite_runtime::store::{Bytes, Gguf, ModelFile};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The folder of packed files in [`places::home`].
pub(crate) const FOLDER: &str = "packed";

/// The way out when the cache folder is the trouble.
const WAY_OUT: &str = "set LUTITE_HOME to another folder, or use --no-cache to pack in memory";

/// A packed model.
pub(crate) struct Packed {
    /// All of it.
    pub(crate) bytes: Bytes,
    /// The file that it is, if it is one.
    pub(crate) path: Option<PathBuf>,
}

/// The packed form of `source`: from the cache if it is there, else made now and put there, or kept in memory only. It
/// has been held against its checksums.
///
/// # Errors
/// What the packer says; [`Quit::Interrupted`] after Ctrl-C. Nothing half-written is left behind.
pub(crate) fn packed(source: &Source, how: &load::Packing) -> anyhow::Result<Packed> {
    let name = source.path.display();
    // Before minutes are spent on packing what cannot be run.
    lutite_models::open::check(&source.file).with_context(|| format!("cannot load {name}"))?;
    let gguf = load::gguf(source)?;
    let plan = Plan::new(&gguf, &how.options).with_context(|| format!("cannot pack {name}"))?;
    let threads = how.threads;
    let packing = |hash| Packing {
        source: &source.path,
        gguf: &gguf,
        hash,
        imatrix: None,
        fits: None,
        measure: how.measure.then_some(&source.file),
        accept: &|_| Ok(()),
        threads,
        way_out: WAY_OUT,
    };
    if how.in_memory {
        let bytes = Bytes::new(pack(&packing(hash(source.file.chunks())?), &plan, None)?);
        return Ok(Packed { bytes, path: None });
    }
    let home = places::home().with_context(|| format!("no folder to keep the packed model in; {WAY_OUT}"))?;
    let folder = home.join(FOLDER);
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the cache folder {}; {WAY_OUT}", folder.display()))?;
    let (hash, stamp) = source_hash(source, &folder)?;
    let path = folder.join(format!("{hash:016x}-{}-{}.gguf", source.file.len(), how.options.tag()));
    let check = |map: &Map| match how.by_piece {
        true => lutite_models::verify_head(map),
        false => lutite_models::verify(map, threads),
    };
    let found = if path.exists() { usable(&path, check)? } else { None };
    let bytes = match found {
        Some(packed) => packed,
        None => make(&packing(hash), &plan, &path, check)?,
    };
    if let Some(stamp) = stamp {
        stamp.write();
    }
    Ok(Packed { bytes, path: Some(path) })
}

/// Maps a packed file of the cache; `None` if it is damaged or of another version.
fn usable(path: &Path, check: impl Fn(&Map) -> lutite_models::Result<()>) -> anyhow::Result<Option<Bytes>> {
    let checked = Map::open(path)
        .map_err(anyhow::Error::new)
        .and_then(|map| check(&map).map(|()| map).map_err(Into::into));
    match checked {
        Ok(map) => Ok(Some(Bytes::new(map))),
        // Gone again, or not to be read: packing will say what is wrong with the folder.
        Err(_) if !path.exists() => Ok(None),
        Err(e) => {
            ui::warn(format_args!("{}: {e}", path.display()));
            ui::note("removing it from the cache and packing its source again");
            fs::remove_file(path).with_context(|| format!("cannot remove {}; {WAY_OUT}", path.display()))?;
            Ok(None)
        }
    }
}

/// Packs to `path` under its lock, unless another process has done so in the meantime.
fn make(
    packing: &Packing<'_>,
    plan: &Plan<'_>,
    path: &Path,
    check: impl Fn(&Map) -> lutite_models::Result<()>,
) -> anyhow::Result<Bytes> {
    // Without locks two may pack the same file, each under a temporary name of its own: a waste, no harm.
    let busy = "another process is packing this model; waiting for it";
    let _lock = lock::wait(&lock_path(path), busy, interrupt::flag(), |_| ()).context(WAY_OUT)?;
    if path.exists()
        && let Some(packed) = usable(path, check)?
    {
        return Ok(packed);
    }
    sweep(path);
    pack(packing, plan, Some(path))?;
    Ok(Bytes::new(Map::open(path)?))
}

/// What is packed, beside the plan.
pub(crate) struct Packing<'a> {
    /// The source's name, for messages.
    pub(crate) source: &'a Path,
    /// It, parsed.
    pub(crate) gguf: &'a Gguf<'a>,
    /// xxh3-64 of its bytes.
    pub(crate) hash: u64,
    /// Importance of columns, for fitted matrices.
    pub(crate) imatrix: Option<&'a Imatrix>,
    /// Matrices that were fitted beforehand.
    pub(crate) fits: Option<&'a Fits>,
    /// The source, to measure against what fitted planes lost.
    pub(crate) measure: Option<&'a ModelFile>,
    /// Whether such a loss is good enough; if it is not, says so.
    pub(crate) accept: &'a dyn Fn(&Loss) -> Result<(), String>,
    /// Threads to compute on.
    pub(crate) threads: usize,
    /// What to do when the result cannot be written.
    pub(crate) way_out: &'static str,
}

/// Packs to `path`, or to memory and returns the bytes, with a progress bar.
pub(crate) fn pack(p: &Packing<'_>, plan: &Plan<'_>, path: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    if path.is_none()
        && let Some(m) = memory::available()
        && plan.bytes() > m.bytes
    {
        let (need, have) = (plan.bytes() >> 20, m.bytes >> 20);
        let by = m.bound_by;
        anyhow::bail!(
            "not enough memory: the packed weights need {need} MiB, but {have} MiB are available (bound by {by}); \
             leave --no-cache out, and they are mapped from a file"
        );
    }
    let name = p.source.file_name().unwrap_or_default().to_string_lossy();
    let bar = Mutex::new(Some(Progress::bytes(&format!("packing {name}"), plan.source_bytes())));
    let progress = |done: u64, _total: u64| {
        if let Ok(mut bar) = bar.lock()
            && let Some(bar) = &mut *bar
        {
            bar.set(done);
        }
    };
    let measure = |packed: Bytes| {
        if let Ok(mut bar) = bar.lock() {
            *bar = None;
        }
        ui::note("measuring what the re-quantized weights lost (--no-measure: do not)");
        let Some(source) = p.measure else { return Ok(None) };
        let loss = loss::measure(source, &packed, p.threads).unwrap_or_else(|e| {
            ui::warn(format_args!("the loss cannot be measured: {e:#}"));
            None
        });
        if let Some(loss) = &loss {
            (p.accept)(loss).map_err(lutite_quant::Error::Refused)?;
        }
        Ok(loss)
    };
    let job = PackJob {
        source: p.gguf,
        source_hash: p.hash,
        imatrix: p.imatrix,
        fits: p.fits,
        measure: if p.measure.is_some() { Some(&measure) } else { None },
        threads: p.threads,
        progress: &progress,
        cancel: interrupt::flag(),
    };
    let packed = match path {
        None => pack_in_memory(plan, &job),
        Some(path) => pack_to_file(plan, &job, path).map(|()| Vec::new()),
    };
    let packed = packed.map_err(|e| match e {
        lutite_quant::Error::Interrupted => Quit::Interrupted.into(),
        // Only the result is written to, and reading the source is no I/O but paging.
        lutite_quant::Error::Runtime(e) => {
            let (source, way_out) = (p.source.display(), p.way_out);
            anyhow::Error::new(e).context(format!("cannot keep the packed {source}; {way_out}"))
        }
        e => anyhow::Error::new(e).context(format!("cannot pack {}", p.source.display())),
    })?;
    let (before, after) = (plan.source_bytes(), plan.bytes());
    if plan.fitted().next().is_none() && after > before + before / 4 {
        let (before, after) = (ui::megabytes(before), ui::megabytes(after));
        ui::note(format_args!(
            "{name}: held exactly, weights of {before} take {after}; --bits 1 to 8 takes less and says what it lost"
        ));
    }
    // A measurement ends early at Ctrl-C, to leave a whole file.
    interrupt::check(interrupt::flag())?;
    Ok(packed)
}

/// Where the lock of a packed file is.
pub(crate) fn lock_path(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.lock", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Removes what killed processes left in the folder of `path`, whose lock is held. Failures are left to the next time.
fn sweep(path: &Path) {
    let Some(folder) = path.parent() else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((of, _)) = name.to_str().and_then(|name| name.split_once(".part-")) else { continue };
        let of = folder.join(of);
        // Held until the file is removed. No lock, for whatever reason: somebody may be writing.
        let other = if of == path { None } else { Some(File::create(lock_path(&of))) };
        let idle = other.as_ref().is_none_or(|lock| lock.as_ref().is_ok_and(|lock| lock.try_lock().is_ok()));
        if idle {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A source's hash, to be remembered.
struct Stamp {
    path: PathBuf,
    text: String,
}

impl Stamp {
    /// Only a shortcut for the next time: a failure costs that one a hashing.
    fn write(&self) {
        if let Err(e) = fs::write(&self.path, &self.text) {
            ui::warn(format_args!("cannot remember the checksum in {}: {e}", self.path.display()));
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// xxh3-64 of the source, and the stamp to write if it was not remembered by its files' paths, sizes and times of change.
fn source_hash(source: &Source, folder: &Path) -> anyhow::Result<(u64, Option<Stamp>)> {
    let full =
        |path: &Path| fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()));
    let mut state = Vec::new();
    for file in &source.files {
        let full = full(file)?;
        let about = fs::metadata(&full).with_context(|| format!("cannot look at {}", full.display()))?;
        let changed = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        state.push(format!("{} {} {changed}", full.display(), about.len()));
    }
    if source.path.is_dir() {
        // What another version of this program reads from the same files may differ.
        state.push(format!("{:016x}", xxh3_64(source.file.head())));
    }
    let path = full(&source.path)?;
    // The source has a line of its own, for `sources`.
    let state = format!("{}\n{}", state.join(" "), path.display());
    let path = folder.join(format!("{:016x}.hash", xxh3_64(path.as_os_str().as_encoded_bytes())));
    if let Ok(text) = fs::read_to_string(&path)
        && let Some((hash, of)) = text.split_once(' ')
        && of == state
        && let Ok(hash) = u64::from_str_radix(hash, 16)
    {
        return Ok((hash, None));
    }
    let hash = hash(source.file.chunks())?;
    Ok((hash, Some(Stamp { path, text: format!("{hash:016x} {state}") })))
}

/// The sources whose hashes are remembered in a folder of packed files: hash, path, and the stamp.
pub(crate) fn sources(folder: &Path) -> Vec<(u64, PathBuf, PathBuf)> {
    let stamps = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let read = |stamp: PathBuf| {
        let text = fs::read_to_string(&stamp).ok()?;
        let (hash, _) = text.split_once(' ')?;
        let (_, source) = text.split_once('\n')?;
        Some((u64::from_str_radix(hash, 16).ok()?, PathBuf::from(source), stamp))
    };
    stamps.filter(|stamp| stamp.extension().is_some_and(|e| e == "hash")).filter_map(read).collect()
}

/// xxh3-64 of a model's bytes, looking at Ctrl-C now and then: a large file on a slow disk takes minutes.
pub(crate) fn hash<'b>(chunks: impl Iterator<Item = &'b [u8]>) -> anyhow::Result<u64> {
    let mut hash = Xxh3::new();
    for part in chunks.flat_map(|chunk| chunk.chunks(16 << 20)) {
        interrupt::check(interrupt::flag())?;
        hash.update(part);
    }
    Ok(hash.digest())
}
