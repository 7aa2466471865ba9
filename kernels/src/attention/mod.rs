//! Attention: `softmax(q K^T) V` of one or many queries over the cached keys and values of a KV head.
//!
//! # Arithmetic
//! Positions are cut into *spans* of [`SPAN`]. Of a query (times `1 / sqrt(head_dim)`) and a span, as far as the query
//! sees it:
//!
//! 1. scores: `x[t] = sum over d of q[d] k[t][d]`, a chain of fused multiply-adds from dimension 0 on;
//! 2. `m = max x[t]`, `w[t] = exp(x[t] - m)` by `simd::exp`; their sum `l` over 8 lanes and the tree of `Simd::sum`;
//! 3. `o[d] = sum over t of w[t] v[t][d]`, a chain from the span's first position on.
//!
//! `(o, m, l)` is the *state* of a query. States of spans are merged in the order of positions, as in online softmax
//! (Milakov and Gimelshein 2018): with `M` the larger of both maxima, `a = exp(m_old - M)`, `b = exp(m_new - M)`:
//! `l = fma(l_new, b, l_old a)`, `o = fma(o_new, b, o_old a)`, where an empty state has `a = 0` and `b = 1`. The result
//! is `o (1 / l)`.
//!
//! Nothing in this depends on how many queries are computed together, nor on who computes a span: one worker can take
//! all of them, as for a block of a prompt ([`attend`] merges), or several take a few each, as for one token after a
//! long context ([`attend`] for each span, then [`merge`]; "flash decoding"). All types of cache have the bits of an
//! f32 cache with the numbers that they stand for.
//!
//! Spans fit L1: 16 KiB of f16 keys at 64 dimensions, used by all queries before the next span is read.
//!
//! A score that is not finite makes the result NaN.

mod cache;
mod tiles;

use crate::isa::Isa;
use crate::simd::{Kernel, LANES, Simd, WIDE, exp, exp_less, max_and_nan, sum};
pub use cache::{KvLayout, KvType};
use core::ops::Range;
use tiles::Tile;

/// Positions of a span; a multiple of a block of keys.
pub const SPAN: usize = 128;

/// Most queries of a tile.
const MAX_TILE: usize = 6;

/// Most dimensions of a head.
pub const MAX_HEAD_DIM: usize = 256;

/// Keys and values of one KV head.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// How they lie.
    pub layout: KvLayout,
    /// At least [`KvLayout::key_bytes`] of the positions that are attended to.
    pub keys: &'a [u8],
    /// At least [`KvLayout::value_bytes`] of them.
    pub values: &'a [u8],
}

/// Queries of consecutive positions, each of which sees all positions up to its own.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[positions][heads][head_dim]`, rotated, times `1 / sqrt(head_dim)`.
    pub x: &'a [f32],
    /// Query heads that share the KV head.
    pub heads: usize,
    /// Position of the first.
    pub first: usize,
}

/// Numbers of a state: sums `[head_dim, to a multiple of 16]`, the maximum, the sum of weights. All zeros is the
/// empty state.
pub const fn state_len(head_dim: usize) -> usize {
    head_dim.next_multiple_of(WIDE) + 2
}

/// Number of spans of `positions` positions.
pub const fn span_count(positions: usize) -> usize {
    positions.div_ceil(SPAN)
}

/// Takes the positions of `spans`, in order, into the states of all queries, `[queries][state_len]`. Queries that do
/// not see a span stay as they are.
///
/// # Panics
/// Where the lengths do not fit together: they come from one configuration, checked when it was read.
pub fn attend(isa: Isa, head: Head<'_>, queries: Queries<'_>, spans: Range<usize>, states: &mut [f32]) {
    let Queries { x, heads, first } = queries;
    let (dim, len) = (head.layout.dim(), state_len(head.layout.dim()));
    let n = x.len() / dim;
    let end = (first + n / heads.max(1)).min(spans.end * SPAN);
    assert!(
        n * dim == x.len()
            && heads > 0
            && n.is_multiple_of(heads)
            && states.len() == n * len
            && head.keys.len() >= head.layout.key_bytes(end)
            && head.values.len() >= head.layout.value_bytes(end),
        "attention over {end} positions of {dim} dimensions: {} numbers of queries for {heads} heads, {} of states, \
         {} bytes of keys and {} of values",
        x.len(),
        states.len(),
        head.keys.len(),
        head.values.len()
    );
    // Nothing behind what the last query sees is asked for.
    let (seen, layout) = (first + n / heads, head.layout);
    let head = Head {
        keys: &head.keys[..layout.key_bytes(seen).min(head.keys.len())],
        values: &head.values[..layout.value_bytes(seen).min(head.values.len())],
        layout,
    };
    let mut weights = [[0.0; SPAN]; MAX_TILE];
    for span in spans {
        let from = span * SPAN;
        let start = from.saturating_sub(first) * heads; // the first query that sees the span
        let mut i = start;
        while i < n {
            let states = &mut states[i * len..];
            let group = Group { isa, head, queries, from, i, first_use: i == start };
            // As few tiles as there can be, and none of a single query if that can be avoided.
            i += match n - i {
                1 => group.run::<1>(&mut weights, states),
                2 => group.run::<2>(&mut weights, states),
                3 | 5 => group.run::<3>(&mut weights, states),
                4 | 7 | 8 => group.run::<4>(&mut weights, states),
                _ => group.run::<MAX_TILE>(&mut weights, states),
            };
        }
    }
}

