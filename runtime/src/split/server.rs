//! The worker's side of the protocol, without sockets, threads or a clock: bytes and times go in, bytes and work come out.
//!
//! ```text
//! transport:  connected, received, disconnected, tick   ->  out(connection), is_closing(connection)
//! engine:     next() -> jobs;  finished(job, token)
//! ```
//!
//! A session outlives its connection for a lease. What it was asked is done in order; the last answers are kept, so that a request that
//! comes again after a connection broke is answered and not done twice. Whatever a client sends, it can lose its own session by it,
//! and nobody else's.

use super::Time;
use super::codec::Codec;
use super::frame::Frames;
use super::message::{Bounds, Card, Message, Open, Refusal, Ticket, VERSIONS};
pub use super::session::Work;
use super::session::{Refused, Session, Step};
use std::collections::BTreeMap;
use std::time::Duration;

/// Who a client is, for quotas.
pub type ClientId = u64;

/// What a worker allows.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Sessions at a time, with a connection or not.
    pub sessions: usize,
    /// Of one client.
    pub per_client: usize,
    /// Requests of a session that wait for their answers.
    pub window: u16,
    /// How long a session is kept without a connection.
    pub lease: Duration,
    /// How long a connection may take to say who it is.
    pub greeting: Duration,
    /// How long a connection may say nothing.
    pub silence: Duration,
    /// Bytes that may wait to be taken by a client that does not read.
    pub unread_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 256,
            sessions: 64,
            per_client: 8,
            window: 8,
            lease: Duration::from_secs(120),
            greeting: Duration::from_secs(5),
            silence: Duration::from_secs(60),
            unread_bytes: 1 << 20,
        }
    }
}

/// What the server asks of the world around it.
pub trait World {
    /// Who shows this token, if it may use the worker.
    fn admit(&mut self, token: &str) -> Option<ClientId>;
    /// Fills `bytes` with what nobody can guess.
    fn random(&mut self, bytes: &mut [u8]);
    /// Makes room for a session.
    ///
    /// # Errors
    /// Why not, and what to tell the client.
    fn open(&mut self, session: SessionId, open: &Open) -> Result<(), (Refusal, String)>;
    /// The session is gone.
    fn close(&mut self, session: SessionId);
}

/// Tokens of a session that are to go through the layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Whose.
    pub session: SessionId,
    /// What is to be done.
    pub step: Work,
}

/// Names a session for the engine; never used twice.
pub type SessionId = u64;

/// Names a connection for the transport.
pub type ConnectionId = u64;

#[derive(Debug)]
struct Connection {
    frames: Frames,
    out: Vec<u8>,
    client: Option<ClientId>,
    session: Option<SessionId>,
    since: Time,
    heard: Time,
    /// Nothing more is taken from it; once `out` is sent it is to be closed.
    closing: bool,
}

/// The worker's side; see the module's head.
#[derive(Debug)]
pub struct Server {
    limits: Limits,
    models: Vec<Card>,
    connections: BTreeMap<ConnectionId, Connection>,
    sessions: BTreeMap<SessionId, Session>,
    next_connection: ConnectionId,
    next_session: SessionId,
    /// The session that was served last.
    turn: SessionId,
    draining: bool,
}

/// How soon a client that found no room may ask again.
const RETRY: Duration = Duration::from_secs(2);

impl Server {
    /// Serves these models.
    pub fn new(models: Vec<Card>, limits: Limits) -> Server {
        Server {
            limits,
            models,
            connections: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_connection: 1,
            next_session: 1,
            turn: 0,
            draining: false,
        }
    }

    /// A connection came; `None` if it is one too many, and is to be closed.
    pub fn connected(&mut self, now: Time) -> Option<ConnectionId> {
        if self.connections.len() >= self.limits.connections {
            return None;
        }
        let id = self.next_connection;
        self.next_connection += 1;
        let connection = Connection {
            frames: Frames::default(),
            out: Vec::new(),
            client: None,
            session: None,
            since: now,
            heard: now,
            closing: false,
        };
        self.connections.insert(id, connection);
        Some(id)
    }

