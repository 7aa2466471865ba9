//! Model files: the GGUF container, read and written. The format is described in `docs/format.md`.

mod fault;
mod gguf;
mod value;
mod write;

pub use fault::{Fault, GgufError, Place};
pub use gguf::{Gguf, MAX_DIMS, MAX_KEY_BYTES, MAX_NAME_BYTES, TensorInfo};
pub use value::{ArrayView, Elements, ToValue, Value, ValueType, Values};
pub use write::{DEFAULT_ALIGNMENT_BYTES, GgufStream, GgufWriter};
