//! From a file to a decoder.

use crate::arch::llama::streamed::AT_ONCE;
use crate::arch::llama::{self, Begin, Llama, Part, Session, session_bytes};
use crate::attention;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::linear::Ahead;
use crate::verify::verify_on;
use crate::weights::{Path, Weights};
use lutite_kernels::isa::Isa;
use lutite_runtime::kv::{KvShape, KvTypes};
use lutite_runtime::os::file::DataFile;
use lutite_runtime::pool::{Pool, PoolConfig};
use lutite_runtime::residency::{Home, within};
use lutite_runtime::store::{Directory, ModelFile, check_version, is_packed, tensor_checksums};
use std::sync::Arc;

/// Tokens that go through the network together in a prompt: enough to read weights rarely, few enough for
/// their tables to stay in L2.
pub const DEFAULT_BATCH: usize = 64;

/// Longest context that is taken without being asked for.
pub const DEFAULT_CONTEXT: usize = 4096;

/// How to open a model.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Instruction set.
    pub isa: Isa,
    /// Workers of the pool.
    pub workers: usize,
    /// How matrices are multiplied.
    pub path: Path,
    /// Positions; `None` for the model's own, [`DEFAULT_CONTEXT`] at most.
    pub context: Option<usize>,
    /// Tokens per step.
    pub batch: usize,
    /// Storage of keys and values.
    pub kv: KvTypes,
    /// How far ahead weights are asked for.
    pub ahead: Ahead,
    /// Whether prompts are multiplied as answers are, so that a token's bits do not depend on its phase: slower where
    /// weights have 3 to 5 planes.
    pub exact: bool,
    /// Bytes that the session may allocate beside its weights and which limit says so; `None` for no check.
    pub available: Option<(u64, String)>,
    /// What the session may take, weights included; `None` leaves packed weights in the file's map.
    pub budget: Option<Budget>,
    /// Whether a packed file is held against its checksums first, which reads all of it (some 10 ms for 100 MB that
    /// are in the page cache). Without it a flipped bit is a wrong word.
    pub verify: bool,
}

impl OpenOptions {
    /// One worker on `isa`, tables, half-float KV, no memory check; verified.
    pub fn new(isa: Isa) -> OpenOptions {
        OpenOptions {
            isa,
            workers: 1,
            path: Path::Lut,
            context: None,
            batch: DEFAULT_BATCH,
            kv: KvTypes::default(),
            ahead: Ahead::default(),
            exact: false,
            available: None,
            budget: None,
            verify: true,
        }
    }
}

/// A limit for all that a session takes.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Weights, keys and values, activations: bytes of memory.
    pub bytes: u64,
    /// Who says so, for messages.
    pub bound: String,
    /// The packed file, to read weights from.
    pub file: Arc<DataFile>,
    /// Whether to begin with the least weights, and to become better while working; else what fits is read first.
    pub at_once: bool,
}

/// A decoder of any family.
pub type Model = Llama;

/// Checks that the file describes a whole model of a family that is built in, packed or not, and returns its
/// hyperparameters. Reads no weights and allocates nothing of their size: for a look before a long task.
///
/// # Errors
/// As [`open`], but for memory.
pub fn check(file: impl Into<ModelFile>) -> Result<Config> {
    let file = file.into();
    let gguf = file.gguf()?;
    let config = Config::read(&gguf)?;
    llama::check(&config, &Weights::new(&gguf, &file, Path::Plain)?, Part::Whole)?;
    Ok(config)
}

/// Makes a decoder of a model's bytes.
///
/// # Errors
/// When the file is damaged, of an unknown family or not packed, or when the session would not fit into
/// memory; nothing large has been allocated then.
pub fn open(file: impl Into<ModelFile>, o: &OpenOptions) -> Result<Model> {
    open_part(&file.into(), o, Part::Whole)
}

