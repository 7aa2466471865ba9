//! The device's side of the protocol, without sockets, threads or a clock: bytes and times go in, bytes and events come out.
//!
//! The client keeps what it sent, as it was encoded: after a connection broke the worker is told what it has not seen, in as large pieces
//! as it takes, and of a worker that lost the session all of it. So the text goes on as if nothing had happened.
//!
//! ```text
//! Waiting -> Connecting -> Greeting -> Opening -> Ready
//!    ^                                              |     the connection breaks, or an answer does not come in time
//!    +----------------------------------------------+
//! ```
//!
//! What the worker holds is tracked by two positions: `there`, how many it will hold once all that was sent has arrived, and `agreed`, how
//! many of those are what is kept here. It is sent back to `agreed` where it holds more, and then what is kept behind that.

use super::Time;
use super::codec::{Codec, CodecError};
use super::frame::Frames;
use super::message::{Bounds, Message, Open, Refusal, Ticket, VERSIONS};
use crate::decode::Phase;
use std::collections::VecDeque;
use std::time::Duration;

/// How a client goes about it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What it shows for itself.
    pub token: String,
    /// The session that it wants.
    pub open: Open,
    /// How long a connection, and each answer until there is a session, may take.
    pub connect: Duration,
    /// How long a step may take.
    pub reply: Duration,
    /// How long to try again before giving up.
    pub patience: Duration,
}

/// Pauses between attempts to connect.
const PAUSES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// What is to be done, or was.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Connect to the worker, anew.
    Connect,
    /// Close the connection.
    Disconnect,
    /// A step was done: the position behind it, the token that was wanted, and what the worker says of its time.
    Done {
        /// Behind the step's last token.
        pos: u32,
        /// If one was wanted.
        token: Option<u32>,
        /// Since the step was asked for.
        took: Duration,
        /// Computing there.
        compute: Duration,
        /// Waiting there.
        queue: Duration,
    },
    /// The connection broke, or the worker does not answer; it is tried again.
    Lost(String),
    /// There is a session, with this many positions that the worker has not lost.
    Ready(u32),
    /// It is not tried any more, until [`Client::start`] is called.
    GaveUp(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is tried.
    Down,
    /// For the next attempt.
    Waiting(Time),
    Connecting(Time),
    Greeting(Time),
    Opening(Time),
    Ready,
}

/// A token that was fed, and where its encoded state is.
#[derive(Clone, Copy, Debug)]
struct Position {
    phase: Phase,
    token: u32,
    end: usize,
}

/// A step that the caller waits for.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// Never the same again: after going back a step may reach as far as one that was given up.
    id: u64,
    end: u32,
    sample: bool,
    asked: Time,
}

/// A request that was sent in this session and not answered.
#[derive(Clone, Copy, Debug)]
struct Sent {
    seq: u32,
    /// Where it begins, or goes back to.
    from: u32,
    /// The step that is done with it.
    step: Option<u64>,
    at: Time,
}

/// The device's side; see the module's head.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    codec: Codec,
    state: State,
    frames: Frames,
    out: Vec<u8>,
    events: VecDeque<Event>,
    /// Of the session, if there is one.
    ticket: Option<Ticket>,
    window: usize,
    batch: usize,
    positions: Vec<Position>,
    /// Encoded states of all positions.
    states: Vec<u8>,
    pending: VecDeque<Pending>,
    steps: u64,
    sent: VecDeque<Sent>,
    /// Number of the last request, and of the last answer.
    seq: u32,
    answered: u32,
    agreed: u32,
    there: u32,
    /// Attempts since there was a session, and since when there is none.
    attempts: usize,
    lost: Time,
}

impl Client {
    /// Nothing is done before [`Client::start`].
    ///
    /// # Errors
    /// A codec that there is not.
    pub fn new(settings: Settings) -> Result<Client, CodecError> {
        let codec = Codec::new(settings.open.codec.clone())?;
        Ok(Client {
            settings,
            codec,
            state: State::Down,
            frames: Frames::default(),
            out: Vec::new(),
            events: VecDeque::new(),
            ticket: None,
            window: 1,
            batch: 1,
            positions: Vec::new(),
            states: Vec::new(),
            pending: VecDeque::new(),
            steps: 0,
            sent: VecDeque::new(),
            seq: 0,
            answered: 0,
            agreed: 0,
            there: 0,
            attempts: 0,
            lost: Time::ZERO,
        })
    }

