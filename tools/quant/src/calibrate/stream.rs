//! What flows between layers, in a file: a row of f32 for each token.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

pub(super) struct Stream {
    path: PathBuf,
    file: File,
    width: usize,
    bytes: Vec<u8>,
}

impl Stream {
    /// An empty file in place of any other, for rows of `width` numbers.
    pub(super) fn create(path: &Path, width: usize) -> Result<Stream> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.map_err(|e| failed(path, &e))?;
        Ok(Stream { path: path.to_owned(), file, width, bytes: Vec::new() })
    }

    /// A file that is there.
    pub(super) fn open(path: &Path, width: usize) -> Result<Stream> {
        let file = File::open(path).map_err(|e| failed(path, &e))?;
        Ok(Stream { path: path.to_owned(), file, width, bytes: Vec::new() })
    }

    /// Reads the rows from `first` on.
    pub(super) fn read(&mut self, first: usize, out: &mut [f32]) -> Result<()> {
        self.bytes.resize(4 * out.len(), 0);
        let at = SeekFrom::Start(4 * (first * self.width) as u64);
        let done = self.file.seek(at).and_then(|_| self.file.read_exact(&mut self.bytes));
        done.map_err(|e| failed(&self.path, &e))?;
        out.iter_mut().zip(self.bytes.as_chunks().0).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
        Ok(())
    }

    /// Writes the rows from `first` on.
    pub(super) fn write(&mut self, first: usize, x: &[f32]) -> Result<()> {
        self.bytes.clear();
        self.bytes.extend(x.iter().flat_map(|x| x.to_le_bytes()));
        let at = SeekFrom::Start(4 * (first * self.width) as u64);
        let done = self.file.seek(at).and_then(|_| self.file.write_all(&self.bytes));
        done.map_err(|e| failed(&self.path, &e))
    }

    /// Brings all of it to the disk.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| failed(&self.path, &e))
    }

    /// xxh3-64 of the whole file.
    pub(super) fn hash(&mut self) -> Result<u64> {
        let mut hash = Xxh3::new();
        let mut part = vec![0; 1 << 20];
        let mut read = || -> std::io::Result<()> {
            self.file.rewind()?;
            loop {
                match self.file.read(&mut part)? {
                    0 => return Ok(()),
                    n => hash.update(&part[..n]),
                }
            }
        };
        read().map_err(|e| failed(&self.path, &e))?;
        Ok(hash.digest())
    }
}

pub(super) fn failed(path: &Path, e: &std::io::Error) -> Error {
    Error::Work { path: path.to_owned(), why: e.to_string() }
}
