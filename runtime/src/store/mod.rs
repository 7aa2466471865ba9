//! Model files: the GGUF container, read and written. The format is described in `docs/format.md`.

mod bytes;
mod checksum;
mod fault;
mod gguf;
mod packed;
mod value;
mod write;

pub use bytes::Bytes;
pub use checksum::{announce_checksums, seal_checksums, tensor_checksums};
pub use fault::{Fault, GgufError, Place};
pub use gguf::{Gguf, MAX_DIMS, MAX_KEY_BYTES, MAX_NAME_BYTES, TensorInfo};
pub use packed::{ARCH_PREFIX, FORMAT_VERSION, PackedInfo, layout_tag};
pub use value::{ArrayView, Elements, ToValue, Value, ValueType, Values};
pub use write::{DEFAULT_ALIGNMENT_BYTES, GgufStream, GgufWriter};
