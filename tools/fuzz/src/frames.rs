//! What comes over a wire: frames and their messages.

use crate::within;
use lutite_runtime::split::frame::Frames;
use lutite_runtime::split::message::{Bounds, Message};

/// Any bytes, in pieces: frames or a refusal, and what was read is written as the same bytes again. Every frame is given its right sum
/// first, without which next to none would be accepted.
///
/// # Panics
/// Where that does not hold.
pub fn frames(input: &[u8]) -> bool {
    let Some((size, bytes)) = input.split_first() else { return false };
    let bounds = Bounds { state_bytes: 64, batch: 16 };
    let bytes = sealed(bytes);
    let mut accepted = false;
    within("frames", 4 * bytes.len() + (64 << 10), 1.0, || {
        let mut frames = Frames::default();
        for piece in bytes.chunks(usize::from(*size).max(1)) {
            frames.push(piece);
            loop {
                let frame = match frames.next(|kind| bounds.cap(kind)) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(e) => {
                        assert!(e.to_string().len() < 200);
                        return;
                    }
                };
                let Ok(Some(message)) = Message::read(&frame) else { continue };
                accepted = true;
                let mut again = Vec::new();
                message.write(frame.header.seq, frame.header.pos, &mut again);
                // Numbers of refusals that are not known become one that is; NaN is equal to nothing, but has the same bytes.
                assert!(again.ends_with(frame.payload) || matches!(message, Message::Error { .. }));
            }
        }
    });
    accepted
}

/// With the sums of frames set right, as far as their lengths lead from one to the next.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + 24) {
        let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let Some(payload) = bytes.get(at + 24..).and_then(|rest| rest.get(..length)) else { break };
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(&head[..20]);
        hash.update(payload);
        let sum = (hash.digest() as u32).to_le_bytes();
        bytes[at + 20..at + 24].copy_from_slice(&sum);
        at += 24 + length;
    }
    bytes
}
