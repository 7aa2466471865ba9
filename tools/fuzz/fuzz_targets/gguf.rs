//! Any bytes, read as a GGUF file: no panic, and all that a parsed file offers can be read.
//!
//! Run with `cargo +nightly fuzz run --fuzz-dir tools/fuzz gguf -- -malloc_limit_mb=64 -max_len=65536`: no
//! file of 64 KiB may need 64 MiB. The bound in the file's length is held by `runtime/tests/gguf_bad.rs`.

#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;
use lutite_runtime::store::{Gguf, Value};

fn walk(value: Value<'_>) {
    if let Value::Array(a) = value {
        assert_eq!(a.values().count(), a.len());
        if let Some(strs) = a.strs() {
            assert_eq!(strs.count(), a.len());
        }
        a.values().for_each(walk);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let gguf = match Gguf::parse(bytes) {
        Ok(gguf) => gguf,
        Err(e) => {
            assert!(!e.to_string().is_empty());
            return;
        }
    };
    for &(key, value) in gguf.metadata() {
        assert!(gguf.get(key).is_some());
        walk(value);
    }
    for t in gguf.tensors() {
        assert_eq!(gguf.tensor(t.name).map(|t| t.offset), Some(t.offset));
        assert!(t.offset as usize + t.data.len() <= bytes.len());
        black_box(t.data.iter().map(|&b| u64::from(b)).sum::<u64>());
    }
});
