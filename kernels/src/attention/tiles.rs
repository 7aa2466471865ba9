//! The two products of a span, for several queries at once: a *tile* of 1 to 6 queries and 16 to 64 positions (or
//! dimensions), whose sums stay in registers while keys (or values) pass by. Each number of the cache is loaded and
//! widened once for all queries of a tile; each lane is a chain of fused multiply-adds of its own, so that the shape
//! of the tiles does not show in the bits.

use super::cache::{BLOCK, GROUP, KvType};
use super::{Head, SPAN};
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, WIDE, prefetch_lines};
use core::marker::PhantomData;

/// How far ahead of their use keys and values are asked for: they lie in too short pieces for the hardware to do so.
const PREFETCH_BYTES: usize = 4096;

/// How many times 16 sums stand beside `Q` queries: 4 to 12 chains hide the latency of two multiply-adds per cycle, and
/// leave room for operands in the registers, which hold `hold` times 16 numbers.
const fn wides(queries: usize, hold: usize) -> usize {
    match (queries, hold) {
        (1, _) => 4,
        (2 | 3, _) | (_, 32..) => 2,
        _ => 1,
    }
}

/// Evaluates `$call` with `$w` as the number of wide sums for `$queries` on tier `$simd`.
macro_rules! with_wides {
    ($simd:ident, $queries:expr, $w:ident => $call:expr) => {
        match wides($queries, $simd::WIDES) {
            4 => {
                const $w: usize = 4;
                $call
            }
            2 => {
                const $w: usize = 2;
                $call
            }
            _ => {
                const $w: usize = 1;
                $call
            }
        }
    };
}

/// One type of cache, to read.
trait Format {
    /// 16 numbers.
    type Column: Copy;
    /// What they are multiplied by; nothing for floats.
    type Scale<S: Simd>: Copy;
    /// Bytes of a scale.
    const SCALE_BYTES: usize;

    /// The columns of a buffer.
    fn columns(bytes: &[u8]) -> &[Self::Column];
    /// The scales of 16 positions.
    fn key_scales<S: Simd>(s: S, at: &[u8]) -> Self::Scale<S>;
    /// The scale of one position.
    fn value_scale<S: Simd>(s: S, at: &[u8]) -> Self::Scale<S>;
    /// The numbers: exactly what was stored, since codes and scales have 8 + 11 bits at most.
    fn load<S: Simd>(s: S, column: &Self::Column, scale: Self::Scale<S>) -> S::W;
}

/// The first bytes of a slice.
#[inline(always)]
fn head<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes.first_chunk().expect("the caller cut the slice so that there are as many")
}

macro_rules! format {
    ($name:ident, $bytes:literal, $load:ident, floats) => {
        struct $name;

        impl Format for $name {
            type Column = [u8; $bytes];
            type Scale<S: Simd> = ();
            const SCALE_BYTES: usize = 0;

            #[inline(always)]
            fn columns(bytes: &[u8]) -> &[[u8; $bytes]] {
                bytes.as_chunks().0
            }
            #[inline(always)]
            fn key_scales<S: Simd>(_: S, _: &[u8]) {}
            #[inline(always)]
            fn value_scale<S: Simd>(_: S, _: &[u8]) {}
            #[inline(always)]
            fn load<S: Simd>(s: S, column: &[u8; $bytes], (): ()) -> S::W {
                s.$load(column)
            }
        }
    };
    ($name:ident, $bytes:literal, $load:ident, scaled) => {
        struct $name;

        impl Format for $name {
            type Column = [u8; $bytes];
            type Scale<S: Simd> = S::W;
            const SCALE_BYTES: usize = 2;

            #[inline(always)]
            fn columns(bytes: &[u8]) -> &[[u8; $bytes]] {
                bytes.as_chunks().0
            }
            #[inline(always)]
            fn key_scales<S: Simd>(s: S, at: &[u8]) -> S::W {
                s.wide_f16(head(at))
            }
            #[inline(always)]
            fn value_scale<S: Simd>(s: S, at: &[u8]) -> S::W {
                s.wide_splat_f16(*head(at))
            }
            #[inline(always)]
            fn load<S: Simd>(s: S, column: &[u8; $bytes], scale: S::W) -> S::W {
                s.wide_mul(s.$load(column), scale)
            }
        }
    };
}
format!(F32, 64, wide_f32, floats);
format!(F16, 32, wide_f16, floats);
format!(Q8, 16, wide_i8, scaled);
format!(Q4, 8, wide_i4, scaled);

/// Evaluates `$call` with `$f` as the format of a type.
macro_rules! with_format {
    ($ty:expr, $f:ident => $call:expr) => {
        match $ty {
            KvType::F32 => {
                type $f = F32;
                $call
            }
            KvType::F16 => {
                type $f = F16;
                $call
            }
            KvType::Q8_0 => {
                type $f = Q8;
                $call
            }
            KvType::Q4_0 => {
                type $f = Q4;
                $call
            }
        }
    };
}