/// Some queries from `i` on and the span that starts at `from`.
struct Group<'a> {
    isa: Isa,
    head: Head<'a>,
    queries: Queries<'a>,
    from: usize,
    i: usize,
    /// Whether they are the first of these queries that read the span.
    first_use: bool,
}

impl Group<'_> {
    /// Attends with `Q` queries, and returns `Q`. `weights` is scratch, `states` starts with theirs.
    fn run<const Q: usize>(self, weights: &mut [[f32; SPAN]; MAX_TILE], states: &mut [f32]) -> usize {
        let Group { isa, head, queries: Queries { x, heads, first }, from, i, first_use } = self;
        let dim = head.layout.dim();
        let len = state_len(dim);
        let states = &mut states[..Q * len];
        let tile = Tile::<Q> {
            head,
            from,
            queries: core::array::from_fn(|q| &x[(i + q) * dim..(i + q + 1) * dim]),
            seen: core::array::from_fn(|q| (first + (i + q) / heads + 1 - from).min(SPAN)),
            first_use,
        };
        let weights = weights.first_chunk_mut::<Q>().expect("Q is at most MAX_TILE");
        tile.scores(isa, weights);
        let mut factors = [[0.0; 2]; Q];
        for q in 0..Q {
            let (_, stats) = states[q * len..(q + 1) * len].split_last_chunk_mut().expect("two at the end");
            factors[q] = isa.run(Weigh { x: &mut weights[q][..tile.seen[q]], stats });
        }
        tile.mix(isa, weights, factors, states, len);
        Q
    }
}

/// Replaces a span's scores by their weights and merges their maximum and sum into those of a state. Returns the
/// factors `[a, b]` of the sums so far and of this span's.
struct Weigh<'a> {
    x: &'a mut [f32],
    stats: &'a mut [f32; 2],
}

impl Kernel for Weigh<'_> {
    type Output = [f32; 2];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; 2] {
        let (max, nan) = max_and_nan(s, self.x);
        exp_less(s, self.x, max);
        merge_stats(s, self.stats, [max, sum(s, self.x) + nan])
    }
}

/// Merges the maximum and the sum of weights of a later state into those of an earlier one.
#[inline(always)]
fn merge_stats<S: Simd>(s: S, old: &mut [f32; 2], new: [f32; 2]) -> [f32; 2] {
    if old[1] == 0.0 {
        *old = new;
        return [0.0, 1.0];
    }
    let max = if new[0] > old[0] { new[0] } else { old[0] };
    let mut e = [0.0; WIDE];
    (e[0], e[1]) = (old[0] - max, new[0] - max);
    s.wide_store(exp(s, s.wide_load(&e)), &mut e);
    *old = [max, new[1].mul_add(e[1], old[1] * e[0])];
    [e[0], e[1]]
}

/// The result of a query from the states of consecutive parts of its positions: writes the dimensions `dims` of it to
/// `out`. State `i` starts at `states[i * stride]`; there are as many as fit.
///
/// # Panics
/// Where `dims` are not whole blocks of 8 within the head, or no state fits.
pub fn merge(isa: Isa, states: &[f32], stride: usize, head_dim: usize, dims: Range<usize>, out: &mut [f32]) {
    let len = state_len(head_dim);
    assert!(
        dims.end <= head_dim
            && dims.len() == out.len()
            && dims.len().is_multiple_of(LANES)
            && states.len() >= len
            && stride >= len,
        "merging states of {head_dim} dimensions: {dims:?} of them into {}, {} numbers in steps of {stride}",
        out.len(),
        states.len()
    );
    isa.run(Merge { states, stride, len, first: dims.start, out });
}

struct Merge<'a> {
    states: &'a [f32],
    stride: usize,
    len: usize,
    first: usize,
    out: &'a mut [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (out, _) = self.out.as_chunks_mut::<LANES>();
        let mut stats = [0.0; 2];
        for o in &mut *out {
            *o = [0.0; LANES];
        }
        for state in self.states.chunks(self.stride).filter(|state| state.len() >= self.len) {
            let (sums, new) = state[..self.len].split_last_chunk::<2>().expect("two at the end");
            let [old, new] = merge_stats(s, &mut stats, *new);
            let (old, new) = (s.splat(old), s.splat(new));
            for (o, sum) in out.iter_mut().zip(sums[self.first..].as_chunks::<LANES>().0) {
                s.store(s.fma(s.load(sum), new, s.mul(s.load(o), old)), o);
            }
        }
        let inverse = s.splat(1.0 / stats[1]);
        for o in out {
            s.store(s.mul(s.load(o), inverse), o);
        }
    }
}
