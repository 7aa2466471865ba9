//! Matrices of planes or codes in a GGUF file: their names, their types, and their lines in the directory `lutite.tensors`.
//! (Those of levels are in [`super::levels`].)
//!
//! A linear layer `blk.3.ffn_up` with q planes is made of the tensors
//!
//! | name | type | dimensions (fastest first) |
//! |---|---|---|
//! | `blk.3.ffn_up.p0` .. `.p{q-1}` (`hlq16`, `hlq8`) | I8 | `[bytes of a tile, tiles]`, layout P32 |
//! | `blk.3.ffn_up.c8`, `.c4`, `.c2`, `.c1` (the other kinds), those that q is made of | I8 | `[bytes of a tile, tiles]`, layout C32 |
//! | `blk.3.ffn_up.s{q}` | F16, or I8 for `hlq8`, `uniformk`, `centeredk` | `[32, coefficients, groups, tiles]` |
//! | `blk.3.ffn_up.r{q}` (`hlq8`) | F16 | `[32, coefficients, tiles]` |
//! | `blk.3.ffn_up.r{q}` (`uniformk`, `centeredk`) | F16 | `[32, coefficients, superblocks of 256 columns, tiles]` |
//!
//! and of one line in the string array `lutite.tensors`, e.g.
//! `blk.3.ffn_up kind=uniform rows=1536 cols=576 planes=4 group=32` or
//! `output kind=centered:128 rows=49152 cols=576 planes=8 group=32`.

use lutite_kernels::ggml::GgmlType;
use lutite_kernels::pack::p32::TILE_ROWS;
use lutite_kernels::pack::{GROUPS, GROUPS_LIST, MAX_PLANES, ParamKind, PlaneShape, c32, p32};

/// Version of the packed format that is read and written.
pub const FORMAT_VERSION: u32 = 2;

/// Prefix of `general.architecture` in packed files, so that other programs refuse them by name.
pub const ARCH_PREFIX: &str = "lut-";

/// Rows and columns of a packed matrix are below this: far above any model, and no product of the two with
/// what belongs to a weight overflows.
pub(super) const MAX_SIDE: usize = 1 << 24;

/// [`MAX_SIDE`], for messages.
pub(super) const SIDES: &str = "rows and cols must be below 16777216";

/// The layouts' names and hashes as written under `lutite.layout`.
pub fn layout_tag() -> String {
    let (p, c) = (p32::LAYOUT_HASH, c32::LAYOUT_HASH);
    format!("{} {p:016x} {} {c:016x}", p32::LAYOUT_ID, c32::LAYOUT_ID)
}

/// One line of `lutite.tensors`: shape and kind of a packed matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedInfo {
    /// Name without a suffix, e.g. `blk.3.ffn_up`.
    pub name: String,
    /// Kind of the parameters.
    pub kind: ParamKind,
    /// Rows and columns.
    pub shape: PlaneShape,
    /// Number of planes, or bits of a code.
    pub planes: usize,
    /// Columns per group.
    pub group: usize,
}

impl PackedInfo {
    /// Reads a line of `lutite.tensors`.
    ///
    /// # Errors
    /// What is wrong with it, in words. Lengths are not judged here: tensors are held to them when they
    /// are looked up.
    pub fn parse(line: &str) -> Result<PackedInfo, String> {
        let bad = |why: &str| bad_line(line, why);
        let (name, kind, [rows, cols, planes, group]) = words(line, ["rows", "cols", "planes", "group"])?;
        let kind = parse_kind(kind).ok_or_else(|| bad("unknown kind"))?;
        if !(1..=MAX_PLANES).contains(&planes) || !GROUPS.contains(&group) || rows == 0 || cols == 0 {
            let why = format!("planes must be 1 to 8, group {GROUPS_LIST}, rows and cols above 0");
            return Err(bad(&why));
        }
        if rows >= MAX_SIDE || cols >= MAX_SIDE {
            return Err(bad(SIDES));
        }
        let info =
            PackedInfo { name: name.to_owned(), kind, shape: PlaneShape { rows, cols }, planes, group };
        info.bytes().ok_or_else(|| bad("larger than the address space"))?;
        Ok(info)
    }

    /// The line of `lutite.tensors`.
    pub fn line(&self) -> String {
        let kind = match self.kind {
            ParamKind::Centered(c) | ParamKind::CenteredK(c) => format!("{}:{c}", self.kind.name()),
            k => k.name().to_owned(),
        };
        let PlaneShape { rows, cols } = self.shape;
        format!(
            "{} kind={kind} rows={rows} cols={cols} planes={} group={}",
            self.name, self.planes, self.group
        )
    }

    /// The format in a few words for people, e.g. `uniform q=4 g=32`.
    pub fn format(&self) -> String {
        format!("{} q={} g={}", self.kind.name(), self.planes, self.group)
    }

    /// Bytes of all of its tensors; `None` on overflow.
    pub fn bytes(&self) -> Option<usize> {
        let parts = |sum: usize, width: &usize| sum.checked_add(self.kind.part_bytes(self.shape, *width)?);
        let planes = self.kind.widths(self.planes).iter().try_fold(0, parts)?;
        let params = self.kind.set_bytes(self.shape, self.planes, self.group)?;
        let scales = self.kind.row_scale_bytes(self.shape, self.planes);
        planes.checked_add(params)?.checked_add(scales)
    }

