//! The container.

use crate::within;
use lutite_runtime::store::{Gguf, Stack, Value};
use std::hint::black_box;

fn walk(value: Value<'_>) {
    if let Value::Array(a) = value {
        assert_eq!(a.values().count(), a.len());
        if let Some(strs) = a.strs() {
            assert_eq!(strs.count(), a.len());
        }
        a.values().for_each(walk);
    }
}

/// Any bytes, read as a GGUF file: no panic, little memory (derived in `store/gguf.rs`), and all that a parsed file
/// offers can be read.
///
/// # Panics
/// Where that does not hold.
pub fn gguf(bytes: &[u8]) -> bool {
    let parsed = within("parse", 8 * bytes.len() + (64 << 10), 1.0, || Gguf::parse(bytes));
    let least = within("least", 8 * bytes.len() + (64 << 10), 1.0, || Stack::least_bytes(bytes));
    let gguf = match parsed {
        Ok(gguf) => gguf,
        Err(e) => {
            assert!(!e.to_string().is_empty());
            return false;
        }
    };
    // What is parsed has at least its least model.
    assert!(least.is_ok_and(|least| least.is_none_or(|least| least <= bytes.len() as u64)));
    for &(key, value) in gguf.metadata() {
        assert!(gguf.get(key).is_some());
        walk(value);
    }
    for t in gguf.tensors() {
        assert_eq!(gguf.tensor(t.name).map(|t| t.offset), Some(t.offset));
        assert!(t.offset as usize + t.data.len() <= bytes.len());
        black_box(t.data.iter().map(|&b| u64::from(b)).sum::<u64>());
    }
    true
}
