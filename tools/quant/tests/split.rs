//! A model whose last layers are a worker's: the tokens of the whole model, wherever it is cut and whatever becomes of the worker. In one process,
//! without sockets: bytes of one side are given to the other.

mod common;

use common::{pack, planes, reference};
use lutite_kernels::isa::Isa;
use lutite_models::halves::{Back, Front};
use lutite_models::worker::Engine;
use lutite_models::{Model, OpenOptions, Path, open};
use lutite_quant::PackOptions;
use lutite_runtime::decode::{Decoder, Phase, Request, generate};
use lutite_runtime::sample::{Sampler, SamplerConfig};
use lutite_runtime::split::client::{Client, Event, Settings};
use lutite_runtime::split::codec::{CodecSpec, Precision};
use lutite_runtime::split::message::{Card, Open, Refusal};
use lutite_runtime::split::server::{ClientId, ConnectionId, Limits, Server, SessionId, World};
use lutite_runtime::store::Bytes;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const CONTEXT: usize = 300;
const BATCH: usize = 16;
const PRINT: [u8; 32] = [4; 32];

fn models() -> Vec<(&'static str, Bytes, Path)> {
    let stories = reference("stories260K-f32.gguf");
    vec![
        ("plain", reference("llama.gguf"), Path::Plain),
        ("codes", pack(&stories, &PackOptions::exact()), Path::Lut),
        ("planes", planes(&stories, 3), Path::Lut),
    ]
}

fn options(path: Path, workers: usize) -> OpenOptions {
    let isa = Isa::from_env().unwrap();
    OpenOptions { path, workers, context: Some(CONTEXT), batch: BATCH, ..OpenOptions::new(isa) }
}

/// The tokens of the whole model.
fn expected(model: &mut Model, prompt: &[u32], sampling: &SamplerConfig, n: usize) -> Vec<u32> {
    model.rewind(0);
    let mut sampler = Sampler::new(sampling.clone()).unwrap();
    let request = Request { prompt, max_tokens: n, ends: &[], cancel: &AtomicBool::new(false) };
    let mut tokens = vec![];
    let mut take = |token| {
        tokens.push(token);
        ControlFlow::Continue(())
    };
    generate(model, &mut sampler, request, &mut take).unwrap();
    tokens
}

struct Layers {
    engine: Engine,
    randoms: u8,
}

impl World for Layers {
    fn admit(&mut self, token: &str) -> Option<ClientId> {
        (token == "friend").then_some(1)
    }
    fn random(&mut self, bytes: &mut [u8]) {
        self.randoms += 1;
        bytes.fill(self.randoms);
    }
    fn open(&mut self, session: SessionId, open: &Open) -> Result<(), (Refusal, String)> {
        self.engine.open(session, &open.sampling)
    }
    fn close(&mut self, session: SessionId) {
        self.engine.close(session);
    }
}

/// A worker that can end and begin anew.
struct Worker {
    file: Bytes,
    options: OpenOptions,
    cut: usize,
    server: Server,
    layers: Layers,
}

impl Worker {
    fn new(file: &Bytes, options: &OpenOptions, cut: usize) -> Worker {
        let back = Back::open(file, options, cut).unwrap();
        let config = back.config();
        let card = Card {
            fingerprint: PRINT,
            layers: config.layers as u16,
            least: cut as u16,
            width: config.dim as u32,
            context: CONTEXT as u32,
            batch: BATCH as u16,
        };
        let server = Server::new(vec![card], Limits::default());
        let layers = Layers { engine: Engine::new(back, CONTEXT), randoms: 0 };
        Worker { file: file.clone(), options: options.clone(), cut, server, layers }
    }

    fn restart(&mut self) {
        *self = Worker::new(&self.file, &self.options, self.cut);
    }

    /// Does all there is to be done.
    fn work(&mut self, now: Duration) {
        loop {
            let jobs = self.server.next(self.layers.engine.batch());
            if jobs.is_empty() {
                return;
            }
            for (session, outcome) in self.layers.engine.run(&jobs) {
                self.server.finished(now, session, outcome.unwrap(), Duration::ZERO);
            }
        }
    }
}

