//! The bytes of a model: one GGUF file, or the head of one whose tensors lie in other files.
//!
//! Everything that reads a model reads [`Gguf`]. A model that comes in another form (a folder of safetensors) is
//! translated to a GGUF head in memory, metadata and descriptions, and its tensors stay where they are mapped. What
//! another program keeps in another order of rows is put in order when the rows are read, not before.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::bytes::Bytes;
use super::fault::GgufError;
use super::gguf::{Gguf, TensorInfo};

/// A model's bytes; cloning copies none.
#[derive(Clone, Debug)]
pub struct ModelFile {
    head: Bytes,
    /// By tensor, in the order of the head; `None`: the data lies behind the head, as in any GGUF file.
    parts: Option<Arc<[TensorPart]>>,
}

/// The data of one tensor of a [`ModelFile`] that was put together by [`super::GgufWriter::assemble`].
#[derive(Clone, Debug)]
pub struct TensorPart {
    /// All rows, one after another, without padding.
    pub data: Bytes,
    /// Which row is where in `data`.
    pub order: RowOrder,
}

/// In which order a tensor's rows lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowOrder {
    /// From first to last.
    #[default]
    Listed,
    /// In every `head` rows the even ones come first and then the odd ones: how Hugging Face's Llama keeps q and k,
    /// whose rotary pairs are half a head apart, where GGUF has them side by side.
    EvenOdd {
        /// Rows of a head: even, and it divides the number of rows.
        head: usize,
    },
}

impl RowOrder {
    /// Whether a tensor of so many rows can have this order.
    pub(super) fn fits(self, rows: u64) -> bool {
        match self {
            RowOrder::Listed => true,
            RowOrder::EvenOdd { head } => {
                head > 0 && head.is_multiple_of(2) && rows.is_multiple_of(head as u64)
            }
        }
    }

    /// Where row `row` lies.
    pub fn place(self, row: usize) -> usize {
        match self {
            RowOrder::Listed => row,
            RowOrder::EvenOdd { head } => row / head * head + row % 2 * (head / 2) + row % head / 2,
        }
    }
}

impl ModelFile {
    pub(super) fn assembled(head: Bytes, parts: Vec<TensorPart>) -> ModelFile {
        ModelFile { head, parts: Some(parts.into()) }
    }

    /// Metadata and tensors.
    ///
    /// # Errors
    /// As [`Gguf::parse`].
    pub fn gguf(&self) -> Result<Gguf<'_>, GgufError> {
        match &self.parts {
            None => Gguf::parse(&self.head),
            Some(parts) => Gguf::parse_parts(&self.head, parts),
        }
    }

    /// A tensor's data in the order of its rows, keeping its file alive; copied where it lies in another order. `None`
    /// if the tensor is another model's.
    pub fn tensor_bytes(&self, t: &TensorInfo<'_>) -> Option<Bytes> {
        let stored = match &self.parts {
            None => self.head.part(t.data),
            Some(parts) => parts.iter().find_map(|part| part.data.part(t.data)),
        };
        stored.map(|stored| match t.order {
            RowOrder::Listed => stored,
            RowOrder::EvenOdd { .. } => Bytes::new(t.all_rows().into_owned()),
        })
    }

    /// The whole file, if it is one.
    pub fn whole(&self) -> Option<Bytes> {
        self.parts.is_none().then(|| self.head.clone())
    }

    /// The bytes in the order of [`ModelFile::chunks`].
    pub fn len(&self) -> u64 {
        self.chunks().map(|chunk| chunk.len() as u64).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What [`Self::gguf`] is parsed from: the whole file, or the head where the tensors lie elsewhere.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// All bytes that say what the model is, for a checksum: the file; or the head and then each tensor's data, with
    /// the name of the order before it where that is not as listed.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let parts = self.parts.iter().flat_map(|parts| parts.iter());
        let chunks = parts.flat_map(|part| {
            let order: &[u8] = match part.order {
                RowOrder::Listed => &[],
                RowOrder::EvenOdd { .. } => b"even-odd",
            };
            [order, &part.data[..]]
        });
        std::iter::once(&self.head[..]).chain(chunks)
    }
}

impl From<&Bytes> for ModelFile {
    fn from(file: &Bytes) -> ModelFile {
        ModelFile { head: file.clone(), parts: None }
    }
}

