//! What can be wrong in a GGUF file, and where.

use std::fmt;

use lutite_kernels::ggml::GgmlType;

use super::gguf::{MAX_ARRAY_DEPTH, MAX_DIMS};

/// A fault, the part of the file that has it, and the byte at which it shows.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufError {
    pub(super) place: Place,
    pub(super) offset: Option<u64>,
    pub(super) fault: Fault,
}

impl GgufError {
    pub(super) fn new(place: Place, offset: Option<u64>, fault: Fault) -> GgufError {
        GgufError { place, offset, fault }
    }

    /// The part of the file.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Distance from the start of the file in bytes; `None` where the fault is not at one byte.
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// What is wrong there.
    pub fn fault(&self) -> &Fault {
        &self.fault
    }
}

impl fmt::Display for GgufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            Some(offset) => write!(f, "GGUF {} (byte {offset}): {}", self.place, self.fault),
            None => write!(f, "GGUF {}: {}", self.place, self.fault),
        }
    }
}

impl std::error::Error for GgufError {}

/// A part of a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// Magic number, version and counts.
    Header,
    /// The metadata entry with this index, before its key is known.
    Entry(u64),
    /// The value of a metadata key.
    Value {
        /// The key.
        key: Box<str>,
        /// Index in the value's array, where the fault is in one element.
        element: Option<u64>,
    },
    /// The tensor description with this index, before its name is known.
    TensorEntry(u64),
    /// The description or the data of a tensor.
    Tensor(Box<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => f.write_str("header"),
            Place::Entry(index) => write!(f, "metadata entry {index}"),
            // A key may have 64 KiB; its start is enough to find it.
            Place::Value { key, element: None } => write!(f, "metadata `{key:.100}`"),
            Place::Value { key, element: Some(i) } => write!(f, "metadata `{key:.100}`, element {i}"),
            Place::TensorEntry(index) => write!(f, "tensor entry {index}"),
            Place::Tensor(name) => write!(f, "tensor `{name}`"),
        }
    }
}

/// What is wrong with a GGUF file, or with what is to be written to one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The file does not start with `GGUF`.
    #[error("starts with bytes {0:02x?}, not \"GGUF\"; this is no GGUF file")]
    NotGguf([u8; 4]),
    /// The file was written for big-endian machines.
    #[error("numbers are big-endian; convert the file for little-endian machines")]
    BigEndian,
    /// A version from before the format settled.
    #[error("version {0} is too old, 2 and 3 can be read; convert the model again")]
    OldVersion(u32),
    /// A version that came after this program.
    #[error("version {0} is too new, 2 and 3 can be read; update this program")]
    NewVersion(u32),
    /// The file ends too early.
    #[error("needs {need} bytes, the file has {have} left; it is cut off or damaged, fetch it again")]
    Truncated {
        /// Bytes needed from the offset on.
        need: u64,
        /// Bytes that the file has from there.
        have: u64,
    },
    /// A count that cannot be true for a file of this size.
    #[error(
        "says there are {count} {what}, this file can hold at most {most}; it is damaged, fetch it again"
    )]
    Count {
        /// What is counted.
        what: &'static str,
        /// The number in the file.
        count: u64,
        /// The most that the rest of the file has room for.
        most: u64,
    },
    /// Text that is not UTF-8.
    #[error("text is not UTF-8 from its byte {0} on; convert the model again")]
    NotUtf8(u64),
    /// A key or name that is empty.
    #[error("name is empty")]
    EmptyName,
    /// A key or name that is too long.
    #[error("name has {len} bytes, at most {most} are allowed")]
    LongName {
        /// Its length in bytes.
        len: u64,
        /// The most that is allowed.
        most: u64,
    },
    /// A key or name with a control character, such as NUL, which other readers would cut or show wrongly.
    #[error("name has the control character {0:?}")]
    ControlCharacter(char),
    /// The same key or name twice.
    #[error("appears twice; which one is meant cannot be known")]
    Duplicate,
    /// A number that is no type of a metadata value.
    #[error("{0} is no type of a metadata value (0 to 12 are)")]
    ValueType(u32),
    /// A number that is no tensor type.
    #[error("tensor type {0} is unknown or withdrawn; convert the model again or update this program")]
    TensorType(u32),
    /// A bool that is neither 0 nor 1.
    #[error("a bool is stored as {0}, not 0 or 1")]
    Bool(u8),
    /// Arrays in arrays in arrays.
    #[error("arrays are nested more than {MAX_ARRAY_DEPTH} deep")]
    Depth,
    /// An alignment that is no power of two.
    #[error("alignment is {0}, not a power of two")]
    Alignment(u64),
    /// Too many dimensions.
    #[error("has {0} dimensions, at most {MAX_DIMS} are allowed")]
    Dims(u64),
    /// A dimension of zero.
    #[error("dimension {0} is zero")]
    ZeroDim(usize),
    /// The number of values or bytes does not fit into 63 bits.
    #[error("shape {0:?} is larger than any file")]
    Shape(Box<[u64]>),
    /// A row is no whole number of blocks.
    #[error("rows of {row} values are no multiple of the {} values in a block of {ty}", ty.block_len())]
    Row {
        /// Values in a row.
        row: u64,
        /// The tensor's type.
        ty: GgmlType,
    },
    /// Tensor data that does not start at a multiple of the alignment.
    #[error("data offset {offset} is no multiple of the alignment, {alignment}")]
    Misaligned {
        /// Distance from the start of the data section in bytes.
        offset: u64,
        /// The file's alignment in bytes.
        alignment: u64,
    },
    /// Tensor data that lies in the data of another tensor.
    #[error("data overlaps that of tensor `{0}`; the file is damaged")]
    Overlap(Box<str>),
    /// A tensor or key that was asked for is not there.
    #[error("is missing; the file is incomplete or of another kind of model")]
    Missing,
    /// A value of another type than was asked for.
    #[error("is {found}, expected {expected}")]
    WrongType {
        /// What was asked for.
        expected: &'static str,
        /// The type in the file, with the value where it is an integer out of range.
        found: String,
    },
    /// A key that the writer sets itself.
    #[error("is set by the writer; use set_alignment")]
    Reserved,
}
