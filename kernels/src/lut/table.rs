//! Activation tables: what 4 activations add up to under each of their 16 sign patterns.
//!
//! ```text
//! for each chunk of min(group, 64) activations, without the largest where that makes m a third smaller or more
//!   m = max over its 4-tuples of (|x0|+|x1|) + (|x2|+|x3|)      delta = m / 127
//!   entry e of a 4-tuple = 128 + round((+-x0 +-x1 +-x2 +-x3) / delta)    bit i of e set: +x_i
//! for each group: X = sum of its activations, 8 lanes and one tree
//! ```
//!
//! What is left out is added in f32 with its bits' signs: a chunk with one activation of 20 times the others' size would make
//! all of their steps coarse (`docs/speed.md`).
//!
//! Bounds: rounding is monotonic, so no sum exceeds `m`, and `m * (127 / m)` rounds to 127 at most:
//! entries lie in 1..=255. One scale per 64 activations costs an output error of 4e-5 (normalised mean
//! square, Gaussian inputs), a thousandth of 2-bit weights' own error; per 128 it would be 4.8e-5, and
//! with one 20-fold outlier in the tables 1.7e-4.
//!
//! A chunk of all (nearly) zeros has `delta = 0`. A chunk with an infinite or NaN activation gets
//! `delta = NaN`, so that every output that uses it is NaN, on every tier.

use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::pack::p32::PAIR_COLS;
use crate::pack::{GROUPS, GROUPS_LIST};
use crate::simd::{Kernel, LANES, Simd, sum};

/// Activations under one table scale at most: the i16 sums of a 4-plane integer pass are bounded by
/// `15 * 127 * 64 / 4 = 30480` with it.
pub const MAX_CHUNK: usize = 64;

/// Numbers of each chunk: half its delta, half the activation that is not in its tables, and where that is in the chunk.
pub(crate) const PER_CHUNK: usize = 3;

/// A chunk's largest activation is left out of its tables where they are then below this part of what they were.
const APART: f32 = 2.0 / 3.0;

/// Bytes of the two tables of 8 activations.
pub const PAIR_BYTES: usize = 32;

/// Sizes of the tables of one activation vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableShape {
    /// Activations.
    pub cols: usize,
    /// Columns per group of the weights that the tables are for: 16, 32, 64, 128 or 256.
    pub group: usize,
}

impl TableShape {
    /// Activations under one table scale.
    pub const fn chunk(self) -> usize {
        if self.group < MAX_CHUNK { self.group } else { MAX_CHUNK }
    }
    /// Groups, the last one perhaps short.
    pub const fn groups(self) -> usize {
        self.cols.div_ceil(self.group)
    }
    /// Floats per group: its sum `X`, then those of each of its chunks.
    pub const fn scales_per_group(self) -> usize {
        1 + self.group / self.chunk() * PER_CHUNK
    }
    /// Bytes of table entries: 16 per table, activations padded to 8.
    pub const fn entries_len(self) -> usize {
        self.cols.div_ceil(PAIR_COLS) * PAIR_BYTES
    }
    /// Floats of scales.
    pub const fn scales_len(self) -> usize {
        self.groups() * self.scales_per_group()
    }

    fn check(self, entries: usize, scales: usize) -> Result<()> {
        if !GROUPS.contains(&self.group) {
            return Err(Error::Shape { what: "group", found: self.group, allowed: GROUPS_LIST });
        }
        for (what, expected, found) in
            [("table entries", self.entries_len(), entries), ("table scales", self.scales_len(), scales)]
        {
            if expected != found {
                return Err(Error::Length { what: what.into(), expected, found });
            }
        }
        Ok(())
    }
}

/// The tables of one activation vector, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    shape: TableShape,
    entries: &'a [u8],
    scales: &'a [f32],
}

impl<'a> Tables<'a> {
    /// A view of buffers that [`build`] filled.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Shape`] where they do not fit `shape`.
    pub fn new(shape: TableShape, entries: &'a [u8], scales: &'a [f32]) -> Result<Tables<'a>> {
        shape.check(entries.len(), scales.len())?;
        Ok(Tables { shape, entries, scales })
    }
    /// Sizes.
    pub fn shape(&self) -> TableShape {
        self.shape
    }
    /// Table entries, `[cols / 8][2][16]`.
    pub fn entries(&self) -> &'a [u8] {
        self.entries
    }
    /// `[groups][X, chunks of PER_CHUNK numbers]`.
    pub fn scales(&self) -> &'a [f32] {
        self.scales
    }
}

