//! A packed matrix, of planes, codes or levels: its line in a directory, its tensors, its data.

use super::bytes::Bytes;
use super::gguf::{Gguf, TensorInfo};
use super::levels::{KIND, LEVEL_TENSORS, LevelsInfo};
use super::packed::PackedInfo;
use crate::error::{Error, Result};
use lutite_kernels::ggml::GgmlType;
use lutite_kernels::pack::{MAX_LEVELS, MAX_PLANES, Packed, PlaneShape, SignLevels};

/// One line of `lutite.tensors`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MatrixInfo {
    /// Planes or codes.
    Packed(PackedInfo),
    /// Levels.
    Levels(LevelsInfo),
}

impl From<PackedInfo> for MatrixInfo {
    fn from(info: PackedInfo) -> MatrixInfo {
        MatrixInfo::Packed(info)
    }
}

impl From<LevelsInfo> for MatrixInfo {
    fn from(info: LevelsInfo) -> MatrixInfo {
        MatrixInfo::Levels(info)
    }
}

impl MatrixInfo {
    /// Reads a line of `lutite.tensors`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(line: &str) -> Result<MatrixInfo, String> {
        let of_levels = |word: &str| word.strip_prefix("kind=") == Some(KIND);
        match line.split(' ').any(of_levels) {
            true => LevelsInfo::parse(line).map(MatrixInfo::Levels),
            false => PackedInfo::parse(line).map(MatrixInfo::Packed),
        }
    }

    /// The line of `lutite.tensors`.
    pub fn line(&self) -> String {
        match self {
            MatrixInfo::Packed(info) => info.line(),
            MatrixInfo::Levels(info) => info.line(),
        }
    }

    /// Name, of a version in a stack with its suffix.
    pub fn name(&self) -> &str {
        match self {
            MatrixInfo::Packed(info) => &info.name,
            MatrixInfo::Levels(info) => &info.name,
        }
    }

    /// The same under another name.
    pub fn renamed(&self, name: String) -> MatrixInfo {
        match self {
            MatrixInfo::Packed(info) => PackedInfo { name, ..info.clone() }.into(),
            MatrixInfo::Levels(info) => LevelsInfo { name, ..info.clone() }.into(),
        }
    }

    /// Rows and columns.
    pub fn shape(&self) -> PlaneShape {
        match self {
            MatrixInfo::Packed(info) => info.shape,
            MatrixInfo::Levels(info) => info.shape,
        }
    }

    /// The format in a few words for people, e.g. `uniform q=4 g=32` or `bitstack l=3 k=4`.
    pub fn format(&self) -> String {
        match self {
            MatrixInfo::Packed(info) => info.format(),
            MatrixInfo::Levels(info) => format!("{KIND} l={} k={}", info.levels, info.rank),
        }
    }

    /// Bytes of all of its tensors; `None` on overflow.
    pub fn bytes(&self) -> Option<usize> {
        match self {
            MatrixInfo::Packed(info) => info.bytes(),
            MatrixInfo::Levels(info) => info.bytes(),
        }
    }

    /// Its tensors in file order: name, type, dimensions.
    pub fn tensors(&self) -> Vec<(String, GgmlType, Vec<u64>)> {
        match self {
            MatrixInfo::Packed(info) => info.tensors(),
            MatrixInfo::Levels(info) => info.tensors(),
        }
    }

    /// How many of its tensors, from the first on, are those of `other`, another version of the same matrix, as well.
    pub fn shared(&self, other: &MatrixInfo) -> usize {
        match (self, other) {
            (MatrixInfo::Levels(a), MatrixInfo::Levels(b)) => LEVEL_TENSORS * a.levels.min(b.levels),
            _ => 0,
        }
    }

    /// How many of its tensors come and go together: those of a level, or all.
    pub fn portion(&self) -> usize {
        match self {
            MatrixInfo::Packed(_) => usize::MAX,
            MatrixInfo::Levels(_) => LEVEL_TENSORS,
        }
    }

    /// Checks that it can be the version behind `older` in a stack: of the same shape and sort, and of levels more than that.
    pub(super) fn check_behind(&self, older: &MatrixInfo) -> Result<(), &'static str> {
        match (self, older) {
            _ if self.shape() != older.shape() => Err("has another shape than version 0"),
            (MatrixInfo::Packed(_), MatrixInfo::Packed(_)) => Ok(()),
            (MatrixInfo::Levels(new), MatrixInfo::Levels(old)) => {
                let behind = new.rank == old.rank && new.levels > old.levels;
                behind.then_some(()).ok_or("has no more levels than the version before, or another rank")
            }
            _ => Err("has levels, or the version before it has, and not both"),
        }
    }

    /// Its tensors in the file, in the order of [`Self::tensors`]. Their lengths are for [`Self::view`] to judge.
    ///
    /// # Errors
    /// A tensor that is missing or of another type.
    pub fn find<'g, 'a>(&self, gguf: &'g Gguf<'a>) -> Result<Vec<&'g TensorInfo<'a>>> {
        let find = |(name, ty, _): (String, _, _)| {
            let t = gguf.require(&name)?;
            if t.ty == ty {
                return Ok(t);
            }
            let (found, expected) = (t.ty, ty);
            let why = format!("tensor {name:?} has type {found}, expected {expected}; the file is damaged");
            Err(Error::Packed(why))
        };
        self.tensors().into_iter().map(find).collect()
    }

    /// The matrix that is made of these data, in the order of [`Self::tensors`]. Allocates nothing, as a step makes a view of
    /// every matrix.
    ///
    /// # Errors
    /// As [`Packed::new`] and [`SignLevels::new`]: data of other lengths than the shape asks for.
    pub fn view<'a>(&self, data: impl IntoIterator<Item = &'a [u8]>) -> lutite_kernels::Result<View<'a>> {
        match self {
            MatrixInfo::Packed(info) => info.view(data).map(View::Packed),
            MatrixInfo::Levels(info) => {
                let mut levels = [[&[][..]; LEVEL_TENSORS]; MAX_LEVELS];
                for (to, data) in levels.as_flattened_mut().iter_mut().zip(data) {
                    *to = data;
                }
                let levels = levels.into_iter().take(info.levels);
                SignLevels::new(info.shape, info.rank, levels).map(View::Levels)
            }
        }
    }
}

