//! A worker's side against clients that are strangers, greedy, slow, or speak nonsense: each loses its own connection at most.

use lutite_runtime::decode::Phase;
use lutite_runtime::sample::SamplerConfig;
use lutite_runtime::split::codec::{CodecSpec, Precision};
use lutite_runtime::split::frame::Frames;
use lutite_runtime::split::message::{Bounds, Card, Message, Open, Refusal, Ticket};
use lutite_runtime::split::server::{ClientId, ConnectionId, Limits, Server, SessionId, World};
use std::time::Duration;

const PRINT: [u8; 32] = [3; 32];
const SECOND: Duration = Duration::from_secs(1);

/// Knows everybody whose name is a number, and counts its sessions.
#[derive(Default)]
struct Small {
    randoms: u8,
    open: Vec<SessionId>,
    full: bool,
}

impl World for Small {
    fn admit(&mut self, token: &str) -> Option<ClientId> {
        token.parse().ok()
    }
    fn random(&mut self, bytes: &mut [u8]) {
        self.randoms += 1;
        bytes.fill(self.randoms);
    }
    fn open(&mut self, session: SessionId, _: &Open) -> Result<(), (Refusal, String)> {
        if self.full {
            return Err((Refusal::Busy, "no memory".into()));
        }
        self.open.push(session);
        Ok(())
    }
    fn close(&mut self, session: SessionId) {
        self.open.retain(|open| *open != session);
    }
}

struct Case {
    server: Server,
    world: Small,
    now: Duration,
}

/// What the server said: in words what matters of each message.
type Said = Vec<String>;

impl Case {
    fn new() -> Case {
        let card = Card { fingerprint: PRINT, layers: 8, least: 2, width: 4, context: 100, batch: 3 };
        let limits = Limits {
            connections: 6,
            sessions: 3,
            per_client: 2,
            window: 2,
            unread_bytes: 4000,
            ..Limits::default()
        };
        Case { server: Server::new(vec![card], limits), world: Small::default(), now: Duration::ZERO }
    }

    fn bytes(&mut self, id: ConnectionId, bytes: &[u8]) -> Said {
        self.server.received(self.now, id, bytes, &mut self.world);
        let mut frames = Frames::default();
        frames.push(&self.server.out(id));
        let mut said = vec![];
        while let Some(frame) = frames.next(|kind| Bounds::default().cap(kind)).unwrap() {
            said.push(match Message::read(&frame).unwrap().unwrap() {
                Message::Error { refusal, retry_ms, text } => format!("{refusal:?} {retry_ms} {text}"),
                Message::Done { token, .. } => {
                    format!("Done {} {} {token:?}", frame.header.seq, frame.header.pos)
                }
                Message::Resumed => format!("Resumed {} {}", frame.header.seq, frame.header.pos),
                Message::Welcome { models, .. } => format!("Welcome {}", models.len()),
                Message::Opened { ticket, .. } => format!("Opened {}", ticket.secret[0]),
                other => format!("{other:?}"),
            });
        }
        said
    }

    fn say(&mut self, id: ConnectionId, message: &Message<'_>, seq: u32, pos: u32) -> Said {
        let mut bytes = vec![];
        message.write(seq, pos, &mut bytes);
        self.bytes(id, &bytes)
    }

    fn connect(&mut self) -> ConnectionId {
        self.server.connected(self.now).unwrap()
    }

    /// A connection of this client.
    fn client(&mut self, token: &str) -> ConnectionId {
        let id = self.connect();
        assert_eq!(self.say(id, &Message::Hello { versions: (1, 1), token }, 0, 0), ["Welcome 1"]);
        id
    }

    /// A session of this client, and its ticket.
    fn session(&mut self, token: &str) -> (ConnectionId, Ticket) {
        let id = self.client(token);
        let said = self.say(id, &Message::Open(Box::new(open())), 0, 0);
        assert!(said[0].starts_with("Opened"), "{said:?}");
        let n = self.world.randoms;
        (id, Ticket { session: [n - 1; 16], secret: [n; 32] })
    }