/// `Q` queries in one span.
pub(super) struct Tile<'a, const Q: usize> {
    /// The cache.
    pub(super) head: Head<'a>,
    /// The span's first position.
    pub(super) from: usize,
    /// The queries, `[head_dim]` each.
    pub(super) queries: [&'a [f32]; Q],
    /// How many of the span's positions each sees; not decreasing, the first at least 1.
    pub(super) seen: [usize; Q],
    /// Whether the span probably comes from memory, not from a cache: a hint, without influence on the result.
    pub(super) first_use: bool,
}

impl<const Q: usize> Tile<'_, Q> {
    /// `out[q][t]` is the product of query `q` and the key of position `from + t`, for all that `q` sees; the rest of
    /// `out` is left without meaning.
    pub(super) fn scores(&self, isa: Isa, out: &mut [[f32; SPAN]; Q]) {
        with_format!(self.head.layout.keys(), F => isa.run(Scores { tile: self, out, format: PhantomData::<F> }));
    }

    /// `sums[q] = sums[q] * factors[q][0] + factors[q][1] * sum of weights[q][t] * value[from + t]`, over all that `q`
    /// sees. `sums` are rows of `stride` numbers, of which the first are `[head_dim, to a multiple of 16]`.
    pub(super) fn mix(
        &self,
        isa: Isa,
        weights: &[[f32; SPAN]; Q],
        factors: [[f32; 2]; Q],
        sums: &mut [f32],
        stride: usize,
    ) {
        with_format!(self.head.layout.values(), F => {
            isa.run(Mix { tile: self, weights, factors, sums, stride, format: PhantomData::<F> });
        });
    }
}

struct Scores<'a, 'b, F, const Q: usize> {
    tile: &'a Tile<'b, Q>,
    out: &'a mut [[f32; SPAN]; Q],
    format: PhantomData<F>,
}

impl<F: Format, const Q: usize> Kernel for Scores<'_, '_, F, Q> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = self.tile.seen[Q - 1].div_ceil(BLOCK);
        with_wides!(S, Q, W => {
            for first in (0..blocks).step_by(W) {
                // Past the end the last block is computed again: less than another loop would cost.
                let mut these = [blocks - 1; W];
                for w in 0..W.min(blocks - first) {
                    these[w] = first + w;
                }
                let sums = key_tile::<S, F, Q, W>(s, self.tile, these);
                for q in 0..Q {
                    for (w, out) in self.out[q].as_chunks_mut::<WIDE>().0[first..first + W].iter_mut().enumerate() {
                        s.wide_store(sums[q][w], out);
                    }
                }
            }
        });
    }
}

/// Asks for what follows the first `n` bytes, unless it is behind the end: nobody may have written there yet, and looking
/// in vain for a page takes longer than the rest.
#[inline(always)]
fn prefetch_next<S: Simd>(s: S, bytes: &[u8], n: usize) {
    if bytes.len() > PREFETCH_BYTES {
        prefetch_lines(s, &bytes[..n.min(bytes.len())], PREFETCH_BYTES);
    }
}

/// A block of keys of a span, from byte `at` on.
#[inline(always)]
fn group_of<'a, const Q: usize>(t: &Tile<'a, Q>, block: usize, at: usize) -> &'a [u8] {
    let bytes = t.head.layout.block_bytes();
    &t.head.keys[(t.from / BLOCK + block) * bytes + at..][..bytes - at]
}

/// The products of `Q` queries with `W` blocks of 16 keys, one dimension after the other.
#[inline(always)]
fn key_tile<S: Simd, F: Format, const Q: usize, const W: usize>(
    s: S,
    t: &Tile<'_, Q>,
    blocks: [usize; W],
) -> [[S::W; W]; Q] {
    let layout = t.head.layout;
    let mut sums = [[s.wide_splat(0.0); W]; Q];
    let scale_bytes = BLOCK * F::SCALE_BYTES;
    if t.first_use {
        for w in 0..W {
            let bytes = layout.block_bytes();
            prefetch_next(s, &t.head.keys[(t.from / BLOCK + blocks[w]) * bytes..], bytes);
        }
    }
    let mut at = 0; // in a block
    // `KvLayout::new` has checked that groups are whole where they matter.
    let dims = if F::SCALE_BYTES > 0 { GROUP } else { layout.dim() };
    for first in (0..layout.dim()).step_by(dims) {
        let bytes = scale_bytes + dims * size_of::<F::Column>();
        // Slices of exactly `dims` elements, so that the loop over them needs no checks. No closures: they would be
        // compiled without the tier's instructions.
        let mut columns: [&[F::Column]; W] = [&[]; W];
        let mut scales = [F::key_scales(s, group_of(t, blocks[0], at)); W];
        for w in 0..W {
            let group = group_of(t, blocks[w], at);
            scales[w] = F::key_scales(s, group);
            columns[w] = &F::columns(&group[scale_bytes..])[..dims];
        }
        let mut queries: [&[f32]; Q] = [&[]; Q];
        for q in 0..Q {
            queries[q] = &t.queries[q][first..first + dims];
        }
        for d in 0..dims {
            let mut x = [s.wide_splat(0.0); Q];
            for q in 0..Q {
                x[q] = s.wide_splat(queries[q][d]);
            }
            for w in 0..W {
                let key = F::load(s, &columns[w][d], scales[w]);
                for q in 0..Q {
                    sums[q][w] = s.wide_fma(key, x[q], sums[q][w]);
                }
            }
        }
        at += bytes;
    }
    sums
}

