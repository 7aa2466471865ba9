//! What can go wrong while weights are compressed.

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing a file.
    #[error(transparent)]
    Runtime(#[from] lutite_runtime::Error),
    /// The source container.
    #[error(transparent)]
    Gguf(#[from] lutite_runtime::store::GgufError),
    /// Buffers that do not fit a shape.
    #[error(transparent)]
    Kernel(#[from] lutite_kernels::Error),
    /// Options or a source that make no sense together.
    #[error("{0}")]
    Options(String),
    /// A tensor that cannot be compressed.
    #[error("tensor {name:?}: {why}")]
    Tensor {
        /// Its name in the source.
        name: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The caller asked to stop; nothing was left behind.
    #[error("interrupted; nothing was written")]
    Interrupted,
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
