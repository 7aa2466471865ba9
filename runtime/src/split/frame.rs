//! Frames: how messages of a split model follow each other on a connection (`LRS/1`).
//!
//! Little-endian:
//!
//! | bytes | |
//! |---:|---|
//! | 2 | `LR` |
//! | 1 | version of frames: 1 |
//! | 1 | kind of message |
//! | 2 | flags; bit 0: who does not know the kind refuses the connection, instead of passing over the frame |
//! | 2 | zero |
//! | 4 | bytes of the payload |
//! | 4 | number of the request that this is, or answers |
//! | 4 | position in the text |
//! | 4 | the lower half of xxh3-64 of the 20 bytes before and of the payload |
//! | | payload |
//!
//! The transport below keeps strangers out and bytes in order. The sum finds what goes wrong between two programs of our own.

use super::bytes::Reader;
use xxhash_rust::xxh3::Xxh3;

/// Bytes before a payload.
pub const HEADER_BYTES: usize = 24;

const MAGIC: [u8; 2] = *b"LR";
const VERSION: u8 = 1;
/// Bytes of a header that its sum covers.
const SUMMED: usize = 20;
const MUST: u16 = 1;

/// What is said of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which message it is.
    pub kind: u8,
    /// Whether it may not be passed over.
    pub must: bool,
    /// Number of the request that this is, or answers.
    pub seq: u32,
    /// Position in the text.
    pub pos: u32,
}

/// A whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What is said of the payload.
    pub header: Header,
    /// The message.
    pub payload: &'a [u8],
}

/// Why bytes are no frames; there is no going on behind them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not this protocol.
    #[error("the other side does not speak LRS/1: it sent {0:02x?}")]
    Foreign([u8; 4]),
    /// Longer than such a message can be.
    #[error("a message of kind {kind} has {bytes} bytes, at most {cap} are possible here")]
    Long {
        /// Its kind.
        kind: u8,
        /// Its length.
        bytes: usize,
        /// What is allowed.
        cap: usize,
    },
    /// Changed on the way.
    #[error("a message of kind {0} does not match its checksum")]
    Sum(u8),
}

/// Appends a frame with the payload that `write` appends.
pub fn write(header: Header, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; HEADER_BYTES]);
    write(out);
    let Header { kind, must, seq, pos } = header;
    let bytes = (out.len() - start - HEADER_BYTES) as u32;
    let flags = if must { MUST } else { 0 };
    let (head, payload) = out[start..].split_at_mut(HEADER_BYTES);
    head[..2].copy_from_slice(&MAGIC);
    (head[2], head[3]) = (VERSION, kind);
    head[4..6].copy_from_slice(&flags.to_le_bytes());
    head[8..12].copy_from_slice(&bytes.to_le_bytes());
    head[12..16].copy_from_slice(&seq.to_le_bytes());
    head[16..20].copy_from_slice(&pos.to_le_bytes());
    let sum = sum(&head[..SUMMED], payload);
    head[SUMMED..].copy_from_slice(&sum.to_le_bytes());
}

fn sum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hash = Xxh3::new();
    hash.update(head);
    hash.update(payload);
    hash.digest() as u32
}

/// Cuts what arrives into frames. Holds no more than one frame and what arrived with its end: a length that is announced takes no
/// memory until the bytes are there.
#[derive(Debug, Default)]
pub struct Frames {
    held: Vec<u8>,
    /// Bytes of `held` that were given out.
    given: usize,
}

impl Frames {
    /// Takes what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.drain(..std::mem::take(&mut self.given));
        self.held.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is there; `cap` is the longest payload of a kind.
    ///
    /// # Errors
    /// [`FrameError`]; the connection is of no use any more.
    pub fn next(&mut self, cap: impl Fn(u8) -> usize) -> Result<Option<Frame<'_>>, FrameError> {
        let bytes = &self.held[self.given..];
        let Some((header, length, expected)) = header(bytes)? else { return Ok(None) };
        let cap = cap(header.kind);
        if length > cap {
            return Err(FrameError::Long { kind: header.kind, bytes: length, cap });
        }
        let Some(payload) = bytes[HEADER_BYTES..].get(..length) else { return Ok(None) };
        if sum(&bytes[..SUMMED], payload) != expected {
            return Err(FrameError::Sum(header.kind));
        }
        self.given += HEADER_BYTES + length;
        Ok(Some(Frame { header, payload }))
    }
}

/// A header, the length of its payload, and its sum.
fn header(bytes: &[u8]) -> Result<Option<(Header, usize, u32)>, FrameError> {
    // What speaks otherwise is refused with its first bytes: it may wait for an answer before it sends more.
    let Some(first) = bytes.first_chunk::<4>() else { return Ok(None) };
    if first[..2] != MAGIC || first[2] != VERSION {
        return Err(FrameError::Foreign(*first));
    }
    let mut reader = Reader::new(&bytes[4..]);
    let mut read = || {
        let flags = reader.u16()?;
        let zero = reader.u16()?;
        let length = reader.u32()? as usize;
        let (seq, pos, sum) = (reader.u32()?, reader.u32()?, reader.u32()?);
        Ok::<_, super::bytes::Short>((
            Header { kind: first[3], must: flags & MUST != 0, seq, pos },
            flags,
            zero,
            length,
            sum,
        ))
    };
    let Ok((header, flags, zero, length, sum)) = read() else { return Ok(None) };
    if zero != 0 || flags & !MUST != 0 {
        return Err(FrameError::Foreign(*first));
    }
    Ok(Some((header, length, sum)))
}
