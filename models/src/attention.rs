//! Grouped-query attention with its cache, as stages of the forward program.
//!
//! Several tokens: a chunk of work is one KV head and a block of tokens of one text, so that keys and values are read once for
//! many queries. One token: it is one KV head and a run of spans of its positions; the spans' states are merged by
//! whoever asks for the result ([`Attention::output`]), without a stage of its own. The kernels' arithmetic
//! (`lutite_kernels::attention`) has equal bits for all of these.

use crate::config::Config;
use crate::error::{Error, Result};
use lutite_kernels::attention::{KvLayout, MAX_HEAD_DIM, Queries, attend, merge, span_count, state_len};
use lutite_kernels::isa::Isa;
use lutite_kernels::ops::rope::{Rope, rotate_adjacent};
use lutite_kernels::pack::p32::TILE_ROWS;
use lutite_runtime::kv::{KvCache, KvShape, KvTypes};
use lutite_runtime::os::shared::SharedMat;
use lutite_runtime::pool::Pool;
use std::ops::Range;

/// Queries that attend together in a prompt, about: enough to read a span once for many, few enough that their states
/// stay in L2 and that there are blocks for all workers.
const BLOCK_QUERIES: usize = 48;

/// Chunks per worker that one token's attention is cut into, as far as there are spans.
const CHUNKS_PER_WORKER: usize = 4;

/// Sizes that follow from the configuration.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    head_dim: usize,
    kv_heads: usize,
    /// Query heads that share a KV head.
    sharing: usize,
    /// Numbers of a query's state.
    state: usize,
    /// Tokens of a block.
    block: usize,
}

impl Sizes {
    fn new(c: &Config) -> Sizes {
        let sharing = c.heads / c.kv_heads;
        Sizes {
            head_dim: c.head_dim,
            kv_heads: c.kv_heads,
            sharing,
            state: state_len(c.head_dim),
            block: BLOCK_QUERIES.div_ceil(sharing),
        }
    }

    /// Numbers of the states of one token at full context; saturating.
    fn states(self, context: usize) -> usize {
        (self.kv_heads * self.sharing * self.state).saturating_mul(span_count(context))
    }

    /// Numbers that a worker needs: queries and states of a block.
    fn scratch(self) -> usize {
        self.block * self.sharing * (self.head_dim + self.state)
    }
}

/// What goes into attention, for every token of a step; first dimensions are tokens.
#[derive(Debug)]
pub(crate) struct AttentionInput {
    /// `[heads * head_dim]`
    pub(crate) q: SharedMat<f32>,
    /// `[kv_heads * head_dim]`
    pub(crate) k: SharedMat<f32>,
    /// `[kv_heads * head_dim]`
    pub(crate) v: SharedMat<f32>,
    /// Cosines and sines of each token's position, `[rope dims]`.
    pub(crate) angles: SharedMat<f32>,
}

impl AttentionInput {
    fn each(&mut self) -> [&mut SharedMat<f32>; 4] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.angles]
    }
}

/// Tokens of one text in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The cache of the text.
    pub(crate) slot: usize,
    /// Position of the first token.
    pub(crate) start: usize,
    /// Which of the step's tokens they are.
    pub(crate) rows: Range<usize>,
}

impl Run {
    /// The position of a row.
    fn position(&self, row: usize) -> usize {
        self.start + row - self.rows.start
    }
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Attention {
    sizes: Sizes,
    /// What the next stages attend with.
    pub(crate) input: AttentionInput,
    shape: KvShape,
    /// One for each text; none where a text is gone.
    kv: Vec<Option<KvCache>>,
    /// Of one token, one row: `[kv_heads][spans][sharing][state]`.
    states: SharedMat<f32>,
    /// Results of several tokens: `kv_heads` rows of `[sharing * head_dim]` for each.
    out: SharedMat<f32>,
    /// Queries and states of a block; a row for each worker.
    scratch: SharedMat<f32>,
    /// The step's texts, and their blocks of tokens: the number of the run, and rows.
    runs: Vec<Run>,
    blocks: Vec<(usize, Range<usize>)>,
}

/// The shape of a cache.
///
/// # Errors
/// [`Error::Config`] when a head has dimensions that a type cannot hold.
pub(crate) fn kv_shape(c: &Config, types: KvTypes, context: usize) -> Result<KvShape> {
    let layout = KvLayout::new(c.head_dim, types.keys, types.values)
        .map_err(|e| Error::Config { key: "cache type (-ctk, -ctv)".into(), why: e.to_string() })?;
    Ok(KvShape { layers: c.layers, heads: c.kv_heads, layout, context })
}

/// Bytes that [`Attention::new`] allocates beside the cache and the input; saturating.
pub(crate) fn buffer_bytes(c: &Config, kv: KvShape, batch: usize, workers: usize) -> usize {
    let sizes = Sizes::new(c);
    let out = batch.saturating_mul(c.heads * c.head_dim);
    let scratch = workers.saturating_mul(sizes.scratch());
    sizes.states(kv.context).saturating_add(out).saturating_add(scratch).saturating_mul(size_of::<f32>())
}

impl Attention {
    /// An empty cache and room for steps of `batch` tokens, whose positions have `rope_dims` angles.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub(crate) fn new(
        c: &Config,
        kv: KvShape,
        rope_dims: usize,
        batch: usize,
        workers: usize,
    ) -> Result<Attention> {
        let s = Sizes::new(c);
        let (q_dim, kv_dim) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let tiled = |dim| SharedMat::new(batch, dim, TILE_ROWS);
        Ok(Attention {
            sizes: s,
            input: AttentionInput {
                q: tiled(q_dim)?,
                k: tiled(kv_dim)?,
                v: tiled(kv_dim)?,
                angles: SharedMat::new(batch, rope_dims, rope_dims)?,
            },
            shape: kv,
            kv: vec![Some(KvCache::new(kv)?)],
            states: SharedMat::new(1, s.states(kv.context), s.sharing * s.state)?,
            out: SharedMat::new(batch * s.kv_heads, s.sharing * s.head_dim, s.head_dim)?,
            scratch: SharedMat::new(workers, s.scratch(), s.scratch())?,
            runs: Vec::with_capacity(batch),
            blocks: Vec::with_capacity(batch),
        })
    }

