//! A session of a worker: requests in order, each done once, and answers that can be said again.

use super::Time;
use super::codec::{Codec, CodecSpec};
use super::frame::FrameError;
use super::message::{Bounds, Message, MessageError, Refusal, Ticket};
use super::server::{ClientId, ConnectionId};
use crate::decode::Phase;
use std::collections::VecDeque;
use std::time::Duration;

/// Answers that are kept of each session.
const KEPT: usize = 64;

/// Tokens that are to go through the layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    /// Position of the first; what is behind it from earlier is to be forgotten.
    pub pos: u32,
    /// Whether they were generated.
    pub answer: bool,
    /// Whether the token behind the last is wanted.
    pub sample: bool,
    /// The tokens, if sampling looks back on them.
    pub tokens: Vec<u32>,
    /// `[tokens][width]`
    pub states: Vec<f32>,
}

/// Why a connection ends.
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    pub(super) text: String,
    pub(super) retry: Duration,
}

impl Refused {
    pub(super) fn new(refusal: Refusal, text: impl Into<String>) -> Refused {
        Refused { refusal, text: text.into(), retry: Duration::ZERO }
    }
}

impl From<FrameError> for Refused {
    fn from(e: FrameError) -> Refused {
        Refused::new(Refusal::BadMessage, e.to_string())
    }
}

impl From<MessageError> for Refused {
    fn from(e: MessageError) -> Refused {
        Refused::new(Refusal::BadMessage, e.to_string())
    }
}

/// A step as it came.
pub(super) struct Step<'a> {
    pub(super) phase: Phase,
    pub(super) sample: bool,
    pub(super) tokens: &'a [u8],
    pub(super) count: usize,
    pub(super) states: &'a [u8],
}

impl Step<'_> {
    fn work(&self, pos: u32, codec: &Codec) -> Result<Work, Refused> {
        let width = codec.spec().width;
        let mut states = vec![0.0; self.count * width];
        let mut bytes = self.states;
        for state in states.chunks_exact_mut(width) {
            let taken = codec.decode(bytes, state).map_err(|e| bad(e.to_string()))?;
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        if !bytes.is_empty() {
            return Err(bad(format!("{} bytes behind {} states", bytes.len(), self.count)));
        }
        let tokens = self.tokens.as_chunks().0.iter().map(|t| u32::from_le_bytes(*t)).collect();
        Ok(Work { pos, answer: self.phase == Phase::Answer, sample: self.sample, tokens, states })
    }
}

fn bad(text: impl Into<String>) -> Refused {
    Refused::new(Refusal::BadMessage, text)
}

#[derive(Debug)]
enum Request {
    Step(Work),
    Rewind,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Session {
    ticket: Ticket,
    pub(super) client: ClientId,
    codec: Codec,
    batch: usize,
    context: u32,
    pub(super) connection: Option<ConnectionId>,
    /// Since when it has none.
    pub(super) parked: Time,
    /// The last request that came, and the position behind it.
    last: u32,
    pos: u32,
    /// What came and was not done, from `done + 1` on; with the position behind it, and when it came.
    waiting: VecDeque<(Request, u32, Time)>,
    /// The last request that was done, and the position behind it.
    done: u32,
    done_pos: u32,
    /// Whether the first of `waiting` is being done.
    running: bool,
    /// Answers to the last requests, by number.
    answers: VecDeque<(u32, Vec<u8>)>,
}

impl Session {
    pub(super) fn new(ticket: Ticket, client: ClientId, codec: Codec, batch: usize, context: u32) -> Session {
        Session {
            ticket,
            client,
            codec,
            batch,
            context,
            connection: None,
            parked: Time::ZERO,
            last: 0,
            pos: 0,
            waiting: VecDeque::new(),
            done: 0,
            done_pos: 0,
            running: false,
            answers: VecDeque::new(),
        }
    }

    /// What bounds its messages.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds { state_bytes: self.codec.max_bytes(), batch: self.batch }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    /// Whether it is this ticket's, without telling by the time that it takes how much of it was right.
    pub(super) fn is_of(&self, ticket: &Ticket) -> bool {
        let bytes = |t: &Ticket| t.session.into_iter().chain(t.secret);
        bytes(&self.ticket).zip(bytes(ticket)).fold(0, |all, (a, b)| all | (a ^ b)) == 0
    }

    /// States come otherwise from now on.
    pub(super) fn recode(&mut self, spec: CodecSpec) -> Result<(), Refused> {
        if spec.width != self.codec.spec().width {
            return Err(bad("a codec of another width"));
        }
        self.codec = Codec::new(spec).map_err(|e| bad(e.to_string()))?;
        Ok(())
    }

