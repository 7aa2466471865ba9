//! Model files: GGUF, read and written, and the headers of safetensors files. Packed files are described in
//! `docs/format.md`.

mod bytes;
mod checksum;
mod directory;
mod fault;
mod gguf;
mod levels;
mod matrix;
mod model_file;
mod packed;
mod safetensors;
mod stack;
mod value;
mod write;

pub use bytes::Bytes;
pub use checksum::{announce_checksums, seal_checksums, tensor_checksums};
pub use directory::{Directory, Part, check_version, is_packed};
pub use fault::{Fault, GgufError, Place};
pub use gguf::{Gguf, MAX_DIMS, MAX_KEY_BYTES, MAX_NAME_BYTES, TensorInfo};
pub use levels::{LEVEL_TENSORS, LevelsInfo};
pub use matrix::{Loaded, MatrixInfo, View};
pub use model_file::{ModelFile, RowOrder, TensorPart};
pub use packed::{ARCH_PREFIX, FORMAT_VERSION, PackedInfo, layout_tag};
pub use safetensors::{Dtype, Safetensors, SafetensorsError, TensorView};
pub use stack::{Block, Point, Stack, version_name};
pub use value::{ArrayView, Elements, ToValue, Value, ValueType, Values};
pub use write::{DEFAULT_ALIGNMENT_BYTES, GgufStream, GgufWriter};