    /// Sizes of the cache.
    pub(crate) fn kv_shape(&self) -> KvShape {
        self.shape
    }

    /// An empty cache for another text; its slot.
    pub(crate) fn add(&mut self) -> Result<usize> {
        let cache = Some(KvCache::new(self.shape)?);
        let free = self.kv.iter().position(Option::is_none);
        match free {
            Some(slot) => self.kv[slot] = cache,
            None => self.kv.push(cache),
        }
        Ok(free.unwrap_or(self.kv.len() - 1))
    }

    /// Gives a cache back.
    pub(crate) fn remove(&mut self, slot: usize) {
        if let Some(cache) = self.kv.get_mut(slot) {
            *cache = None;
        }
    }

    /// Whether there is a cache in this slot.
    pub(crate) fn has(&self, slot: usize) -> bool {
        self.kv.get(slot).is_some_and(Option::is_some)
    }

    fn cache(&self, slot: usize) -> &KvCache {
        self.kv[slot].as_ref().expect("a slot of a text that there is")
    }

    /// Begins a step of `n` tokens, which are those of these texts one after the other.
    pub(crate) fn set_step(&mut self, runs: &[Run], n: usize) {
        self.runs.clear();
        self.runs.extend_from_slice(runs);
        self.blocks.clear();
        for (i, run) in runs.iter().enumerate() {
            let block = self.sizes.block;
            let starts = run.rows.clone().step_by(block);
            self.blocks.extend(starts.map(|first| (i, first..(first + block).min(run.rows.end))));
        }
        // The last block of a text sees most, so it comes first.
        self.blocks.reverse();
        self.input.each().into_iter().for_each(|m| m.set_rows(n));
        self.out.set_rows(n * self.sizes.kv_heads);
    }

    /// Works out the angles of the step's positions.
    pub(crate) fn set_angles(&mut self, rope: &Rope) {
        let mut rows = self.input.angles.as_mut_slice().chunks_exact_mut(rope.dims());
        for run in &self.runs {
            run.rows.clone().zip(&mut rows).for_each(|(i, row)| rope.angles(run.position(i), row));
        }
    }

    /// Stages: rotates queries and keys, appends keys and values to the cache, and attends to all positions up to
    /// each token's own.
    pub(crate) fn attend(&self, pool: &mut Pool, isa: Isa, layer: usize) {
        let heads = self.sizes.kv_heads;
        let Some(start) = self.only() else {
            pool.each(heads, |h| self.store(isa, layer, h));
            return pool.each_by(heads * self.blocks.len(), |worker, chunk| {
                let (run, rows) = &self.blocks[chunk / heads];
                self.attend_block(worker, isa, layer, chunk % heads, (&self.runs[*run], rows.clone()));
            });
        };
        let spans = span_count(start + 1);
        let workers = pool.workers();
        let wanted = if workers == 1 { 1 } else { (CHUNKS_PER_WORKER * workers).div_ceil(heads) };
        let run = spans.div_ceil(wanted);
        let runs = spans.div_ceil(run);
        // A head that one chunk attends to is stored by it as well, which saves a stage.
        if runs > 1 {
            pool.each(heads, |h| self.store(isa, layer, h));
        }
        pool.each_by(heads * runs, |worker, chunk| {
            let (h, first) = (chunk / runs, chunk % runs * run);
            if runs == 1 {
                self.store(isa, layer, h);
            }
            self.attend_run(worker, isa, layer, h, first..(first + run).min(spans));
        });
    }