    /// Does all jobs; how many there were.
    fn work(&mut self) -> usize {
        let jobs = self.server.next(100);
        for job in &jobs {
            let token = job.step.sample.then_some(job.step.pos + 1000);
            self.server.finished(self.now, job.session, token, Duration::ZERO);
        }
        jobs.len()
    }
}

fn codec() -> CodecSpec {
    CodecSpec { width: 4, precision: Precision::Lossless, channels: vec![], indexed: 0, guard: 0.0 }
}

fn open() -> Open {
    let sampling = SamplerConfig::greedy();
    Open { fingerprint: PRINT, cut: 2, codec: codec(), context: 50, sampling }
}

/// States of so many tokens.
fn states(n: usize) -> Vec<u8> {
    (0..n).flat_map(|_| [&[32][..], &[0; 16]].concat()).collect()
}

fn step(count: u16, states: &[u8]) -> Message<'_> {
    Message::Step { phase: Phase::Prompt, sample: true, tokens: &[], count, states }
}

#[test]
fn who_is_not_known_learns_nothing() {
    let mut case = Case::new();
    for (message, expected) in [
        (Message::Open(Box::new(open())), "BadMessage 0 say Hello first"),
        (Message::Hello { versions: (1, 1), token: "who" }, "Stranger 0 this worker does not know you"),
        (
            Message::Hello { versions: (2, 9), token: "5" },
            "Version 0 versions 1 to 1 are spoken here, 2 to 9 there",
        ),
        (step(1, &[]), "BadMessage 0 say Hello first"),
        (Message::Close, "BadMessage 0 say Hello first"),
    ] {
        let id = case.connect();
        assert_eq!(case.say(id, &message, 0, 0), [expected]);
        assert!(case.server.is_closing(id));
        // Nothing more is heard from it.
        assert!(case.say(id, &Message::Ping(1), 0, 0).is_empty());
        case.server.disconnected(case.now, id);
    }
    let id = case.connect();
    assert!(case.bytes(id, b"GET / HTTP/1.1\r\n")[0].contains("does not speak LRS/1"));
}

#[test]
fn sessions_that_there_cannot_be() {
    let mut case = Case::new();
    let wrong = |change: fn(&mut Open)| {
        let mut open = open();
        change(&mut open);
        Message::Open(Box::new(open))
    };
    for (message, expected) in [
        (wrong(|o| o.fingerprint[31] = 4), "Mismatch 0 this worker has no such model"),
        (wrong(|o| o.cut = 1), "Mismatch 0 layers 2 to 8"),
        (wrong(|o| o.cut = 9), "Mismatch 0 layers 2 to 8"),
        (wrong(|o| o.codec.width = 5), "Mismatch 0 layers 2 to 8"),
        (wrong(|o| o.context = 101), "Quota 0 a context of 101, at most 100"),
        (wrong(|o| o.context = 0), "Quota 0 a context of 0"),
        (
            wrong(|o| o.codec.channels = vec![7]),
            "BadMessage 0 a hidden state of 4 values has no such channels",
        ),
    ] {
        let id = case.client("1");
        let said = case.say(id, &message, 0, 0);
        assert!(said[0].starts_with(expected) && case.server.is_closing(id), "{said:?}");
        case.server.disconnected(case.now, id);
    }
    // As many as a client may have, and as there may be.
    let message = Message::Open(Box::new(open()));
    let (first, _) = case.session("1");
    case.session("1");
    let id = case.client("1");
    assert!(case.say(id, &message, 0, 0)[0].starts_with("Quota 2000 2 sessions are open already"));
    case.server.disconnected(case.now, id);
    case.session("2");
    let id = case.client("3");
    assert!(case.say(id, &message, 0, 0)[0].starts_with("Busy 2000 no room"));
    case.server.disconnected(case.now, id);
    case.say(first, &Message::Close, 0, 0);
    assert_eq!((case.server.sessions(), case.world.open.len()), (2, 2));
    case.world.full = true;
    let id = case.client("3");
    assert_eq!(case.say(id, &message, 0, 0), ["Busy 2000 no memory"]);
    case.server.disconnected(case.now, id);
    case.server.disconnected(case.now, first);
    case.server.drain();
    let id = case.client("3");
    assert!(case.say(id, &message, 0, 0)[0].starts_with("Draining 2000"));
}

