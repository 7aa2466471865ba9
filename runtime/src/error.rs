//! The one error type of this crate.

use std::io;
use std::path::{Path, PathBuf};

use crate::store::GgufError;

/// Everything that can go wrong in this crate. Each message says what, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are no GGUF file that can be read, or lack what was asked for.
    #[error(transparent)]
    Gguf(#[from] GgufError),

    /// A packed file that this version cannot read, or whose directory is damaged.
    #[error("packed model file: {0}")]
    Packed(String),

    /// The operating system refused something about a file.
    #[error("cannot {what} {}: {source}{}", path.display(), remedy(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb: `open`, `map`, `write`.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },

    /// The file does not fit where it is being written.
    #[error(
        "no room for {}: it needs {need_bytes} bytes ({source}); free some there or write to another disk",
        path.display()
    )]
    NoSpace {
        /// The file that was to be written. Nothing of it is left behind.
        path: PathBuf,
        /// Size of the whole file in bytes.
        need_bytes: u64,
        /// What the system said.
        source: io::Error,
    },

    /// A model's least weights do not fit into its budget.
    #[error(
        "{:.1} MB are too few for the weights, which take {:.1} MB at least; allow more",
        *bytes as f64 / 1e6,
        (*least as f64 / 1e5).ceil() / 10.0
    )]
    Budget {
        /// What there would be for them.
        bytes: u64,
        /// What they take without any block.
        least: u64,
    },

    /// The path exists but is no regular file.
    #[error("{} is {found}, not a file; name the model file itself", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },

    /// The file has no bytes, most often because a download or copy failed.
    #[error("{} is empty; fetch or copy it again", path.display())]
    EmptyFile {
        /// The file.
        path: PathBuf,
    },

    /// Tensor data was handed to a writer other than announced. A fault of the calling program.
    #[error("writing {}: expected {expected}, was given {found}", path.display())]
    WriteOrder {
        /// The file that was to be written. Nothing of it is left behind.
        path: PathBuf,
        /// The tensor and size that are next.
        expected: String,
        /// The tensor and size that came.
        found: String,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err`: an I/O error on `path` while trying to do `what`.
    pub(crate) fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { path: path.to_path_buf(), what, source }
    }
}

/// What a person can do, for the causes that have an answer.
fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::PermissionDenied => "; check who may access it",
        io::ErrorKind::AlreadyExists => "; remove it if no other program is writing it",
        io::ErrorKind::OutOfMemory => "; the address space is too small for it",
        _ => "",
    }
}
