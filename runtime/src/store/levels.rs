//! Matrices of levels in a GGUF file (kind `bitstack`): signs, and magnitudes of low rank ([`lutite_kernels::pack::SignLevel`]).
//!
//! `blk.3.ffn_up` with L levels of rank K is made of the tensors of each level `i` from 0 on
//!
//! | name | type | dimensions (fastest first) |
//! |---|---|---|
//! | `blk.3.ffn_up.b{i}.sg` | I8 | `[bytes of a tile, tiles]`, layout P32 |
//! | `blk.3.ffn_up.b{i}.u` | F16 | `[rows, K]` |
//! | `blk.3.ffn_up.b{i}.v` | F16 | `[cols, K]` |
//!
//! and of one line in `lutite.tensors`: `blk.3.ffn_up kind=bitstack rows=1536 cols=576 levels=1 rank=4`.
//!
//! A version of it in a stack (`super::stack`) has more levels than the version before, and shares with it those that both have:
//! `blk.3.ffn_up.v1 kind=bitstack ... levels=3 rank=4` names the tensors of `blk.3.ffn_up`'s levels 0 to 2, without `.v1`.

use super::packed::{MAX_SIDE, SIDES, bad_line, words};
use lutite_kernels::ggml::GgmlType;
use lutite_kernels::pack::{MAX_LEVELS, PlaneShape, RANKS};

/// The kind's name in a directory.
pub(super) const KIND: &str = "bitstack";

/// Tensors of one level.
pub const LEVEL_TENSORS: usize = 3;

/// One line of `lutite.tensors` of kind `bitstack`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelsInfo {
    /// The matrix' name, such as `blk.3.ffn_up`, and behind it the version's, such as `.v1`, if it is not the least.
    pub name: String,
    /// Rows and columns.
    pub shape: PlaneShape,
    /// Number of levels.
    pub levels: usize,
    /// Rank of the magnitudes.
    pub rank: usize,
}

impl LevelsInfo {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(line: &str) -> Result<LevelsInfo, String> {
        let bad = |why: &str| bad_line(line, why);
        let (name, kind, [rows, cols, levels, rank]) = words(line, ["rows", "cols", "levels", "rank"])?;
        if kind != KIND {
            return Err(bad("unknown kind"));
        }
        if !(1..=MAX_LEVELS).contains(&levels) || !RANKS.contains(&rank) || rows == 0 || cols == 0 {
            return Err(bad("levels must be 1 to 32, rank 1, 2, 4, 8 or 16, rows and cols above 0"));
        }
        if rows >= MAX_SIDE || cols >= MAX_SIDE {
            return Err(bad(SIDES));
        }
        let info = LevelsInfo { name: name.to_owned(), shape: PlaneShape { rows, cols }, levels, rank };
        info.bytes().ok_or_else(|| bad("larger than the address space"))?;
        Ok(info)
    }

    /// The line.
    pub fn line(&self) -> String {
        let PlaneShape { rows, cols } = self.shape;
        let LevelsInfo { name, levels, rank, .. } = self;
        format!("{name} kind={KIND} rows={rows} cols={cols} levels={levels} rank={rank}")
    }

    /// The matrix' name, without that of a version.
    pub fn matrix(&self) -> &str {
        match self.name.rsplit_once(".v") {
            Some((matrix, version)) if version.parse::<usize>().is_ok() => matrix,
            _ => &self.name,
        }
    }

    /// Bytes of all of its levels; `None` on overflow.
    pub fn bytes(&self) -> Option<usize> {
        let factors = self.shape.rows.checked_add(self.shape.cols)?.checked_mul(2 * self.rank)?;
        self.shape.plane_bytes()?.checked_add(factors)?.checked_mul(self.levels)
    }

    /// Its tensors, level by level: name, type, dimensions.
    pub fn tensors(&self) -> Vec<(String, GgmlType, Vec<u64>)> {
        let n = |x: usize| x as u64;
        let (matrix, rank) = (self.matrix(), n(self.rank));
        let PlaneShape { rows, cols } = self.shape;
        let level = |i: usize| {
            let name = |part: &str| format!("{matrix}.b{i}.{part}");
            [
                (name("sg"), GgmlType::I8, vec![n(self.shape.tile_bytes()), n(self.shape.tiles())]),
                (name("u"), GgmlType::F16, vec![n(rows), rank]),
                (name("v"), GgmlType::F16, vec![n(cols), rank]),
            ]
        };
        (0..self.levels).flat_map(level).collect()
    }
}

/// The matrix and the level of a tensor's name, if it is one of a level.
pub(super) fn level_of(tensor: &str) -> Option<(&str, usize)> {
    let (level, part) = tensor.rsplit_once('.')?;
    let (matrix, number) = level.rsplit_once(".b")?;
    let number = number.parse().ok()?;
    ["sg", "u", "v"].contains(&part).then_some((matrix, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back_and_bad_ones_say_why() {
        let shape = PlaneShape { rows: 70, cols: 33 };
        let info = LevelsInfo { name: "blk.0.ffn_up.v12".into(), shape, levels: 3, rank: 2 };
        assert_eq!(LevelsInfo::parse(&info.line()).unwrap(), info);
        assert_eq!(info.matrix(), "blk.0.ffn_up");
        let tensors = info.tensors();
        assert_eq!(tensors[4], ("blk.0.ffn_up.b1.u".into(), GgmlType::F16, vec![70, 2]));
        assert_eq!((tensors.len(), level_of(&tensors[8].0)), (9, Some(("blk.0.ffn_up", 2))));
        let bytes = |(_, ty, dims): &(_, GgmlType, Vec<u64>)| {
            ty.row_bytes(dims[0] as usize).unwrap() * dims[1] as usize
        };
        assert_eq!(tensors.iter().map(bytes).sum::<usize>(), info.bytes().unwrap());
        for (line, why) in [
            ("a kind=bitstack rows=1 cols=1 levels=1", "all needed"),
            ("a kind=bitstack rows=1 cols=1 levels=0 rank=1", "levels must be"),
            ("a kind=bitstack rows=1 cols=1 levels=33 rank=1", "levels must be"),
            ("a kind=bitstack rows=1 cols=1 levels=1 rank=3", "rank 1, 2, 4"),
            ("a kind=bitstack rows=1 cols=16777216 levels=1 rank=1", "below 16777216"),
            ("a kind=bitstack rows=1 cols=1 levels=1 rank=1 group=32", "unknown key"),
            ("a kind=hlq8 rows=1 cols=1 levels=1 rank=1", "unknown kind"),
        ] {
            let e = LevelsInfo::parse(line).unwrap_err();
            assert!(e.contains(why), "{e}");
        }
    }
}
