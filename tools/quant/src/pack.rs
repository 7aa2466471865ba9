//! Turns a planned model into a packed file, one tensor at a time.

use crate::als::{FitSpec, fit_rows};
use crate::error::{Error, Result};
use crate::exact;
use crate::imatrix::Imatrix;
use crate::loss::Loss;
use crate::plan::{Job, Plan, Step};
use lutite_kernels::ggml::dequantize_row;
use lutite_kernels::pack::p32::TILE_ROWS;
use lutite_kernels::pack::{c32, p32};
use lutite_runtime::store::{
    ARCH_PREFIX, Bytes, FORMAT_VERSION, Gguf, GgufStream, GgufWriter, announce_checksums, layout_tag,
    seal_checksums,
};
use rayon::prelude::*;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// What accompanies a run of the packer.
pub struct PackJob<'a> {
    /// The source, parsed.
    pub source: &'a Gguf<'a>,
    /// xxh3-64 of the source file, recorded in the result.
    pub source_hash: u64,
    /// Importance of input columns, for fitted matrices.
    pub imatrix: Option<&'a Imatrix>,
    /// Threads to compute on.
    pub threads: usize,
    /// Called with the packed file, whole but for its name, if any matrix was fitted: says what that lost, for the
    /// file's metadata. Keeps nothing of the bytes.
    pub measure: Option<&'a dyn Fn(Bytes) -> Option<Loss>>,
    /// Called from any thread with bytes of source tensors done and in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
    /// Set from elsewhere to stop early.
    pub cancel: &'a AtomicBool,
}

/// Packs to a file: under its temporary name until it is whole.
///
/// # Errors
/// A tensor that cannot be packed, a disk that is full, an interruption; nothing is left behind then.
pub fn pack_to_file(plan: &Plan<'_>, job: &PackJob<'_>, path: &Path) -> Result<()> {
    let (writer, sums) = header(plan, job)?;
    run(plan, job, writer.begin(path)?, sums).map(|_| ())
}

/// Packs to memory and returns the file's bytes.
///
/// # Errors
/// As [`pack_to_file`].
pub fn pack_in_memory(plan: &Plan<'_>, job: &PackJob<'_>) -> Result<Vec<u8>> {
    let (writer, sums) = header(plan, job)?;
    run(plan, job, writer.begin_in_memory()?, sums)
}

/// Metadata and tensor descriptions; also the number of tensors.
fn header(plan: &Plan<'_>, job: &PackJob<'_>) -> Result<(GgufWriter, usize)> {
    let mut w = GgufWriter::new();
    let arch = job.source.str("general.architecture")?.unwrap_or_default();
    w.set("general.architecture", format!("{ARCH_PREFIX}{arch}"))?;
    for (key, value) in job.source.metadata() {
        if !["general.architecture", "general.alignment"].contains(key) && !key.starts_with("lutite.") {
            w.set(key, *value)?;
        }
    }
    w.set("lutite.version", FORMAT_VERSION)?;
    w.set("lutite.layout", layout_tag())?;
    w.set("lutite.quantizer", format!("lutite {} {}", env!("CARGO_PKG_VERSION"), plan.options.tag()))?;
    w.set("lutite.source.xxh3", job.source_hash)?;
    if plan.fitted() > 0 {
        Loss::announce(&mut w)?;
    }
    let mut count = 0;
    let mut lines = Vec::new();
    for step in &plan.steps {
        match step {
            Step::Copy(t) => {
                w.add_tensor(t.name, t.ty, t.shape())?;
                count += 1;
            }
            Step::Pack(j) => {
                lines.push(j.info.line());
                for (name, ty, dims) in j.info.tensors() {
                    w.add_tensor(&name, ty, &dims)?;
                    count += 1;
                }
            }
        }
    }
    w.set("lutite.tensors", lines.as_slice())?;
    announce_checksums(&mut w, count)?;
    Ok((w, count))
}

