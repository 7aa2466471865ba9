//! Buffers that the workers of one run read and write in turn, checked at run time.
//!
//! The stages of a forward pass hand each other vectors and matrices: one stage writes them in pieces, from
//! all workers at once, the next one reads them whole. `&` and `&mut` cannot say this, so these buffers give
//! out guards, and a guard that does not fit the outstanding ones is a panic.
//!
//! # The rule, and why it holds
//!
//! A matrix is `rows` (tokens) x `dim`, row after row. There are three kinds of guard: *read* (everything),
//! *columns* (whole chunks of columns, in every row) and *row* (one row). Guards of different kinds exclude
//! each other; read guards tolerate each other; two column guards need different chunks and two row guards
//! different rows. Thus no two guards that are alive at once cover a common element, unless both only read.
//!
//! - *Different kinds.* One atomic word counts the guards of each kind, in three fields. A guard is counted by
//!   `fetch_add`, and only granted if the old value shows nobody of another kind. These additions are totally
//!   ordered, so of two guards of different kinds that are alive at once, the later one would have seen the
//!   earlier. A refused guard takes its count back; in the meantime it may cause another refusal, never a
//!   grant.
//! - *Same kind.* Each chunk and each row has a flag, taken by `swap(true)` and granted only if it was clear.
//!   The flag is held for as long as the guard is counted.
//! - *Memory order.* A dropped guard leaves by a releasing `fetch_sub` of the word and a releasing store to
//!   its flags. Between two guards of different kinds, the later acquires the word; all changes of the word
//!   are read-modify-writes, so it synchronises with every guard that left before. Between two writers of the
//!   same chunk or row, the later acquires the flag. Either way the accesses of the earlier guard happen
//!   before those of the later one.
//! - *Leaks.* A guard that is forgotten stays counted, which can only refuse others. Fields cannot run over:
//!   a kind with more than 2^20 guards is refused too, far below the fields' 21 bits.
//!
//! `&mut` access needs no check: no guard borrows the matrix then.
//!
//! A guard costs some four atomic operations and its release half of that, 20 to 100 ns in all according to
//! how many workers are at it: fine for chunks worth 10 us or more, not for single elements.

use memmap2::{MmapMut, MmapOptions};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Alignment of every buffer: a cache line, and the widest vector register.
pub const ALIGN_BYTES: usize = 64;

mod sealed {
    pub trait Sealed {}
}

/// Plain numbers: any thread may hold them, nothing is dropped, and all bits zero is the number zero.
pub trait Plain: sealed::Sealed + Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($t:ty),*) => { $(impl sealed::Sealed for $t {} impl Plain for $t {})* };
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, half::f16, half::bf16);
plain!(lutite_kernels::dot::Block<1>, lutite_kernels::dot::Block<{ lutite_kernels::dot::TOGETHER }>);

/// The system has not the memory for a buffer.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot allocate a buffer of {rows} x {dim} elements of {element_bytes} bytes; use a shorter context"
)]
pub struct AllocError {
    /// Rows asked for.
    pub rows: usize,
    /// Elements per row.
    pub dim: usize,
    /// Size of an element.
    pub element_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read = 0,
    Cols = 1,
    Row = 2,
}

const FIELD_BITS: u32 = 21;
const FIELD_MASK: u64 = (1 << FIELD_BITS) - 1;
const GUARDS_MAX: u64 = 1 << 20;

impl Kind {
    fn one(self) -> u64 {
        1 << (FIELD_BITS * self as u32)
    }

    fn count(self, word: u64) -> u64 {
        (word >> (FIELD_BITS * self as u32)) & FIELD_MASK
    }
}

/// On a cache line of its own, since all workers write it: not next to the pointer that all only read.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counts(AtomicU64);

impl Counts {
    /// Counts a guard, or gives the counts that forbid it.
    fn enter(&self, kind: Kind) -> Result<(), u64> {
        let old = self.0.fetch_add(kind.one(), Ordering::Acquire);
        let others = old & !(FIELD_MASK * kind.one());
        if others != 0 || kind.count(old) >= GUARDS_MAX {
            self.0.fetch_sub(kind.one(), Ordering::Relaxed);
            return Err(old);
        }
        Ok(())
    }

    fn exit(&self, kind: Kind) {
        self.0.fetch_sub(kind.one(), Ordering::Release);
    }
}

