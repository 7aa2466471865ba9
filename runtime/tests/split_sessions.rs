//! Both sides of a split model against each other, with a simulated clock and a network that breaks: whatever happens, the tokens are
//! those of an undisturbed run, each once.

use lutite_runtime::decode::Phase;
use lutite_runtime::sample::SamplerConfig;
use lutite_runtime::split::client::{Client, Event, Settings};
use lutite_runtime::split::codec::{CodecSpec, Precision};
use lutite_runtime::split::message::{Card, Open, Refusal};
use lutite_runtime::split::server::{ClientId, Job, Limits, Server, SessionId, World};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

const WIDTH: usize = 4;
const BATCH: usize = 5;
const PRINT: [u8; 32] = [3; 32];

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn mix(a: u64, b: u64) -> u64 {
    (a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15)).rotate_left(23).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

/// What the first layers make of a token.
fn state(token: u32, pos: u32) -> [f32; WIDTH] {
    std::array::from_fn(|i| (mix(u64::from(token), u64::from(pos) * 9 + i as u64) % 1000) as f32 - 500.0)
}

/// What the others make of all states so far.
fn fold(all: u64, state: &[f32], answer: bool) -> u64 {
    state.iter().fold(mix(all, u64::from(answer)), |all, x| mix(all, u64::from(x.to_bits())))
}

/// A worker's layers: of each session what its states make, position by position.
#[derive(Default)]
struct Layers {
    sessions: BTreeMap<SessionId, Vec<u64>>,
    randoms: u64,
    full: bool,
}

impl World for Layers {
    fn admit(&mut self, token: &str) -> Option<ClientId> {
        token.parse().ok()
    }
    fn random(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.randoms = mix(self.randoms, 77);
            *byte = self.randoms as u8;
        }
    }
    fn open(&mut self, session: SessionId, _: &Open) -> Result<(), (Refusal, String)> {
        if self.full {
            return Err((Refusal::Busy, "no memory".into()));
        }
        assert!(self.sessions.insert(session, vec![]).is_none());
        Ok(())
    }
    fn close(&mut self, session: SessionId) {
        assert!(self.sessions.remove(&session).is_some());
    }
}

impl Layers {
    fn run(&mut self, job: &Job) -> Option<u32> {
        let (Job { session, step }, width) = (job, WIDTH);
        let all = self.sessions.get_mut(session).unwrap();
        assert!(step.pos as usize <= all.len(), "a gap");
        all.truncate(step.pos as usize);
        assert!(step.states.len().is_multiple_of(width) && step.states.len() <= BATCH * width);
        for state in step.states.chunks_exact(width) {
            all.push(fold(all.last().copied().unwrap_or(0), state, step.answer));
        }
        step.sample.then(|| (all.last().unwrap() % 50_000) as u32)
    }
}

fn open() -> Open {
    let codec =
        CodecSpec { width: WIDTH, precision: Precision::Lossless, channels: vec![], indexed: 0, guard: 0.0 };
    let sampling = SamplerConfig::greedy();
    Open { fingerprint: PRINT, cut: 2, codec, context: 400, sampling }
}

fn settings(token: &str) -> Settings {
    Settings { token: token.into(), open: open(), connect: ms(3000), reply: ms(1000), patience: ms(20_000) }
}

fn server() -> Server {
    let card = Card { fingerprint: PRINT, layers: 8, least: 1, width: 4, context: 400, batch: BATCH as u16 };
    Server::new(vec![card], Limits { window: 3, lease: ms(4000), ..Limits::default() })
}

/// A prompt, then an answer; then a part of it is forgotten, and another one goes on from there.
struct Talk {
    text: Vec<u32>,
    prompt: usize,
    /// Positions to feed in all, and where to go back from and to.
    length: usize,
    back: Option<(usize, usize)>,
    fed: usize,
    /// Tokens that came, and what they are to be.
    got: Vec<u32>,
}

impl Talk {
    fn new(rng: &mut Rng) -> Talk {
        let prompt = 1 + rng.below(14) as usize;
        let length = prompt + 4 + rng.below(20) as usize;
        let text = (0..prompt).map(|_| rng.below(50_000) as u32).collect();
        let from = prompt + 2 + rng.below((length - prompt - 3) as u64) as usize;
        let back = (rng.below(2) == 0).then(|| (from, rng.below(from as u64) as usize));
        Talk { text, prompt, length, back, fed: 0, got: vec![] }
    }

