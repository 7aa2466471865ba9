//! Tables for the products of levels, of one token at a time: they are of `v_i o x`, and so of a matrix and a level.
//!
//! ```text
//! for each token:
//!     a stage:   for each matrix that shares the input, each level, each part of the columns:   build tables
//!     a stage:   products of the matrices' rows with them
//! ```
//!
//! All matrices of a network share one buffer, since only one stage's tables are in use at a time. It has room for the largest
//! set in any version, in which each level takes whole runs:
//!
//! ```text
//! entries  u8   [matrix][level][run][rank][table of 256 columns]     the last run's may be shorter, and leaves a gap behind it
//! scales   f32  [matrix][level][run][rank][3]
//! ```

use crate::error::Result;
use crate::linear::Linear;
use lutite_kernels::isa::Isa;
use lutite_kernels::lut::sign::{self, RUN_COLS};
use lutite_kernels::lut::table::PAIR_BYTES;
use lutite_kernels::lut::{SignTableShape, SignTables};
use lutite_kernels::pack::p32::PAIR_COLS;
use lutite_runtime::os::shared::{ReadGuard, SharedBuf};
use lutite_runtime::pool::Pool;
use lutite_runtime::store::MatrixInfo;

/// Bytes of entries of one vector of a run.
const RUN_BYTES: usize = RUN_COLS / PAIR_COLS * PAIR_BYTES;

/// Runs whose tables one worker builds at a time.
const RUNS_AT_ONCE: usize = 4;

/// What a matrix' tables take; nothing for a matrix of no levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SignShape {
    cols: usize,
    rank: usize,
    levels: usize,
}

impl SignShape {
    pub(crate) fn of(info: &MatrixInfo) -> SignShape {
        match info {
            MatrixInfo::Packed(_) => SignShape::default(),
            MatrixInfo::Levels(info) => {
                SignShape { cols: info.shape.cols, rank: info.rank, levels: info.levels }
            }
        }
    }

    fn runs(self) -> usize {
        self.cols.div_ceil(RUN_COLS)
    }

    /// Bytes of entries of so many runs of one level.
    fn entries(self, runs: usize) -> usize {
        runs * RUN_BYTES * self.rank
    }

    /// Floats of scales of so many runs of one level.
    fn scales(self, runs: usize) -> usize {
        SignTableShape { cols: runs * RUN_COLS, rank: self.rank }.scales_len()
    }

    /// Entries and scales of all levels.
    fn size(self) -> (usize, usize) {
        (self.levels * self.entries(self.runs()), self.levels * self.scales(self.runs()))
    }

    /// Bytes of all that.
    pub(crate) fn bytes(self) -> u64 {
        let (entries, scales) = self.size();
        (entries + size_of::<f32>() * scales) as u64
    }

    /// Portions that the tables are built in.
    fn units(self) -> usize {
        self.levels * self.units_of_level()
    }

    fn units_of_level(self) -> usize {
        self.runs().div_ceil(RUNS_AT_ONCE)
    }
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct SignBufs {
    entries: SharedBuf<u8>,
    scales: SharedBuf<f32>,
}

impl SignBufs {
    /// Room for the tables of any of `groups`, matrices that share an input, in whatever version these will be.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub(crate) fn new<'a>(groups: impl IntoIterator<Item = Vec<&'a Linear>>) -> Result<SignBufs> {
        let largest = |l: &Linear| {
            let sizes = l.infos().map(|info| SignShape::of(info).size());
            sizes.fold((0, 0), |a, b| (a.0.max(b.0), a.1.max(b.1)))
        };
        let (mut entries, mut scales) = (0, 0);
        for group in groups {
            let (e, s) = group.iter().map(|l| largest(l)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
            (entries, scales) = (entries.max(e), scales.max(s));
        }
        let of_one = SignShape { cols: RUN_COLS, rank: 1, levels: 1 };
        Ok(SignBufs {
            entries: SharedBuf::new(entries, RUN_BYTES)?,
            scales: SharedBuf::new(scales, of_one.scales(1))?,
        })
    }

