//! A checked view of one packed matrix: what kernels take.

use super::p32::{PlaneShape, TILE_ROWS, unpack_row};
use super::params::{ParamKind, SUPERBLOCK};
use super::{GROUPS, GROUPS_LIST, MAX_PLANES};
use crate::error::{Error, Result};
use half::f16;

/// One packed matrix, borrowed from wherever it lies (usually a memory map). All lengths were checked
/// when it was made, so kernels need not.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    shape: PlaneShape,
    group: usize,
    kind: ParamKind,
    planes: [&'a [u8]; MAX_PLANES],
    count: usize,
    params: &'a [u8],
    row_scales: &'a [u8],
}

impl<'a> Packed<'a> {
    /// Checks that the buffers fit the shape.
    ///
    /// `planes`: 1 to 8 whole planes; `params`: the set valid for exactly these planes;
    /// `row_scales`: f16 `[tile][scale block][coefficient][32]` for the int8 kinds, else empty. No alignment
    /// is asked for.
    ///
    /// # Errors
    /// [`Error::Shape`] for a plane count, group or size that no kernel knows, [`Error::Length`] for a
    /// buffer of another size than the shape's.
    pub fn new(
        shape: PlaneShape,
        group: usize,
        kind: ParamKind,
        planes: &[&'a [u8]],
        params: &'a [u8],
        row_scales: &'a [u8],
    ) -> Result<Packed<'a>> {
        let too_large = || Error::Shape {
            what: "rows x columns",
            found: usize::MAX,
            allowed: "less than the address space",
        };
        if planes.is_empty() || planes.len() > MAX_PLANES {
            return Err(Error::Shape { what: "number of planes", found: planes.len(), allowed: "1 to 8" });
        }
        if !GROUPS.contains(&group) {
            return Err(Error::Shape { what: "group", found: group, allowed: GROUPS_LIST });
        }
        let plane_bytes = shape.plane_bytes().ok_or_else(too_large)?;
        let check = |what: String, expected, found| {
            if expected == found { Ok(()) } else { Err(Error::Length { what, expected, found }) }
        };
        for (p, plane) in planes.iter().enumerate() {
            check(format!("plane {p}"), plane_bytes, plane.len())?;
        }
        let set = kind.set_bytes(shape, planes.len(), group).ok_or_else(too_large)?;
        check("parameter set".into(), set, params.len())?;
        check("row scales".into(), kind.row_scale_bytes(shape, planes.len()), row_scales.len())?;
        let mut all: [&[u8]; MAX_PLANES] = [&[]; MAX_PLANES];
        all[..planes.len()].copy_from_slice(planes);
        Ok(Packed { shape, group, kind, planes: all, count: planes.len(), params, row_scales })
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
    /// The planes, lowest first.
    pub fn planes(&self) -> &[&'a [u8]] {
        &self.planes[..self.count]
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
        self.planes().iter().map(|p| p.len()).sum::<usize>() + self.params.len() + self.row_scales.len()
    }

    /// Coefficient `k` of a row and group as f32: exact, int8 kinds included.
    pub fn coefficient(&self, row: usize, group: usize, k: usize) -> f32 {
        let n = self.kind.coefficients(self.count);
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
            // One group is at most 256 columns and starts at a pair: unpack just its part of the row.
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
                    w.fill(coef(self.count));
                    for p in 0..self.count {
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

    fn unpack_group(&self, row: usize, group: usize, codes: &mut [u8]) {
        use super::p32::{BLOCK_BYTES, PAIR_COLS};
        let skip = group * self.group / PAIR_COLS * BLOCK_BYTES;
        let tile = row / TILE_ROWS * self.shape.tile_bytes();
        let mut parts: [&[u8]; MAX_PLANES] = [&[]; MAX_PLANES];
        for (part, plane) in parts.iter_mut().zip(self.planes()) {
            *part = &plane[tile + skip..tile + self.shape.tile_bytes()];
        }
        unpack_row(PlaneShape { rows: 1, cols: codes.len() }, &parts[..self.count], row % TILE_ROWS, codes);
    }
}