    /// The tokens of an undisturbed run.
    fn expected(&self) -> Vec<u32> {
        let (mut all, mut text, mut got) = (vec![], self.text.clone(), vec![]);
        let mut back = self.back;
        while all.len() < self.length {
            let pos = all.len();
            let before = all.last().copied().unwrap_or(0);
            all.push(fold(before, &state(text[pos], pos as u32), pos >= self.prompt));
            if all.len() < self.prompt {
                continue;
            }
            let token = (all.last().unwrap() % 50_000) as u32;
            got.push(token);
            text.truncate(all.len());
            text.push(token);
            if let Some((from, to)) = back.filter(|(from, _)| *from == all.len()) {
                assert!(to < from);
                back = None;
                all.truncate(to);
                text.truncate(to);
                // Something else than before.
                text.push(4711);
                while text.len() < self.prompt {
                    text.push(12);
                }
            }
        }
        got
    }

    /// Feeds what there is, as far as nothing is waited for.
    fn feed(&mut self, now: Duration, client: &mut Client, rng: &mut Rng) {
        while self.fed < self.text.len() && self.fed < self.length {
            let phase = if self.fed < self.prompt { Phase::Prompt } else { Phase::Answer };
            let rest = if phase == Phase::Prompt { self.prompt } else { self.text.len() } - self.fed;
            let n = (1 + rng.below(BATCH as u64) as usize).min(rest);
            let tokens = &self.text[self.fed..self.fed + n];
            let states: Vec<f32> =
                tokens.iter().enumerate().flat_map(|(i, t)| state(*t, (self.fed + i) as u32)).collect();
            self.fed += n;
            let sample = self.fed == self.text.len() && self.fed >= self.prompt;
            client.step(now, phase, tokens, &states, sample).unwrap();
        }
    }

    fn done(&mut self, now: Duration, client: &mut Client, pos: u32, token: Option<u32>) {
        let Some(token) = token else { return };
        assert_eq!(pos as usize, self.text.len(), "the token of another position");
        self.got.push(token);
        self.text.push(token);
        if let Some((from, to)) = self.back.filter(|(from, _)| *from == pos as usize) {
            assert_eq!(from, self.fed);
            self.back = None;
            self.text.truncate(to);
            self.text.push(4711);
            while self.text.len() < self.prompt {
                self.text.push(12);
            }
            self.fed = to;
            client.rewind(now, to as u32);
        }
    }

    fn is_over(&self) -> bool {
        self.fed == self.length && self.text.len() > self.length
    }
}

/// Bytes under way, and when they arrive.
#[derive(Default)]
struct Pipe(VecDeque<(Duration, Vec<u8>)>);

impl Pipe {
    fn send(&mut self, now: Duration, mut bytes: &[u8], rng: &mut Rng) {
        while !bytes.is_empty() {
            let n = (1 + rng.below(60) as usize).min(bytes.len());
            let last = self.0.back().map_or(Duration::ZERO, |(at, _)| *at);
            self.0.push_back((last.max(now + ms(rng.below(30))), bytes[..n].to_vec()));
            bytes = &bytes[n..];
        }
    }
    fn arrived(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.0.pop_front_if(|(at, _)| *at <= now).map(|(_, bytes)| bytes)
    }
}

struct Link {
    id: u64,
    up: Pipe,
    down: Pipe,
}

/// What went wrong in a run.
#[derive(Default, Debug, Clone, Copy)]
struct Faults {
    breaks: u64,
    restarts: u64,
    freezes: u64,
    unreachable: u64,
}

