//! Attention of one query head over its keys and values.

use crate::isa::Isa;
use crate::mem;
use crate::ops::softmax::softmax;
use crate::simd::{Kernel, LANES, Simd};

/// Keys or values of one KV head, `[position][head_dim]`.
#[derive(Clone, Copy, Debug)]
pub enum KvSlice<'a> {
    /// IEEE half floats (bit patterns).
    F16(&'a [u16]),
    /// Floats, for judging.
    F32(&'a [f32]),
}

impl KvSlice<'_> {
    fn len(&self) -> usize {
        match self {
            KvSlice::F16(x) => x.len(),
            KvSlice::F32(x) => x.len(),
        }
    }
}

/// `out = softmax(scale * q K^T) V` for one head.
///
/// `q` and `out` are `[head_dim]`, `keys` and `values` `[positions][head_dim]`, `scores` is room for
/// `[positions]`, whose length says how many positions are attended to. Scores use the 8-lane reduction
/// over `head_dim`; values are added in the order of positions. `head_dim` must be a multiple of 8.
///
/// # Panics
/// Where the lengths do not fit together: they come from one configuration, checked when it was read.
pub fn attend(
    isa: Isa,
    q: &[f32],
    keys: KvSlice<'_>,
    values: KvSlice<'_>,
    scale: f32,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let n = scores.len() * q.len();
    assert!(
        keys.len() >= n && values.len() >= n && out.len() == q.len() && q.len().is_multiple_of(LANES),
        "attention over {} positions of {} dimensions: keys {}, values {}, out {}",
        scores.len(),
        q.len(),
        keys.len(),
        values.len(),
        out.len()
    );
    match keys {
        KvSlice::F16(k) => isa.run(Scores { q, k: Halves(mem::bytes_of(k)), scale, scores }),
        KvSlice::F32(k) => isa.run(Scores { q, k: Floats(k), scale, scores }),
    }
    softmax(isa, scores);
    match values {
        KvSlice::F16(v) => isa.run(Mix { p: scores, v: Halves(mem::bytes_of(v)), out }),
        KvSlice::F32(v) => isa.run(Mix { p: scores, v: Floats(v), out }),
    }
}

/// Rounds floats to half floats (nearest, ties to even); `x` and `out` have equal lengths.
pub fn to_f16(isa: Isa, x: &[f32], out: &mut [u16]) {
    isa.run(ToF16 { x, out });
}

/// 8 elements at a time from either kind of cache.
trait Rows: Copy {
    fn load<S: Simd>(self, s: S, at: usize) -> S::F;
}

#[derive(Clone, Copy)]
struct Halves<'a>(&'a [u8]);
#[derive(Clone, Copy)]
struct Floats<'a>(&'a [f32]);

impl Rows for Halves<'_> {
    #[inline(always)]
    fn load<S: Simd>(self, s: S, at: usize) -> S::F {
        s.load_f16(&self.0.as_chunks().0[at / LANES])
    }
}

impl Rows for Floats<'_> {
    #[inline(always)]
    fn load<S: Simd>(self, s: S, at: usize) -> S::F {
        s.load(&self.0.as_chunks().0[at / LANES])
    }
}

struct Scores<'a, R> {
    q: &'a [f32],
    k: R,
    scale: f32,
    scores: &'a mut [f32],
}

impl<R: Rows> Kernel for Scores<'_, R> {
    type Output = ();

    /// Four positions at once: one chain of multiply-adds alone would wait for its own latency.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (q, _) = self.q.as_chunks::<LANES>();
        let dim = self.q.len();
        let (fours, rest) = self.scores.as_chunks_mut::<4>();
        let mut at = 0;
        for four in fours {
            let mut acc = [s.splat(0.0); 4];
            for (i, q) in q.iter().enumerate() {
                let q = s.load(q);
                for p in 0..4 {
                    acc[p] = s.fma(q, self.k.load(s, at + p * dim + i * LANES), acc[p]);
                }
            }
            for p in 0..4 {
                four[p] = s.sum(acc[p]) * self.scale;
            }
            at += 4 * dim;
        }
        for score in rest {
            let mut acc = s.splat(0.0);
            for (i, q) in q.iter().enumerate() {
                acc = s.fma(s.load(q), self.k.load(s, at + i * LANES), acc);
            }
            *score = s.sum(acc) * self.scale;
            at += dim;
        }
    }
}

struct Mix<'a, R> {
    p: &'a [f32],
    v: R,
    out: &'a mut [f32],
}

impl<R: Rows> Kernel for Mix<'_, R> {
    type Output = ();

    /// 64 dimensions at a time in registers over all positions.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let dim = self.out.len();
        for (part, out) in self.out.chunks_mut(8 * LANES).enumerate() {
            let (out, _) = out.as_chunks_mut::<LANES>();
            let mut acc = [s.splat(0.0); 8];
            for (t, p) in self.p.iter().enumerate() {
                let p = s.splat(*p);
                let at = t * dim + part * 8 * LANES;
                if out.len() == 8 {
                    for i in 0..8 {
                        acc[i] = s.fma(p, self.v.load(s, at + i * LANES), acc[i]);
                    }
                } else {
                    for (i, acc) in acc.iter_mut().enumerate().take(out.len()) {
                        *acc = s.fma(p, self.v.load(s, at + i * LANES), *acc);
                    }
                }
            }
            for (o, a) in out.iter_mut().zip(acc) {
                s.store(a, o);
            }
        }
    }
}

struct ToF16<'a> {
    x: &'a [f32],
    out: &'a mut [u16],
}

impl Kernel for ToF16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, tail) = self.x.as_chunks::<LANES>();
        let (out, out_tail) = mem::bytes_of_mut(self.out).as_chunks_mut::<16>();
        for (x, o) in x.iter().zip(out) {
            s.store_f16(s.load(x), o);
        }
        for (o, x) in out_tail.chunks_exact_mut(2).zip(tail) {
            o.copy_from_slice(&half::f16::from_f32(*x).to_le_bytes());
        }
    }
}
