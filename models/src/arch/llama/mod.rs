//! The Llama family: RMS norms, rotary embedding, grouped-query attention, SwiGLU.
//!
//! ```text
//! x = embedding[token]
//! for each layer:
//!     h = norm(x);  q, k, v = Wq h, Wk h, Wv h;  rotate q, k by position;  append k, v to the cache
//!     x = x + Wo attention(q, cache)
//!     h = norm(x);  x = x + Wdown (silu(Wgate h) * Wup h)
//! logits = Whead norm(x)
//! ```
//!
//! `forward` is a program on the calling thread; every line of it is one or more stages (see `layer`), in chunks on all
//! workers. Several tokens go through together: weights are read once for all of them, and each
//! token's numbers are the same bits as if it had come alone.

pub mod blocks;
mod layer;
mod net;
pub(crate) mod streamed;

use self::blocks::matrices;
use self::layer::{Flow, Layer};
pub(crate) use self::net::{Embedding, Part, check};
use self::net::{Feed, Head, HeadFlow, NORM, Net, head_name, is_tied};
use crate::attention::{self, Run};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::halves::Text;
use crate::input::Input;
use crate::linear::{Ahead, How, Linear, most_scratch_bytes};
use crate::weights::Weights;
use lutite_kernels::isa::Isa;
use lutite_kernels::ops::rope::Rope;
use lutite_kernels::pack::p32::TILE_ROWS;
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::kv::KvShape;
use lutite_runtime::os::shared::SharedMat;
use lutite_runtime::pool::Pool;
use lutite_runtime::residency::{Exchange, Handle, Host, Residency};
use lutite_runtime::store::Loaded;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use streamed::Streamed;

/// A Llama-like decoder.
#[derive(Debug)]
pub struct Llama {
    config: Config,
    isa: Isa,
    // Before the network, which its thread knows.
    residency: Option<Residency>,
    net: Arc<RwLock<Net>>,
    /// Its last layers, if they do not fit.
    streamed: Option<Streamed>,
    flow: Flow,
    /// A front has none.
    head: Option<HeadFlow>,
    pool: Pool,
    position: usize,
    batch: usize,
    /// Bytes of all but the weights.
    rest: u64,
}

/// Bytes that a session takes beside its weights.
#[derive(Clone, Copy, Debug)]
pub struct SessionBytes {
    /// Keys and values at full context.
    pub kv: usize,
    /// Activations, tables and logits.
    pub activations: usize,
}

/// Estimates what a session will allocate, without allocating it; saturating.
pub fn session_bytes(c: &Config, kv: KvShape, batch: usize, workers: usize) -> SessionBytes {
    // Floats of the residual stream, q, k, v, gate, up and logits; inputs count 4 bytes per activation, up to 9 for its
    // tables and 3 as integers.
    let inputs = 3 * c.dim + c.heads * c.head_dim + c.ffn;
    let floats = c.dim + (c.heads + 2 * c.kv_heads) * c.head_dim + c.rope.dims + 2 * c.ffn + c.vocab;
    let attention = attention::buffer_bytes(c, kv, batch, workers);
    let activations = batch.saturating_mul(4 * floats + 16 * inputs).saturating_add(attention);
    let widest = c.dim.max(c.heads * c.head_dim).max(c.ffn);
    let activations = activations.saturating_add(workers.saturating_mul(most_scratch_bytes(widest)));
    SessionBytes { kv: kv.bytes(), activations }
}

/// In what state a stack begins.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Begin {
    /// Blocks in use.
    pub(crate) blocks: usize,
    /// Blocks that are wanted.
    pub(crate) wanted: usize,
    /// Bytes that weights may take.
    pub(crate) limit: Option<u64>,
    /// Bytes of everything else.
    pub(crate) rest: u64,
    /// Layers that stay in memory, if not all do.
    pub(crate) layers: Option<usize>,
}

/// Everything but the weights that a session is made of.
pub(crate) struct Session {
    pub(crate) part: Part,
    pub(crate) isa: Isa,
    pub(crate) pool: Pool,
    pub(crate) kv: KvShape,
    pub(crate) batch: usize,
    pub(crate) ahead: Ahead,
    pub(crate) exact: bool,
}