/// Takes all of `flags`, or none and gives the place of the one that is taken.
fn take(flags: &[AtomicBool]) -> Result<(), usize> {
    for (i, flag) in flags.iter().enumerate() {
        if flag.swap(true, Ordering::Acquire) {
            release(&flags[..i]);
            return Err(i);
        }
    }
    Ok(())
}

fn release(flags: &[AtomicBool]) {
    flags.iter().for_each(|flag| flag.store(false, Ordering::Release));
}

fn flags(n: usize) -> Box<[AtomicBool]> {
    (0..n).map(|_| AtomicBool::new(false)).collect()
}

/// Bytes of all matrices.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Bytes that all [`SharedMat`]s of this process take, once all of them are touched.
pub fn taken() -> usize {
    TAKEN.load(Ordering::Relaxed)
}

/// A matrix of `rows` (tokens) x `dim`; see the module's head.
#[derive(Debug)]
pub struct SharedMat<T: Plain> {
    counts: Counts,
    data: NonNull<T>,
    /// Where `data` lies. Not from the allocator, which keeps much of what is given back: a program that closes a model
    /// wants its memory again.
    memory: MmapMut,
    rows: usize,
    dim: usize,
    chunk: usize,
    chunk_flags: Box<[AtomicBool]>, // [ceil(dim / chunk)]
    row_flags: Box<[AtomicBool]>,   // [capacity]
}

// SAFETY: the matrix owns its memory and `T` is `Send`.
unsafe impl<T: Plain> Send for SharedMat<T> {}
// SAFETY: access through `&SharedMat` is by guards only, which exclude each other as the module's head shows.
unsafe impl<T: Plain> Sync for SharedMat<T> {}

impl<T: Plain> SharedMat<T> {
    /// A zeroed matrix whose columns are written in chunks of `chunk`; the last chunk may be shorter. The
    /// system gives the memory page by page as it is first touched, and has it back at once when it is dropped.
    ///
    /// # Errors
    /// When the memory cannot be had.
    ///
    /// # Panics
    /// If `chunk` is zero.
    pub fn new(rows: usize, dim: usize, chunk: usize) -> Result<Self, AllocError> {
        assert!(chunk > 0, "SharedMat: chunk must be at least 1");
        let error = AllocError { rows, dim, element_bytes: size_of::<T>() };
        let bytes = rows.checked_mul(dim).and_then(|n| n.checked_mul(size_of::<T>()));
        const { assert!(align_of::<T>() <= ALIGN_BYTES) };
        // A page is more than `ALIGN_BYTES`, and there are no maps of no bytes.
        let memory = bytes.and_then(|bytes| MmapOptions::new().len(bytes.max(1)).map_anon().ok());
        let Some(mut memory) = memory else { return Err(error) };
        // All bits zero is a value of every `Plain` type.
        let Some(data) = NonNull::new(memory.as_mut_ptr().cast::<T>()) else { return Err(error) };
        TAKEN.fetch_add(memory.len(), Ordering::Relaxed);
        let (chunk_flags, row_flags) = (flags(dim.div_ceil(chunk)), flags(rows));
        let counts = Counts::default();
        Ok(SharedMat { counts, data, memory, rows, dim, chunk, chunk_flags, row_flags })
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows that fit.
    pub fn capacity(&self) -> usize {
        self.row_flags.len()
    }

    /// Elements per row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of column chunks.
    pub fn chunks(&self) -> usize {
        self.chunk_flags.len()
    }

    /// The columns of chunk `i`; empty past the last.
    pub fn chunk_cols(&self, i: usize) -> Range<usize> {
        let start = i.saturating_mul(self.chunk).min(self.dim);
        start..start.saturating_add(self.chunk).min(self.dim)
    }

    /// Sets the number of rows in use; their contents stay as they are.
    ///
    /// # Panics
    /// If `rows` is above the capacity.
    pub fn set_rows(&mut self, rows: usize) {
        assert!(rows <= self.capacity(), "SharedMat: {rows} rows do not fit into {}", self.capacity());
        self.rows = rows;
    }

    /// The rows in use, without a check: the borrow is exclusive.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `rows <= capacity`, so the elements lie in the allocation, which is initialised; `&mut self`
        // excludes every guard.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.rows * self.dim) }
    }