    /// Names of the tensors of its planes or fields, lowest bits first.
    pub fn part_names(&self) -> Vec<String> {
        let widths = self.kind.widths(self.planes).iter().enumerate();
        let name = |(p, width): (usize, &usize)| match self.kind.is_uniform() {
            true => format!("{}.c{width}", self.name),
            false => format!("{}.p{p}", self.name),
        };
        widths.map(name).collect()
    }
    /// Name of the parameter set's tensor.
    fn params_name(&self) -> String {
        format!("{}.s{}", self.name, self.planes)
    }
    /// Name of the tensor of the int8 coefficients' scales, for kinds that have one.
    fn row_scales_name(&self) -> Option<String> {
        (self.kind.scale_blocks(self.shape.cols) > 0).then(|| format!("{}.r{}", self.name, self.planes))
    }

    /// Its tensors in file order: name, type, dimensions.
    pub fn tensors(&self) -> Vec<(String, GgmlType, Vec<u64>)> {
        let n = |x: usize| x as u64;
        let tiles = n(self.shape.tiles());
        let coefficients = n(self.kind.coefficients(self.planes));
        let groups = n(self.shape.groups(self.group));
        let parts = self.part_names().into_iter().zip(self.kind.widths(self.planes));
        let dims = |width: &usize| vec![n(self.kind.part_tile_bytes(self.shape, *width)), tiles];
        let mut all: Vec<_> = parts.map(|(name, width)| (name, GgmlType::I8, dims(width))).collect();
        let ty = if self.kind.coefficient_bytes() == 1 { GgmlType::I8 } else { GgmlType::F16 };
        all.push((self.params_name(), ty, vec![n(TILE_ROWS), coefficients, groups, tiles]));
        if let Some(name) = self.row_scales_name() {
            let blocks = n(self.kind.scale_blocks(self.shape.cols));
            let dims = match self.kind {
                ParamKind::Hlq8 => vec![n(TILE_ROWS), coefficients, tiles],
                _ => vec![n(TILE_ROWS), coefficients, blocks, tiles],
            };
            all.push((name, GgmlType::F16, dims));
        }
        all
    }
}

/// The name, the kind and the numbers of `keys` of a line of `lutite.tensors`, all of which it must have.
pub(super) fn words<'l, const N: usize>(
    line: &'l str,
    keys: [&str; N],
) -> Result<(&'l str, &'l str, [usize; N]), String> {
    let bad = |why: &str| bad_line(line, why);
    let mut words = line.split(' ');
    let name = words.next().filter(|n| !n.is_empty()).ok_or_else(|| bad("no name"))?;
    let (mut kind, mut numbers) = (None, [None; N]);
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| bad("expected key=value"))?;
        match keys.iter().position(|k| *k == key) {
            Some(i) => numbers[i] = Some(value.parse().map_err(|_| bad("expected a number"))?),
            None if key == "kind" => kind = Some(value),
            None => return Err(bad("unknown key")),
        }
    }
    let kind = kind.ok_or_else(|| bad("no kind"))?;
    if numbers.contains(&None) {
        return Err(bad(&format!("{} are all needed", keys.join(", "))));
    }
    Ok((name, kind, numbers.map(Option::unwrap_or_default)))
}

pub(super) fn bad_line(line: &str, why: &str) -> String {
    format!("lutite.tensors entry {line:?}: {why}")
}

fn parse_kind(s: &str) -> Option<ParamKind> {
    match s.split_once(':') {
        None => match s {
            "hlq16" => Some(ParamKind::Hlq16),
            "hlq8" => Some(ParamKind::Hlq8),
            "uniform" => Some(ParamKind::Uniform),
            "uniformk" => Some(ParamKind::UniformK),
            _ => None,
        },
        Some(("centered", c)) => c.parse().ok().map(ParamKind::Centered),
        Some(("centeredk", c)) => c.parse().ok().map(ParamKind::CenteredK),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back_and_bad_ones_say_why() {
        for kind in [
            ParamKind::Hlq16,
            ParamKind::Hlq8,
            ParamKind::Uniform,
            ParamKind::Centered(128),
            ParamKind::UniformK,
            ParamKind::CenteredK(32),
        ] {
            let shape = PlaneShape { rows: 49152, cols: 576 };
            let i = PackedInfo { name: "blk.0.ffn_up".into(), kind, shape, planes: 8, group: 32 };
            assert_eq!(PackedInfo::parse(&i.line()).unwrap(), i);
        }
        for (line, why) in [
            ("", "no name"),
            ("a kind=hlq16 rows=1 cols=1 planes=1", "all needed"),
            ("a kind=magic rows=1 cols=1 planes=1 group=32", "unknown kind"),
            ("a rows=1 cols=1 planes=1 group=32", "no kind"),
            ("a kind=hlq8 rows=1 cols=1 planes=9 group=32", "planes must be"),
            ("a kind=hlq8 rows=1 cols=1 planes=1 group=33", "group 16, 32"),
            ("a kind=hlq8 rows=x cols=1 planes=1 group=32", "expected a number"),
            ("a kind=hlq8 rows=1 cols=1 planes=1 group=32 color=red", "unknown key"),
            ("a kind=hlq8 rows=18446744073709551615 cols=99 planes=8 group=32", "below 16777216"),
            ("a kind=hlq8 rows=9223372036854775808 cols=1 planes=1 group=32", "below 16777216"),
        ] {
            let e = PackedInfo::parse(line).unwrap_err();
            assert!(e.contains(why), "{e}");
        }
    }
}