impl Llama {
    /// Loads the weights and makes a session's buffers. The caller has [`check`]ed the file, and that it all fits into
    /// memory.
    pub(crate) fn new(config: Config, w: Weights<'_>, session: Session, begin: &Begin) -> Result<Llama> {
        let Session { part, isa, mut pool, kv, batch, ahead, exact } = session;
        let c = &config;
        let dim = c.dim;
        let how = How { isa, workers: pool.workers(), ahead, exact };
        let load = |name: &str, rows, cols| w.linear(name, rows, cols, how);
        let vector = |name: &str, n| w.vector(name, n);
        let (own, tied) = (part.layers(c.layers), is_tied(&w));
        let here = own.start..begin.layers.map_or(own.end, |n| own.end.min(own.start + n));
        let of_layer = |i: usize| matrices().map(move |part| format!("blk.{i}.{part}"));
        let head_name = part.has_head().then(|| head_name(tied));
        w.read(here.clone().flat_map(of_layer).chain(head_name.map(str::to_owned)), &mut pool)?;
        let layers = here.clone().map(|i| Layer::find(c, i, &load, &vector)).collect::<Result<Vec<_>>>()?;
        let streamed = match w.home() {
            Some(home) if here.end < own.end => Some(Streamed::start(c, &w, home, here.end..own.end, how)?),
            _ => None,
        };
        // Of a prompt mostly the last token's logits are asked for, and for one token whole codes are not worth making.
        let how = How { exact: true, ..how };
        let head = |name| {
            Ok::<_, Error>(Head { norm: w.vector(NORM, dim)?, linear: w.linear(name, c.vocab, dim, how)? })
        };
        let head = head_name.map(head).transpose()?;
        let embedding = match part {
            Part::Whole if tied => Some(Embedding::Tied),
            Part::Whole => Some(w.embedding(c.vocab, dim)?),
            Part::Front(_) => Some(w.token_rows(c.vocab, dim)?),
            Part::Back(_) => None,
        };
        let rope = Rope::new(&c.rope);

        let all: Vec<&Layer> = layers.iter().chain(streamed.as_ref().map(Streamed::slot)).collect();
        let linear = head.as_ref().map(|head| &head.linear);
        let flow = Flow::new(c, &all, linear, kv, rope.dims(), batch, pool.workers())?;
        let room = |linear| {
            let logits = SharedMat::new(batch, c.vocab, TILE_ROWS)?;
            let rows = Vec::with_capacity(batch);
            Ok::<_, Error>(HeadFlow { input: Input::new(batch, &[linear])?, logits, rows })
        };
        let head_flow = linear.map(room).transpose()?;
        let net = Net { eps: c.eps, vocab: c.vocab, embedding, first: own.start, layers, head, rope };
        let net = Arc::new(RwLock::new(net));
        let residency = match w.directory().stack().blocks() {
            // Blocks are ranked for the whole.
            _ if streamed.is_some() || part != Part::Whole => None,
            [] => None,
            _ => w.residency(begin, Shared(net.clone()))?,
        };
        Ok(Llama {
            config,
            isa,
            residency,
            net,
            streamed,
            flow,
            head: head_flow,
            pool,
            position: 0,
            batch,
            rest: begin.rest,
        })
    }

    /// Its hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What changes its weights while it generates, if it is of a stacked file.
    pub fn residency(&self) -> Option<Handle> {
        self.residency.as_ref().map(Residency::handle)
    }

    /// Changes what the session may take, weights included; returns at once how many blocks that allows. Without a stack
    /// there is nothing to change.
    ///
    /// # Errors
    /// [`lutite_runtime::Error::Budget`] if it is too little for the weights at their least; nothing changes then.
    pub fn set_budget(&self, bytes: u64) -> Result<Option<usize>> {
        let handle = self.residency();
        Ok(handle.map(|h| h.set_limit(bytes.saturating_sub(self.rest))).transpose()?)
    }

    /// Bytes of weights that each step reads from the file, because they do not fit into memory.
    pub fn streamed_bytes(&self) -> u64 {
        self.streamed.as_ref().map_or(0, Streamed::bytes)
    }

    /// Bytes that the session takes beside its packed weights.
    pub fn rest_bytes(&self) -> u64 {
        self.rest
    }

