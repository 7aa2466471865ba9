//! Where versions of matrices come from, and where they lie while they are resident.
//!
//! Either they stay in the file's map: reading one is bringing its pages into memory, and the system takes them back when it
//! wants to. Or each is read into memory of its own, which is counted and goes back to the system when the version is dropped:
//! the home for those who have a budget. Of a matrix of levels only those that are not there are read, each into memory of its own, so
//! that fewer levels need nothing to be read. Every version is held against its tensors' checksums when it is read.

use crate::error::{Error, Result};
use crate::os::file::DataFile;
use crate::os::map;
use crate::store::{Bytes, Gguf, Loaded, MatrixInfo, TensorInfo};
use memmap2::MmapMut;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of memory that versions take.
#[derive(Debug, Default)]
pub struct Account {
    now: AtomicU64,
    peak: AtomicU64,
    read: AtomicU64,
}

impl Account {
    /// Now.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// At the most so far.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Read from the file so far.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: u64) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }
}

/// See the module's head.
#[derive(Clone, Debug)]
pub enum Home {
    /// The file's map, all of it.
    Map(Bytes),
    /// Memory of its own, filled from the file.
    Memory {
        /// To read from.
        file: Arc<DataFile>,
        /// Counts what is taken.
        account: Arc<Account>,
    },
}

/// A version of a matrix in the file.
#[derive(Clone, Debug)]
pub struct Piece {
    /// What it is.
    pub info: MatrixInfo,
    /// Its tensors, by what comes and goes together.
    portions: Vec<Portion>,
}

/// Bytes behind a version that the disk is told of: some versions of a small model.
const BEHIND_BYTES: u64 = 2 << 20;

/// Where each of some tensors lies, and xxh3-64 of it, if that is known.
type Portion = Vec<(Range<u64>, Option<u64>)>;

/// Memory that is counted.
struct Counted {
    memory: MmapMut,
    account: Arc<Account>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.account.now.fetch_sub(self.memory.len() as u64, Ordering::Relaxed);
    }
}

impl Piece {
    /// Finds a version's tensors; `sums` are those of the file's tensors in listing order, or none, where they are not to be
    /// held against them.
    ///
    /// # Errors
    /// As [`MatrixInfo::find`].
    pub fn find(gguf: &Gguf<'_>, info: &MatrixInfo, sums: &[u64]) -> Result<Piece> {
        let sum = |name: &str| gguf.position(name).and_then(|i| sums.get(i)).copied();
        let tensor = |t: &&TensorInfo<'_>| (t.offset..t.offset + t.bytes(), sum(t.name));
        let found = info.find(gguf)?;
        let portions = found.chunks(info.portion()).map(|p| p.iter().map(tensor).collect()).collect();
        Ok(Piece { info: info.clone(), portions })
    }

    /// Those that somebody who has the version `have` of this matrix lacks.
    fn missing(&self, have: Option<&MatrixInfo>) -> &[Portion] {
        let shared = have.map_or(0, |have| self.info.shared(have));
        self.portions.get(shared / self.info.portion()..).unwrap_or_default()
    }

    /// Where the first of its tensors begins in the file.
    pub fn start(&self) -> u64 {
        self.portions.first().map_or(0, |portion| range(portion).start)
    }

    /// Bytes of memory that it takes beside the version `have` of this matrix.
    pub fn bytes_beside(&self, have: &MatrixInfo) -> u64 {
        let bytes = |range: Range<u64>| range.end - range.start;
        self.missing(Some(have)).iter().map(|portion| bytes(range(portion))).sum()
    }
}

/// From the first byte to the last.
fn range(portion: &Portion) -> Range<u64> {
    let start = portion.iter().map(|(r, _)| r.start).min().unwrap_or(0);
    start..portion.iter().map(|(r, _)| r.end).max().unwrap_or(0)
}

impl Home {
    /// Brings a version into memory; what it shares with `have`, another version of the matrix, is taken from there.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Packed`], which name the matrix: a file that ends before, a checksum that is wrong.
    pub fn load(&self, piece: &Piece, have: Option<&Loaded>) -> Result<Loaded> {
        let info = piece.info.clone();
        let shared = have.map_or(0, |have| info.shared(&have.info));
        let mut tensors: Vec<Bytes> =
            have.iter().flat_map(|have| &have.tensors).take(shared).cloned().collect();
        for portion in piece.missing(have.map(|have| &have.info)) {
            tensors.extend(self.load_portion(info.name(), portion)?);
        }
        Ok(Loaded { info, tensors })
    }

    /// Says that [`Home::load`] will be called with this version, beside the version `have` of the matrix.
    pub(super) fn ahead(&self, piece: &Piece, have: &MatrixInfo) {
        if let Home::Memory { file, .. } = self {
            piece.missing(Some(have)).iter().for_each(|portion| file.ahead(range(portion)));
        }
    }

    /// As [`Home::load`] without another version, for those who go through the file from its beginning: the disk is told of what
    /// lies behind.
    ///
    /// # Errors
    /// As [`Home::load`].
    pub fn load_in_order(&self, piece: &Piece) -> Result<Loaded> {
        if let (Home::Memory { file, .. }, Some(last)) = (self, piece.portions.last()) {
            let end = range(last).end;
            file.ahead(end..end.saturating_add(BEHIND_BYTES));
        }
        self.load(piece, None)
    }

    /// Brings tensors that lie together into memory of their own, which goes back to the system with the last of them.
    fn load_portion(&self, name: &str, portion: &Portion) -> Result<Vec<Bytes>> {
        let all = range(portion);
        let (whole, start) = match self {
            Home::Map(bytes) => (bytes.clone(), 0),
            Home::Memory { file, account } => {
                let len = usize::try_from(all.end - all.start).unwrap_or(usize::MAX);
                let memory = map::memory(len).map_err(Error::io(file.path(), "take memory for"))?;
                account.add(memory.len() as u64);
                let mut counted = Counted { memory, account: account.clone() };
                file.read(&mut counted.memory[..len], all.start)?;
                account.read.fetch_add(len as u64, Ordering::Relaxed);
                (Bytes::new(counted), all.start)
            }
        };
        let part = |(range, sum): &(Range<u64>, Option<u64>)| {
            let at = |n: u64| usize::try_from(n - start).unwrap_or(usize::MAX);
            let part = whole.range(at(range.start)..at(range.end));
            match part {
                Some(part) if sum.is_none_or(|sum| xxh3_64(&part) == sum) => Ok(part),
                Some(_) => Err(Error::Packed(format!(
                    "{name} (bytes {} to {}) does not match its checksum; fetch or copy the file again",
                    range.start, range.end
                ))),
                None => Err(Error::Packed(format!("{name} lies behind the end of the file"))),
            }
        };
        portion.iter().map(part).collect()
    }

    /// Bytes of the file as it is now: one that is still arriving grows.
    pub(super) fn len(&self) -> u64 {
        match self {
            Home::Map(bytes) => bytes.len() as u64,
            Home::Memory { file, .. } => file.bytes(),
        }
    }

    /// What counts the memory, if it is any of its own.
    pub fn account(&self) -> Option<&Account> {
        match self {
            Home::Map(_) => None,
            Home::Memory { account, .. } => Some(account),
        }
    }
}