/// Builds the tables of `x`, which may be a part of a longer vector that begins at a group's start:
/// then `shape.cols` is that part's length, and the buffers are the matching parts.
///
/// # Errors
/// [`Error::Length`] or [`Error::Shape`] where the buffers do not fit `shape`.
pub fn build(isa: Isa, shape: TableShape, x: &[f32], entries: &mut [u8], scales: &mut [f32]) -> Result<()> {
    shape.check(entries.len(), scales.len())?;
    if x.len() != shape.cols {
        return Err(Error::Length { what: "activations".into(), expected: shape.cols, found: x.len() });
    }
    isa.run(Build { shape, x, entries, scales });
    Ok(())
}

struct Build<'a> {
    shape: TableShape,
    x: &'a [f32],
    entries: &'a mut [u8],
    scales: &'a mut [f32],
}

impl Kernel for Build<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let group = self.shape.group;
        let chunk = self.shape.chunk();
        let groups = self.x.chunks(group);
        let entries = self.entries.chunks_mut(group / PAIR_COLS * PAIR_BYTES);
        let scales = self.scales.chunks_mut(self.shape.scales_per_group());
        for ((x, entries), scales) in groups.zip(entries).zip(scales) {
            scales.fill(0.0);
            scales[0] = sum(s, x);
            let chunks = x.chunks(chunk).zip(entries.chunks_mut(chunk / PAIR_COLS * PAIR_BYTES));
            for ((x, entries), numbers) in chunks.zip(scales[1..].as_chunks_mut::<PER_CHUNK>().0) {
                let [delta, apart, at] = chunk_tables::<S, MAX_CHUNK>(s, x, entries);
                *numbers = [0.5 * delta, 0.5 * apart, at];
            }
        }
    }
}

/// The entries of one chunk of up to `N` activations, a multiple of 32; returns delta, the activation that is not in them, or
/// 0, and where that is.
#[inline(always)]
pub(super) fn chunk_tables<S: Simd, const N: usize>(s: S, x: &[f32], entries: &mut [u8]) -> [f32; PER_CHUNK] {
    let mut filled = [0.0; N];
    filled[..x.len()].copy_from_slice(x);
    let (blocks, _) = filled[..x.len().next_multiple_of(4 * LANES)].as_chunks_mut();
    let mut m = max_tuple(s, blocks);
    let (mut left, mut place) = (0.0, 0.0);
    if m.is_finite() {
        let at = largest(s, blocks);
        let apart = core::mem::take(&mut blocks[at / (4 * LANES)][at % (4 * LANES)]);
        let others = max_tuple(s, blocks);
        if others < APART * m {
            (left, place, m) = (apart, at as f32, others);
        } else {
            blocks[at / (4 * LANES)][at % (4 * LANES)] = apart;
        }
    }
    // Below 1e-30 the inverse would leave f32's range, and the products f32's precision.
    let (inv, delta) = if !m.is_finite() {
        (0.0, f32::NAN)
    } else if m < 1e-30 {
        (0.0, 0.0)
    } else {
        (127.0 / m, m / 127.0)
    };
    let (pairs, _) = blocks.as_flattened().as_chunks();
    for (x, entries) in pairs.iter().zip(entries.as_chunks_mut().0) {
        s.build_tables(x, inv, entries);
    }
    [delta, left, place]
}

/// Where the largest magnitude is, the first of several.
#[inline(always)]
fn largest<S: Simd>(s: S, x: &[[f32; 4 * LANES]]) -> usize {
    let zero = s.splat(0.0);
    let mut most = zero;
    for x in x.as_flattened().as_chunks().0 {
        let x = s.load(x);
        most = s.max(s.max(x, s.sub(zero, x)), most);
    }
    let most = s.hmax(most);
    for (i, x) in x.iter().enumerate() {
        let at = s.position(x, most);
        if x[at].abs() == most {
            return i * x.len() + at;
        }
    }
    0
}

/// Largest `(|x0|+|x1|) + (|x2|+|x3|)` over the 4-tuples of `x`; infinite or NaN if any of them is.
#[inline(always)]
fn max_tuple<S: Simd>(s: S, x: &[[f32; 4 * LANES]]) -> f32 {
    let (mut best, mut poison) = (s.splat(0.0), s.splat(0.0));
    for x in x {
        let sums = s.tuples(x);
        best = s.max(sums, best);
        poison = s.fma(sums, s.splat(0.0), poison); // 0 unless a sum is infinite or NaN
    }
    s.hmax(best) + s.sum(poison)
}
