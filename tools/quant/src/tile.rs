//! From codes and parameters by rows to a packed matrix by tiles.

use crate::als::Fitted;
use crate::error::{Error, Result};
use lutite_kernels::pack::p32::TILE_ROWS;
use lutite_kernels::pack::{c32, p32};
use lutite_runtime::store::PackedInfo;
use rayon::prelude::*;
use std::ops::Range;

/// One tile of every tensor of a matrix.
pub(crate) struct TileOut<'a> {
    /// One tile of each plane or field.
    pub(crate) parts: Vec<&'a mut [u8]>,
    /// `[group][coefficient][32]`.
    pub(crate) params: &'a mut [u8],
    /// `[coefficient][32]`, or empty.
    pub(crate) row_scales: &'a mut [u8],
}

/// Packs one matrix: planes or fields, parameters and row scales (if any), in the order of `PackedInfo::tensors`.
/// `make(rows, out)` writes the parameters of a tile's rows and returns their codes; it is called from any thread.
pub(crate) fn pack(
    i: &PackedInfo,
    make: impl Fn(Range<usize>, &mut TileOut<'_>) -> Result<Vec<u8>> + Sync,
) -> Result<Vec<Vec<u8>>> {
    let too_large = || Error::Tensor { name: i.name.clone(), why: "is larger than the address space".into() };
    let part = |width: &usize| Ok(vec![0u8; i.kind.part_bytes(i.shape, *width).ok_or_else(too_large)?]);
    let set_bytes = i.kind.set_bytes(i.shape, i.planes, i.group).ok_or_else(too_large)?;
    let scale_bytes = i.kind.row_scale_bytes(i.shape, i.planes);
    let mut parts = i.kind.widths(i.planes).iter().map(part).collect::<Result<Vec<_>>>()?;
    let mut params = vec![0u8; set_bytes];
    let mut row_scales = vec![0u8; scale_bytes];

    let tiles = i.shape.tiles();
    let mut outs: Vec<TileOut<'_>> = params
        .chunks_exact_mut((set_bytes / tiles).max(1))
        .map(|params| TileOut { parts: Vec::with_capacity(i.planes), params, row_scales: &mut [] })
        .collect();
    for part in &mut parts {
        let bytes = part.len() / tiles;
        for (out, tile) in outs.iter_mut().zip(part.chunks_exact_mut(bytes)) {
            out.parts.push(tile);
        }
    }
    if scale_bytes > 0 {
        for (out, scales) in outs.iter_mut().zip(row_scales.chunks_exact_mut(scale_bytes / tiles)) {
            out.row_scales = scales;
        }
    }

    outs.into_par_iter().enumerate().try_for_each(|(tile, mut out)| {
        let codes = make(tile * TILE_ROWS..((tile + 1) * TILE_ROWS).min(i.shape.rows), &mut out)?;
        if i.kind.is_uniform() {
            c32::pack_tile(i.shape, &codes, i.planes, &mut out.parts)?;
        } else {
            p32::pack_tile(i.shape, &codes, &mut out.parts)?;
        }
        Ok::<_, Error>(())
    })?;

    parts.push(params);
    if scale_bytes > 0 {
        parts.push(row_scales);
    }
    Ok(parts)
}

/// Packs a fitted matrix.
pub(crate) fn pack_fitted(i: &PackedInfo, fit: &Fitted) -> Result<Vec<Vec<u8>>> {
    let params = fit.params.len() / i.shape.rows;
    let scales = fit.row_scales.len() / i.shape.rows;
    pack(i, |rows, out| {
        let of = |per_row: usize| rows.start * per_row..rows.end * per_row;
        put_params(i, &fit.params[of(params)], &fit.row_scales[of(scales)], out);
        Ok(fit.codes[of(i.shape.cols)].to_vec())
    })
}

/// Writes the fitted parameters of a tile's rows.
pub(crate) fn put_params(i: &PackedInfo, params: &[u8], row_scales: &[u16], out: &mut TileOut<'_>) {
    // Both kinds go from [row][...] to [...][row]: a tile's 32 rows lie side by side.
    let coefficients = i.planes + 1;
    let bytes = i.kind.coefficient_bytes();
    let per_row = i.shape.groups(i.group) * coefficients * bytes;
    for (r, row) in params.chunks_exact(per_row).enumerate() {
        for (k, value) in row.chunks_exact(bytes).enumerate() {
            let at = (k * TILE_ROWS + r) * bytes;
            out.params[at..at + bytes].copy_from_slice(value);
        }
    }
    for (r, row) in row_scales.chunks_exact(coefficients).enumerate() {
        for (k, value) in row.iter().enumerate() {
            let at = (k * TILE_ROWS + r) * 2;
            out.row_scales[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::als::{FitSpec, fit_rows};
    use lutite_kernels::pack::{ParamKind, PlaneShape};

    #[test]
    fn parts_of_some_rows_after_another_are_the_matrix() {
        let (rows, cols) = (100, 96);
        let w: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 % 1009) as f32 - 500.0) / 1e4).collect();
        for kind in [ParamKind::Hlq8, ParamKind::Hlq16] {
            let info = |rows| {
                let shape = PlaneShape { rows, cols };
                PackedInfo { name: "output".into(), kind, shape, planes: 3, group: 32 }
            };
            let pack = |rows: Range<usize>| {
                let spec = FitSpec { planes: 3, group: 32, kind, iterations: 5 };
                let fit = fit_rows(&w[rows.start * cols..rows.end * cols], cols, None, &spec).unwrap();
                pack_fitted(&info(rows.len()), &fit).unwrap()
            };
            let mut parts = vec![Vec::new(); info(rows).tensors().len()];
            for some in [0..32, 32..96, 96..100] {
                parts.iter_mut().zip(pack(some)).for_each(|(all, part)| all.extend(part));
            }
            assert_eq!(parts, pack(0..rows));
        }
    }
}
