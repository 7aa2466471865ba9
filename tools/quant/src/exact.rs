//! Stage A: import that rounds nothing. A type's own codes stay codes, its scales (and minima) become the
//! parameters as they are.

use crate::plan::Job;
use crate::tile::TileOut;
use half::f16;
use lutite_kernels::ggml::{superblock_format, superblock_row, uniform_row};
use lutite_kernels::pack::ParamKind;
use lutite_kernels::pack::p32::TILE_ROWS;

/// Splits one tile's rows into codes, `[rows][cols]`, and writes their parameters.
pub(crate) fn tile(j: &Job<'_>, bytes: &[u8], out: &mut TileOut<'_>) -> Result<Vec<u8>, String> {
    let cols = j.info.shape.cols;
    let rows = bytes.len() * j.info.shape.rows / j.source.data.len();
    let mut codes = vec![0u8; rows * cols];
    let rows = bytes.chunks_exact(bytes.len() / rows).zip(codes.chunks_exact_mut(cols)).enumerate();
    match j.info.kind {
        ParamKind::UniformK | ParamKind::CenteredK(_) => superblocks(j, rows, out)?,
        _ => blocks(j, rows, out)?,
    }
    Ok(codes)
}

/// Blocks with scales of their own: the set is f16 `[group][coefficient][32]`.
fn blocks<'a>(
    j: &Job<'_>,
    rows: impl Iterator<Item = (usize, (&'a [u8], &'a mut [u8]))>,
    out: &mut TileOut<'_>,
) -> Result<(), String> {
    let groups = j.info.shape.groups(j.info.group);
    let coefficients = j.info.kind.coefficients(j.info.planes);
    let mut d = vec![f16::ZERO; groups];
    let mut m = vec![f16::ZERO; if j.info.kind == ParamKind::Uniform { groups } else { 0 }];
    for (r, (row, codes)) in rows {
        uniform_row(j.source.ty, row, codes, &mut d, &mut m).map_err(|e| e.to_string())?;
        check(d.iter().chain(&m))?;
        for g in 0..groups {
            for (k, v) in [d.get(g), m.get(g)].into_iter().flatten().enumerate() {
                put(out.params, g * coefficients + k, r, v.to_le_bytes());
            }
        }
    }
    Ok(())
}

/// Groups whose scales are small integers under those of a superblock: the set is int8 `[group][coefficient][32]`, the
/// row scales are f16 `[superblock][coefficient][32]`.
fn superblocks<'a>(
    j: &Job<'_>,
    rows: impl Iterator<Item = (usize, (&'a [u8], &'a mut [u8]))>,
    out: &mut TileOut<'_>,
) -> Result<(), String> {
    let format = superblock_format(j.source.ty).ok_or("its type has no superblocks")?;
    let (cols, coefficients) = (j.info.shape.cols, format.coefficients());
    let mut sub_scales = vec![0i8; cols / format.group * coefficients];
    let mut scales = vec![f16::ZERO; cols / format.superblock * coefficients];
    for (r, (row, codes)) in rows {
        superblock_row(j.source.ty, row, codes, &mut sub_scales, &mut scales).map_err(|e| e.to_string())?;
        check(scales.iter())?;
        for (at, v) in sub_scales.iter().enumerate() {
            put(out.params, at, r, v.to_le_bytes());
        }
        for (at, v) in scales.iter().enumerate() {
            put(out.row_scales, at, r, v.to_le_bytes());
        }
    }
    Ok(())
}

/// The number of row `r` in the `at`th run of 32 rows.
fn put<const N: usize>(to: &mut [u8], at: usize, r: usize, number: [u8; N]) {
    let at = N * (at * TILE_ROWS + r);
    to[at..at + N].copy_from_slice(&number);
}

fn check<'a>(mut scales: impl Iterator<Item = &'a f16>) -> Result<(), String> {
    match scales.find(|x| !x.is_finite()) {
        None => Ok(()),
        Some(x) => Err(format!(
            "has a block with the scale {x}, no finite number of 16 bits; the file is damaged, fetch it again (of \
             MXFP4 it may be the scale that is too large or too small: --bits 5 fits the weights instead)"
        )),
    }
}