struct Mix<'a, 'b, F, const Q: usize> {
    tile: &'a Tile<'b, Q>,
    weights: &'a [[f32; SPAN]; Q],
    factors: [[f32; 2]; Q],
    sums: &'a mut [f32],
    stride: usize,
    format: PhantomData<F>,
}

impl<F: Format, const Q: usize> Kernel for Mix<'_, '_, F, Q> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let columns = self.tile.head.layout.dim().div_ceil(WIDE);
        let mut column = 0;
        with_wides!(S, Q, W => while column + W <= columns {
            value_tile::<S, F, Q, W>(s, &mut self, column);
            column += W;
        });
        while wides(Q, S::WIDES) > 1 && column < columns {
            value_tile::<S, F, Q, 1>(s, &mut self, column);
            column += 1;
        }
    }
}

/// `W` columns of a position's value.
#[inline(always)]
fn load_row<S: Simd, F: Format, const W: usize>(s: S, row: &[u8], places: &[(usize, usize); W]) -> [S::W; W] {
    let mut values = [s.wide_splat(0.0); W];
    for w in 0..W {
        let (scale, at) = places[w];
        let scale = F::value_scale(s, &row[scale..]);
        values[w] = F::load(s, &F::columns(&row[at..at + size_of::<F::Column>()])[0], scale);
    }
    values
}

/// `W` columns of the sums of `Q` queries, one position after the other.
#[inline(always)]
fn value_tile<S: Simd, F: Format, const Q: usize, const W: usize>(
    s: S,
    m: &mut Mix<'_, '_, F, Q>,
    column: usize,
) {
    let (t, row_bytes) = (m.tile, m.tile.head.layout.row_bytes());
    let rows = &t.head.values[t.from * row_bytes..(t.from + t.seen[Q - 1]) * row_bytes];
    // Where a column's scale and numbers lie in a row.
    let mut places = [(0, 0); W];
    for w in 0..W {
        let (group, within) = ((column + w) / (GROUP / WIDE), (column + w) % (GROUP / WIDE));
        let at = group * (F::SCALE_BYTES + GROUP / WIDE * size_of::<F::Column>());
        places[w] = (at, at + F::SCALE_BYTES + within * size_of::<F::Column>());
    }
    let mut sums = [[s.wide_splat(0.0); W]; Q];
    let ahead = t.first_use && column == 0;
    let all = t.seen[0].min(SPAN);
    for (i, row) in rows.chunks_exact(row_bytes).enumerate().take(all) {
        let values = load_row::<S, F, W>(s, row, &places);
        if ahead {
            prefetch_next(s, &t.head.values[(t.from + i) * row_bytes..], row_bytes);
        }
        for q in 0..Q {
            let weight = s.wide_splat(m.weights[q][i]);
            for w in 0..W {
                sums[q][w] = s.wide_fma(values[w], weight, sums[q][w]);
            }
        }
    }
    // Queries of later positions see a little more.
    for q in 1..Q {
        for i in all..t.seen[q] {
            let values = load_row::<S, F, W>(s, &rows[i * row_bytes..(i + 1) * row_bytes], &places);
            let weight = s.wide_splat(m.weights[q][i]);
            for w in 0..W {
                sums[q][w] = s.wide_fma(values[w], weight, sums[q][w]);
            }
        }
    }
    for q in 0..Q {
        let (old, new) = (s.wide_splat(m.factors[q][0]), s.wide_splat(m.factors[q][1]));
        let row = &mut m.sums[q * m.stride..][column * WIDE..(column + W) * WIDE];
        for (w, out) in row.as_chunks_mut::<WIDE>().0.iter_mut().enumerate() {
            let before = s.wide_mul(s.wide_load(out), old);
            s.wide_store(s.wide_fma(sums[q][w], new, before), out);
        }
    }
}
