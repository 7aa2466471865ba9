//! What can go wrong while weights are compressed.

use lutite_runtime::store::GgufError;

/// Any failure of this crate. Messages say what, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing a file.
    #[error(transparent)]
    Runtime(#[from] lutite_runtime::Error),
    /// Buffers that do not fit a shape.
    #[error(transparent)]
    Kernel(#[from] lutite_kernels::Error),
    /// Options or a source that make no sense together.
    #[error("{0}")]
    Options(String),
    /// A result that is not good enough.
    #[error("{0}")]
    Refused(String),
    /// A tensor that cannot be compressed.
    #[error("tensor {name:?}: {why}")]
    Tensor {
        /// Its name in the source.
        name: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A model that cannot be read or taken apart.
    #[error(transparent)]
    Model(#[from] lutite_models::Error),
    /// A file of the work folder.
    #[error("work folder, {}: {why}", path.display())]
    Work {
        /// The file or folder.
        path: std::path::PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The caller asked to stop; nothing was left behind.
    #[error("interrupted; nothing was written")]
    Interrupted,
    /// A container that is damaged or lacks something.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A setting that no kernel serves.
    #[error("{what} is {found}; choose {allowed}")]
    Setting {
        /// What is set.
        what: &'static str,
        /// Its value.
        found: String,
        /// Values that work.
        allowed: &'static str,
    },
    /// A buffer of another length than its shape asks for.
    #[error("{what} has {found} values, its shape asks for {expected}")]
    Length {
        /// The buffer.
        what: &'static str,
        /// Values that it has.
        found: usize,
        /// Values that it should have.
        expected: usize,
    },
    /// A weight that no f16 parameters can stand for.
    #[error(
        "weight at row {row}, column {col} is {value}, not a number within +-{limit}; \
         the model is damaged, fetch or convert it again"
    )]
    Weight {
        /// Row, from the first row that was passed.
        row: usize,
        /// Column.
        col: usize,
        /// The weight.
        value: f32,
        /// Largest magnitude that can be stored.
        limit: f32,
    },
    /// An importance that is no weight of a sum of squares.
    #[error("importance of column {col} is {value}, not a finite number of 0 or more; make the matrix again")]
    Importance {
        /// Column.
        col: usize,
        /// The importance.
        value: f32,
    },
    /// An importance matrix that cannot be read.
    #[error("importance matrix, {place}: {why}")]
    Imatrix {
        /// Entry or byte.
        place: String,
        /// What is wrong, and what to do.
        why: String,
    },
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
