//! Stage A: import that rounds nothing. A uniform type's codes become planes, its scales (and minima)
//! become the parameters as they are.

use crate::pack::TileOut;
use crate::plan::Job;
use half::f16;
use lutite_kernels::ggml::uniform_row;
use lutite_kernels::pack::ParamKind;
use lutite_kernels::pack::p32::TILE_ROWS;

/// Splits one tile's rows into codes, `[rows][cols]`, and writes their parameters.
pub(crate) fn tile(j: &Job<'_>, bytes: &[u8], out: &mut TileOut<'_>) -> Result<Vec<u8>, String> {
    let (cols, groups) = (j.info.shape.cols, j.info.shape.groups(j.info.group));
    let rows = bytes.len() * j.info.shape.rows / j.source.data.len();
    let mut codes = vec![0u8; rows * cols];
    let mut d = vec![f16::ZERO; groups];
    let mut m = vec![f16::ZERO; if j.info.kind == ParamKind::Uniform { groups } else { 0 }];
    let row_bytes = bytes.len() / rows;
    for (r, (row, codes)) in bytes.chunks_exact(row_bytes).zip(codes.chunks_exact_mut(cols)).enumerate() {
        uniform_row(j.source.ty, row, codes, &mut d, &mut m).map_err(|e| e.to_string())?;
        if let Some(x) = d.iter().chain(&m).find(|x| !x.is_finite()) {
            return Err(format!(
                "has a block with the scale {x}, no finite number; the file is damaged, fetch it again"
            ));
        }
        let coefficients = j.info.kind.coefficients(j.info.planes);
        for g in 0..groups {
            for (k, v) in [d.get(g), m.get(g)].into_iter().flatten().enumerate() {
                let at = 2 * ((g * coefficients + k) * TILE_ROWS + r);
                out.params[at..at + 2].copy_from_slice(&v.to_le_bytes());
            }
        }
    }
    Ok(codes)
}