/// The tokens of a model of two halves; before some of them the connection breaks, or the worker ends.
fn split(
    (front, worker): (&mut Front, &mut Worker),
    prompt: &[u32],
    sampling: &SamplerConfig,
    n: usize,
    (breaks, ends): (&[usize], &[usize]),
) -> Vec<u32> {
    let codec = CodecSpec {
        width: front.config().dim,
        precision: Precision::Lossless,
        channels: vec![],
        indexed: 0,
        guard: 0.0,
    };
    let open = Open {
        fingerprint: PRINT,
        cut: worker.cut as u16,
        codec,
        context: CONTEXT as u32,
        sampling: sampling.clone(),
    };
    let second = Duration::from_secs(1);
    let settings =
        Settings { token: "friend".into(), open, connect: second, reply: second, patience: 60 * second };
    let mut client = Client::new(settings).unwrap();
    let (mut now, mut connection): (Duration, Option<ConnectionId>) = (Duration::ZERO, None);
    client.start(now);
    front.rewind(0);
    for part in prompt.chunks(BATCH - 3) {
        let states = front.step(part, Phase::Prompt).unwrap();
        let last = front_is_over(part, prompt);
        client.step(now, Phase::Prompt, part, states, last).unwrap();
    }
    let mut tokens = vec![];
    while tokens.len() < n {
        now += Duration::from_millis(50);
        assert!(now < 1000 * second, "it does not end");
        client.tick(now);
        while let Some(event) = client.event() {
            match event {
                Event::Connect => {
                    connection = worker.server.connected(now);
                    client.connected(now);
                }
                Event::Disconnect => {
                    if let Some(id) = connection.take() {
                        worker.server.disconnected(now, id);
                    }
                }
                Event::Done { token: Some(token), .. } => {
                    if breaks.contains(&tokens.len()) || ends.contains(&tokens.len()) {
                        if ends.contains(&tokens.len()) {
                            worker.restart();
                        }
                        client.disconnected(now, "broken");
                    }
                    tokens.push(token);
                    let states = front.step(&[token], Phase::Answer).unwrap();
                    client.step(now, Phase::Answer, &[token], states, true).unwrap();
                }
                Event::Done { .. } | Event::Lost(_) | Event::Ready(_) => {}
                Event::GaveUp(why) => panic!("{why}"),
            }
        }
        if let Some(id) = connection {
            worker.server.received(now, id, &client.out(), &mut worker.layers);
            worker.work(now);
            client.received(now, &worker.server.out(id));
        }
    }
    client.close();
    if let Some(id) = connection {
        worker.server.received(now, id, &client.out(), &mut worker.layers);
        assert_eq!(worker.server.sessions(), 0);
        worker.server.disconnected(now, id);
    }
    tokens
}

/// Whether a part is the end of all.
fn front_is_over(part: &[u32], all: &[u32]) -> bool {
    part.as_ptr_range().end == all.as_ptr_range().end
}

#[test]
fn the_tokens_of_the_whole_model_at_every_cut() {
    let prompt: Vec<u32> = (0..37).map(|i| 1 + i * 7 % 90).collect();
    let greedy = SamplerConfig::greedy();
    for (name, file, path) in models() {
        let mut whole = open::open(&file, &options(path, 2)).unwrap();
        let expected = expected(&mut whole, &prompt, &greedy, 256);
        for cut in 0..=whole.config().layers {
            let mut front = Front::open(&file, &options(path, 1), cut).unwrap();
            let mut worker = Worker::new(&file, &options(path, 2), cut);
            let found = split((&mut front, &mut worker), &prompt, &greedy, 256, (&[], &[]));
            assert_eq!(found, expected, "{name}, layer {cut}");
        }
    }
}

#[test]
fn the_tokens_of_the_whole_model_though_the_worker_is_lost() {
    let prompt: Vec<u32> = (0..50).map(|i| 1 + i * 11 % 90).collect();
    let drawn = SamplerConfig { repeat_penalty: 1.3, seed: 9, ..SamplerConfig::default() };
    for (name, file, path) in models() {
        let mut whole = open::open(&file, &options(path, 2)).unwrap();
        for sampling in [SamplerConfig::greedy(), drawn.clone()] {
            let expected = expected(&mut whole, &prompt, &sampling, 120);
            let mut front = Front::open(&file, &options(path, 1), 1).unwrap();
            let mut worker = Worker::new(&file, &options(path, 2), 1);
            let faults: (&[usize], &[usize]) = (&[0, 3, 50, 51, 110], &[1, 20, 52, 119]);
            let found = split((&mut front, &mut worker), &prompt, &sampling, 120, faults);
            assert_eq!(found, expected, "{name}, {sampling:?}");
        }
    }
}