fn run(plan: &Plan<'_>, job: &PackJob<'_>, mut out: GgufStream, count: usize) -> Result<Vec<u8>> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(job.threads)
        .build()
        .map_err(|e| Error::Options(format!("cannot start {} threads: {e}", job.threads)))?;
    let total = plan.source_bytes();
    let done = AtomicU64::new(0);
    let advance = |bytes: u64| (job.progress)(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
    let mut sums = Vec::with_capacity(count);
    for step in &plan.steps {
        if job.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        match step {
            Step::Copy(t) => {
                let data = t.all_rows();
                out.tensor(t.name, &data)?;
                sums.push(xxh3_64(&data));
                advance(data.len() as u64);
            }
            Step::Pack(j) => {
                let importance = importance(j, job.imatrix)?;
                let parts = pool.install(|| matrix(j, importance, &advance, job.cancel))?;
                for ((name, _, _), data) in j.info.tensors().iter().zip(&parts) {
                    out.tensor(name, data)?;
                    sums.push(xxh3_64(data));
                }
            }
        }
    }
    if let Some(measure) = job.measure
        && plan.fitted() > 0
        && let Some(loss) = out.look(measure)?
    {
        loss.store(&mut out)?;
    }
    seal_checksums(&mut out, &sums)?;
    Ok(out.finish()?)
}

/// The matrix' column importances, if there are any.
fn importance<'m>(j: &Job<'_>, imatrix: Option<&'m Imatrix>) -> Result<Option<&'m [f32]>> {
    let found = imatrix.filter(|_| !j.exact).and_then(|m| m.importance(j.source.name));
    match found {
        Some(i) if i.len() != j.info.shape.cols => {
            let why = format!(
                "the importance matrix has {} columns for it, it has {}; use one made from this model",
                i.len(),
                j.info.shape.cols
            );
            Err(Error::Tensor { name: j.source.name.to_owned(), why })
        }
        other => Ok(other),
    }
}

/// Stage B for one tile whose first row is `first`: fits `w`, writes the parameters, returns the codes.
fn fitted(
    j: &Job<'_>,
    first: usize,
    w: &[f32],
    importance: Option<&[f32]>,
    out: &mut TileOut<'_>,
) -> Result<Vec<u8>> {
    let i = &j.info;
    let spec = FitSpec { planes: i.planes, group: i.group, kind: i.kind, iterations: ITERATIONS };
    let fit = fit_rows(w, i.shape.cols, importance, &spec).map_err(|e| match e {
        Error::Weight { row, col, value, limit } => Error::Weight { row: row + first, col, value, limit },
        other => other,
    });
    let fit = fit.map_err(|e| Error::Tensor { name: j.source.name.to_owned(), why: e.to_string() })?;
    // Both kinds go from [row][...] to [...][row]: a tile's 32 rows lie side by side.
    let bytes = i.kind.coefficient_bytes();
    let per_row = i.shape.groups(i.group) * spec.coefficients() * bytes;
    for (r, row) in fit.params.chunks_exact(per_row).enumerate() {
        for (k, value) in row.chunks_exact(bytes).enumerate() {
            let at = (k * TILE_ROWS + r) * bytes;
            out.params[at..at + bytes].copy_from_slice(value);
        }
    }
    for (r, row) in fit.row_scales.chunks_exact(spec.coefficients()).enumerate() {
        for (k, value) in row.iter().enumerate() {
            let at = (k * TILE_ROWS + r) * 2;
            out.row_scales[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
    }
    Ok(fit.codes)
}

/// Most refits of a group; few need as many.
const ITERATIONS: usize = 20;

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
fn matrix(
    j: &Job<'_>,
    importance: Option<&[f32]>,
    advance: &(dyn Fn(u64) + Sync),
    cancel: &AtomicBool,
) -> Result<Vec<Vec<u8>>> {
    let i = &j.info;
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

    let rows_of = |tile: usize| tile * TILE_ROWS..((tile + 1) * TILE_ROWS).min(i.shape.rows);
    outs.into_par_iter().enumerate().try_for_each(|(tile, mut out)| {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let rows = rows_of(tile);
        let bytes = &*j.source.row_bytes(rows.clone());
        let failed = |why: String| Error::Tensor { name: j.source.name.to_owned(), why };
        let codes = if j.exact {
            exact::tile(j, bytes, &mut out).map_err(failed)?
        } else {
            let mut w = vec![0.0; rows.len() * i.shape.cols];
            dequantize_row(j.source.ty, bytes, &mut w).map_err(|e| failed(e.to_string()))?;
            fitted(j, rows.start, &w, importance, &mut out)?
        };
        if i.kind.is_uniform() {
            c32::pack_tile(i.shape, &codes, i.planes, &mut out.parts)?;
        } else {
            p32::pack_tile(i.shape, &codes, &mut out.parts)?;
        }
        advance(bytes.len() as u64);
        Ok(())
    })?;

    parts.push(params);
    if scale_bytes > 0 {
        parts.push(row_scales);
    }
    Ok(parts)
}
