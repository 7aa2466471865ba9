//! What can go wrong between a model file and its words.

use lutite_runtime::os::shared::AllocError;
use lutite_runtime::pool::SpawnError;
use lutite_runtime::store::GgufError;

/// Any failure of this crate. Messages say what, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container is damaged or lacks something.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A failure of the layers below: files, maps, pools.
    #[error(transparent)]
    Runtime(#[from] lutite_runtime::Error),
    /// Buffers that do not fit a shape.
    #[error(transparent)]
    Kernel(#[from] lutite_kernels::Error),
    /// A row of weights that cannot be read.
    #[error(transparent)]
    Ggml(#[from] lutite_kernels::ggml::GgmlError),
    /// Memory that cannot be had.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// Workers that cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A family that is not built in.
    #[error("model architecture {found:?} is not supported; this build reads: {supported}")]
    Architecture {
        /// `general.architecture` of the file.
        found: String,
        /// The families that are.
        supported: String,
    },
    /// A file of a model folder that is missing or cannot be used.
    #[error("{file}: {why}")]
    Folder {
        /// Its name in the folder.
        file: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A hyperparameter that is missing or makes no sense.
    #[error("{key}: {why}")]
    Config {
        /// Key in the file's metadata.
        key: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A tensor of another shape or type than the configuration asks for.
    #[error("tensor {name:?}: {why}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A packed file that is not as it was written.
    #[error("packed model file: it {0}; it is damaged: delete it and pack its source again")]
    Damaged(String),
    /// A token that the vocabulary does not have.
    #[error("token {id} is outside of the vocabulary of {vocab}")]
    Token {
        /// The token.
        id: usize,
        /// Vocabulary size.
        vocab: usize,
    },
    /// More positions than the context has.
    #[error(
        "{needed} positions are needed, but the context has {context}; shorten the prompt or ask for a longer context with -c (the model was trained for {trained})"
    )]
    Context {
        /// Positions asked for in all.
        needed: usize,
        /// Positions of this session.
        context: usize,
        /// Positions of the model's training.
        trained: usize,
    },
    /// The plan does not fit into memory.
    #[error(
        "not enough memory: {what} need {needed_mib} MiB, but {available_mib} MiB are available (bound by {bound}); ask for a shorter context with -c"
    )]
    Memory {
        /// What needs it.
        what: String,
        /// MiB needed.
        needed_mib: u64,
        /// MiB there are.
        available_mib: u64,
        /// Which limit binds.
        bound: String,
    },
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