    /// Reads all rows in use.
    ///
    /// # Panics
    /// If a write guard is outstanding.
    #[track_caller]
    pub fn read(&self) -> ReadGuard<'_, T> {
        self.enter(Kind::Read, format_args!("read"));
        ReadGuard { mat: self }
    }

    /// Writes the columns `cols` of all rows in use. They must be whole chunks: start at a chunk and end at
    /// one or at `dim`.
    ///
    /// # Panics
    /// If `cols` is not made of whole chunks, or if a guard on any of them, a row or a reader is outstanding.
    #[track_caller]
    pub fn write_cols(&self, cols: Range<usize>) -> ColsGuard<'_, T> {
        let whole = cols.start <= cols.end
            && cols.end <= self.dim
            && cols.start.is_multiple_of(self.chunk)
            && (cols.end.is_multiple_of(self.chunk) || cols.end == self.dim);
        assert!(whole, "{self}: columns {cols:?} are not whole chunks of {}", self.chunk);
        let chunks = cols.start / self.chunk..cols.end.div_ceil(self.chunk);
        let flags = &self.chunk_flags[chunks.clone()];
        if let Err(i) = take(flags) {
            let taken = self.chunk_cols(chunks.start + i);
            panic!("{self}: cannot write columns {cols:?}: {taken:?} is being written by another worker");
        }
        let guard = FlagsGuard(flags);
        self.enter(Kind::Cols, format_args!("write columns {cols:?}"));
        std::mem::forget(guard);
        ColsGuard { mat: self, cols, flags }
    }

    /// Writes column chunk `i` of all rows in use.
    ///
    /// # Panics
    /// As [`SharedMat::write_cols`].
    #[track_caller]
    pub fn write_chunk(&self, i: usize) -> ColsGuard<'_, T> {
        self.write_cols(self.chunk_cols(i))
    }

    /// Writes one row.
    ///
    /// # Panics
    /// If there is no such row, or if a guard on it, on columns or a reader is outstanding.
    #[track_caller]
    pub fn write_row(&self, row: usize) -> RowGuard<'_, T> {
        assert!(row < self.rows, "{self}: no row {row}");
        let flags = &self.row_flags[row..=row];
        assert!(take(flags).is_ok(), "{self}: row {row} is being written by another worker");
        let guard = FlagsGuard(flags);
        self.enter(Kind::Row, format_args!("write row {row}"));
        std::mem::forget(guard);
        RowGuard { mat: self, row }
    }

    #[track_caller]
    fn enter(&self, kind: Kind, what: std::fmt::Arguments<'_>) {
        if let Err(counts) = self.counts.enter(kind) {
            panic!(
                "{self}: cannot {what}: outstanding guards: {} read, {} on columns, {} on rows; \
                 does one stage write what it reads?",
                Kind::Read.count(counts),
                Kind::Cols.count(counts),
                Kind::Row.count(counts)
            );
        }
    }

    /// Start of columns from `col` in `row`.
    fn at(&self, row: usize, col: usize) -> *mut T {
        assert!(row < self.rows, "{self}: no row {row}");
        debug_assert!(col <= self.dim);
        // SAFETY: `row < rows <= capacity` and `col <= dim`, so the place is within the allocation or at its
        // end.
        unsafe { self.data.as_ptr().add(row * self.dim + col) }
    }
}

impl<T: Plain> std::fmt::Display for SharedMat<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "shared matrix {} x {} of {}", self.rows, self.dim, std::any::type_name::<T>())
    }
}

impl<T: Plain> Drop for SharedMat<T> {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.memory.len(), Ordering::Relaxed);
    }
}

/// Gives flags back when a guard is refused.
struct FlagsGuard<'a>(&'a [AtomicBool]);

impl Drop for FlagsGuard<'_> {
    fn drop(&mut self) {
        release(self.0);
    }
}

/// All elements, row after row, to read.
#[derive(Debug)]
pub struct ReadGuard<'a, T: Plain> {
    mat: &'a SharedMat<T>,
}

impl<T: Plain> ReadGuard<'_, T> {
    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[T] {
        assert!(row < self.mat.rows, "{}: no row {row}", self.mat);
        &self[row * self.mat.dim..(row + 1) * self.mat.dim]
    }
}

impl<T: Plain> Deref for ReadGuard<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the elements are allocated and initialised, and nobody writes while read guards are alive.
        unsafe { std::slice::from_raw_parts(self.mat.data.as_ptr(), self.mat.rows * self.mat.dim) }
    }
}