#[test]
fn requests_that_make_no_sense_end_the_connection_and_not_the_session() {
    let (one, three, four) = (states(1), states(3), states(4));
    let long = [&one[..], &[0]].concat();
    let mut nan = one.clone();
    nan[1..5].copy_from_slice(&f32::NAN.to_le_bytes());
    let spec = CodecSpec { width: 5, ..codec() };
    let wrong: [(Message<'_>, u32, u32, &str); 9] = [
        (step(1, &one), 3, 0, "request 3 came behind 0"),
        (step(1, &one), 1, 1, "tokens of position 1, expected 0"),
        (step(4, &four), 1, 0, "a message of kind 5 has"),
        (step(1, &long), 1, 0, "1 bytes behind 1 states"),
        (step(2, &one), 1, 0, "ends before it is whole"),
        (step(1, &nan), 1, 0, "has NaN"),
        (Message::Rewind, 1, 1, "position 1 to go back to, behind 0"),
        (Message::Recode(Box::new(spec)), 0, 0, "a codec of another width"),
        (Message::Open(Box::new(open())), 0, 0, "not now"),
    ];
    for (message, seq, pos, expected) in wrong {
        let mut case = Case::new();
        let (id, ticket) = case.session("1");
        let said = case.say(id, &message, seq, pos);
        assert!(said[0].starts_with("BadMessage 0") && said[0].contains(expected), "{said:?} {expected}");
        assert!(case.server.is_closing(id));
        let id = case.client("1");
        assert_eq!(case.say(id, &Message::Resume(ticket), 0, 0), ["Resumed 0 0"]);
        // And it works.
        assert!(case.say(id, &step(3, &three), 1, 0).is_empty());
        assert_eq!(case.work(), 1);
        assert_eq!(case.say(id, &Message::Ping(4), 0, 0), ["Done 1 3 Some(1000)", "Pong(4)"]);
    }
    let mut case = Case::new();
    let (id, _) = case.session("1");
    for seq in 1..=2 {
        assert!(case.say(id, &step(1, &one), seq, seq - 1).is_empty());
    }
    assert!(case.say(id, &step(1, &one), 3, 2)[0].contains("more than 2 requests wait"));
}

#[test]
fn what_comes_again_is_answered_again_and_only_its_own_client_comes_back() {
    let mut case = Case::new();
    let one = states(1);
    let (id, ticket) = case.session("1");
    case.say(id, &step(1, &one), 1, 0);
    case.work();
    assert_eq!(case.say(id, &Message::Rewind, 2, 0), ["Done 1 1 Some(1000)", "Done 2 0 None"]);
    assert_eq!(case.say(id, &step(1, &one), 1, 0), ["Done 1 1 Some(1000)"]);
    assert_eq!(case.work(), 0);
    case.server.disconnected(case.now, id);
    for (token, ticket, seen, expected) in [
        ("2", ticket, 2, "Gone 0"),
        ("1", Ticket { secret: [99; 32], ..ticket }, 2, "Gone 0"),
        ("1", Ticket { session: [99; 16], ..ticket }, 2, "Gone 0"),
        ("1", ticket, 3, "Gone 0"),
        ("1", ticket, 0, "Resumed 2 0"),
    ] {
        let id = case.client(token);
        let said = case.say(id, &Message::Resume(ticket), seen, 0);
        assert!(said[0].starts_with(expected), "{said:?}");
        assert!(seen > 0 || said[1..] == ["Done 1 1 Some(1000)", "Done 2 0 None"], "{said:?}");
        case.server.disconnected(case.now, id);
    }
    // A connection that is still there is taken over.
    let (old, ticket) = case.session("1");
    let new = case.client("1");
    assert_eq!(case.say(new, &Message::Resume(ticket), 0, 0), ["Resumed 0 0"]);
    assert!(case.server.is_closing(old) && !case.server.is_closing(new));
    // What fails, fails for its session.
    case.say(new, &step(1, &one), 1, 0);
    let job = case.server.next(100).pop().unwrap();
    let (server, world) = (&mut case.server, &mut case.world);
    server.failed(case.now, job.session, "a broken model", world);
    assert_eq!(case.bytes(new, &[]), ["Failed 0 a broken model"]);
    assert_eq!((case.server.sessions(), case.world.open.len()), (1, 1));
}

#[test]
fn time_ends_what_is_left_lying() {
    let mut case = Case::new();
    let (silent, slow) = (case.connect(), case.connect());
    let (id, ticket) = case.session("1");
    case.now = 4 * SECOND;
    // A byte now and then is not a message.
    case.bytes(slow, b"L");
    case.server.tick(case.now, &mut case.world);
    assert!(!case.server.is_closing(silent) && !case.server.is_closing(slow));
    case.now = 6 * SECOND;
    case.bytes(slow, b"R");
    case.server.tick(case.now, &mut case.world);
    assert!(case.server.is_closing(silent) && case.server.is_closing(slow) && !case.server.is_closing(id));
    case.server.disconnected(case.now, silent);
    case.server.disconnected(case.now, slow);
    case.now = 61 * SECOND;
    case.bytes(id, b"LR");
    case.server.tick(case.now, &mut case.world);
    assert!(case.server.is_closing(id));
    case.server.disconnected(case.now, id);
    case.now = 180 * SECOND;
    case.server.tick(case.now, &mut case.world);
    assert_eq!(case.server.sessions(), 1);
    case.now = 182 * SECOND;
    case.server.tick(case.now, &mut case.world);
    assert_eq!((case.server.sessions(), case.world.open.len()), (0, 0));
    let id = case.client("1");
    assert!(case.say(id, &Message::Resume(ticket), 0, 0)[0].starts_with("Gone"));
    case.server.disconnected(case.now, id);
    // More connections than there may be; who asks and does not read.
    let all: Vec<ConnectionId> = (0..6).map(|_| case.connect()).collect();
    assert_eq!(case.server.connected(case.now), None);
    let mut pings = vec![];
    (0..200).for_each(|i| Message::Ping(i).write(0, 0, &mut pings));
    case.server.received(case.now, all[0], &pings, &mut case.world);
    assert!(case.server.is_closing(all[0]) && case.server.out(all[0]).is_empty());
    assert!(!case.server.is_closing(all[1]));
}

/// Sessions take turns, and a long prompt does not keep the others waiting.
#[test]
fn everybody_has_a_turn() {
    let mut case = Case::new();
    let (a, _) = case.session("1");
    let (b, _) = case.session("2");
    let (c, _) = case.session("3");
    let (one, three) = (states(1), states(3));
    let sessions = case.world.open.clone();
    case.say(a, &step(3, &three), 1, 0);
    case.say(a, &step(3, &three), 2, 3);
    case.say(b, &step(1, &one), 1, 0);
    case.say(c, &step(1, &one), 1, 0);
    let order = |case: &mut Case, most| {
        let jobs = case.server.next(most);
        let ids: Vec<usize> =
            jobs.iter().map(|job| sessions.iter().position(|s| *s == job.session).unwrap()).collect();
        for job in jobs {
            case.server.finished(case.now, job.session, None, Duration::ZERO);
        }
        ids
    };
    assert_eq!(order(&mut case, 4), [0, 1]);
    assert_eq!(order(&mut case, 4), [2, 0]);
    assert_eq!(order(&mut case, 4), [0; 0]);
    case.say(a, &step(3, &three), 3, 6);
    // One at least, however long.
    assert_eq!(order(&mut case, 1), [0]);
}
