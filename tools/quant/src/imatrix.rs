//! Importance matrices of llama.cpp: the mean square of each column's activations, per tensor.
//!
//! Two formats, told apart by the first four bytes.
//!
//! GGUF: for each tensor `NAME.in_sum2`, f32 `[matrices][cols]`, sums of squares, and `NAME.counts`, f32
//! `[matrices][1]`, the numbers of tokens; more than one matrix for stacks of experts.
//!
//! Legacy (`.dat`), little-endian, all numbers i32 but the values:
//!
//! ```text
//! entries
//! entries times   length, name[length]   calls   values, f32[values]: mean squares times calls
//! optionally      chunks   length, name of the text[length]
//! ```
//!
//! Sources: `common/imatrix-loader.cpp`, `tools/quantize/quantize.cpp` and `tools/imatrix/imatrix.cpp` of llama.cpp.
//! Files are untrusted: counts are held against the bytes that are left, so memory is bounded by the
//! file's size, and no value that is negative or not finite gets in.

use lutite_runtime::store::{Gguf, TensorInfo};

use crate::error::{Error, Result};

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Longest name of a tensor in the legacy format. ggml's own limit is 63; a length above this is damage.
const MAX_NAME_BYTES: usize = 1024;

/// Least bytes of a legacy entry: three numbers, one byte of name, one value.
const LEAST_ENTRY_BYTES: usize = 3 * 4 + 1 + 4;

/// Mean squares of activations, by the name of the tensor that they are multiplied with.
#[derive(Clone, Debug, PartialEq)]
pub struct Imatrix {
    /// By name.
    entries: Vec<(String, Vec<f32>)>,
}

impl Imatrix {
    /// Reads a whole file of either format.
    ///
    /// # Errors
    /// [`Error::Gguf`] for a damaged container, [`Error::Imatrix`] with the place for anything else.
    pub fn read(bytes: &[u8]) -> Result<Imatrix> {
        let entries = if bytes.starts_with(b"GGUF") { read_gguf(bytes)? } else { read_legacy(bytes)? };
        Imatrix::of(entries)
    }

    pub(crate) fn of(mut entries: Vec<(String, Vec<f32>)>) -> Result<Imatrix> {
        if entries.is_empty() {
            return fail("file", "has no importances; is it a model? Pass a file that llama-imatrix wrote");
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return fail(format!("{:?}", pair[0].0), "appears twice; which one is meant cannot be known");
        }
        for (name, values) in &entries {
            if let Some(i) = values.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
                let why =
                    format!("value {i} is {}, not a finite mean square; make the matrix again", values[i]);
                return fail(format!("{name:?}"), why);
            }
        }
        Ok(Imatrix { entries })
    }

    /// The importance of each column of a tensor, `[cols]`, or `[matrices][cols]` for a stack of experts. Whether that
    /// is as many as the tensor has is the caller's to check. `None` if the tensor is not in the file.
    pub fn importance(&self, tensor: &str) -> Option<&[f32]> {
        let found = self.entries.binary_search_by(|e| e.0.as_str().cmp(tensor)).ok()?;
        Some(&self.entries[found].1)
    }

    /// The names of all tensors in the file, sorted.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|e| e.0.as_str())
    }
}

fn fail<T>(place: impl Into<String>, why: impl Into<String>) -> Result<T> {
    Err(Error::Imatrix { place: place.into(), why: why.into() })
}

fn read_gguf(bytes: &[u8]) -> Result<Vec<(String, Vec<f32>)>> {
    let gguf = Gguf::parse(bytes)?;
    let mut entries = Vec::new();
    for sums in gguf.tensors() {
        let Some(name) = sums.name.strip_suffix(SUMS) else { continue };
        let counts = gguf.require(&format!("{name}{COUNTS}"))?;
        let (sums, counts) = (f32s(sums)?, f32s(counts)?);
        if !sums.len().is_multiple_of(counts.len()) {
            let why =
                format!("{} sums do not divide by {} counts; the file is damaged", sums.len(), counts.len());
            return fail(format!("{name:?}"), why);
        }
        let mut values = Vec::with_capacity(sums.len());
        for (sums, count) in sums.chunks_exact(sums.len() / counts.len()).zip(&counts) {
            // An expert that no token came to: all its columns alike, as llama.cpp has it. NaN stays, to be refused.
            if *count <= 0.0 {
                values.extend(sums.iter().map(|_| 1.0));
            } else {
                values.extend(sums.iter().map(|v| v / count));
            }
        }
        entries.push((name.to_owned(), values));
    }
    Ok(entries)
}

