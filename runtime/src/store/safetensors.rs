//! Reading safetensors files: the header, and where each tensor's data is.
//!
//! Layout, little-endian:
//!
//! ```text
//! header: u64                        bytes of the JSON, at most 100 MB
//! JSON    {"__metadata__": {...}, "NAME": {"dtype": "F32", "shape": [rows, columns],
//!                                          "data_offsets": [begin, end]}, ...}
//! data    each tensor at its offsets from here, row-major; no gaps, no overlaps, nothing behind
//! ```
//!
//! Source: <https://github.com/huggingface/safetensors>, whose own reader accepts the same files but for names that
//! appear twice. It is not used: it refuses a whole file for one tensor of a type that it does not know, its errors do
//! not say which tensor or what to do, and what is left once JSON is parsed are the checks below.
//!
//! The file is untrusted. Memory is bounded by the header's own length: a tensor takes at most 200 bytes here and at
//! least 45 in the header; names are borrowed.

use super::bytes::Bytes;
use crate::json::{self, Object, Text};
use serde::Deserialize;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// Longest header, as in the reference.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Most dimensions of a tensor; weights have two, convolutions at most five.
const MAX_DIMS: usize = 8;

/// A safetensors file's tensors, ordered by name.
pub struct Safetensors<'a> {
    tensors: Vec<TensorView<'a>>,
    /// Bytes before the data.
    data_offset: usize,
}

/// A tensor of a [`Safetensors`] file.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    /// Its name, such as `model.norm.weight`.
    pub name: Cow<'a, str>,
    /// Its numbers' type.
    pub dtype: Dtype<'a>,
    /// Values along each dimension, slowest first: `[rows, columns]`.
    pub shape: Vec<u64>,
    /// Where its data lies in the file.
    pub range: Range<usize>,
}

/// The type of a tensor's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dtype<'a> {
    /// 32-bit floats.
    F32,
    /// IEEE half floats.
    F16,
    /// The upper half of 32-bit floats.
    BF16,
    /// Any other, as the file calls it: nothing here can read it, and other readers may be newer.
    Other(Cow<'a, str>),
}

impl Dtype<'_> {
    /// Bits of a value; `None` for a type that is not known.
    fn bits(&self) -> Option<u64> {
        Some(match self {
            Dtype::F32 => 32,
            Dtype::F16 | Dtype::BF16 => 16,
            Dtype::Other(name) => match name.as_ref() {
                "F4" => 4,
                "F6_E2M3" | "F6_E3M2" => 6,
                "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 8,
                "U16" | "I16" => 16,
                "U32" | "I32" => 32,
                "U64" | "I64" | "F64" | "C64" => 64,
                _ => return None,
            },
        })
    }
}

impl fmt::Display for Dtype<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dtype::F32 => f.write_str("F32"),
            Dtype::F16 => f.write_str("F16"),
            Dtype::BF16 => f.write_str("BF16"),
            Dtype::Other(name) => write!(f, "{name:.40}"),
        }
    }
}

/// What is wrong with a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// The header or the file as a whole.
    #[error("safetensors header: {0}")]
    Header(String),
    /// One tensor's description.
    #[error("safetensors tensor `{name}`: {why}")]
    Tensor {
        /// Its name, shortened.
        name: String,
        /// What is wrong, and what to do.
        why: String,
    },
}

const DAMAGED: &str = "the file is cut off or damaged, fetch it again";

/// A tensor's description in the header.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Text<'a>,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// At most [`MAX_DIMS`] numbers, so that a long list takes no memory.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> serde::de::Visitor<'de> for Dims {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_DIMS} dimensions")
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::with_capacity(4);
                while let Some(dim) = seq.next_element()? {
                    if dims.len() == MAX_DIMS {
                        return Err(serde::de::Error::invalid_length(dims.len() + 1, &self));
                    }
                    dims.push(dim);
                }
                Ok(Shape(dims))
            }
        }
        d.deserialize_seq(Dims)
    }
}

