//! A checked view of one packed matrix: what kernels take.

use super::p32::{self, PlaneShape, TILE_ROWS};
use super::params::{ParamKind, SUPERBLOCK};
use super::{GROUPS, GROUPS_LIST, MAX_PLANES, c32};
use crate::error::{Error, Result};
use core::fmt;
use half::f16;

/// One packed matrix, borrowed from wherever it lies (usually a memory map). All lengths were checked
/// when it was made, so kernels need not.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    shape: PlaneShape,
    group: usize,
    kind: ParamKind,
    planes: usize,
    /// One for each of `kind.widths(planes)`.
    parts: [&'a [u8]; MAX_PLANES],
    params: &'a [u8],
    row_scales: &'a [u8],
}

impl<'a> Packed<'a> {
    /// Checks that the buffers fit the shape.
    ///
    /// `planes`: 1 to 8 bits of a code; `parts`: whole planes, or for the uniform kinds fields, as
    /// [`ParamKind::widths`] lists them; `params`: the set valid for exactly these planes; `row_scales`: f16
    /// `[tile][scale block][coefficient][32]` for the int8 kinds, else empty. No alignment is asked for.
    ///
    /// # Errors
    /// [`Error::Shape`] for a plane count, group or size that no kernel knows, [`Error::Length`] for a
    /// buffer of another size than the shape's.
    pub fn new(
        shape: PlaneShape,
        group: usize,
        kind: ParamKind,
        planes: usize,
        parts: &[&'a [u8]],
        params: &'a [u8],
        row_scales: &'a [u8],
    ) -> Result<Packed<'a>> {
        let too_large = || Error::Shape {
            what: "rows x columns",
            found: usize::MAX,
            allowed: "less than the address space",
        };
        if !(1..=MAX_PLANES).contains(&planes) {
            return Err(Error::Shape { what: "number of planes", found: planes, allowed: "1 to 8" });
        }
        if !GROUPS.contains(&group) {
            return Err(Error::Shape { what: "group", found: group, allowed: GROUPS_LIST });
        }
        // The name is made only when it is needed: a step makes a view of every matrix, and must not allocate.
        let check = |what: fmt::Arguments<'_>, expected, found| match expected == found {
            true => Ok(()),
            false => Err(Error::Length { what: what.to_string(), expected, found }),
        };
        let widths = kind.widths(planes);
        check(format_args!("planes or fields"), widths.len(), parts.len())?;
        for (i, (part, width)) in parts.iter().zip(widths).enumerate() {
            let expected = kind.part_bytes(shape, *width).ok_or_else(too_large)?;
            check(format_args!("plane or field {i}"), expected, part.len())?;
        }
        let set = kind.set_bytes(shape, planes, group).ok_or_else(too_large)?;
        check(format_args!("parameter set"), set, params.len())?;
        check(format_args!("row scales"), kind.row_scale_bytes(shape, planes), row_scales.len())?;
        let mut all: [&[u8]; MAX_PLANES] = [&[]; MAX_PLANES];
        all[..parts.len()].copy_from_slice(parts);
        Ok(Packed { shape, group, kind, planes, parts: all, params, row_scales })
    }

    /// Rows and columns.
    pub fn shape(&self) -> PlaneShape {
        self.shape
    }
    /// Columns per group.
    pub fn group(&self) -> usize {
        self.group
    }
    /// Kind of the parameter set.
    pub fn kind(&self) -> ParamKind {
        self.kind
    }
    /// Number of planes, or bits of a code.
    pub fn planes(&self) -> usize {
        self.planes
    }
    /// The planes or fields, lowest bits first.
    pub fn parts(&self) -> &[&'a [u8]] {
        &self.parts[..self.kind.widths(self.planes).len()]
    }
    /// The parameter set, `[tile][group][coefficient][32]`.
    pub fn params(&self) -> &'a [u8] {
        self.params
    }
    /// The f16 scales of int8 coefficients, `[tile][scale block][coefficient][32]`, or nothing.
    pub fn row_scales(&self) -> &'a [u8] {
        self.row_scales
    }
    /// Bytes that a matrix-vector product reads.
    pub fn bytes(&self) -> usize {
        self.parts().iter().map(|p| p.len()).sum::<usize>() + self.params.len() + self.row_scales.len()
    }

    /// Coefficient `k` of a row and group as f32: exact, int8 kinds included.
    pub fn coefficient(&self, row: usize, group: usize, k: usize) -> f32 {
        let n = self.kind.coefficients(self.planes);
        let (tile, r) = (row / TILE_ROWS, row % TILE_ROWS);
        let at = ((tile * self.shape.groups(self.group) + group) * n + k) * TILE_ROWS + r;
        let half = |b: &[u8], i: usize| f16::from_le_bytes([b[2 * i], b[2 * i + 1]]).to_f32();
        let blocks = self.kind.scale_blocks(self.shape.cols);
        if blocks == 0 {
            return half(self.params, at);
        }
        let block = if blocks == 1 { 0 } else { group * self.group / SUPERBLOCK };
        let scale = half(self.row_scales, ((tile * blocks + block) * n + k) * TILE_ROWS + r);
        f32::from(self.params[at].cast_signed()) * scale
    }

    /// The weights of one row as f32: the meaning of the format. `out` has `cols` elements.
    ///
    /// For the uniform kinds this is `d * code + m`, product exact and one rounding, as ggml
    /// dequantizes; for the HLQ kinds planes are added to `z` in ascending order.
    ///
    /// # Errors
    /// [`Error::Shape`] for a row outside of the matrix, [`Error::Length`] for a wrong `out`.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        if row >= self.shape.rows {
            return Err(Error::Shape { what: "row", found: row, allowed: "below the matrix' rows" });
        }
        if out.len() != self.shape.cols {
            return Err(Error::Length {
                what: "output row".into(),
                expected: self.shape.cols,
                found: out.len(),
            });
        }
        let mut codes = [0u8; 256];
        for (g, w) in out.chunks_mut(self.group).enumerate() {
            let codes = &mut codes[..w.len()];
            self.unpack_group(row, g, codes);
            let coef = |k| self.coefficient(row, g, k);
            match self.kind {
                ParamKind::Uniform | ParamKind::UniformK => {
                    let (d, m) = (coef(0), coef(1));
                    w.iter_mut().zip(codes).for_each(|(w, c)| *w = d * f32::from(*c) + m);
                }
                ParamKind::Centered(center) | ParamKind::CenteredK(center) => {
                    let d = coef(0);
                    for (w, c) in w.iter_mut().zip(codes) {
                        *w = d * f32::from(i16::from(*c) - i16::from(center));
                    }
                }
                ParamKind::Hlq16 | ParamKind::Hlq8 => {
                    w.fill(coef(self.planes));
                    for p in 0..self.planes {
                        let s = coef(p);
                        for (w, c) in w.iter_mut().zip(&*codes) {
                            *w += if c >> p & 1 == 1 { s } else { 0.0 };
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The planes or fields of one tile; nothing for those that there are not.
    #[inline(always)]
    pub(crate) fn tile_parts(&self, tile: usize) -> [&'a [u8]; MAX_PLANES] {
        let mut parts = self.parts;
        for (part, width) in parts.iter_mut().zip(self.kind.widths(self.planes)) {
            let bytes = self.kind.part_tile_bytes(self.shape, *width);
            *part = &part[tile * bytes..(tile + 1) * bytes];
        }
        parts
    }

    /// The parameters of one tile and group: bytes.
    #[inline(always)]
    pub(crate) fn group_params(&self) -> usize {
        self.kind.coefficients(self.planes) * self.kind.coefficient_bytes() * TILE_ROWS
    }

    /// The parameters of one tile, `[group][coefficient][32]`.
    #[inline(always)]
    pub(crate) fn tile_params(&self, tile: usize) -> &'a [u8] {
        let bytes = self.group_params() * self.shape.groups(self.group);
        &self.params[tile * bytes..(tile + 1) * bytes]
    }

    /// The f16 scales of one tile, `[scale block][coefficient][32]`, or nothing.
    #[inline(always)]
    pub(crate) fn tile_scales(&self, tile: usize) -> &'a [u8] {
        let count = self.kind.coefficients(self.planes);
        let bytes = self.kind.scale_blocks(self.shape.cols) * count * TILE_ROWS * 2;
        &self.row_scales[tile * bytes..(tile + 1) * bytes]
    }

    /// Codes of row `row` from the start of `group` on, as many as `codes` has.
    pub(crate) fn unpack_group(&self, row: usize, group: usize, codes: &mut [u8]) {
        let from = group * self.group;
        let parts = self.tile_parts(row / TILE_ROWS);
        let parts = &parts[..self.parts().len()];
        if self.kind.is_uniform() {
            c32::unpack_row(self.planes, parts, row % TILE_ROWS, from, codes);
        } else {
            p32::unpack_row(parts, row % TILE_ROWS, from, codes);
        }
    }
}