    /// A stage: builds the tables of `x`, the activations of one token, for those matrices of `mats` that are `chosen`.
    pub(crate) fn build<const M: usize>(
        &self,
        pool: &mut Pool,
        isa: Isa,
        x: &[f32],
        mats: [&Linear; M],
        chosen: [bool; M],
    ) {
        let places = places(mats, chosen);
        pool.each(places.iter().map(|p| p.shape.units()).sum(), |mut unit| {
            let mut m = 0;
            while unit >= places[m].shape.units() {
                unit -= places[m].shape.units();
                m += 1;
            }
            let Place { shape, entries, scales } = places[m];
            let (level, first) =
                (unit / shape.units_of_level(), unit % shape.units_of_level() * RUNS_AT_ONCE);
            let runs = RUNS_AT_ONCE.min(shape.runs() - first);
            let from = first * RUN_COLS;
            let x = &x[from..(from + runs * RUN_COLS).min(shape.cols)];
            let entries = entries + level * shape.entries(shape.runs()) + shape.entries(first);
            let scales = scales + level * shape.scales(shape.runs()) + shape.scales(first);
            let mut e = self.entries.write(entries..entries + shape.entries(runs));
            let mut s = self.scales.write(scales..scales + shape.scales(runs));
            let len = SignTableShape { cols: x.len(), rank: shape.rank }.entries_len();
            mats[m].with_levels(|w| sign::build(isa, &w.as_slice()[level], from, x, &mut e[..len], &mut s));
        });
    }

    /// All tables that were built for `mats`.
    pub(crate) fn read<const M: usize>(&self, mats: [&Linear; M], chosen: [bool; M]) -> SignGuard<'_, M> {
        SignGuard { entries: self.entries.read(), scales: self.scales.read(), places: places(mats, chosen) }
    }
}

/// Where a matrix' tables begin.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    shape: SignShape,
    entries: usize,
    scales: usize,
}

fn places<const M: usize>(mats: [&Linear; M], chosen: [bool; M]) -> [Place; M] {
    let mut places = [Place::default(); M];
    let (mut entries, mut scales) = (0, 0);
    for ((place, mat), chosen) in places.iter_mut().zip(mats).zip(chosen) {
        let shape = if chosen { mat.sign_shape() } else { SignShape::default() };
        *place = Place { shape, entries, scales };
        let (e, s) = shape.size();
        (entries, scales) = (entries + e, scales + s);
    }
    places
}

/// The tables of one token, to read.
pub(crate) struct SignGuard<'a, const M: usize> {
    entries: ReadGuard<'a, u8>,
    scales: ReadGuard<'a, f32>,
    places: [Place; M],
}

impl<const M: usize> SignGuard<'_, M> {
    /// Those of matrix `m`.
    pub(crate) fn of(&self, m: usize) -> LevelTables<'_> {
        let Place { shape, entries, scales } = self.places[m];
        LevelTables { shape, entries: &self.entries[entries..], scales: &self.scales[scales..] }
    }
}

/// The tables of one token for one matrix.
#[derive(Clone, Copy)]
pub(crate) struct LevelTables<'a> {
    shape: SignShape,
    entries: &'a [u8],
    scales: &'a [f32],
}

impl<'a> LevelTables<'a> {
    /// Those of a level.
    ///
    /// # Errors
    /// As [`SignTables::new`].
    pub(crate) fn level(&self, i: usize) -> lutite_kernels::Result<SignTables<'a>> {
        let shape = SignTableShape { cols: self.shape.cols, rank: self.shape.rank };
        let (entries, scales) = (self.shape.entries(self.shape.runs()), self.shape.scales(self.shape.runs()));
        SignTables::new(
            shape,
            &self.entries[i * entries..][..shape.entries_len()],
            &self.scales[i * scales..][..shape.scales_len()],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Input;
    use crate::linear::{Ahead, How, Step, multiply};
    use lutite_kernels::pack::PlaneShape;
    use lutite_kernels::pack::p32::TILE_ROWS;
    use lutite_runtime::decode::Phase;
    use lutite_runtime::os::shared::SharedMat;
    use lutite_runtime::pool::PoolConfig;
    use lutite_runtime::store::{Bytes, LevelsInfo, Loaded};

    fn noise(state: &mut u64) -> u16 {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*state >> 48) as u16
    }

