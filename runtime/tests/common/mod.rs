//! GGUF files built byte by byte, so that they can be wrong in every way, and a walk over all that a reader
//! gives.

use lutite_runtime::store::{Gguf, Value};

/// A file in parts. Counts are those of the parts unless overridden.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) version: u32,
    pub(crate) counts: Option<(u64, u64)>,
    pub(crate) entries: Vec<Vec<u8>>,
    pub(crate) tensors: Vec<Vec<u8>>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn text(s: &[u8]) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes()[..], s].concat()
}

/// A metadata entry: key, type number, encoded value.
pub(crate) fn entry(key: &str, ty: u32, value: &[u8]) -> Vec<u8> {
    [&text(key.as_bytes())[..], &ty.to_le_bytes(), value].concat()
}

/// An encoded array: element type number, length, encoded elements.
pub(crate) fn array(ty: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}

/// A tensor description.
pub(crate) fn tensor(name: &str, dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let mut t = text(name.as_bytes());
    t.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| t.extend(d.to_le_bytes()));
    t.extend(ty.to_le_bytes());
    t.extend(offset.to_le_bytes());
    t
}

impl Raw {
    /// Some of everything: all value types, nested arrays, three tensors whose data ends where the file ends.
    pub(crate) fn sample() -> Raw {
        let strings = [text(b"a"), text(b""), text("\u{2581}the".as_bytes())].concat();
        let nested = [array(4, 2, &[1, 0, 0, 0, 2, 0, 0, 0]), array(8, 0, &[])].concat();
        let floats: Vec<u8> = [0.5f32, -1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let entries = vec![
            entry("general.architecture", 8, &text(b"llama")),
            entry("general.alignment", 4, &64u32.to_le_bytes()),
            entry("t.u8", 0, &[200]),
            entry("t.i8", 1, &[0xff]),
            entry("t.u16", 2, &60_000u16.to_le_bytes()),
            entry("t.i16", 3, &(-2i16).to_le_bytes()),
            entry("t.i32", 5, &(-3i32).to_le_bytes()),
            entry("t.f32", 6, &1.5f32.to_le_bytes()),
            entry("t.bool", 7, &[1]),
            entry("t.u64", 10, &(1u64 << 40).to_le_bytes()),
            entry("t.i64", 11, &(-4i64).to_le_bytes()),
            entry("t.f64", 12, &2.5f64.to_le_bytes()),
            entry("t.strs", 9, &array(8, 3, &strings)),
            entry("t.f32s", 9, &array(6, 2, &floats)),
            entry("t.i32s", 9, &array(5, 1, &7i32.to_le_bytes())),
            entry("t.bools", 9, &array(7, 2, &[0, 1])),
            entry("t.nested", 9, &array(9, 2, &nested)),
        ];
        let tensors = vec![
            tensor("tok.weight", &[4, 3], 0, 0),     // F32, 48 bytes
            tensor("blk.0.weight", &[64, 2], 2, 64), // Q4_0, 72 bytes
            tensor("blk.0.bias", &[5], 1, 192),      // F16, 10 bytes
        ];
        let data = (0..202u32).map(|i| i as u8).collect();
        Raw { version: 3, counts: None, entries, tensors, alignment: 64, data }
    }

    /// No metadata, one F32 tensor of 8 values: the smallest useful file.
    pub(crate) fn one() -> Raw {
        let tensors = vec![tensor("x", &[8], 0, 0)];
        Raw { version: 3, counts: None, entries: vec![], tensors, alignment: 32, data: vec![0; 32] }
    }

    /// As [`one`](Self::one), with one entry.
    pub(crate) fn with_entry(entry: Vec<u8>) -> Raw {
        Raw { entries: vec![entry], ..Raw::one() }
    }

    /// These tensors over `len` bytes of data.
    pub(crate) fn with_tensors(tensors: &[Vec<u8>], len: usize) -> Raw {
        Raw { tensors: tensors.to_vec(), data: vec![0; len], ..Raw::one() }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (n_tensors, n_entries) =
            self.counts.unwrap_or((self.tensors.len() as u64, self.entries.len() as u64));
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(n_tensors.to_le_bytes());
        file.extend(n_entries.to_le_bytes());
        file.extend(self.entries.concat());
        file.extend(self.tensors.concat());
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(&self.data);
        file
    }
}

/// Reads all that a parsed file offers, and checks what must hold for every file. Returns a sum, so that
/// nothing is optimised away.
pub(crate) fn walk(gguf: &Gguf<'_>, file_len: usize) -> u64 {
    fn value(v: Value<'_>) -> u64 {
        match v {
            Value::Str(s) => s.len() as u64,
            Value::Array(a) => {
                assert_eq!(a.values().count(), a.len());
                let typed = [
                    a.strs().map(Iterator::count),
                    a.f32s().map(Iterator::count),
                    a.i32s().map(Iterator::count),
                ];
                typed.into_iter().flatten().for_each(|n| assert_eq!(n, a.len()));
                a.values().map(value).fold(0, u64::wrapping_add)
            }
            other => other.integer::<u64>().unwrap_or(1),
        }
    }
    let mut sum = 0u64;
    for &(key, v) in gguf.metadata() {
        assert_eq!(gguf.get(key).map(|v| v.value_type()), Some(v.value_type()));
        let _ = (
            gguf.str(key),
            gguf.u32(key),
            gguf.f32(key),
            gguf.str_array(key).map(|a| a.map(Iterator::count)),
        );
        sum = sum.wrapping_add(value(v));
    }
    for t in gguf.tensors() {
        assert_eq!(gguf.tensor(t.name).map(|t| t.offset), Some(t.offset));
        assert!(t.offset.is_multiple_of(gguf.alignment()) && t.offset >= gguf.data_offset());
        assert!(t.offset as usize + t.data.len() <= file_len);
        assert_eq!(Some(t.data.len()), t.ty.row_bytes(t.elements() as usize));
        assert_eq!(t.elements(), t.rows() * t.shape()[0]);
        sum = sum.wrapping_add(t.data.iter().map(|&b| u64::from(b)).sum());
    }
    sum
}
