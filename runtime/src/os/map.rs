//! Read-only memory maps of model files, and memory for what is read from them.
//!
//! A map costs no memory until it is read, and what was read can be dropped by the system without writing it
//! anywhere. The price: if another program cuts the file short while it is mapped, reading behind its new end
//! kills this process with SIGBUS (on Windows such a cut is refused). There is no cheap guard. Programs that
//! replace a model must write a new file and rename it over the old one, as [`crate::store::GgufWriter`]
//! does; the old file then lives on until the map is dropped.

use std::fs::{self, File};
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::{Mmap, MmapMut, MmapOptions};

use crate::error::{Error, Result};

/// A whole file, mapped read-only. Dereferences to its bytes.
#[derive(Debug)]
pub struct Map {
    map: Mmap,
    path: PathBuf,
}

/// How a part of a map will be read, as advice to the system's read-ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// From front to back: read far ahead, drop early.
    Sequential,
    /// In no order: do not read ahead.
    Random,
    /// Soon: start reading now, without waiting.
    WillNeed,
}

impl Map {
    /// Maps the file at `path`.
    ///
    /// The file must not be cut short or rewritten in place while the map lives; see the module's
    /// description.
    ///
    /// # Errors
    /// [`Error::Io`] where the file is missing, unreadable or larger than the address space,
    /// [`Error::NotAFile`] for a folder or device, [`Error::EmptyFile`] for a file of no bytes.
    pub fn open(path: impl AsRef<Path>) -> Result<Map> {
        let path = path.as_ref();
        // Before opening: to open a FIFO without a writer would wait for ever.
        let meta = fs::metadata(path).map_err(Error::io(path, "open"))?;
        if !meta.is_file() {
            let found = if meta.is_dir() { "a folder" } else { "a device or pipe" };
            return Err(Error::NotAFile { path: path.to_path_buf(), found });
        }
        if meta.len() == 0 {
            return Err(Error::EmptyFile { path: path.to_path_buf() });
        }
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        // SAFETY: the map is read-only and private to this value, and its bytes are only lent out as `&[u8]`
        // for as long as it lives. What remains is another program changing the file, which no check here can
        // rule out and the documentation forbids. A cut gives SIGBUS: the process ends, nothing is corrupted.
        // A rewrite in place may change bytes under a reader; all indexing stays bounds-checked, so that the
        // practical result is wrong numbers or an error, but text checked once might no longer be UTF-8.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Ok(Map { map, path: path.to_path_buf() })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says how the bytes in `range` will be read. The part of `range` that lies outside the file is ignored,
    /// and so is all advice on systems that take none.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses the advice; the map is as usable as before.
    pub fn advise(&self, access: Access, range: Range<usize>) -> Result<()> {
        let end = range.end.min(self.map.len());
        if range.start >= end {
            return Ok(());
        }
        #[cfg(unix)]
        {
            let advice = match access {
                Access::Sequential => memmap2::Advice::Sequential,
                Access::Random => memmap2::Advice::Random,
                Access::WillNeed => memmap2::Advice::WillNeed,
            };
            let len = end - range.start;
            self.map.advise_range(advice, range.start, len).map_err(Error::io(&self.path, "advise on"))?;
        }
        #[cfg(not(unix))]
        let _ = access;
        Ok(())
    }
}

/// Bytes of a huge page of x86 and, where pages have 4 KiB, of Arm.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Takes `bytes` of memory, at least one, all of which is about to be written; dropped, it goes back to the system at once.
/// Its pages come by one call, not with a fault for each, and where the system has huge pages, memory that is large enough
/// lies in such: weights are read from end to end at every token, which takes an entry of the TLB per page.
///
/// # Errors
/// Those of the system, which has no memory left.
pub(crate) fn memory(bytes: usize) -> io::Result<MmapMut> {
    let mut options = MmapOptions::new();
    options.len(bytes.max(1));
    if bytes < HUGE_PAGE_BYTES {
        return options.populate().map_anon();
    }
    let memory = options.map_anon()?;
    // A system that takes no such advice brings the pages when they are written.
    #[cfg(target_os = "linux")]
    for advice in [memmap2::Advice::HugePage, memmap2::Advice::PopulateWrite] {
        let _ = memory.advise(advice);
    }
    Ok(memory)
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_the_bytes_and_takes_any_range_of_advice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        fs::write(&path, vec![7u8; 10_000]).unwrap();
        let map = Map::open(&path).unwrap();
        assert_eq!(&map[..], &[7u8; 10_000][..]);
        assert_eq!(map.path(), path);
        for range in [0..10_000, 5000..6000, 9999..usize::MAX, 20_000..30_000, 3..3] {
            for access in [Access::Sequential, Access::Random, Access::WillNeed] {
                map.advise(access, range.clone()).unwrap();
            }
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let shown = dir.path().display().to_string();
        let message = |path: &Path| Map::open(path).unwrap_err().to_string();

        assert_eq!(
            message(dir.path()),
            format!("{shown} is a folder, not a file; name the model file itself")
        );
        let missing = message(&dir.path().join("none"));
        assert!(missing.starts_with(&format!("cannot open {shown}")), "{missing}");
        assert!(missing.ends_with("; check the path"), "{missing}");

        let empty = dir.path().join("empty");
        fs::write(&empty, b"").unwrap();
        assert!(message(&empty).ends_with("empty is empty; fetch or copy it again"));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_may_not_be_read_is_named() {
        use std::os::unix::fs::PermissionsExt;
        if rustix::process::geteuid().is_root() {
            return; // Root may read everything.
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locked");
        fs::write(&path, b"x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        let message = Map::open(&path).unwrap_err().to_string();
        assert!(message.ends_with("; check who may access it"), "{message}");
    }
}