impl<'a> Safetensors<'a> {
    /// Reads the header of a whole file and checks everything but the tensors' values.
    ///
    /// # Errors
    /// [`SafetensorsError`] with the tensor and the fault, for the first fault found.
    pub fn parse(file: &'a [u8]) -> Result<Safetensors<'a>, SafetensorsError> {
        let bad = |why: String| SafetensorsError::Header(why);
        let Some((len, rest)) = file.split_first_chunk() else {
            return Err(bad(format!(
                "the file has {} bytes, its header's length takes 8; {DAMAGED}",
                file.len()
            )));
        };
        let len = u64::from_le_bytes(*len);
        if len > MAX_HEADER_BYTES {
            return Err(bad(format!(
                "says that it has {len} bytes, at most {MAX_HEADER_BYTES} are allowed; this is no safetensors file, or a \
                 damaged one"
            )));
        }
        let Some((header, data)) = rest.split_at_checked(len as usize) else {
            return Err(bad(format!("needs {len} bytes, the file has {} left; {DAMAGED}", rest.len())));
        };
        let header = std::str::from_utf8(header)
            .map_err(|e| bad(format!("is not UTF-8 from its byte {} on; {DAMAGED}", e.valid_up_to())))?;
        let fields = Object::parse(header).map_err(|e| bad(format!("{e}; {DAMAGED}")))?;
        let data_offset = 8 + len as usize;
        let mut tensors = Vec::with_capacity(fields.fields().len());
        for (name, entry) in fields.fields().iter().filter(|(name, _)| name != "__metadata__") {
            let range = |begin, end| data_offset + begin..data_offset + end;
            tensors.push(tensor(name, entry.get(), data.len(), range)?);
        }
        no_gaps(&mut tensors, data_offset, file.len())?;
        tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Safetensors { tensors, data_offset })
    }

    /// All tensors, ordered by name.
    pub fn tensors(&self) -> &[TensorView<'a>] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorView<'a>> {
        let found = self.tensors.binary_search_by(|t| t.name.as_ref().cmp(name)).ok()?;
        Some(&self.tensors[found])
    }

    /// Where the data starts, in bytes from the start of the file.
    pub fn data_offset(&self) -> usize {
        self.data_offset
    }
}

impl TensorView<'_> {
    /// Its data in `file`, the one that was parsed.
    ///
    /// # Panics
    /// Where `file` is shorter than that one.
    pub fn bytes(&self, file: &Bytes) -> Bytes {
        // A part of the file borrows from it, so that it is found.
        file.part(&file[self.range.clone()]).unwrap_or_else(Bytes::empty)
    }
}

fn error(name: &str, why: String) -> SafetensorsError {
    SafetensorsError::Tensor { name: name.chars().take(100).collect(), why }
}

/// One tensor's description, checked against the `data` bytes that there are.
fn tensor<'a>(
    name: &Cow<'a, str>,
    entry: &'a str,
    data: usize,
    range: impl Fn(usize, usize) -> Range<usize>,
) -> Result<TensorView<'a>, SafetensorsError> {
    let entry: Entry<'a> = json::parse(entry).map_err(|e| error(name, format!("{e}; {DAMAGED}")))?;
    let (begin, end) = entry.data_offsets;
    let inside = |offset: u64| usize::try_from(offset).ok().filter(|&offset| offset <= data);
    let (Some(begin_at), Some(end_at)) = (inside(begin), inside(end)) else {
        return Err(error(
            name,
            format!("data from {begin} to {end}, but the file has {data} bytes of it; {DAMAGED}"),
        ));
    };
    if begin > end {
        return Err(error(name, format!("data from {begin} to {end}, which is backwards; {DAMAGED}")));
    }
    let shape = entry.shape.0;
    let dtype = match entry.dtype.as_ref() {
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::BF16,
        _ => Dtype::Other(entry.dtype.0),
    };
    if let Some(bits) = dtype.bits() {
        let bits = shape.iter().try_fold(bits, |n, &dim| n.checked_mul(dim));
        if bits != Some((end - begin) * 8) {
            return Err(error(
                name,
                format!(
                    "shape {shape:?} of {dtype} does not take the {} bytes that it has; {DAMAGED}",
                    end - begin
                ),
            ));
        }
    }
    Ok(TensorView { name: name.clone(), dtype, shape, range: range(begin_at, end_at) })
}