    /// What to say to a client that comes back and has the answers up to `seen`; `None` if that is no longer possible. What waited and was
    /// not begun is forgotten, since it comes again.
    pub(super) fn resume(&mut self, seen: u32) -> Option<Vec<u8>> {
        let kept = self.answers.front().map_or(self.done, |(seq, _)| seq - 1);
        if seen < kept || seen > self.done {
            return None;
        }
        let running = usize::from(self.running);
        self.waiting.truncate(running);
        self.last = self.done + running as u32;
        self.pos = self.waiting.front().map_or(self.done_pos, |(_, pos, _)| *pos);
        let mut out = Vec::new();
        Message::Resumed.write(self.last, self.pos, &mut out);
        self.answers.iter().filter(|(seq, _)| *seq > seen).for_each(|(_, answer)| out.extend(answer));
        Some(out)
    }

    /// Takes a step, or none for going back; what to say at once, which is nothing or answers.
    pub(super) fn request(
        &mut self,
        now: Time,
        (seq, pos): (u32, u32),
        step: Option<&Step<'_>>,
        window: usize,
    ) -> Result<Vec<u8>, Refused> {
        if seq <= self.last {
            // It came before: if it was done, its answer is said again.
            let answer = self.answers.iter().find(|(of, _)| *of == seq);
            return Ok(answer.map_or(Vec::new(), |(_, answer)| answer.clone()));
        }
        if seq != self.last + 1 {
            return Err(bad(format!("request {seq} came behind {}", self.last)));
        }
        if self.waiting.len() >= window {
            return Err(bad(format!("more than {window} requests wait")));
        }
        let (request, end) = match step {
            None if pos > self.pos => {
                return Err(bad(format!("position {pos} to go back to, behind {}", self.pos)));
            }
            None => (Request::Rewind, pos),
            Some(_) if pos != self.pos => {
                return Err(bad(format!("tokens of position {pos}, expected {}", self.pos)));
            }
            Some(step) if step.count > self.batch => {
                return Err(bad(format!("{} states in a message, at most {}", step.count, self.batch)));
            }
            Some(step) => (Request::Step(step.work(pos, &self.codec)?), pos + step.count as u32),
        };
        if end > self.context {
            return Err(bad(format!("position {end} in a context of {}", self.context)));
        }
        self.waiting.push_back((request, end, now));
        (self.last, self.pos) = (seq, end);
        let mut out = Vec::new();
        self.settle(&mut out);
        Ok(out)
    }

    /// How many tokens its next step has, if it can be begun.
    pub(super) fn ready(&self) -> Option<usize> {
        match self.waiting.front() {
            Some((Request::Step(work), ..)) if !self.running => {
                Some(work.states.len() / self.codec.spec().width)
            }
            _ => None,
        }
    }

    /// Begins its next step.
    pub(super) fn start(&mut self) -> Option<Work> {
        let Some((Request::Step(work), ..)) = self.waiting.front_mut() else { return None };
        self.running = true;
        // It stays first in line, as one that is being done.
        Some(std::mem::take(work))
    }

    /// The step that was begun is done; what to say.
    pub(super) fn finish(&mut self, now: Time, token: Option<u32>, compute: Duration) -> Vec<u8> {
        self.running = false;
        let waited = self.waiting.front().map_or(Duration::ZERO, |(.., since)| now.saturating_sub(*since));
        let mut out = Vec::new();
        self.answer(token, compute, waited.saturating_sub(compute), &mut out);
        self.settle(&mut out);
        out
    }

    /// Answers what needs no computing.
    fn settle(&mut self, out: &mut Vec<u8>) {
        while !self.running && matches!(self.waiting.front(), Some((Request::Rewind, ..))) {
            self.answer(None, Duration::ZERO, Duration::ZERO, out);
        }
    }

    /// Answers the first request that waits.
    fn answer(&mut self, token: Option<u32>, compute: Duration, queue: Duration, out: &mut Vec<u8>) {
        let Some((_, pos, _)) = self.waiting.pop_front() else { return };
        (self.done, self.done_pos) = (self.done + 1, pos);
        let (compute_us, queue_us) = (compute.as_micros() as u32, queue.as_micros() as u32);
        let mut answer = Vec::new();
        Message::Done { token, compute_us, queue_us }.write(self.done, pos, &mut answer);
        out.extend_from_slice(&answer);
        self.answers.push_back((self.done, answer));
        if self.answers.len() > KEPT {
            self.answers.pop_front();
        }
    }
}
