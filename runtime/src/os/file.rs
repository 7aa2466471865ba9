//! Reading at a place in a file, whoever else reads it.

use crate::error::{Error, Result};
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A file to read parts of. It may grow in the meantime.
#[derive(Debug)]
pub struct DataFile {
    file: File,
    path: PathBuf,
}

impl DataFile {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub fn open(path: &Path) -> Result<DataFile> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        Ok(DataFile { file, path: path.to_owned() })
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its bytes by now; 0 where the system does not tell.
    pub(crate) fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |about| about.len())
    }

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::Io`], also where the file ends before.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        read_at(&self.file, buf, offset).map_err(Error::io(&self.path, "read"))
    }

    /// Says that these bytes will be read soon. Where the system does not listen they are read no later than without.
    pub(crate) fn ahead(&self, range: Range<u64>) {
        // Of no bytes at all some systems would take all that follow.
        let Some(bytes) = range.end.checked_sub(range.start).and_then(NonZeroU64::new) else { return };
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = rustix::fs::fadvise(&self.file, range.start, Some(bytes), rustix::fs::Advice::WillNeed);
        #[cfg(target_vendor = "apple")]
        let _ = rustix::fs::fcntl_rdadvise(&self.file, range.start, bytes.get());
        #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
        let _ = bytes;
    }
}

#[cfg(unix)]
fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buf, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => (buf, offset) = (&mut buf[n..], offset + n as u64),
        }
    }
    Ok(())
}
