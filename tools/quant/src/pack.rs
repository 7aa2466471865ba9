//! Turns a planned model into a packed file, one tensor at a time.

use crate::als::{FitSpec, fit_rows};
use crate::calibrate::Fits;
use crate::error::{Error, Result};
use crate::exact;
use crate::imatrix::Imatrix;
use crate::loss::Loss;
use crate::plan::{Job, Plan, Step};
use crate::tile;
use lutite_kernels::ggml::dequantize_row;
use lutite_runtime::store::{
    ARCH_PREFIX, Bytes, FORMAT_VERSION, Gguf, GgufStream, GgufWriter, MatrixInfo, PackedInfo,
    announce_checksums, layout_tag, seal_checksums,
};
use rayon::{ThreadPool, ThreadPoolBuilder};
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
    /// Matrices that were fitted beforehand; the others are fitted by their weights alone.
    pub fits: Option<&'a Fits>,
    /// Threads to compute on.
    pub threads: usize,
    /// Called with the packed file, whole but for its name, if any matrix was fitted: says what that lost, for the
    /// file's metadata. Keeps nothing of the bytes. An error of its own throws the file away.
    pub measure: Option<&'a dyn Fn(Bytes) -> Result<Option<Loss>>>,
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
    let (writer, sums) = header(plan, job.source, job.source_hash, job.fits.map(Fits::method))?;
    run(plan, job, writer.begin(path)?, sums).map(|_| ())
}

/// Packs to memory and returns the file's bytes.
///
/// # Errors
/// As [`pack_to_file`].
pub fn pack_in_memory(plan: &Plan<'_>, job: &PackJob<'_>) -> Result<Vec<u8>> {
    let (writer, sums) = header(plan, job.source, job.source_hash, job.fits.map(Fits::method))?;
    run(plan, job, writer.begin_in_memory()?, sums)
}

/// Metadata and tensor descriptions; also the number of tensors.
fn header(
    plan: &Plan<'_>,
    source: &Gguf<'_>,
    source_hash: u64,
    method: Option<&str>,
) -> Result<(GgufWriter, usize)> {
    let mut w = begin(source)?;
    let tag = plan.options.tag() + &method.map_or(String::new(), |m| format!("-{m}"));
    w.set("lutite.quantizer", format!("lutite {} {tag}", env!("CARGO_PKG_VERSION")))?;
    w.set("lutite.source.xxh3", source_hash)?;
    if plan.fitted().next().is_some() {
        Loss::announce(&mut w)?;
    }
    let mut lines = Vec::new();
    let mut tensors = Vec::new();
    for step in &plan.steps {
        match step {
            Step::Copy(t) => tensors.push((t.name.to_owned(), t.ty, t.shape().to_vec())),
            Step::Pack(j) => {
                lines.push(j.info.line());
                tensors.extend(j.info.tensors());
            }
            Step::Levels(j) => {
                lines.push(j.info.line());
                tensors.extend(j.info.tensors());
            }
        }
    }
    for (name, ty, dims) in &tensors {
        w.add_tensor(name, *ty, dims)?;
    }
    let count = tensors.len();
    w.set("lutite.tensors", lines.as_slice())?;
    announce_checksums(&mut w, count)?;
    Ok((w, count))
}

/// The metadata of any packed file of this source, which may be packed already.
pub(crate) fn begin(source: &Gguf<'_>) -> Result<GgufWriter> {
    let mut w = GgufWriter::new();
    let arch = source.str("general.architecture")?.unwrap_or_default();
    let arch = arch.strip_prefix(ARCH_PREFIX).unwrap_or(arch);
    w.set("general.architecture", format!("{ARCH_PREFIX}{arch}"))?;
    copy_metadata(source, &mut w, &[])?;
    w.set("lutite.version", FORMAT_VERSION)?;
    w.set("lutite.layout", layout_tag())?;
    Ok(w)
}

