//! What the two sides of a split model say to each other.
//!
//! ```text
//! client                      worker
//! Hello        ->
//!              <-  Welcome    what it serves; or Error
//! Open         ->
//!              <-  Opened     a session
//! Step 1 .. n  ->             states of the prompt, several in a message; up to `window` messages without an answer
//!              <-  Done       one for each; that of the last has the first token
//! Step         ->             the state of that token
//!              <-  Done       the next one
//! ...
//! Resume       ->             on a new connection, after one that broke
//!              <-  Resumed    what was done; the client sends what was not
//! ```
//!
//! Steps and going back ([`Message::Step`], [`Message::Rewind`]) have numbers, in ascending order from 1. One that comes again is answered
//! as the first time, and not done again. [`Message::Recode`] has none: it holds for what comes behind it on its connection.

use super::bytes::{Reader, Short};
use super::codec::{CodecSpec, Precision};
use super::frame::{self, Frame, Header};
use crate::decode::Phase;
use crate::sample::SamplerConfig;

/// What tells a model, with its weights and the way that it is computed, from all others.
pub type Fingerprint = [u8; 32];

/// Versions of this protocol that are spoken here.
pub const VERSIONS: (u8, u8) = (1, 1);

/// Models that a worker names, at most.
pub const MAX_MODELS: usize = 64;

/// Channels that can be agreed on.
pub const MAX_CHANNELS: usize = 1024;

/// Longest text of an error, and longest token of a client, in bytes.
pub const MAX_TEXT_BYTES: usize = 1024;

/// A model that a worker serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Which.
    pub fingerprint: Fingerprint,
    /// Its layers, those of the client included.
    pub layers: u16,
    /// The fewest layers that a client has to compute.
    pub least: u16,
    /// Values of a state.
    pub width: u32,
    /// Longest text of a session.
    pub context: u32,
    /// States of a message, at most.
    pub batch: u16,
}

/// What a session is to be like.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    /// Of which model.
    pub fingerprint: Fingerprint,
    /// Layers that the client computes.
    pub cut: u16,
    /// How states come.
    pub codec: CodecSpec,
    /// Positions.
    pub context: u32,
    /// How tokens are chosen.
    pub sampling: SamplerConfig,
}

/// Names a session, and proves to be its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Which session.
    pub session: [u8; 16],
    /// Known to nobody else.
    pub secret: [u8; 32],
}

/// Why the worker does not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Refusal {
    /// No version of the protocol in common.
    Version = 1,
    /// The token or the certificate is not known.
    Stranger = 2,
    /// No such model, or computed otherwise.
    Mismatch = 3,
    /// What was sent means nothing.
    BadMessage = 4,
    /// The session is not known any more.
    Gone = 5,
    /// No room for another session; later perhaps.
    Busy = 6,
    /// This client has as much as it may.
    Quota = 7,
    /// It is about to end.
    Draining = 8,
    /// It failed itself.
    Failed = 9,
}

impl Refusal {
    const ALL: [Refusal; 9] = [
        Refusal::Version,
        Refusal::Stranger,
        Refusal::Mismatch,
        Refusal::BadMessage,
        Refusal::Gone,
        Refusal::Busy,
        Refusal::Quota,
        Refusal::Draining,
        Refusal::Failed,
    ];
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message<'a> {
    /// Who the client is, and which versions it speaks.
    Hello {
        /// The lowest and the highest.
        versions: (u8, u8),
        /// What it shows for itself; empty where its certificate does.
        token: &'a str,
    },
    /// What the worker serves.
    Welcome {
        /// The version that both speak from now on.
        version: u8,
        /// Its models.
        models: Vec<Card>,
    },
    /// Asks for a session.
    Open(Box<Open>),
    /// It is there.
    Opened {
        /// To come back with.
        ticket: Ticket,
        /// Seconds that it is kept without a connection.
        lease_s: u32,
        /// Requests that may wait for their answers.
        window: u16,
    },
    /// States of tokens, from the header's position on.
    Step {
        /// What the tokens are.
        phase: Phase,
        /// Whether the token behind the last of them is wanted.
        sample: bool,
        /// The tokens themselves, where sampling looks back on them; else none. `[count]`, 4 bytes each.
        tokens: &'a [u8],
        /// How many.
        count: u16,
        /// One after the other, as the codec has them.
        states: &'a [u8],
    },
    /// A request was done; the header has its number, and the position behind it.
    Done {
        /// The token that was wanted.
        token: Option<u32>,
        /// Microseconds of computing.
        compute_us: u32,
        /// Microseconds of waiting before that.
        queue_us: u32,
    },
    /// Forgets what is behind the header's position.
    Rewind,
    /// States come otherwise from now on.
    Recode(Box<CodecSpec>),
    /// Goes on with a session; the header's number is the last that was answered.
    Resume(Ticket),
    /// The session is there; the header's number is the last request that was done, and the position the one behind that. The answers that
    /// the client has not seen follow.
    Resumed,
    /// Is anybody there?
    Ping(u64),
    /// Yes.
    Pong(u64),
    /// The client is done with its session.
    Close,
    /// A refusal; of the request with the header's number, or of the connection.
    Error {
        /// Why.
        refusal: Refusal,
        /// When to ask again, in milliseconds; 0 for never.
        retry_ms: u32,
        /// In words.
        text: &'a str,
    },
}

