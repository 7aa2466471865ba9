//! Parameter sets: the scales and zeros that turn bits into weights.
//!
//! A set lies as `[tile][group][coefficient][32 rows]`, so that a kernel reads it in the order in
//! which it walks a tile. What a coefficient is depends on the kind:

use super::p32::{PlaneShape, TILE_ROWS};
use super::{MAX_PLANES, c32};

/// What a parameter set stores for each row and group, and how weights follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// `s_1 .. s_q, z` as f16: `w = z + sum s_p b_p`.
    Hlq16,
    /// The same as int8 under one f16 per row and coefficient (a second buffer,
    /// `[tile][coefficient][32]`): `s_p = int8 * f16`.
    Hlq8,
    /// `d, m` as f16: `w = d * code + m`. The uniform kinds, this one and those below, store whole codes instead of
    /// planes ([`c32`]).
    Uniform,
    /// `d` as f16 alone: `w = d * (code - center)`, one center for the whole matrix. Serves formats
    /// without a minimum (Q4_0, Q5_0, Q8_0, ternary) at their own bits, exactly: a stored
    /// `m = -center * d` could overflow f16.
    Centered(u8),
    /// The same as [`ParamKind::Uniform`] with int8 under one f16 per row, coefficient and 256 columns (a second
    /// buffer, `[tile][superblock][coefficient][32]`): `d = int8 * f16`, `m = int8 * f16`. Serves ggml's K-quants with
    /// a minimum (Q2_K, Q4_K, Q5_K) exactly, at nearly their own bits.
    UniformK,
    /// The same as [`ParamKind::Centered`] with such an int8: Q3_K and Q6_K.
    CenteredK(u8),
}

/// Columns that share the f16 scales of the K kinds.
pub const SUPERBLOCK: usize = 256;

impl ParamKind {
    /// Coefficients stored per row and group for `planes` planes.
    pub const fn coefficients(self, planes: usize) -> usize {
        match self {
            ParamKind::Hlq16 | ParamKind::Hlq8 => planes + 1,
            ParamKind::Uniform | ParamKind::UniformK => 2,
            ParamKind::Centered(_) | ParamKind::CenteredK(_) => 1,
        }
    }
    /// Whether weights are integer codes under one scale: stored in layout [`c32`], else in [`super::p32`].
    pub const fn is_uniform(self) -> bool {
        !matches!(self, ParamKind::Hlq16 | ParamKind::Hlq8)
    }
    /// Bits of each part that codes of `planes` bits are stored in: planes, or fields.
    pub const fn widths(self, planes: usize) -> &'static [usize] {
        const PLANES: &[usize] = &[1; MAX_PLANES];
        if self.is_uniform() {
            return c32::widths(planes);
        }
        PLANES.split_at(if planes < MAX_PLANES { planes } else { MAX_PLANES }).0
    }
    /// Bytes of one tile of a part of `width` bits.
    pub const fn part_tile_bytes(self, shape: PlaneShape, width: usize) -> usize {
        if self.is_uniform() { c32::tile_bytes(shape, width) } else { shape.tile_bytes() }
    }
    /// Bytes of a whole part; `None` on overflow.
    pub const fn part_bytes(self, shape: PlaneShape, width: usize) -> Option<usize> {
        if self.is_uniform() { c32::field_bytes(shape, width) } else { shape.plane_bytes() }
    }
    /// The code that stands for 0, in kinds that store no `m`.
    pub const fn center(self) -> Option<u8> {
        match self {
            ParamKind::Centered(c) | ParamKind::CenteredK(c) => Some(c),
            _ => None,
        }
    }
    /// Bytes of one coefficient.
    pub const fn coefficient_bytes(self) -> usize {
        if self.scale_blocks(1) > 0 { 1 } else { 2 }
    }
    /// Runs of columns in a row of `cols`, each of which has an f16 scale for each int8 coefficient; 0 for kinds whose
    /// coefficients are f16 themselves.
    pub const fn scale_blocks(self, cols: usize) -> usize {
        match self {
            ParamKind::Hlq8 => 1,
            ParamKind::UniformK | ParamKind::CenteredK(_) => cols.div_ceil(SUPERBLOCK),
            _ => 0,
        }
    }
    /// Bytes of the set of a matrix; `None` on overflow.
    pub const fn set_bytes(self, shape: PlaneShape, planes: usize, group: usize) -> Option<usize> {
        let per_group = self.coefficients(planes) * self.coefficient_bytes() * TILE_ROWS;
        match shape.tiles().checked_mul(shape.groups(group)) {
            Some(n) => n.checked_mul(per_group),
            None => None,
        }
    }
    /// Bytes of the f16 scales `[tile][scale block][coefficient][32]`; 0 for kinds without them. `usize::MAX` stands
    /// for more than that.
    pub const fn row_scale_bytes(self, shape: PlaneShape, planes: usize) -> usize {
        let block = self.coefficients(planes) * TILE_ROWS * 2;
        shape.tiles().saturating_mul(self.scale_blocks(shape.cols)).saturating_mul(block)
    }
    /// The name used in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            ParamKind::Hlq16 => "hlq16",
            ParamKind::Hlq8 => "hlq8",
            ParamKind::Uniform => "uniform",
            ParamKind::Centered(_) => "centered",
            ParamKind::UniformK => "uniformk",
            ParamKind::CenteredK(_) => "centeredk",
        }
    }
}