    fn net(&self) -> RwLockReadGuard<'_, Net> {
        // An exchange of weights happens whole or not at all.
        self.net.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of weights that one token reads: all matrices, the head included.
    pub fn bytes_per_token(&self) -> usize {
        self.net().linears().map(Linear::bytes).sum::<usize>() + self.streamed_bytes() as usize
    }

    /// Number of weights behind [`Llama::bytes_per_token`]: all but an untied table of token vectors.
    pub fn weights_per_token(&self) -> usize {
        let streamed = self.streamed.as_ref().map_or(0, Streamed::weights);
        self.net().linears().map(|l| l.rows() * l.cols()).sum::<usize>() + streamed
    }

    /// Number of weights in matrices, each counted once.
    pub fn parameters(&self) -> usize {
        let table = match self.net().embedding {
            None | Some(Embedding::Tied) => 0,
            Some(Embedding::Packed(_) | Embedding::Rows { .. }) => self.config.vocab * self.config.dim,
        };
        self.weights_per_token() + table
    }

    /// Formats of the matrices, e.g. `uniform q=4 g=32; head centered q=8 g=32`.
    pub fn formats(&self) -> String {
        let net = self.net();
        let mut body: Vec<String> = Vec::new();
        let layers = net.layers.iter().chain(self.streamed.as_ref().map(Streamed::slot));
        for f in layers.flat_map(Layer::linears).map(Linear::format) {
            if !body.contains(&f) {
                body.push(f);
            }
        }
        let head = net.head.as_ref().map(|head| format!("; head {}", head.linear.format()));
        body.join(", ") + &head.unwrap_or_default()
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.pool.workers()
    }

    /// Sizes of its KV cache.
    pub fn kv_shape(&self) -> KvShape {
        self.flow.attention.kv_shape()
    }

    /// The instruction set that its kernels run on.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

/// Steps of parts.
impl Llama {
    /// Feeds the next `n` tokens of the only text.
    fn feed(&mut self, feed: Feed<'_>, n: usize, phase: Phase, logits: Logits) -> Result<()> {
        self.check_batch(n)?;
        self.check_room(n)?;
        let run = [Run { slot: 0, start: self.position, rows: 0..n }];
        self.feed_runs(feed, &run, phase, if logits == Logits::All { 0..n } else { n - 1..n })?;
        self.position += n;
        Ok(())
    }

    fn check_batch(&self, n: usize) -> Result<()> {
        if n == 0 || n > self.batch {
            let why = format!("{n} tokens in one step, expected 1 to {}", self.batch);
            return Err(Error::Config { key: "batch".into(), why });
        }
        Ok(())
    }

    /// Feeds tokens of several texts, each in its place; logits are made of those that are `wanted`. The caller has checked that there are
    /// such slots and positions, and not too many tokens.
    fn feed_runs(
        &mut self,
        feed: Feed<'_>,
        runs: &[Run],
        phase: Phase,
        wanted: impl Iterator<Item = usize>,
    ) -> Result<()> {
        let n = runs.last().map_or(0, |run| run.rows.end);
        let Llama { isa, residency, net, streamed, flow, head, pool, .. } = self;
        if let Some(residency) = residency.as_ref().filter(|r| r.is_waiting()) {
            let mut net = net.write().unwrap_or_else(PoisonError::into_inner);
            residency.apply(&mut |matrix, loaded| net.exchange(matrix, loaded));
        }
        let net = net.read().unwrap_or_else(PoisonError::into_inner);
        flow.set_step(runs, n);
        if let Some(head) = head {
            head.rows.clear();
            head.rows.extend(wanted);
            head.input.set_rows(head.rows.len());
            head.logits.set_rows(head.rows.len());
        }
        net.enter(feed, &mut flow.x)?;
        flow.attention.set_angles(&net.rope);
        net.forward(pool, &flow.step(*isa, phase, n), flow, head.as_ref(), streamed.as_mut())
    }

    /// What the last step of `n` tokens gave: logits, or of a front hidden states.
    fn out(&mut self, n: usize) -> &[f32] {
        match &mut self.head {
            Some(head) => head.logits.as_mut_slice(),
            None => &self.flow.x.as_mut_slice()[..n * self.config.dim],
        }
    }