/// Why a payload is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of kind {kind} {why}")]
pub struct MessageError {
    kind: u8,
    why: &'static str,
}

/// What bounds messages: what is known of a session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// Bytes of a state at most; 0 before there is a session.
    pub state_bytes: usize,
    /// States of a message at most.
    pub batch: usize,
}

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const OPEN: u8 = 3;
const OPENED: u8 = 4;
const STEP: u8 = 5;
const DONE: u8 = 6;
const REWIND: u8 = 7;
const RECODE: u8 = 8;
const RESUME: u8 = 9;
const RESUMED: u8 = 10;
const PING: u8 = 11;
const PONG: u8 = 12;
const CLOSE: u8 = 13;
const ERROR: u8 = 14;

const ANSWER: u8 = 1;
const SAMPLE: u8 = 2;
const TOKENS: u8 = 4;

impl Bounds {
    /// The longest payload of a kind. Kinds that are not known may be as long as the longest text.
    pub fn cap(&self, kind: u8) -> usize {
        match kind {
            OPEN | RECODE => 256 + 2 * MAX_CHANNELS,
            WELCOME => 16 + 64 * MAX_MODELS,
            STEP => 3 + self.batch * (4 + self.state_bytes),
            _ => 64 + MAX_TEXT_BYTES,
        }
    }
}

