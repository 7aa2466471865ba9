//! From what a person named to a model that is ready to run.

use crate::args::{CacheType, EngineArgs};
use crate::{cache, folder, interrupt, pull, ui};
use anyhow::Context;
use lutite_kernels::isa::Isa;
use lutite_models::{Model, OpenOptions, Path as KernelPath, Tokenizer, open};
use lutite_quant::PackOptions;
use lutite_runtime::kv::KvType;
use lutite_runtime::os::map::Map;
use lutite_runtime::os::{memory, topology::Topology};
use lutite_runtime::store::{ARCH_PREFIX, Bytes, Gguf, ModelFile};
use std::path::PathBuf;

/// A model on its way to a decoder.
pub(crate) struct Source {
    /// The file or folder that was named.
    pub(crate) path: PathBuf,
    /// The files whose change makes it another model.
    pub(crate) files: Vec<PathBuf>,
    /// Its bytes, or those of its packed form.
    pub(crate) file: ModelFile,
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
    let file = ModelFile::from(&Bytes::new(Map::open(&path)?));
    Ok(Source { files: vec![path.clone()], path, file, verified: false })
}

/// As [`find`], then packs it exactly if it is not packed: for the look-up path.
pub(crate) fn find_packed(named: &str, threads: usize, in_memory: bool) -> anyhow::Result<Source> {
    let source = find(named)?;
    if is_packed(&source)? {
        // Now, so that the tokenizer and the template are not read from a damaged file.
        lutite_models::verify(source.file.head(), threads)
            .with_context(|| format!("cannot load {}", source.path.display()))?;
        return Ok(Source { verified: true, ..source });
    }
    pack(source, &PackOptions::exact(), threads, in_memory)
}

/// The packed form of a source.
pub(crate) fn pack(
    source: Source,
    options: &PackOptions,
    threads: usize,
    in_memory: bool,
) -> anyhow::Result<Source> {
    let file = (&cache::packed(&source, options, threads, in_memory)?).into();
    Ok(Source { file, verified: true, ..source })
}

/// Metadata and tensors of a model.
pub(crate) fn gguf(source: &Source) -> anyhow::Result<Gguf<'_>> {
    source.file.gguf().with_context(|| format!("cannot read {}", source.path.display()))
}

/// Whether the file holds bit planes.
pub(crate) fn is_packed(source: &Source) -> anyhow::Result<bool> {
    Ok(gguf(source)?.str("general.architecture")?.is_some_and(|a| a.starts_with(ARCH_PREFIX)))
}

/// Worker threads that were asked for, or one for each big core within the CPU quota.
pub(crate) fn threads(asked: Option<std::num::NonZeroU32>) -> usize {
    asked.map_or_else(|| Topology::read().default_workers(), |n| n.get() as usize)
}

/// The options that the flags stand for.
pub(crate) fn options(
    engine: &EngineArgs,
    context: Option<usize>,
    path: KernelPath,
) -> anyhow::Result<OpenOptions> {
    if engine.cache_type_k != engine.cache_type_v {
        anyhow::bail!("-ctk and -ctv differ; keys and values are cached in one format, give both the same");
    }
    let kv = match engine.cache_type_k {
        CacheType::F16 => KvType::F16,
        CacheType::F32 => KvType::F32,
    };
    Ok(OpenOptions {
        workers: threads(engine.threads),
        path,
        context,
        batch: engine.batch_size.get() as usize,
        kv,
        available: memory::available().map(|m| (m.bytes, m.bound_by)),
        ..OpenOptions::new(Isa::from_env()?)
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