    /// Feeds tokens to a front; what leaves its last layer, `[tokens][dim]`.
    pub(crate) fn states(&mut self, tokens: &[u32], phase: Phase) -> Result<&[f32]> {
        self.feed(Feed::Tokens(tokens), tokens.len(), phase, Logits::All)?;
        Ok(self.out(tokens.len()))
    }

    /// Feeds a back what left a front, `[tokens][dim]`; logits as of [`Decoder::step`].
    pub(crate) fn finish(&mut self, states: &[f32], phase: Phase, logits: Logits) -> Result<&[f32]> {
        let n = self.count(states)?;
        self.feed(Feed::States(states), n, phase, logits)?;
        Ok(self.out(n))
    }

    /// How many states these are.
    fn count(&self, states: &[f32]) -> Result<usize> {
        let n = states.len() / self.config.dim;
        if n * self.config.dim != states.len() {
            let why = format!("{} numbers, expected {} for each token", states.len(), self.config.dim);
            return Err(Error::Config { key: "states".into(), why });
        }
        Ok(n)
    }

    /// Room for another text; its slot. The first has slot 0.
    pub(crate) fn add_text(&mut self) -> Result<usize> {
        self.flow.attention.add()
    }

    /// Forgets a text, and gives its room back.
    pub(crate) fn remove_text(&mut self, slot: usize) {
        self.flow.attention.remove(slot);
    }

    /// Feeds a back states of several texts at once, `[tokens][dim]`; logits of the last token of each that wants some.
    pub(crate) fn finish_texts(&mut self, texts: &[Text], states: &[f32], phase: Phase) -> Result<&[f32]> {
        let n = self.count(states)?;
        self.check_batch(n)?;
        let mut runs: Vec<Run> = Vec::with_capacity(texts.len());
        for Text { slot, start, tokens, .. } in texts.iter().copied() {
            let first = runs.last().map_or(0, |run| run.rows.end);
            let end = start.saturating_add(tokens);
            let twice = runs.iter().any(|run| run.slot == slot);
            if tokens == 0 || twice || !self.flow.attention.has(slot) || end > self.context() {
                let why =
                    format!("positions {start} to {end} of text {slot}, which has none such, or comes twice");
                return Err(Error::Config { key: "states".into(), why });
            }
            runs.push(Run { slot, start, rows: first..first.saturating_add(tokens) });
        }
        if runs.last().is_none_or(|run| run.rows.end != n) {
            let why = format!("{n} states for other numbers of tokens");
            return Err(Error::Config { key: "states".into(), why });
        }
        let wanted = runs.iter().zip(texts).filter(|(_, text)| text.wanted).map(|(run, _)| run.rows.end - 1);
        self.feed_runs(Feed::States(states), &runs, phase, wanted)?;
        Ok(self.out(n))
    }
}

impl Decoder for Llama {
    type Error = Error;

    fn vocab(&self) -> usize {
        self.config.vocab
    }
    fn context(&self) -> usize {
        self.kv_shape().context
    }
    fn batch(&self) -> usize {
        self.batch
    }
    fn position(&self) -> usize {
        self.position
    }
    fn rewind(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    fn check_room(&self, tokens: usize) -> Result<()> {
        let needed = self.position.saturating_add(tokens);
        if needed > self.context() {
            let trained = self.config.context;
            return Err(Error::Context { needed, context: self.context(), trained });
        }
        Ok(())
    }

    fn step(&mut self, tokens: &[u32], phase: Phase, logits: Logits) -> Result<&[f32]> {
        self.feed(Feed::Tokens(tokens), tokens.len(), phase, logits)?;
        Ok(self.out(tokens.len()))
    }
}

/// The network as its [`Residency`] knows it.
struct Shared(Arc<RwLock<Net>>);

impl Host for Shared {
    fn between_tokens(&self, apply: &mut dyn FnMut(&mut Exchange<'_>)) -> bool {
        let mut net = match self.0.try_write() {
            Ok(net) => net,
            Err(TryLockError::Poisoned(net)) => net.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        apply(&mut |matrix, loaded| net.exchange(matrix, loaded));
        true
    }

    fn current(&self, matrix: &str) -> Option<Loaded> {
        let net = self.0.read().unwrap_or_else(PoisonError::into_inner);
        net.linear(matrix)?.loaded().cloned()
    }
}