impl From<&ModelFile> for ModelFile {
    fn from(file: &ModelFile) -> ModelFile {
        file.clone()
    }
}

impl<'a> TensorInfo<'a> {
    /// The data of some rows, one after another: borrowed, or copied where they lie in another order.
    ///
    /// # Panics
    /// Where the range goes beyond [`Self::rows`].
    pub fn row_bytes(&self, rows: Range<usize>) -> Cow<'a, [u8]> {
        let len = self.data.len() / self.rows() as usize;
        match self.order {
            RowOrder::Listed => Cow::Borrowed(&self.data[rows.start * len..rows.end * len]),
            order => {
                let mut out = Vec::with_capacity(rows.len() * len);
                for row in rows.map(|row| order.place(row)) {
                    out.extend_from_slice(&self.data[row * len..(row + 1) * len]);
                }
                Cow::Owned(out)
            }
        }
    }

    /// As [`Self::row_bytes`], of all rows.
    pub fn all_rows(&self) -> Cow<'a, [u8]> {
        self.row_bytes(0..self.rows() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::super::GgufWriter;
    use super::*;
    use lutite_kernels::ggml::GgmlType;

    fn assemble(parts: Vec<TensorPart>) -> crate::error::Result<ModelFile> {
        let mut w = GgufWriter::new();
        w.set("general.architecture", "llama").unwrap();
        w.add_tensor("a", GgmlType::I8, &[2, 8]).unwrap();
        w.add_tensor("b", GgmlType::I8, &[3]).unwrap();
        w.assemble(parts)
    }

    fn part(data: &[u8], order: RowOrder) -> TensorPart {
        TensorPart { data: Bytes::new(data.to_vec()), order }
    }

    #[test]
    fn tensors_from_elsewhere_are_read_in_the_order_of_their_rows() {
        let data: Vec<u8> = (0..16).collect();
        let file = assemble(vec![part(&data, RowOrder::EvenOdd { head: 4 }), part(b"xyz", RowOrder::Listed)])
            .unwrap();
        let gguf = file.gguf().unwrap();
        assert_eq!(gguf.str("general.architecture").unwrap(), Some("llama"));
        let (a, b) = (gguf.require("a").unwrap(), gguf.require("b").unwrap());
        // Two heads of 4 rows: the halves of each interleave.
        let rows = [0, 2, 1, 3, 4, 6, 5, 7].map(|row| [2 * row, 2 * row + 1]);
        assert_eq!(*a.all_rows(), rows.concat());
        assert_eq!(*a.row_bytes(3..6), rows[3..6].concat());
        assert_eq!(*file.tensor_bytes(a).unwrap(), rows.concat());
        assert_eq!(&*file.tensor_bytes(b).unwrap(), b"xyz");
        assert!(matches!(b.all_rows(), Cow::Borrowed(_)));
        // Order counts for what the model is.
        let listed = assemble(vec![part(&data, RowOrder::Listed), part(b"xyz", RowOrder::Listed)]).unwrap();
        let bytes = |file: &ModelFile| file.chunks().collect::<Vec<_>>().concat();
        assert_ne!(bytes(&file), bytes(&listed));
        assert_eq!(bytes(&listed).len() as u64, listed.len());
        // Another model's tensor.
        assert!(listed.tensor_bytes(a).is_none());
    }

    #[test]
    fn parts_have_to_fit_the_descriptions() {
        let whole = || part(&[0; 16], RowOrder::Listed);
        let message = |parts| assemble(parts).unwrap_err().to_string();
        assert!(message(vec![whole()]).contains("expected tensor `b` of 3 bytes, was given the end"));
        let short = message(vec![whole(), part(b"xy", RowOrder::Listed)]);
        assert!(short.contains("expected tensor `b` of 3 bytes, was given 2 bytes"), "{short}");
        let long = message(vec![whole(), part(b"xyz", RowOrder::Listed), whole()]);
        assert!(long.contains("expected the end of the file, was given 16 bytes"), "{long}");
        for head in [0, 1, 3, 6, 16] {
            let order = message(vec![part(&[0; 16], RowOrder::EvenOdd { head }), whole()]);
            assert!(order.contains("heads of an even"), "{head}: {order}");
        }
    }
}