/// Bytes of the file that packing `source` by `plan` will give; `method` as [`Fits::method`] has it.
///
/// # Errors
/// Metadata that cannot be copied.
pub fn file_bytes(plan: &Plan<'_>, source: &Gguf<'_>, method: Option<&str>) -> Result<u64> {
    Ok(header(plan, source, 0, method)?.0.bytes()?)
}

/// Copies what speaks of the model, not of the file that it is in, but for `except`.
pub(crate) fn copy_metadata(source: &Gguf<'_>, w: &mut GgufWriter, except: &[&str]) -> Result<()> {
    for (key, value) in source.metadata() {
        let of_file =
            ["general.architecture", "general.alignment"].contains(key) || key.starts_with("lutite.");
        if !of_file && !except.contains(key) {
            w.set(key, *value)?;
        }
    }
    Ok(())
}

/// Threads to compute on.
pub(crate) fn pool(threads: usize) -> Result<ThreadPool> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| Error::Options(format!("cannot start {threads} threads: {e}")))
}

fn run(plan: &Plan<'_>, job: &PackJob<'_>, mut out: GgufStream, count: usize) -> Result<Vec<u8>> {
    let pool = pool(job.threads)?;
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
                let fitted = job
                    .fits
                    .filter(|_| !j.exact)
                    .map(|f| f.tensors(&j.info.clone().into()))
                    .transpose()?
                    .flatten();
                let parts = match fitted {
                    Some(parts) => {
                        advance(j.source.data.len() as u64);
                        parts
                    }
                    None => {
                        let importance = importance(j, job.imatrix)?;
                        pool.install(|| matrix(j, importance, &advance, job.cancel))?
                    }
                };
                for ((name, _, _), data) in j.info.tensors().iter().zip(&parts) {
                    out.tensor(name, data)?;
                    sums.push(xxh3_64(data));
                }
            }
            Step::Levels(j) => {
                let info = MatrixInfo::from(j.info.clone());
                let parts = job.fits.map(|f| f.tensors(&info)).transpose()?.flatten();
                let parts = parts.ok_or_else(|| Error::Options("levels have to be fitted first".into()))?;
                for ((name, _, _), data) in info.tensors().iter().zip(&parts) {
                    out.tensor(name, data)?;
                    sums.push(xxh3_64(data));
                }
                advance(j.source.data.len() as u64);
            }
        }
    }
    if let Some(measure) = job.measure
        && plan.fitted().next().is_some()
        && let Some(loss) = out.look(measure)??
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

/// Most refits of a group; few need as many.
const ITERATIONS: usize = 20;

/// How a matrix of planes is fitted.
pub(crate) fn spec(i: &PackedInfo) -> FitSpec {
    FitSpec { planes: i.planes, group: i.group, kind: i.kind, iterations: ITERATIONS }
}

/// Packs one matrix by its own weights alone: exactly, or fitted by alternating least squares.
fn matrix(
    j: &Job<'_>,
    importance: Option<&[f32]>,
    advance: &(dyn Fn(u64) + Sync),
    cancel: &AtomicBool,
) -> Result<Vec<Vec<u8>>> {
    let i = &j.info;
    tile::pack(i, |rows, out| {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let bytes = &*j.source.row_bytes(rows.clone());
        let failed = |why: String| Error::Tensor { name: j.source.name.to_owned(), why };
        let codes = if j.exact {
            exact::tile(j, bytes, out).map_err(failed)?
        } else {
            let mut w = vec![0.0; rows.len() * i.shape.cols];
            dequantize_row(j.source.ty, bytes, &mut w).map_err(|e| failed(e.to_string()))?;
            let fit = fit_rows(&w, i.shape.cols, importance, &spec(i)).map_err(|e| match e {
                Error::Weight { row, col, value, limit } => {
                    failed(Error::Weight { row: row + rows.start, col, value, limit }.to_string())
                }
                e => failed(e.to_string()),
            })?;
            tile::put_params(i, &fit.params, &fit.row_scales, out);
            fit.codes
        };
        advance(bytes.len() as u64);
        Ok(codes)
    })
}