/// A conversation with a worker, one thing going wrong in `rarity` milliseconds, half of them early.
fn run(seed: u64, rarity: u64) -> Faults {
    let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9) + 1);
    let (mut server, mut layers) = (server(), Layers { randoms: seed, ..Layers::default() });
    let mut client = Client::new(settings("5")).unwrap();
    let mut talk = Talk::new(&mut rng);
    let expected = talk.expected();
    let mut link: Option<Link> = None;
    let (mut faults, mut now, mut busy) = (Faults::default(), Duration::ZERO, VecDeque::new());
    // Until when the worker does nothing, and cannot be reached.
    let (mut frozen, mut away) = (Duration::ZERO, Duration::ZERO);
    client.start(now);
    while !talk.is_over() {
        now += ms(1);
        assert!(now < ms(200_000), "seed {seed}: it does not end; {faults:?}");
        talk.feed(now, &mut client, &mut rng);
        client.tick(now);
        while let Some(event) = client.event() {
            match event {
                Event::Connect => {
                    link = None;
                    if away <= now {
                        let id = server.connected(now).unwrap();
                        link = Some(Link { id, up: Pipe::default(), down: Pipe::default() });
                        client.connected(now);
                    } else {
                        client.disconnected(now, "refused");
                    }
                }
                Event::Disconnect => {
                    if let Some(link) = link.take() {
                        server.disconnected(now, link.id);
                    }
                }
                Event::Done { pos, token, .. } => talk.done(now, &mut client, pos, token),
                Event::GaveUp(why) => {
                    assert!(rarity < u64::MAX, "seed {seed}: {why}");
                    client.start(now);
                }
                Event::Lost(_) | Event::Ready(_) => {}
            }
        }
        let wakes = frozen <= now;
        if let Some(link) = &mut link {
            link.up.send(now, &client.out(), &mut rng);
            while wakes && let Some(bytes) = link.up.arrived(now) {
                server.received(now, link.id, &bytes, &mut layers);
            }
            link.down.send(now, &server.out(link.id), &mut rng);
            while let Some(bytes) = link.down.arrived(now) {
                client.received(now, &bytes);
            }
        }
        if wakes {
            server.tick(now, &mut layers);
            for job in server.next(8) {
                busy.push_back((now + ms(rng.below(20)), job));
            }
            while let Some((_, job)) = busy.pop_front_if(|(at, _)| *at <= now) {
                let token = layers.run(&job);
                server.finished(now, job.session, token, ms(1));
            }
        }
        if let Some(l) = &link
            && server.is_closing(l.id)
            && l.down.0.is_empty()
        {
            server.disconnected(now, l.id);
            client.disconnected(now, "closed");
            link = None;
        }
        // At last all goes well: else nobody could say when it has to end.
        if now < ms(60_000) && rng.below(rarity) == 0 {
            match rng.below(4) {
                0 => {
                    // The worker ends and begins anew: it knows nothing.
                    faults.restarts += 1;
                    (server, layers) = (self::server(), Layers { randoms: rng.next(), ..Layers::default() });
                    busy.clear();
                    if link.take().is_some() {
                        client.disconnected(now, "reset");
                    }
                }
                1 => {
                    faults.freezes += 1;
                    frozen = now + ms(rng.below(3000));
                }
                2 => {
                    faults.unreachable += 1;
                    away = now + ms(rng.below(6000));
                    if let Some(link) = link.take() {
                        server.disconnected(now, link.id);
                        client.disconnected(now, "no network");
                    }
                }
                _ => {
                    // What was under way is gone; the worker notices at once, or not at all.
                    faults.breaks += 1;
                    if let Some(link) = link.take() {
                        if rng.below(2) == 0 {
                            server.disconnected(now, link.id);
                        }
                        client.disconnected(now, "broken");
                    }
                }
            }
        }
    }
    assert_eq!(talk.got, expected, "seed {seed}; {faults:?}");
    faults
}

#[test]
fn the_text_is_the_same_whatever_breaks() {
    let seconds = std::env::var("LUTITE_FUZZ_SECONDS").ok().map_or(2.0, |s| s.parse().expect("seconds"));
    let first: u64 = std::env::var("LUTITE_FUZZ_SEED").ok().map_or(1, |s| s.parse().expect("a seed"));
    let (start, mut runs, mut all) = (std::time::Instant::now(), 0, Faults::default());
    while start.elapsed().as_secs_f64() < seconds {
        let rarity = [u64::MAX, 3000, 600, 150][(runs % 4) as usize];
        let Faults { breaks, restarts, freezes, unreachable } = run(first + runs, rarity);
        all.breaks += breaks;
        all.restarts += restarts;
        all.freezes += freezes;
        all.unreachable += unreachable;
        runs += 1;
    }
    println!("{runs} conversations, {all:?}");
    assert!(runs > 20 && all.restarts > 10);
}