    /// Levels of noise, magnitudes of 1/256 to 1/64 for each rank.
    fn levels(shape: PlaneShape, levels: usize, rank: usize, state: &mut u64) -> Loaded {
        let info = MatrixInfo::from(LevelsInfo { name: "x".into(), shape, levels, rank });
        let tensors = info.tensors().into_iter().enumerate().map(|(i, (_, _, dims))| {
            let n = dims.iter().product::<u64>();
            Bytes::new(match i % 3 {
                0 => (0..n).map(|_| noise(state) as u8).collect::<Vec<u8>>(),
                _ => (0..n).flat_map(|_| (noise(state) & 0x83ff | 0x2c00).to_le_bytes()).collect(),
            })
        });
        Loaded { tensors: tensors.collect(), info }
    }

    /// Matrices of several runs, of other ranks and numbers of levels, whose tables lie behind each other.
    #[test]
    fn products_of_matrices_that_share_an_input() {
        let isa = Isa::detect();
        let cols = 2 * RUNS_AT_ONCE * RUN_COLS + RUN_COLS + 37;
        let sizes = [(70, 3, 2), (33, 1, 16), (64, 2, 1)];
        let mut results: Vec<Vec<f32>> = Vec::new();
        for workers in [1, 3] {
            let mut state = 3;
            let how = How { isa, workers, ahead: Ahead::default(), exact: true };
            let mats = sizes.map(|(rows, count, rank)| {
                let loaded = levels(PlaneShape { rows, cols }, count, rank, &mut state);
                Linear::packed(loaded, how).unwrap()
            });
            let mats = mats.each_ref();
            let mut pool = Pool::new(&PoolConfig { workers, ..PoolConfig::default() }).unwrap();
            let signs = SignBufs::new([mats.to_vec()]).unwrap();
            let scratch = SharedMat::new(workers, 0, 1).unwrap();
            let tokens = 2;
            let mut outs = mats.map(|m| SharedMat::new(tokens, m.rows(), TILE_ROWS).unwrap());
            let step = Step { isa, phase: Phase::Prompt, n: tokens, scratch: &scratch, signs: &signs };
            let mut input = Input::new(tokens, &mats).unwrap();
            input.set_rows(tokens);
            let x: Vec<f32> =
                (0..tokens * cols).map(|_| f32::from(noise(&mut state)) / 65536.0 - 0.5).collect();
            input.fill(&mut pool, &step, &mats, |t, range, out| {
                out.copy_from_slice(&x[t * cols..][..cols][range]);
            });
            multiply(&mut pool, &step, &input, mats, outs.each_ref());
            for ((mat, out), (rows, ..)) in mats.iter().zip(&mut outs).zip(sizes) {
                let mut w = vec![0.0; cols];
                let (mut off, mut all) = (0.0, 0.0);
                for (t, got) in out.as_mut_slice().chunks(rows).enumerate() {
                    for (r, got) in got.iter().enumerate() {
                        mat.row(r, &mut w).unwrap();
                        let expected: f32 = w.iter().zip(&x[t * cols..]).map(|(w, x)| w * x).sum();
                        off += (got - expected).powi(2);
                        all += expected.powi(2);
                    }
                }
                assert!(off < 3e-4 * all, "{off} of {all}");
            }
            results.push(outs.iter_mut().flat_map(|out| out.as_mut_slice().to_vec()).collect());
        }
        assert!(results[0].iter().zip(&results[1]).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