impl PackedInfo {
    /// As [`MatrixInfo::view`].
    ///
    /// # Errors
    /// As [`Packed::new`].
    pub fn view<'a>(&self, data: impl IntoIterator<Item = &'a [u8]>) -> lutite_kernels::Result<Packed<'a>> {
        let mut all: [&[u8]; MAX_PLANES + 2] = [&[]; MAX_PLANES + 2];
        for (to, data) in all.iter_mut().zip(data) {
            *to = data;
        }
        let n = self.kind.widths(self.planes).len();
        let (parts, params, scales) = (&all[..n], all[n], all[n + 1]);
        Packed::new(self.shape, self.group, self.kind, self.planes, parts, params, scales)
    }
}

/// What kernels take.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "a step makes a view of every matrix, and must not allocate")]
pub enum View<'a> {
    /// Planes or codes.
    Packed(Packed<'a>),
    /// Levels.
    Levels(SignLevels<'a>),
}

impl View<'_> {
    /// Rows and columns.
    pub fn shape(&self) -> PlaneShape {
        match self {
            View::Packed(w) => w.shape(),
            View::Levels(w) => w.as_slice()[0].shape(),
        }
    }

    /// Writes the weights of row `row` to `out`, which has as many as the matrix has columns.
    ///
    /// # Errors
    /// A row that there is not, another length of `out`.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> lutite_kernels::Result<()> {
        match self {
            View::Packed(w) => w.dequantize_row(row, out),
            View::Levels(w) => w.dequantize_row(row, out),
        }
    }
}

/// A packed matrix with its data, wherever they lie.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Shape and kind.
    pub info: MatrixInfo,
    /// The data of its tensors, in the order of [`MatrixInfo::tensors`].
    pub tensors: Vec<Bytes>,
}

impl Loaded {
    /// What kernels take.
    ///
    /// # Errors
    /// As [`MatrixInfo::view`].
    pub fn view(&self) -> lutite_kernels::Result<View<'_>> {
        self.info.view(self.tensors.iter().map(|t| &t[..]))
    }

    /// Bytes of its data.
    pub fn bytes(&self) -> usize {
        self.tensors.iter().map(|t| t.len()).sum()
    }
}