fn f32s(t: &TensorInfo<'_>) -> Result<Vec<f32>> {
    if t.ty != lutite_kernels::ggml::GgmlType::F32 {
        return fail(format!("tensor {:?}", t.name), format!("is {}, not F32; make the matrix again", t.ty));
    }
    Ok(floats(t.data))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn read_legacy(bytes: &[u8]) -> Result<Vec<(String, Vec<f32>)>> {
    let mut legacy = Legacy { bytes, at: 0 };
    let count = legacy.number("number of entries", bytes.len() / LEAST_ENTRY_BYTES)?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let len = legacy.number("length of a name", MAX_NAME_BYTES)?;
        let at = legacy.at;
        let Ok(name) = std::str::from_utf8(legacy.take(len)?) else {
            return fail(
                format!("byte {at}"),
                "name is not UTF-8; this is no importance matrix, or a damaged one",
            );
        };
        let calls = i32::from_le_bytes(legacy.array()?);
        let len = legacy.number("number of values", legacy.left() / 4)?;
        let mut values = floats(legacy.take(4 * len)?);
        // Without a number of calls, the oldest files, values are means already.
        if calls > 0 {
            values.iter_mut().for_each(|v| *v /= calls as f32);
        }
        entries.push((name.to_owned(), values));
    }
    Ok(entries)
}