impl<'a> Message<'a> {
    /// Reads a frame's message; `None` for kinds that are not known and may be passed over.
    ///
    /// # Errors
    /// [`MessageError`]: the other side is not to be understood.
    pub fn read(frame: &Frame<'a>) -> Result<Option<Message<'a>>, MessageError> {
        let Header { kind, must, .. } = frame.header;
        let mut reader = Reader::new(frame.payload);
        let fault = |why| MessageError { kind, why };
        match payload(kind, &mut reader) {
            Ok(Some(_)) if !reader.rest().is_empty() => Err(fault("goes on behind its end")),
            Ok(None) if must => Err(fault("is not known here")),
            Ok(message) => Ok(message),
            Err(why) => Err(fault(why.0)),
        }
    }

    /// Appends it as a frame.
    pub fn write(&self, seq: u32, pos: u32, out: &mut Vec<u8>) {
        let kind = self.kind();
        // Only what asks after the connection means nothing for the session.
        let must = !matches!(self, Message::Ping(_) | Message::Pong(_));
        frame::write(Header { kind, must, seq, pos }, out, |out| self.put(out));
    }

    fn kind(&self) -> u8 {
        match self {
            Message::Hello { .. } => HELLO,
            Message::Welcome { .. } => WELCOME,
            Message::Open(_) => OPEN,
            Message::Opened { .. } => OPENED,
            Message::Step { .. } => STEP,
            Message::Done { .. } => DONE,
            Message::Rewind => REWIND,
            Message::Recode(_) => RECODE,
            Message::Resume(_) => RESUME,
            Message::Resumed => RESUMED,
            Message::Ping(_) => PING,
            Message::Pong(_) => PONG,
            Message::Close => CLOSE,
            Message::Error { .. } => ERROR,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Message::Hello { versions: (least, most), token } => {
                out.extend([*least, *most]);
                text(token, out);
            }
            Message::Welcome { version, models } => {
                out.extend([*version, models.len() as u8]);
                for card in models {
                    out.extend(card.fingerprint);
                    out.extend(card.layers.to_le_bytes());
                    out.extend(card.least.to_le_bytes());
                    out.extend(card.width.to_le_bytes());
                    out.extend(card.context.to_le_bytes());
                    out.extend(card.batch.to_le_bytes());
                }
            }
            Message::Open(open) => {
                out.extend(open.fingerprint);
                out.extend(open.cut.to_le_bytes());
                put_codec(&open.codec, out);
                out.extend(open.context.to_le_bytes());
                put_sampling(&open.sampling, out);
            }
            Message::Opened { ticket, lease_s, window } => {
                put_ticket(ticket, out);
                out.extend(lease_s.to_le_bytes());
                out.extend(window.to_le_bytes());
            }
            Message::Step { phase, sample, tokens, count, states } => {
                let answer = if *phase == Phase::Answer { ANSWER } else { 0 };
                let sample = if *sample { SAMPLE } else { 0 };
                let with = if tokens.is_empty() { 0 } else { TOKENS };
                out.push(answer | sample | with);
                out.extend(count.to_le_bytes());
                out.extend_from_slice(tokens);
                out.extend_from_slice(states);
            }
            Message::Done { token, compute_us, queue_us } => {
                out.push(u8::from(token.is_some()));
                out.extend(token.unwrap_or(0).to_le_bytes());
                out.extend(compute_us.to_le_bytes());
                out.extend(queue_us.to_le_bytes());
            }
            Message::Recode(codec) => put_codec(codec, out),
            Message::Resume(ticket) => put_ticket(ticket, out),
            Message::Ping(stamp) | Message::Pong(stamp) => out.extend(stamp.to_le_bytes()),
            Message::Rewind | Message::Resumed | Message::Close => {}
            Message::Error { refusal, retry_ms, text: words } => {
                out.extend((*refusal as u16).to_le_bytes());
                out.extend(retry_ms.to_le_bytes());
                text(words, out);
            }
        }
    }
}

/// Why a payload means nothing.
struct Why(&'static str);

impl From<Short> for Why {
    fn from(_: Short) -> Why {
        Why("ends before it is whole")
    }
}

fn payload<'a>(kind: u8, r: &mut Reader<'a>) -> Result<Option<Message<'a>>, Why> {
    Ok(Some(match kind {
        HELLO => Message::Hello { versions: (r.u8()?, r.u8()?), token: read_text(r)? },
        WELCOME => {
            let (version, n) = (r.u8()?, usize::from(r.u8()?));
            if n > MAX_MODELS {
                return Err(Why("names too many models"));
            }
            let mut card = || {
                Ok::<_, Short>(Card {
                    fingerprint: r.array()?,
                    layers: r.u16()?,
                    least: r.u16()?,
                    width: r.u32()?,
                    context: r.u32()?,
                    batch: r.u16()?,
                })
            };
            Message::Welcome { version, models: (0..n).map(|_| card()).collect::<Result<_, _>>()? }
        }
        OPEN => {
            let (fingerprint, cut) = (r.array()?, r.u16()?);
            let codec = read_codec(r)?;
            let (context, sampling) = (r.u32()?, read_sampling(r)?);
            Message::Open(Box::new(Open { fingerprint, cut, codec, context, sampling }))
        }
        OPENED => Message::Opened { ticket: read_ticket(r)?, lease_s: r.u32()?, window: r.u16()? },
        STEP => {
            let (flags, count) = (r.u8()?, r.u16()?);
            if flags & !(ANSWER | SAMPLE | TOKENS) != 0 || count == 0 {
                return Err(Why("is a step of no tokens, or of no known sort"));
            }
            let phase = if flags & ANSWER != 0 { Phase::Answer } else { Phase::Prompt };
            let tokens = if flags & TOKENS != 0 { r.take(4 * usize::from(count))? } else { &[] };
            let states = r.take(r.rest().len())?;
            Message::Step { phase, sample: flags & SAMPLE != 0, tokens, count, states }
        }
        DONE => {
            let (has, token) = (r.u8()?, r.u32()?);
            if has > 1 || has == 0 && token != 0 {
                return Err(Why("has a token and has none"));
            }
            let token = (has == 1).then_some(token);
            Message::Done { token, compute_us: r.u32()?, queue_us: r.u32()? }
        }
        REWIND => Message::Rewind,
        RECODE => Message::Recode(Box::new(read_codec(r)?)),
        RESUME => Message::Resume(read_ticket(r)?),
        RESUMED => Message::Resumed,
        PING => Message::Ping(r.u64()?),
        PONG => Message::Pong(r.u64()?),
        CLOSE => Message::Close,
        ERROR => {
            let (code, retry_ms) = (r.u16()?, r.u32()?);
            let refusal = Refusal::ALL.into_iter().find(|refusal| *refusal as u16 == code);
            // A reason of a later version.
            let refusal = refusal.unwrap_or(Refusal::Failed);
            Message::Error { refusal, retry_ms, text: read_text(r)? }
        }
        _ => return Ok(None),
    }))
}