/// As [`open`], of a part of the model.
pub(crate) fn open_part(file: &ModelFile, o: &OpenOptions, part: Part) -> Result<Model> {
    let gguf = file.gguf()?;
    let mut pool = Pool::new(&PoolConfig { workers: o.workers, ..PoolConfig::default() })?;
    let packed = is_packed(&gguf)?;
    if packed {
        check_version(&gguf)?;
    }
    let directory = Directory::read(&gguf)?;
    // Of what is read piece by piece, each is held against its checksum when it is read.
    let in_pieces = o.budget.is_some() || !directory.stack().blocks().is_empty() || part != Part::Whole;
    let by_piece = o.path == Path::Lut && packed && in_pieces;
    let mut sums = Vec::new();
    match o.verify && packed {
        true if by_piece => sums = tensor_checksums(&gguf, file.head()).map_err(Error::Damaged)?,
        true => verify_on(&gguf, file.head(), &mut pool)?,
        false => {}
    }
    let config = Config::read(&gguf)?;
    let context = o.context.unwrap_or(config.context.min(DEFAULT_CONTEXT));
    if context == 0 {
        return Err(Error::Config {
            key: "context".into(),
            why: "0 positions; ask for at least 1 with -c".into(),
        });
    }
    let layers = part.layers(config.layers);
    if layers.start > layers.end || layers.end > config.layers {
        let why = format!("layers {layers:?} of a model of {}; name one of those", config.layers);
        return Err(Error::Config { key: "split".into(), why });
    }
    let shape = KvShape { layers: layers.len(), ..attention::kv_shape(&config, o.kv, context)? };
    let batch = o.batch.clamp(1, context);
    // The file before the memory: what a damaged file would need means nothing.
    let weights = Weights::of(&gguf, file, o.path, directory)?;
    let loaded = llama::check(&config, &weights, part)?;
    let need = session_bytes(&config, shape, batch, pool.workers());
    if let Some((available, bound)) = &o.available {
        let needed = (need.kv.saturating_add(need.activations) as u64).saturating_add(loaded);
        if needed > *available {
            return Err(Error::Memory {
                what: format!("a context of {context} positions, its activations and what is not mapped"),
                needed_mib: needed >> 20,
                available_mib: available >> 20,
                bound: bound.clone(),
            });
        }
    }
    let rest = (need.kv.saturating_add(need.activations) as u64).saturating_add(loaded);
    let mut begin = Begin { rest, ..Begin::default() };
    let weights = if by_piece {
        let stack = weights.directory().stack();
        let home = match &o.budget {
            None => Home::Map(file.whole().ok_or_else(|| Error::Damaged("lies in several files".into()))?),
            Some(b) => Home::Memory { file: b.file.clone(), account: Arc::default() },
        };
        (begin.blocks, begin.wanted) = (stack.present(), stack.present());
        if let Some(b) = &o.budget {
            let limit = b.bytes.saturating_sub(rest);
            begin.limit = Some(limit);
            match within(stack, limit) {
                Ok(fit) => {
                    begin.wanted = fit;
                    begin.blocks = if b.at_once { 0 } else { fit.min(stack.present()) };
                }
                Err(_) => {
                    let least = weights.directory().clone().at(0);
                    let layers =
                        layers_within(&least, config.layers, limit).map_err(|needed| Error::Memory {
                            what: format!(
                                "a context of {context} positions, activations, and weights at their least"
                            ),
                            needed_mib: rest.saturating_add(needed).div_ceil(1 << 20),
                            available_mib: b.bytes >> 20,
                            bound: b.bound.clone(),
                        })?;
                    (begin.layers, begin.blocks, begin.wanted) = (Some(layers), 0, 0);
                }
            }
        }
        weights.at(begin.blocks, home, sums)
    } else {
        weights
    };
    let session = Session { part, isa: o.isa, pool, kv: shape, batch, ahead: o.ahead, exact: o.exact };
    Llama::new(config, weights, session, &begin)
}

/// How many layers can stay in memory if the others are read for each step, of a model whose weights take more than `limit`
/// bytes.
///
/// # Errors
/// The bytes that are needed at least, if it is none.
fn layers_within(least: &Directory, layers: usize, limit: u64) -> std::result::Result<usize, u64> {
    let mut of_layer = vec![0u64; layers];
    for (name, info) in least.matrices() {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
        if let Some(bytes) = layer.and_then(|i| of_layer.get_mut(i)) {
            *bytes = bytes.saturating_add(info.bytes().unwrap_or(usize::MAX) as u64);
        }
    }
    let all = of_layer.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
    let largest = of_layer.iter().copied().max().unwrap_or(0);
    let rest = least.stack().resident_bytes(0).saturating_sub(all);
    let mut needed = rest.saturating_add(largest.saturating_mul(AT_ONCE));
    if needed > limit {
        return Err(needed);
    }
    let fits = of_layer.iter().take_while(|bytes| {
        needed = needed.saturating_add(**bytes);
        needed <= limit
    });
    // All of them would have fitted without being read for each step.
    Ok(fits.count().min(layers.saturating_sub(1)))
}
