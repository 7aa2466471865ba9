//! Headers of safetensors files.

use crate::within;
use lutite_runtime::store::{Bytes, Safetensors};

/// Any bytes as a safetensors file: refused with a reason, or its tensors are all of the file's data.
///
/// # Panics
/// Where that does not hold.
pub fn safetensors(input: &[u8]) -> bool {
    let file = Bytes::new(input.to_vec());
    let parsed = match within("parse", 64 * input.len() + (64 << 10), 2.0, || Safetensors::parse(&file)) {
        Ok(parsed) => parsed,
        Err(e) => {
            let message = e.to_string();
            assert!(!message.is_empty() && message.len() < 2000, "{message}");
            return false;
        }
    };
    let mut size = parsed.data_offset();
    for t in parsed.tensors() {
        assert_eq!(parsed.tensor(&t.name).map(|t| &t.range), Some(&t.range));
        assert_eq!(t.bytes(&file).len(), t.range.len());
        size += t.range.len();
    }
    assert_eq!(size, input.len());
    true
}