/// Appends a text and its length, cut at [`MAX_TEXT_BYTES`].
fn text(text: &str, out: &mut Vec<u8>) {
    let end = (0..=text.len().min(MAX_TEXT_BYTES)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    out.extend((end as u16).to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..end]);
}

fn read_text<'a>(r: &mut Reader<'a>) -> Result<&'a str, Why> {
    let n = usize::from(r.u16()?);
    if n > MAX_TEXT_BYTES {
        return Err(Why("has too long a text"));
    }
    std::str::from_utf8(r.take(n)?).map_err(|_| Why("has a text that is none"))
}

fn put_ticket(ticket: &Ticket, out: &mut Vec<u8>) {
    out.extend(ticket.session);
    out.extend(ticket.secret);
}

fn read_ticket(r: &mut Reader<'_>) -> Result<Ticket, Short> {
    Ok(Ticket { session: r.array()?, secret: r.array()? })
}

/// What marks a codec of f32.
const LOSSLESS: u8 = 32;

fn put_codec(codec: &CodecSpec, out: &mut Vec<u8>) {
    out.extend((codec.width as u32).to_le_bytes());
    out.push(match codec.precision {
        Precision::Lossless => LOSSLESS,
        Precision::Bits(bits) => bits,
    });
    out.push(codec.indexed);
    out.extend(codec.guard.to_le_bytes());
    out.extend((codec.channels.len() as u16).to_le_bytes());
    codec.channels.iter().for_each(|channel| out.extend(channel.to_le_bytes()));
}

fn read_codec(r: &mut Reader<'_>) -> Result<CodecSpec, Why> {
    let width = r.u32()? as usize;
    let precision = match r.u8()? {
        LOSSLESS => Precision::Lossless,
        bits => Precision::Bits(bits),
    };
    let (indexed, guard, n) = (r.u8()?, r.f32()?, usize::from(r.u16()?));
    if n > MAX_CHANNELS {
        return Err(Why("agrees on too many channels"));
    }
    let channels = (0..n).map(|_| r.u16()).collect::<Result<_, _>>()?;
    Ok(CodecSpec { width, precision, channels, indexed, guard })
}

fn put_sampling(s: &SamplerConfig, out: &mut Vec<u8>) {
    out.extend(s.temperature.to_le_bytes());
    out.extend((s.top_k as u32).to_le_bytes());
    out.extend(s.top_p.to_le_bytes());
    out.extend(s.min_p.to_le_bytes());
    out.extend(s.repeat_penalty.to_le_bytes());
    out.extend((s.repeat_last_n as u32).to_le_bytes());
    out.extend(s.seed.to_le_bytes());
}

fn read_sampling(r: &mut Reader<'_>) -> Result<SamplerConfig, Short> {
    Ok(SamplerConfig {
        temperature: r.f32()?,
        top_k: r.u32()? as usize,
        top_p: r.f32()?,
        min_p: r.f32()?,
        repeat_penalty: r.f32()?,
        repeat_last_n: r.u32()? as usize,
        seed: r.u64()?,
    })
}