impl<T: Plain> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        self.mat.counts.exit(Kind::Read);
    }
}

/// Some columns of all rows, to write.
#[derive(Debug)]
pub struct ColsGuard<'a, T: Plain> {
    mat: &'a SharedMat<T>,
    cols: Range<usize>,
    flags: &'a [AtomicBool],
}

impl<T: Plain> ColsGuard<'_, T> {
    /// The columns.
    pub fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// This guard's columns of one row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[T] {
        // SAFETY: this guard alone covers these columns, and it is borrowed.
        unsafe { std::slice::from_raw_parts(self.mat.at(row, self.cols.start), self.cols.len()) }
    }

    /// This guard's columns of one row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        // SAFETY: this guard alone covers these columns, and it is mutably borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.mat.at(row, self.cols.start), self.cols.len()) }
    }

    /// This guard's columns of every row, all at once.
    pub fn rows_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [T]> {
        let (mat, cols) = (self.mat, self.cols.clone());
        (0..mat.rows).map(move |row| {
            // SAFETY: this guard alone covers these columns, it is mutably borrowed for as long as the items
            // live, and items are of different rows.
            unsafe { std::slice::from_raw_parts_mut(mat.at(row, cols.start), cols.len()) }
        })
    }
}

impl<T: Plain> Drop for ColsGuard<'_, T> {
    fn drop(&mut self) {
        self.mat.counts.exit(Kind::Cols);
        release(self.flags);
    }
}

/// One row, to write.
#[derive(Debug)]
pub struct RowGuard<'a, T: Plain> {
    mat: &'a SharedMat<T>,
    row: usize,
}

impl<T: Plain> Deref for RowGuard<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: this guard alone covers the row, and it is borrowed.
        unsafe { std::slice::from_raw_parts(self.mat.at(self.row, 0), self.mat.dim) }
    }
}

impl<T: Plain> DerefMut for RowGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: this guard alone covers the row, and it is mutably borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.mat.at(self.row, 0), self.mat.dim) }
    }
}

impl<T: Plain> Drop for RowGuard<'_, T> {
    fn drop(&mut self) {
        self.mat.counts.exit(Kind::Row);
        release(&self.mat.row_flags[self.row..=self.row]);
    }
}

/// A vector: a [`SharedMat`] of one row.
#[derive(Debug)]
pub struct SharedBuf<T: Plain>(SharedMat<T>);

impl<T: Plain> SharedBuf<T> {
    /// A zeroed vector that is written in chunks of `chunk`; the last chunk may be shorter.
    ///
    /// # Errors
    /// When the memory cannot be had.
    ///
    /// # Panics
    /// If `chunk` is zero.
    pub fn new(len: usize, chunk: usize) -> Result<Self, AllocError> {
        SharedMat::new(1, len, chunk).map(SharedBuf)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.dim
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.0.chunks()
    }

    /// The elements of chunk `i`; empty past the last.
    pub fn chunk_range(&self, i: usize) -> Range<usize> {
        self.0.chunk_cols(i)
    }

    /// All elements, without a check: the borrow is exclusive.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        self.0.as_mut_slice()
    }

    /// Reads all elements.
    ///
    /// # Panics
    /// If a write guard is outstanding.
    #[track_caller]
    pub fn read(&self) -> ReadGuard<'_, T> {
        self.0.read()
    }

    /// Writes `range`, which must be whole chunks.
    ///
    /// # Panics
    /// As [`SharedMat::write_cols`].
    #[track_caller]
    pub fn write(&self, range: Range<usize>) -> WriteGuard<'_, T> {
        WriteGuard(self.0.write_cols(range))
    }

    /// Writes chunk `i`.
    ///
    /// # Panics
    /// As [`SharedMat::write_cols`].
    #[track_caller]
    pub fn write_chunk(&self, i: usize) -> WriteGuard<'_, T> {
        WriteGuard(self.0.write_chunk(i))
    }
}

/// Some chunks of a vector, to write.
#[derive(Debug)]
pub struct WriteGuard<'a, T: Plain>(ColsGuard<'a, T>);

impl<T: Plain> Deref for WriteGuard<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.row(0)
    }
}

impl<T: Plain> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.0.row_mut(0)
    }
}
