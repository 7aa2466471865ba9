//! From what a person named to a model that is ready to run.

use crate::args::{Bits, EngineArgs};
use crate::hub::{self, Arriving, Begun, Part};
use crate::judge::loss;
use crate::pull::Named;
use crate::{cache, folder, interrupt, pull, tuning, ui};
use anyhow::Context;
use lutite_kernels::isa::Isa;
use lutite_models::config::Config;
use lutite_models::{Model, OpenOptions, Path as KernelPath, Tokenizer, open};
use lutite_quant::PackOptions;
use lutite_runtime::kv::KvTypes;
use lutite_runtime::os::file::DataFile;
use lutite_runtime::os::map::Map;
use lutite_runtime::os::{memory, topology::Topology};
use lutite_runtime::store::{self, Bytes, Gguf, ModelFile};
use std::path::PathBuf;
use std::sync::Arc;

/// A model on its way to a decoder.
#[derive(Clone)]
pub(crate) struct Source {
    /// The file or folder that was named.
    pub(crate) path: PathBuf,
    /// The files whose change makes it another model.
    pub(crate) files: Vec<PathBuf>,
    /// Its bytes, or those of its packed form.
    pub(crate) file: ModelFile,
    /// The file that these bytes are, if they are one; with a budget weights are read from there.
    pub(crate) data: Option<Arc<DataFile>>,
    /// Whether the bytes have been held against their checksums.
    pub(crate) verified: bool,
}

/// Finds the named model, pulling it if it is missing, and maps it: a GGUF file, or the folder of a safetensors model,
/// by its own name or by that of one of its files.
pub(crate) fn find(named: &str) -> anyhow::Result<Source> {
    at(pull::locate(named, interrupt::flag())?)
}

/// Maps the model at a path, as [`find`] does.
pub(crate) fn at(path: PathBuf) -> anyhow::Result<Source> {
    if let Some(path) = folder::of(&path) {
        return folder::open(path);
    }
    let (map, data) = (Map::open(&path)?, DataFile::open(&path)?);
    Ok(of_file(Part { name: path, map, data }))
}

/// One file, or as much of it as there is.
fn of_file(Part { name, map, data }: Part) -> Source {
    let file = ModelFile::from(&Bytes::new(map));
    Source { files: vec![name.clone()], data: Some(Arc::new(data)), path: name, file, verified: false }
}

/// How a file that is not packed becomes so.
#[derive(Clone, Debug)]
pub(crate) struct Packing {
    /// Exactly, or how many planes.
    pub(crate) options: PackOptions,
    /// Threads to compute on.
    pub(crate) threads: usize,
    /// In memory, with nothing left in the cache folder.
    pub(crate) in_memory: bool,
    /// Whether to measure what fitted planes lost.
    pub(crate) measure: bool,
    /// Whether weights are held against their checksums when they are read, and not before.
    pub(crate) by_piece: bool,
}

impl Packing {
    /// Rounding nothing.
    pub(crate) fn exact(threads: usize, in_memory: bool) -> Packing {
        Packing { options: PackOptions::exact(), threads, in_memory, measure: false, by_piece: false }
    }

    /// As the flags say.
    pub(crate) fn of(engine: &EngineArgs) -> Packing {
        Packing {
            options: PackOptions { bits: bits(engine.bits), ..PackOptions::exact() },
            measure: !engine.no_measure,
            by_piece: engine.mem.is_some(),
            ..Packing::exact(threads(engine.threads), engine.no_cache)
        }
    }
}

/// The flag's value as the packer has it.
pub(crate) fn bits(b: Bits) -> lutite_quant::Bits {
    match b {
        Bits::Exact => lutite_quant::Bits::Exact,
        Bits::Planes(q) => lutite_quant::Bits::Planes(usize::from(q)),
    }
}

/// As [`find`], then packs it if it is not packed: for the look-up path.
pub(crate) fn find_packed(named: &str, how: &Packing) -> anyhow::Result<Source> {
    ready(find(named)?, how)
}

