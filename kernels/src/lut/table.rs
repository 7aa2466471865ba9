//! Activation tables: what 4 activations add up to under each of their 16 sign patterns.
//!
//! ```text
//! for each chunk of min(group, 64) activations
//!   m = max over its 4-tuples of (|x0|+|x1|) + (|x2|+|x3|)      delta = m / 127
//!   entry e of a 4-tuple = 128 + round((+-x0 +-x1 +-x2 +-x3) / delta)    bit i of e set: +x_i
//! for each group: X = sum of its activations, 8 lanes and one tree
//! ```
//!
//! Bounds: rounding is monotonic, so no sum exceeds `m`, and `m * (127 / m)` rounds to 127 at most:
//! entries lie in 1..=255. One scale per 64 activations costs an output error of 4e-5 (normalised mean
//! square, Gaussian inputs), a thousandth of 2-bit weights' own error; per 128 it would be 4.8e-5, and
//! with one 20-fold outlier 1.7e-4.
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
    /// Floats per group: its sum `X`, then half the scale of each of its chunks.
    pub const fn scales_per_group(self) -> usize {
        1 + self.group / self.chunk()
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
    /// `[groups][X, delta / 2 of each chunk]`.
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
            for ((x, entries), half) in chunks.zip(&mut scales[1..]) {
                let m = max_tuple(s, x);
                // Below 1e-30 the inverse would leave f32's range, and the products f32's precision.
                let (inv, delta) = if !m.is_finite() {
                    (0.0, f32::NAN)
                } else if m < 1e-30 {
                    (0.0, 0.0)
                } else {
                    (127.0 / m, m / 127.0)
                };
                *half = 0.5 * delta;
                let (entries, _) = entries.as_chunks_mut::<PAIR_BYTES>();
                let (whole, tail) = x.as_chunks::<PAIR_COLS>();
                for (x, entries) in whole.iter().zip(&mut *entries) {
                    s.build_tables(x, inv, entries);
                }
                if !tail.is_empty() {
                    s.build_tables(&padded(tail), inv, &mut entries[whole.len()]);
                }
            }
        }
    }
}

/// Largest `(|x0|+|x1|) + (|x2|+|x3|)` over the 4-tuples of `x`; infinite or NaN if any of them is.
#[inline(always)]
fn max_tuple<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (whole, tail) = x.as_chunks::<{ 4 * LANES }>();
    let (mut best, mut poison) = (s.splat(0.0), s.splat(0.0));
    for i in 0..whole.len() + usize::from(!tail.is_empty()) {
        let sums = match whole.get(i) {
            Some(x) => s.tuples(x),
            None => s.tuples(&padded(tail)),
        };
        best = s.max(sums, best);
        poison = s.fma(sums, s.splat(0.0), poison); // 0 unless a sum is infinite or NaN
    }
    s.hmax(best) + s.sum(poison)
}

/// A width that is no multiple is filled up with zero activations.
#[inline(always)]
fn padded<const N: usize>(tail: &[f32]) -> [f32; N] {
    let mut x = [0.0; N];
    x[..tail.len()].copy_from_slice(tail);
    x
}