    /// Connects, unless it does already.
    pub fn start(&mut self, now: Time) {
        if self.state == State::Down {
            (self.attempts, self.lost) = (0, now);
            self.attempt(now);
        }
    }

    /// Whether there is a session.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether nothing is tried.
    pub fn is_down(&self) -> bool {
        self.state == State::Down
    }

    /// Positions that were fed.
    pub fn position(&self) -> u32 {
        self.positions.len() as u32
    }

    /// Bytes that are kept of what was fed.
    pub fn history_bytes(&self) -> usize {
        self.states.len() + size_of_val(&self.positions[..])
    }

    /// What is to be done, or was; one after the other.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Bytes to send; taken away.
    pub fn out(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// When [`Client::tick`] is to be called at the latest.
    pub fn deadline(&self) -> Option<Time> {
        match self.state {
            State::Down => None,
            State::Waiting(until) => Some(until),
            State::Connecting(since) | State::Greeting(since) | State::Opening(since) => {
                Some(since + self.settings.connect)
            }
            State::Ready => self.sent.front().map(|sent| sent.at + self.settings.reply),
        }
    }

    /// Feeds tokens, whose states leave the layers here: `[tokens][width]`; if `sample`, the token behind them is wanted.
    ///
    /// # Errors
    /// A state that is no finite numbers; nothing was fed then.
    ///
    /// # Panics
    /// If there are not as many states as tokens.
    pub fn step(
        &mut self,
        now: Time,
        phase: Phase,
        tokens: &[u32],
        states: &[f32],
        sample: bool,
    ) -> Result<(), CodecError> {
        let width = self.codec.spec().width;
        assert_eq!(states.len(), tokens.len() * width, "a state for each token");
        let before = (self.positions.len(), self.states.len());
        for (token, state) in tokens.iter().zip(states.chunks_exact(width)) {
            if let Err(e) = self.codec.encode(state, &mut self.states) {
                self.positions.truncate(before.0);
                self.states.truncate(before.1);
                return Err(e);
            }
            self.positions.push(Position { phase, token: *token, end: self.states.len() });
        }
        self.steps += 1;
        self.pending.push_back(Pending { id: self.steps, end: self.position(), sample, asked: now });
        self.pump(now);
        Ok(())
    }

    /// Forgets what was fed from a position on; steps that reach behind it are not waited for.
    pub fn rewind(&mut self, now: Time, pos: u32) {
        self.positions.truncate(pos as usize);
        self.states.truncate(self.positions.last().map_or(0, |p| p.end));
        self.pending.retain(|pending| pending.end <= pos);
        self.agreed = self.agreed.min(pos);
        self.pump(now);
    }

    /// Leaves the session for good.
    pub fn close(&mut self) {
        if self.state == State::Ready {
            Message::Close.write(0, 0, &mut self.out);
        }
        self.forget();
        self.state = State::Down;
    }

    /// The connection that was asked for is there.
    pub fn connected(&mut self, now: Time) {
        if matches!(self.state, State::Connecting(_)) {
            (self.frames, self.out) = (Frames::default(), Vec::new());
            Message::Hello { versions: VERSIONS, token: &self.settings.token }.write(0, 0, &mut self.out);
            self.state = State::Greeting(now);
        }
    }

    /// The connection, or the attempt at one, is gone.
    pub fn disconnected(&mut self, now: Time, why: &str) {
        if !matches!(self.state, State::Down | State::Waiting(_)) {
            self.lose(now, why.to_owned());
        }
    }

    /// Bytes came.
    pub fn received(&mut self, now: Time, bytes: &[u8]) {
        if matches!(self.state, State::Down | State::Waiting(_) | State::Connecting(_)) {
            return;
        }
        let mut frames = std::mem::take(&mut self.frames);
        frames.push(bytes);
        let bounds = Bounds::default();
        loop {
            let message = match frames.next(|kind| bounds.cap(kind)) {
                Ok(None) => break,
                Err(e) => return self.end(now, e.to_string()),
                Ok(Some(frame)) => {
                    let (seq, pos) = (frame.header.seq, frame.header.pos);
                    match Message::read(&frame) {
                        Ok(Some(message)) => self.take(now, message, seq, pos),
                        Ok(None) => Ok(()),
                        Err(e) => Err(e.to_string()),
                    }
                }
            };
            if let Err(why) = message {
                return self.end(now, why);
            }
            if matches!(self.state, State::Down | State::Waiting(_) | State::Connecting(_)) {
                return;
            }
        }
        self.frames = frames;
    }

    /// Time went by.
    pub fn tick(&mut self, now: Time) {
        let Some(deadline) = self.deadline().filter(|deadline| *deadline <= now) else { return };
        match self.state {
            State::Waiting(_) => self.attempt(now),
            State::Ready => {
                let waited = now.saturating_sub(deadline) + self.settings.reply;
                self.lose(now, format!("no answer for {:.1} s", waited.as_secs_f64()));
            }
            _ => self.lose(now, format!("no answer for {:.1} s", self.settings.connect.as_secs_f64())),
        }
    }

    fn attempt(&mut self, now: Time) {
        self.attempts += 1;
        self.state = State::Connecting(now);
        self.events.push_back(Event::Connect);
    }

    /// What the other side said makes no sense: another try will not mend that.
    fn end(&mut self, now: Time, why: String) {
        self.ticket = None;
        self.lose(now, why);
    }

    /// The connection is of no use any more.
    fn lose(&mut self, now: Time, why: String) {
        if self.state == State::Ready {
            (self.attempts, self.lost) = (0, now);
            self.events.push_back(Event::Lost(why.clone()));
        }
        self.events.push_back(Event::Disconnect);
        self.pause(now, Duration::ZERO, why);
    }

    /// Waits for the next attempt, or gives up.
    fn pause(&mut self, now: Time, least: Duration, why: String) {
        let pause = PAUSES[self.attempts.min(PAUSES.len() - 1)].max(least);
        if now.saturating_sub(self.lost) + pause > self.settings.patience {
            self.state = State::Down;
            self.events.push_back(Event::GaveUp(why));
        } else {
            self.state = State::Waiting(now + pause);
        }
    }

    /// There is no session that could be gone on with.
    fn forget(&mut self) {
        self.ticket = None;
        self.sent.clear();
        (self.seq, self.answered, self.agreed, self.there) = (0, 0, 0, 0);
    }

    fn take(&mut self, now: Time, message: Message<'_>, seq: u32, pos: u32) -> Result<(), String> {
        match (message, self.state) {
            (Message::Ping(stamp), _) => Message::Pong(stamp).write(seq, pos, &mut self.out),
            (Message::Pong(_), _) => {}
            (Message::Error { refusal, retry_ms, text }, _) => self.refused(now, refusal, retry_ms, text),
            (Message::Welcome { models, .. }, State::Greeting(_)) => {
                let open = &self.settings.open;
                let Some(card) = models.iter().find(|card| card.fingerprint == open.fingerprint) else {
                    self.give_up("the worker has no such model, or computes it otherwise");
                    return Ok(());
                };
                self.batch = usize::from(card.batch).max(1);
                match &self.ticket {
                    Some(ticket) => Message::Resume(*ticket).write(self.answered, 0, &mut self.out),
                    None => Message::Open(Box::new(open.clone())).write(0, 0, &mut self.out),
                }
                self.state = State::Opening(now);
            }
            (Message::Opened { ticket, window, .. }, State::Opening(_)) => {
                self.forget();
                (self.ticket, self.window) = (Some(ticket), usize::from(window).max(1));
                self.ready(now);
            }
            (Message::Resumed, State::Opening(_)) => {
                if seq < self.answered || seq > self.seq {
                    return Err(format!("the worker has done request {seq} of {}", self.seq));
                }
                for sent in self.sent.iter().filter(|sent| sent.seq > seq) {
                    self.agreed = self.agreed.min(sent.from);
                }
                self.sent.retain(|sent| sent.seq <= seq);
                self.sent.iter_mut().for_each(|sent| sent.at = now);
                (self.seq, self.there) = (seq, pos);
                self.agreed = self.agreed.min(pos);
                self.ready(now);
            }
            (Message::Done { token, compute_us, queue_us }, State::Ready) => {
                if seq <= self.answered {
                    // Said twice.
                    return Ok(());
                }
                let Some(sent) = self.sent.pop_front().filter(|sent| sent.seq == seq) else {
                    return Err(format!("the worker answers request {seq}, expected {}", self.answered + 1));
                };
                self.answered = seq;
                let micros = |us: u32| Duration::from_micros(us.into());
                // What is sent again for a worker that lost it nobody waits for.
                let step = self.pending.pop_front_if(|step| sent.step == Some(step.id));
                if let Some(step) = step {
                    let took = now.saturating_sub(step.asked);
                    let (compute, queue) = (micros(compute_us), micros(queue_us));
                    self.events.push_back(Event::Done { pos, token, took, compute, queue });
                }
                self.pump(now);
            }
            _ => return Err("the worker says what was not asked for".into()),
        }
        Ok(())
    }

    fn ready(&mut self, now: Time) {
        self.state = State::Ready;
        self.attempts = 0;
        self.events.push_back(Event::Ready(self.agreed));
        self.pump(now);
    }

    fn refused(&mut self, now: Time, refusal: Refusal, retry_ms: u32, text: &str) {
        let was_ready = self.state == State::Ready;
        if was_ready {
            (self.attempts, self.lost) = (0, now);
            self.events.push_back(Event::Lost(text.to_owned()));
        }
        match refusal {
            // The session is lost, and another one may do.
            Refusal::Gone | Refusal::Failed => self.forget(),
            Refusal::Busy | Refusal::Draining => {}
            Refusal::Quota if retry_ms > 0 => {}
            Refusal::Version
            | Refusal::Stranger
            | Refusal::Mismatch
            | Refusal::BadMessage
            | Refusal::Quota => {
                self.forget();
                return self.give_up(text);
            }
        }
        self.events.push_back(Event::Disconnect);
        self.pause(now, Duration::from_millis(retry_ms.into()), text.to_owned());
    }

    fn give_up(&mut self, why: &str) {
        self.state = State::Down;
        self.events.push_back(Event::Disconnect);
        self.events.push_back(Event::GaveUp(why.to_owned()));
    }

    /// Sends what the worker lacks, as far as it takes more requests.
    fn pump(&mut self, now: Time) {
        if self.state != State::Ready {
            return;
        }
        while self.sent.len() < self.window {
            if self.there > self.agreed {
                self.request(now, self.agreed, None, &Message::Rewind);
                self.there = self.agreed;
                continue;
            }
            let from = self.there as usize;
            let Some(first) = self.positions.get(from).copied() else { return };
            // As many as go together: of one phase, up to the next step that somebody waits for.
            let wanted = self.pending.iter().find(|pending| pending.end > self.there).copied();
            let limit = wanted.map_or(self.positions.len(), |p| p.end as usize).min(from + self.batch);
            let phase = |p: &&Position| p.phase == first.phase;
            let count = self.positions[from..limit].iter().take_while(phase).count();
            let end = from + count;
            let start = from.checked_sub(1).map_or(0, |i| self.positions[i].end);
            let states = self.states[start..self.positions[end - 1].end].to_vec();
            let bytes = |p: &Position| p.token.to_le_bytes();
            let looks_back = self.settings.open.sampling.repeat_penalty != 1.0;
            let tokens: Vec<u8> = match looks_back {
                true => self.positions[from..end].iter().flat_map(bytes).collect(),
                false => Vec::new(),
            };
            let step = wanted.filter(|p| p.end as usize == end);
            let sample = step.is_some_and(|p| p.sample);
            let message = Message::Step {
                phase: first.phase,
                sample,
                tokens: &tokens,
                count: count as u16,
                states: &states,
            };
            self.request(now, from as u32, step.map(|p| p.id), &message);
            (self.there, self.agreed) = (end as u32, end as u32);
        }
    }

    fn request(&mut self, now: Time, from: u32, step: Option<u64>, message: &Message<'_>) {
        self.seq += 1;
        message.write(self.seq, from, &mut self.out);
        self.sent.push_back(Sent { seq: self.seq, from, step, at: now });
    }
}
