//! Any bytes, read as a safetensors file: no panic, and every tensor lies in the file by itself.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lutite_runtime::store::{Bytes, Safetensors};

fuzz_target!(|bytes: &[u8]| {
    let file = Bytes::new(bytes.to_vec());
    let parsed = match Safetensors::parse(&file) {
        Ok(parsed) => parsed,
        Err(e) => {
            let message = e.to_string();
            assert!(!message.is_empty() && message.len() < 2000);
            return;
        }
    };
    let mut size = parsed.data_offset();
    for t in parsed.tensors() {
        assert_eq!(parsed.tensor(&t.name).map(|t| &t.range), Some(&t.range));
        assert_eq!(t.bytes(&file).len(), t.range.len());
        assert!(!t.dtype.to_string().is_empty() || bytes.windows(2).any(|w| w == b"\"\""));
        size += t.range.len();
    }
    assert_eq!(size, bytes.len());
});
