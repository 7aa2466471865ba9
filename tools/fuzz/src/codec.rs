//! Hidden states as they come over a wire.

use crate::within;
use lutite_runtime::split::codec::{Codec, CodecSpec, Precision};

/// Six bytes that say what both sides agreed on, then a state: refused with a reason, or finite numbers. The same bytes as numbers
/// are sent and arrive, or are refused since one is not finite.
///
/// # Panics
/// Where that does not hold.
pub fn codec(input: &[u8]) -> bool {
    let Some(([width, wide, bits, every, indexed, guard], state)) = input.split_first_chunk() else {
        return false;
    };
    let width = usize::from(*width) + 256 * usize::from(*wide % 16);
    let precision = if *bits == 32 { Precision::Lossless } else { Precision::Bits(*bits) };
    let channels = (0..width).step_by(usize::from(*every).max(1)).map(|c| c as u16).collect();
    let spec = CodecSpec { width, precision, channels, indexed: *indexed, guard: f32::from(*guard) / 64.0 };
    let Ok(mut codec) = Codec::new(spec) else { return false };
    let mut x = vec![0.0f32; width];
    for (x, bytes) in x.iter_mut().zip(state.as_chunks().0) {
        *x = f32::from_le_bytes(*bytes);
    }
    let mut sent = Vec::new();
    let cap = 16 * width + (4 << 10);
    match within("encode", cap, 1.0, || codec.encode(&x, &mut sent)) {
        Ok(()) => {
            let mut back = vec![0.0; width];
            assert_eq!(codec.decode(&sent, &mut back), Ok(sent.len()));
            assert!(sent.len() <= codec.max_bytes() && back.iter().all(|x| x.is_finite()));
        }
        Err(_) => assert!(sent.is_empty() && x.iter().any(|x| !x.is_finite())),
    }
    match within("decode", 4 << 10, 1.0, || codec.decode(state, &mut x)) {
        Ok(n) => {
            assert!(n <= state.len() && x.iter().all(|x| x.is_finite()));
            true
        }
        Err(e) => {
            assert!(e.to_string().len() < 200);
            false
        }
    }
}