    /// A connection went; its session waits for another.
    pub fn disconnected(&mut self, now: Time, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if let Some(session) = connection.session.and_then(|s| self.sessions.get_mut(&s))
            && session.connection == Some(id)
        {
            (session.connection, session.parked) = (None, now);
        }
    }

    /// Bytes to send to a connection; taken away.
    pub fn out(&mut self, id: ConnectionId) -> Vec<u8> {
        self.connections.get_mut(&id).map_or(Vec::new(), |c| std::mem::take(&mut c.out))
    }

    /// Whether a connection is to be closed once what there is for it is sent.
    pub fn is_closing(&self, id: ConnectionId) -> bool {
        self.connections.get(&id).is_none_or(|c| c.closing)
    }

    /// Bytes came.
    pub fn received(&mut self, now: Time, id: ConnectionId, bytes: &[u8], world: &mut impl World) {
        let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.closing) else { return };
        let mut frames = std::mem::take(&mut connection.frames);
        frames.push(bytes);
        let mut result = Ok(());
        while result.is_ok() {
            let bounds = self.bounds(id);
            let frame = match frames.next(|kind| bounds.cap(kind)) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(e) => {
                    result = Err(e.into());
                    break;
                }
            };
            // Only whole messages count: one byte now and then keeps no connection.
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.heard = now;
            }
            let (seq, pos) = (frame.header.seq, frame.header.pos);
            result = match Message::read(&frame) {
                Ok(Some(message)) => self.take(now, id, message, seq, pos, world),
                Ok(None) => Ok(()),
                Err(e) => Err(e.into()),
            };
            if self.is_closing(id) {
                break;
            }
        }
        if let Err(refused) = result {
            self.refuse(now, id, &refused);
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.frames = frames;
            if connection.out.len() > self.limits.unread_bytes {
                // It asks and does not read.
                connection.out.clear();
                connection.closing = true;
            }
        }
    }

    /// What ends with time: connections that do not say who they are, or nothing at all, and sessions that nobody came back for.
    pub fn tick(&mut self, now: Time, world: &mut impl World) {
        for c in self.connections.values_mut() {
            let late = c.client.is_none() && now.saturating_sub(c.since) > self.limits.greeting;
            c.closing |= late || now.saturating_sub(c.heard) > self.limits.silence;
        }
        let lease = self.limits.lease;
        let gone =
            |s: &Session| s.connection.is_none() && !s.is_running() && now.saturating_sub(s.parked) > lease;
        let gone: Vec<SessionId> = self.sessions.iter().filter(|(_, s)| gone(s)).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|id| self.end(id, world));
    }

    /// Takes no new sessions from now on. Those that there are go on.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Sessions that there are.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    fn bounds(&self, id: ConnectionId) -> Bounds {
        let session = self.connections.get(&id).and_then(|c| self.sessions.get(&c.session?));
        session.map_or(Bounds::default(), Session::bounds)
    }

    fn send(&mut self, id: ConnectionId, message: &Message<'_>, seq: u32, pos: u32) {
        if let Some(connection) = self.connections.get_mut(&id) {
            message.write(seq, pos, &mut connection.out);
        }
    }

    fn refuse(&mut self, now: Time, id: ConnectionId, refused: &Refused) {
        let retry_ms = refused.retry.as_millis() as u32;
        self.send(id, &Message::Error { refusal: refused.refusal, retry_ms, text: &refused.text }, 0, 0);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.closing = true;
        if let Some(session) = connection.session.take().and_then(|s| self.sessions.get_mut(&s)) {
            (session.connection, session.parked) = (None, now);
        }
    }

    fn take(
        &mut self,
        now: Time,
        id: ConnectionId,
        message: Message<'_>,
        seq: u32,
        pos: u32,
        world: &mut impl World,
    ) -> Result<(), Refused> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        let bad = |text: &str| Err(Refused::new(Refusal::BadMessage, text));
        match (message, connection.client, connection.session) {
            (Message::Ping(stamp), ..) => self.send(id, &Message::Pong(stamp), seq, pos),
            (Message::Pong(_), ..) => {}
            (Message::Hello { versions: (least, most), token }, None, _) => {
                let version = most.min(VERSIONS.1);
                if version < least.max(VERSIONS.0) {
                    let (a, b) = VERSIONS;
                    let text = format!("versions {a} to {b} are spoken here, {least} to {most} there");
                    return Err(Refused::new(Refusal::Version, text));
                }
                let Some(client) = world.admit(token) else {
                    return Err(Refused::new(Refusal::Stranger, "this worker does not know you"));
                };
                connection.client = Some(client);
                let models = self.models.clone();
                self.send(id, &Message::Welcome { version, models }, 0, 0);
            }
            (_, None, _) => return bad("say Hello first"),
            (Message::Open(open), Some(client), None) => self.open(id, client, &open, world)?,
            (Message::Resume(ticket), Some(client), None) => self.resume(now, id, client, &ticket, seq)?,
            (Message::Close, Some(_), Some(session)) => {
                connection.session = None;
                connection.closing = true;
                self.end(session, world);
            }
            (Message::Step { phase, sample, tokens, count, states }, Some(_), Some(session)) => {
                let step = Step { phase, sample, tokens, count: usize::from(count), states };
                self.request(now, session, (seq, pos), Some(&step))?;
            }
            (Message::Rewind, Some(_), Some(session)) => self.request(now, session, (seq, pos), None)?,
            (Message::Recode(spec), Some(_), Some(session)) => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.recode(*spec)?;
                }
            }
            _ => return bad("not now"),
        }
        Ok(())
    }

    fn open(
        &mut self,
        id: ConnectionId,
        client: ClientId,
        open: &Open,
        world: &mut impl World,
    ) -> Result<(), Refused> {
        let card = self.models.iter().find(|card| card.fingerprint == open.fingerprint);
        let Some(card) = card else {
            let text =
                "this worker has no such model, or computes it otherwise; use the same file and version";
            return Err(Refused::new(Refusal::Mismatch, text));
        };
        if open.cut < card.least || open.cut > card.layers || open.codec.width != card.width as usize {
            let text = format!(
                "layers {} to {} are served behind a cut, with states of {} values",
                card.least, card.layers, card.width
            );
            return Err(Refused::new(Refusal::Mismatch, text));
        }
        if open.context == 0 || open.context > card.context {
            let text = format!("a context of {}, at most {} are possible", open.context, card.context);
            return Err(Refused::new(Refusal::Quota, text));
        }
        if self.draining {
            return Err(Refused {
                retry: RETRY,
                ..Refused::new(Refusal::Draining, "this worker is about to end")
            });
        }
        let own = self.sessions.values().filter(|s| s.client == client).count();
        if own >= self.limits.per_client {
            let text = format!("{own} sessions are open already, as many as one client may have");
            return Err(Refused { retry: RETRY, ..Refused::new(Refusal::Quota, text) });
        }
        if self.sessions.len() >= self.limits.sessions {
            return Err(Refused {
                retry: RETRY,
                ..Refused::new(Refusal::Busy, "no room for another session")
            });
        }
        let codec =
            Codec::new(open.codec.clone()).map_err(|e| Refused::new(Refusal::BadMessage, e.to_string()))?;
        let session = self.next_session;
        world.open(session, open).map_err(|(refusal, text)| Refused {
            retry: if refusal == Refusal::Busy { RETRY } else { Duration::ZERO },
            ..Refused::new(refusal, text)
        })?;
        self.next_session += 1;
        let mut ticket = Ticket { session: [0; 16], secret: [0; 32] };
        world.random(&mut ticket.session);
        world.random(&mut ticket.secret);
        let mut new = Session::new(ticket, client, codec, usize::from(card.batch), open.context);
        new.connection = Some(id);
        self.sessions.insert(session, new);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.session = Some(session);
        }
        let lease_s = self.limits.lease.as_secs() as u32;
        self.send(id, &Message::Opened { ticket, lease_s, window: self.limits.window }, 0, 0);
        Ok(())
    }

    /// Gives a session to the connection of a client that has its ticket; `seen` is the last answer that the client has.
    fn resume(
        &mut self,
        now: Time,
        id: ConnectionId,
        client: ClientId,
        ticket: &Ticket,
        seen: u32,
    ) -> Result<(), Refused> {
        let found = self.sessions.iter_mut().find(|(_, s)| s.client == client && s.is_of(ticket));
        let gone = || Refused::new(Refusal::Gone, "this session is not known, or not any more");
        let (session_id, session) = found.ok_or_else(gone)?;
        let out = session.resume(seen).ok_or_else(gone)?;
        let (session_id, old) = (*session_id, session.connection.replace(id));
        if let Some(old) = old.and_then(|old| self.connections.get_mut(&old)) {
            (old.session, old.closing) = (None, true);
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.session = Some(session_id);
            connection.heard = now;
            connection.out.extend(out);
        }
        Ok(())
    }

    /// A step, or none for going back.
    fn request(
        &mut self,
        now: Time,
        id: SessionId,
        (seq, pos): (u32, u32),
        step: Option<&Step<'_>>,
    ) -> Result<(), Refused> {
        let window = usize::from(self.limits.window);
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let out = session.request(now, (seq, pos), step, window)?;
        self.tell(id, &out);
        Ok(())
    }

    /// Sends to a session's connection, if it has one.
    fn tell(&mut self, session: SessionId, out: &[u8]) {
        let connection = self.sessions.get(&session).and_then(|s| s.connection);
        if let Some(connection) = connection.and_then(|c| self.connections.get_mut(&c)) {
            connection.out.extend_from_slice(out);
        }
    }

    /// The next sessions' turn: one job of each that has one, beginning behind the one that was served last, `most` tokens in all, but at
    /// least one job. Each is to be [`finished`](Self::finished).
    pub fn next(&mut self, most: usize) -> Vec<Job> {
        let (mut jobs, mut tokens) = (Vec::new(), 0);
        let behind = self.sessions.range(self.turn + 1..).map(|(id, _)| *id);
        let order: Vec<SessionId> =
            behind.chain(self.sessions.range(..=self.turn).map(|(id, _)| *id)).collect();
        for id in order {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let Some(count) = session.ready() else { continue };
            if !jobs.is_empty() && tokens + count > most {
                continue;
            }
            tokens += count;
            self.turn = id;
            jobs.extend(session.start().map(|step| Job { session: id, step }));
        }
        jobs
    }

    /// A job was done, with the token that was wanted.
    pub fn finished(&mut self, now: Time, session: SessionId, token: Option<u32>, compute: Duration) {
        if let Some(s) = self.sessions.get_mut(&session) {
            let out = s.finish(now, token, compute);
            self.tell(session, &out);
        }
    }

    /// A job could not be done: the session is of no more use.
    pub fn failed(&mut self, now: Time, session: SessionId, why: &str, world: &mut impl World) {
        let connection = self.sessions.get(&session).and_then(|s| s.connection);
        if let Some(id) = connection {
            self.refuse(now, id, &Refused::new(Refusal::Failed, why));
        }
        self.end(session, world);
    }

    fn end(&mut self, id: SessionId, world: &mut impl World) {
        if let Some(session) = self.sessions.remove(&id) {
            world.close(id);
            if let Some(connection) = session.connection.and_then(|c| self.connections.get_mut(&c)) {
                (connection.session, connection.closing) = (None, true);
            }
        }
    }
}
