//! Parameter sets: the scales and zeros that turn bits into weights.
//!
//! A set lies as `[tile][group][coefficient][32 rows]`, so that a kernel reads it in the order in
//! which it walks a tile. What a coefficient is depends on the kind:

use super::p32::{PlaneShape, TILE_ROWS};

/// What a parameter set stores for each row and group, and how weights follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// `s_1 .. s_q, z` as f16: `w = z + sum s_p b_p`.
    Hlq16,
    /// The same as int8 under one f16 per row and coefficient (a second buffer,
    /// `[tile][coefficient][32]`): `s_p = int8 * f16`.
    Hlq8,
    /// `d, m` as f16: `w = d * code + m`, where `code = sum 2^p b_p`. Planes are summed as integers.
    Uniform,
    /// `d` as f16 alone: `w = d * (code - center)`, one center for the whole matrix. Serves formats
    /// without a minimum (Q4_0, Q5_0, Q8_0, ternary) at their own bits, exactly: a stored
    /// `m = -center * d` could overflow f16.
    Centered(u8),
}

impl ParamKind {
    /// Coefficients stored per row and group for `planes` planes.
    pub const fn coefficients(self, planes: usize) -> usize {
        match self {
            ParamKind::Hlq16 | ParamKind::Hlq8 => planes + 1,
            ParamKind::Uniform => 2,
            ParamKind::Centered(_) => 1,
        }
    }
    /// Whether planes are summed as integers under one scale. Such matrices take fine tables.
    pub const fn is_uniform(self) -> bool {
        matches!(self, ParamKind::Uniform | ParamKind::Centered(_))
    }
    /// Bytes of one coefficient.
    pub const fn coefficient_bytes(self) -> usize {
        match self {
            ParamKind::Hlq8 => 1,
            _ => 2,
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
    /// Bytes of the f16 row scales `[tile][coefficient][32]`; 0 for kinds without them.
    pub const fn row_scale_bytes(self, shape: PlaneShape, planes: usize) -> usize {
        match self {
            ParamKind::Hlq8 => shape.tiles() * (planes + 1) * TILE_ROWS * 2,
            _ => 0,
        }
    }
    /// The name used in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            ParamKind::Hlq16 => "hlq16",
            ParamKind::Hlq8 => "hlq8",
            ParamKind::Uniform => "uniform",
            ParamKind::Centered(_) => "centered",
        }
    }
}