    /// Appends the new keys and values of a KV head to the cache.
    fn store(&self, isa: Isa, layer: usize, h: usize) {
        let (k, v, angles) = (self.input.k.read(), self.input.v.read(), self.input.angles.read());
        let dim = self.sizes.head_dim;
        let cols = h * dim..(h + 1) * dim;
        for run in &self.runs {
            let mut slabs = self.cache(run.slot).write(layer, h);
            for t in run.rows.clone() {
                let mut key = [0.0; MAX_HEAD_DIM];
                let key = &mut key[..dim];
                key.copy_from_slice(&k.row(t)[cols.clone()]);
                rotate_adjacent(key, angles.row(t));
                slabs.put(isa, run.position(t), key, &v.row(t)[cols.clone()]);
            }
        }
    }

    /// The position of the step's token, if it has only one.
    fn only(&self) -> Option<usize> {
        match &self.runs[..] {
            [Run { start, rows, .. }] if rows.len() == 1 => Some(*start),
            _ => None,
        }
    }

    /// Rotates and scales the queries that share KV head `h`: `[tokens][sharing][head_dim]`.
    fn queries(&self, h: usize, tokens: Range<usize>, out: &mut [f32]) {
        let (q, angles) = (self.input.q.read(), self.input.angles.read());
        let dim = self.sizes.head_dim;
        let (width, scale) = (self.sizes.sharing * dim, 1.0 / (dim as f32).sqrt());
        for (t, out) in tokens.zip(out.chunks_exact_mut(width)) {
            out.copy_from_slice(&q.row(t)[h * width..(h + 1) * width]);
            for query in out.chunks_exact_mut(dim) {
                rotate_adjacent(query, angles.row(t));
                query.iter_mut().for_each(|q| *q *= scale);
            }
        }
    }

    /// A block of tokens of one text attends to all spans of KV head `h`.
    fn attend_block(
        &self,
        worker: usize,
        isa: Isa,
        layer: usize,
        h: usize,
        (run, tokens): (&Run, Range<usize>),
    ) {
        let Sizes { head_dim, kv_heads, sharing, state, .. } = self.sizes;
        let queries = tokens.len() * sharing;
        let mut scratch = self.scratch.write_row(worker);
        let (x, states) = scratch.split_at_mut(queries * head_dim);
        let states = &mut states[..queries * state];
        self.queries(h, tokens.clone(), x);
        states.fill(0.0);
        let queries = Queries { x, heads: sharing, first: run.position(tokens.start) };
        let slabs = self.cache(run.slot).read(layer, h);
        attend(isa, slabs.head(), queries, 0..span_count(run.position(tokens.end)), states);
        for (t, states) in tokens.zip(states.chunks_exact(sharing * state)) {
            let mut out = self.out.write_row(t * kv_heads + h);
            for (state, out) in states.chunks_exact(state).zip(out.chunks_exact_mut(head_dim)) {
                merge(isa, state, state.len(), head_dim, 0..head_dim, out);
            }
        }
    }

    /// The only token attends to a run of spans of KV head `h`, with a state for each.
    fn attend_run(&self, worker: usize, isa: Isa, layer: usize, h: usize, run: Range<usize>) {
        let Sizes { head_dim, sharing, state, .. } = self.sizes;
        let mut scratch = self.scratch.write_row(worker);
        let x = &mut scratch[..sharing * head_dim];
        self.queries(h, 0..1, x);
        let Run { slot, start, .. } = self.runs[0];
        let queries = Queries { x, heads: sharing, first: start };
        let at = h * span_count(self.shape.context);
        let len = sharing * state;
        let mut states = self.states.write_cols((at + run.start) * len..(at + run.end) * len);
        let states = states.row_mut(0);
        states.fill(0.0);
        let slabs = self.cache(slot).read(layer, h);
        for (span, states) in run.zip(states.chunks_exact_mut(len)) {
            attend(isa, slabs.head(), queries, span..span + 1, states);
        }
    }

    /// The columns `cols` of token `t`'s result, `[heads][head_dim]`, once [`Attention::attend`] is over. They must be
    /// whole blocks of 8.
    pub(crate) fn output(&self, isa: Isa, t: usize, cols: Range<usize>, out: &mut [f32]) {
        let Sizes { head_dim, kv_heads, sharing, state, .. } = self.sizes;
        let Some(start) = self.only() else {
            let width = kv_heads * sharing * head_dim;
            return out.copy_from_slice(&self.out.read()[t * width..(t + 1) * width][cols]);
        };
        let states = self.states.read();
        let (stride, room) = (sharing * state, span_count(self.shape.context));
        let mut rest = out;
        let mut at = cols.start;
        while at < cols.end {
            let (head, first) = (at / head_dim, at % head_dim);
            let dims = first..(first + cols.end - at).min(head_dim);
            let from = head / sharing * room * stride + head % sharing * state;
            let to = from + (span_count(start + 1) - 1) * stride + state;
            let (part, others) = rest.split_at_mut(dims.len());
            at += dims.len();
            merge(isa, &states[from..to], stride, head_dim, dims, part);
            rest = others;
        }
    }
}