/// A position in a legacy file.
struct Legacy<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Legacy<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (at, left) = (self.at, self.left());
        let Some(taken) = self.bytes[at..].get(..n) else {
            let why =
                format!("needs {n} bytes, the file has {left} left; it is cut off or no importance matrix");
            return fail(format!("byte {at}"), why);
        };
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// An i32 from 1 to `most`.
    fn number(&mut self, what: &str, most: usize) -> Result<usize> {
        let at = self.at;
        let n = i32::from_le_bytes(self.array()?);
        match usize::try_from(n) {
            Ok(n) if (1..=most).contains(&n) => Ok(n),
            _ => {
                let why = format!(
                    "{what} is {n}, not from 1 to {most}; the file is cut off or no importance matrix"
                );
                fail(format!("byte {at}"), why)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lutite_kernels::ggml::GgmlType;
    use lutite_runtime::store::GgufWriter;

    fn le(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn gguf(tensors: &[(&str, GgmlType, &[u64], Vec<u8>)]) -> Vec<u8> {
        let mut w = GgufWriter::new();
        w.set("general.type", "imatrix").unwrap();
        for (name, ty, shape, _) in tensors {
            w.add_tensor(name, *ty, shape).unwrap();
        }
        let mut stream = w.begin_in_memory().unwrap();
        for (name, _, _, data) in tensors {
            stream.tensor(name, data).unwrap();
        }
        stream.finish().unwrap()
    }

    fn good_gguf() -> Vec<u8> {
        gguf(&[
            ("b.weight.counts", GgmlType::F32, &[1, 2], le(&[2.0, 0.0])),
            ("b.weight.in_sum2", GgmlType::F32, &[3, 2], le(&[2.0, 4.0, 0.0, 5.0, 6.0, 7.0])),
            ("a.weight.in_sum2", GgmlType::F32, &[2], le(&[1.0, 3.0])),
            ("a.weight.counts", GgmlType::F32, &[1], le(&[4.0])),
        ])
    }

    fn legacy(entries: &[(&str, i32, &[f32])]) -> Vec<u8> {
        let mut out = (entries.len() as i32).to_le_bytes().to_vec();
        for (name, calls, values) in entries {
            out.extend((name.len() as i32).to_le_bytes());
            out.extend(name.as_bytes());
            out.extend(calls.to_le_bytes());
            out.extend((values.len() as i32).to_le_bytes());
            out.extend(le(values));
        }
        out
    }

    #[test]
    fn gguf_means_are_sums_over_counts() {
        let m = Imatrix::read(&good_gguf()).unwrap();
        assert_eq!(m.tensors().collect::<Vec<_>>(), ["a.weight", "b.weight"]);
        assert_eq!(m.importance("a.weight").unwrap(), [0.25, 0.75]);
        assert_eq!(m.importance("b.weight").unwrap(), [1.0, 2.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!(m.importance("c.weight"), None);
    }

    #[test]
    fn legacy_means_are_values_over_calls() {
        let mut file = legacy(&[("b", 2, &[2.0, 4.0]), ("a", 0, &[3.0])]);
        for tail in [&[][..], &7i32.to_le_bytes(), b"\x07\0\0\0\x04\0\0\0text"] {
            file.extend(tail);
            let m = Imatrix::read(&file).unwrap();
            assert_eq!(m.importance("b").unwrap(), [1.0, 2.0]);
            assert_eq!(m.importance("a").unwrap(), [3.0]);
        }
    }

    #[test]
    fn cut_files_are_refused() {
        for file in [good_gguf(), legacy(&[("blk.0.ffn_up.weight", 2, &[2.0, 4.0]), ("a", 1, &[3.0])])] {
            let data = if file.starts_with(b"GGUF") {
                Gguf::parse(&file).unwrap().tensors()[3].offset + 4
            } else {
                file.len() as u64
            };
            for cut in 0..data as usize {
                assert!(Imatrix::read(&file[..cut]).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn damaged_files_are_refused() {
        let one = |name, ty, n: u64, data| gguf(&[(name, ty, &[n], data)]);
        let with = |counts: &[f32], sums: &[f32]| {
            gguf(&[
                ("a.in_sum2", GgmlType::F32, &[sums.len() as u64], le(sums)),
                ("a.counts", GgmlType::F32, &[counts.len() as u64], le(counts)),
            ])
        };
        let mut counted = legacy(&[("a", 1, &[1.0])]);
        counted[..4].copy_from_slice(&i32::MAX.to_le_bytes());
        let mut long = legacy(&[("a", 1, &[1.0])]);
        long[13..17].copy_from_slice(&i32::MAX.to_le_bytes());
        let mut negative = legacy(&[("a", 1, &[1.0])]);
        negative[4..8].copy_from_slice(&(-1i32).to_le_bytes());
        for (file, says) in [
            (one("a", GgmlType::F32, 1, le(&[1.0])), "is it a model"),
            (one("a.in_sum2", GgmlType::F32, 1, le(&[1.0])), "a.counts"),
            (with(&[1.0, 1.0], &[1.0, 1.0, 1.0]), "do not divide"),
            (with(&[1.0], &[1.0, -1.0]), "value 1 is -1"),
            (with(&[1.0], &[f32::NAN]), "value 0 is NaN"),
            (with(&[f32::NAN], &[1.0]), "value 0 is NaN"),
            (with(&[1e-38], &[1e38]), "value 0 is inf"),
            (
                gguf(&[
                    ("a.in_sum2", GgmlType::F16, &[1], vec![0; 2]),
                    ("a.counts", GgmlType::F32, &[1], le(&[1.0])),
                ]),
                "not F32",
            ),
            (legacy(&[]), "number of entries is 0"),
            (legacy(&[("a", 1, &[1.0]), ("a", 1, &[1.0])]), "twice"),
            (legacy(&[("a", 1, &[f32::INFINITY])]), "value 0 is inf"),
            (legacy(&[("a", 1, &[])]), "number of values is 0"),
            (counted, "number of entries"),
            (long, "number of values"),
            (negative, "length of a name is -1"),
            (b"not an importance matrix, but long enough to be one of them".to_vec(), "number of entries"),
            (Vec::new(), "byte 0"),
        ] {
            let message = Imatrix::read(&file).unwrap_err().to_string();
            assert!(message.contains(says), "{message:?} does not say {says:?}");
        }
    }
}