/// Checks that the tensors' data, and nothing else, fills the file from `start` to `end`.
fn no_gaps(tensors: &mut [TensorView<'_>], start: usize, end: usize) -> Result<(), SafetensorsError> {
    tensors.sort_unstable_by_key(|t| (t.range.start, t.range.end));
    let mut at = start;
    for t in tensors {
        if t.range.start != at {
            let what =
                if t.range.start < at { "overlaps the data before it" } else { "leaves a gap before it" };
            return Err(error(&t.name, format!("its data {what}; {DAMAGED}")));
        }
        at = t.range.end;
    }
    if at != end {
        return Err(SafetensorsError::Header(format!(
            "{} bytes behind the last tensor; {DAMAGED}",
            end - at
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    fn message(file: &[u8]) -> String {
        match Safetensors::parse(file) {
            Ok(_) => panic!("accepted"),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn tensors_are_found_with_their_data() {
        let header = r#"{"__metadata__": {"format": "pt"},
            "b": {"dtype": "F16", "shape": [2, 1], "data_offsets": [0, 4]},
            "a\u0062": {"dtype": "F9_NEW", "shape": [3], "data_offsets": [4, 5], "later": true},
            "empty": {"dtype": "F32", "shape": [0, 7], "data_offsets": [5, 5]}}"#;
        let bytes = Bytes::new(file(header, &[1, 2, 3, 4, 5]));
        let parsed = Safetensors::parse(&bytes).unwrap();
        assert_eq!(parsed.tensors().len(), 3);
        assert_eq!(parsed.data_offset(), bytes.len() - 5);
        let b = parsed.tensor("b").unwrap();
        assert_eq!(
            (&b.dtype, &b.shape[..], &*b.bytes(&bytes)),
            (&Dtype::F16, &[2, 1][..], &[1, 2, 3, 4][..])
        );
        let ab = parsed.tensor("ab").unwrap();
        assert_eq!((ab.dtype.to_string().as_str(), &*ab.bytes(&bytes)), ("F9_NEW", &[5][..]));
        assert!(parsed.tensor("empty").unwrap().bytes(&bytes).is_empty());
        assert!(parsed.tensor("c").is_none());
        assert!(Safetensors::parse(&file("{}", &[])).unwrap().tensors().is_empty());
    }

    #[test]
    fn what_cannot_be_true_is_said() {
        let one = |entry: &str, data: &[u8]| message(&file(&format!("{{\"w\": {entry}}}"), data));
        assert!(message(&[0; 7]).contains("the file has 7 bytes"));
        assert!(message(&[0; 8]).contains("EOF"));
        assert!(message(&u64::MAX.to_le_bytes()).contains("no safetensors file"));
        assert!(message(&99_999_999u64.to_le_bytes()).contains("needs 99999999 bytes, the file has 0 left"));
        assert!(message(&file("[]", &[])).contains("expected an object"));
        assert!(
            message(&[&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()).contains("not UTF-8 from its byte 0")
        );
        assert!(message(&file("{} ", &[0])).contains("1 bytes behind the last"));
        let entries = [
            (r#"7"#, "expected struct"),
            (r#"{"dtype": "F32", "shape": [1]}"#, "missing field `data_offsets`"),
            (r#"{"dtype": 5, "shape": [1], "data_offsets": [0, 4]}"#, "expected a text"),
            (r#"{"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}"#, "invalid value"),
            (
                r#"{"dtype": "F32", "shape": [1,1,1,1,1,1,1,1,1], "data_offsets": [0, 4]}"#,
                "at most 8 dimensions",
            ),
            (r#"{"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}"#, "does not take the 4 bytes"),
            (r#"{"dtype": "I64", "shape": [1], "data_offsets": [0, 4]}"#, "does not take the 4 bytes"),
            (
                r#"{"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 4]}"#,
                "does not take",
            ),
            (r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 5]}"#, "the file has 4 bytes of it"),
            (
                r#"{"dtype": "F32", "shape": [1], "data_offsets": [18446744073709551615, 3]}"#,
                "the file has 4 bytes",
            ),
            (r#"{"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}"#, "backwards"),
            (r#"{"dtype": "U8", "shape": [3], "data_offsets": [1, 4]}"#, "leaves a gap"),
            (r#"{"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}"#, "1 bytes behind the last"),
        ];
        for (entry, why) in entries {
            let found = one(entry, &[0; 4]);
            assert!(found.contains(why), "{entry}: {found}");
            assert!(found.contains("`w`") || why.contains("behind"), "{entry}: {found}");
        }
        let two = |a: &str, b: &str| {
            let entry =
                |range: &str| format!("{{\"dtype\": \"U8\", \"shape\": [2], \"data_offsets\": {range}}}");
            message(&file(&format!("{{{a}: {}, {b}: {}}}", entry("[0, 2]"), entry("[1, 3]")), &[0; 3]))
        };
        assert!(two("\"v\"", "\"w\"").contains("`w`: its data overlaps"));
        assert!(two("\"v\"", "\"\\u0076\"").contains("the field \"v\" appears twice"));
    }
}