/// As [`find_packed`], but a stacked file of a hub need not be here whole: what fetches the rest comes beside it.
pub(crate) fn find_early(named: &str, how: &Packing) -> anyhow::Result<(Source, Option<Arriving>)> {
    let Named::Hub(name) = Named::find(named)? else { return Ok((find_packed(named, how)?, None)) };
    let (source, arriving) = match hub::begin(name)? {
        Begun::Whole(path) => (at(path)?, None),
        Begun::Part(part, arriving) => (of_file(part), Some(arriving)),
    };
    Ok((ready(source, how)?, arriving))
}

/// Packs a source that is not packed.
fn ready(source: Source, how: &Packing) -> anyhow::Result<Source> {
    if is_packed(&source)? {
        if how.options.bits != lutite_quant::Bits::Exact {
            let name = source.path.display();
            anyhow::bail!(
                "{name} is packed already; leave --bits out, or name the file that it was made from"
            );
        }
        // Now, so that the tokenizer and the template are not read from a damaged file.
        lutite_models::verify_head(source.file.head())
            .with_context(|| format!("cannot load {}", source.path.display()))?;
        loss::tell(&source)?;
        return Ok(source);
    }
    pack(source, how)
}

/// The packed form of a source.
pub(crate) fn pack(source: Source, how: &Packing) -> anyhow::Result<Source> {
    let cache::Packed { bytes, path } = cache::packed(&source, how)?;
    let data = path.map(|path| DataFile::open(&path)).transpose()?.map(Arc::new);
    let packed = Source { file: (&bytes).into(), data, verified: !how.by_piece, ..source };
    loss::tell(&packed)?;
    if let lutite_quant::Bits::Planes(1..=3) = how.options.bits {
        ui::note(
            "so few bits are worth having when they are fitted with text: `lutite quantize` does, in minutes",
        );
    }
    Ok(packed)
}

/// Metadata and tensors of a model.
pub(crate) fn gguf(source: &Source) -> anyhow::Result<Gguf<'_>> {
    source.file.gguf().with_context(|| format!("cannot read {}", source.path.display()))
}

/// Whether the file holds bit planes.
pub(crate) fn is_packed(source: &Source) -> anyhow::Result<bool> {
    Ok(store::is_packed(&gguf(source)?)?)
}

/// Holds a packed file against its checksums.
pub(crate) fn verify(source: &Source, threads: usize) -> anyhow::Result<()> {
    lutite_models::verify(source.file.head(), threads)
        .with_context(|| format!("cannot load {}", source.path.display()))
}

/// Worker threads that were asked for, or one for each big core within the CPU quota.
pub(crate) fn threads(asked: Option<std::num::NonZeroU32>) -> usize {
    asked.map_or_else(|| Topology::read().default_workers(), |n| n.get() as usize)
}

/// Positions of the context that was asked for: for 0 the model's own, for nothing the same up to a usual number.
pub(crate) fn context(asked: Option<u32>, config: &Config) -> usize {
    match asked {
        None => config.context.min(open::DEFAULT_CONTEXT),
        Some(0) => config.context,
        Some(n) => n as usize,
    }
}

/// The options that the flags stand for.
pub(crate) fn options(
    engine: &EngineArgs,
    context: Option<usize>,
    path: KernelPath,
) -> anyhow::Result<OpenOptions> {
    let isa = Isa::from_env()?;
    Ok(OpenOptions {
        workers: threads(engine.threads),
        path,
        context,
        batch: engine.batch_size.get() as usize,
        kv: KvTypes { keys: engine.cache_type_k.into(), values: engine.cache_type_v.into() },
        available: memory::available().map(|m| (m.bytes, m.bound_by)),
        ahead: tuning::ahead(isa),
        exact: engine.exact_prompts,
        ..OpenOptions::new(isa)
    })
}

/// Makes the decoder.
pub(crate) fn model(source: &Source, options: &OpenOptions) -> anyhow::Result<Model> {
    let options = OpenOptions { verify: options.verify && !source.verified, ..options.clone() };
    open::open(&source.file, &options).with_context(|| format!("cannot load {}", source.path.display()))
}

/// Makes the tokenizer, saying what is odd about it.
pub(crate) fn tokenizer(source: &Source) -> anyhow::Result<Tokenizer> {
    let name = source.path.display();
    let t = Tokenizer::from_gguf(&gguf(source)?)
        .with_context(|| format!("cannot read the tokenizer of {name}"))?;
    for w in t.warnings() {
        ui::warn(w);
    }
    Ok(t)
}
