//! Attention: every type of cache, tier, batch and split of the positions equal in bits to the slow twin, which is
//! close to f64 arithmetic.

use crate::common::Rng;
use half::f16;
use lutite_kernels::attention::{
    Head, KvLayout, KvType, Queries, SPAN, attend, merge, span_count, state_len,
};
use lutite_kernels::isa::Isa;
use lutite_kernels::reference;

/// One head's keys and values, stored, and the numbers that they stand for.
pub(crate) struct Cache {
    layout: KvLayout,
    keys: Vec<u8>,
    values: Vec<u8>,
    plain: [Vec<f32>; 2], // [positions][head_dim]
}

impl Cache {
    fn new(layout: KvLayout, positions: usize) -> Cache {
        // Bytes that no position has written must not matter.
        let (keys, values) =
            (vec![0x7e; layout.key_bytes(positions)], vec![0x7e; layout.value_bytes(positions)]);
        Cache { layout, keys, values, plain: [vec![], vec![]] }
    }

    fn push(&mut self, isa: Isa, key: &[f32], value: &[f32]) {
        let at = self.plain[0].len() / self.layout.dim();
        self.layout.put_key(isa, &mut self.keys, at, key);
        self.layout.put_value(isa, &mut self.values, at, value);
        self.plain[0].extend(reference::kv_stored(self.layout.keys(), key));
        self.plain[1].extend(reference::kv_stored(self.layout.values(), value));
    }

    pub(crate) fn random(rng: &mut Rng, isa: Isa, layout: KvLayout, positions: usize) -> Cache {
        let mut cache = Cache::new(layout, positions);
        for _ in 0..positions {
            let mut row = || (0..layout.dim()).map(|_| rng.normal()).collect::<Vec<f32>>();
            cache.push(isa, &row(), &row());
        }
        cache
    }

    fn head(&self) -> Head<'_> {
        Head { layout: self.layout, keys: &self.keys, values: &self.values }
    }

    /// All at once: `[queries][head_dim]`.
    pub(crate) fn attend(&self, isa: Isa, x: &[f32], heads: usize, first: usize) -> Vec<f32> {
        let (dim, len) = (self.layout.dim(), state_len(self.layout.dim()));
        let positions = first + x.len() / dim / heads;
        let mut states = vec![0.0; x.len() / dim * len];
        attend(isa, self.head(), Queries { x, heads, first }, 0..span_count(positions), &mut states);
        let mut out = vec![0.0; x.len()];
        for (state, out) in states.chunks(len).zip(out.chunks_mut(dim)) {
            merge(isa, state, len, dim, 0..dim, out);
        }
        out
    }

    /// Query by query, by the twin.
    fn expect(&self, x: &[f32], heads: usize, first: usize) -> Vec<f32> {
        let dim = self.layout.dim();
        let one = |(i, q): (usize, &[f32])| {
            let seen = (first + i / heads + 1) * dim;
            reference::attention(q, &self.plain[0][..seen], &self.plain[1][..seen])
        };
        x.chunks(dim).enumerate().flat_map(one).collect()
    }
}

/// Each type of key with its own kind of value and with another, as far as a head of `dim` can have them.
pub(crate) fn kv_types(dim: usize) -> Vec<(KvType, KvType)> {
    let all = KvType::ALL;
    let pairs = (0..4).flat_map(|i| [(all[i], all[i]), (all[i], all[(i + 1) % 4])]);
    pairs.filter(|(k, v)| KvLayout::new(dim, *k, *v).is_ok()).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn floats(rng: &mut Rng, n: usize, scale: f32) -> Vec<f32> {
    (0..n).map(|_| rng.normal() * scale).collect()
}

#[test]
fn equal_in_bits_to_the_twin() {
    let mut rng = Rng(1);
    // A single position; borders of blocks and spans; rows of values that are filled up.
    let shapes = [(8, 1, 1), (24, 17, 3), (32, 129, 3), (64, 15, 8), (64, 16, 7), (64, 300, 3), (80, 128, 5)];
    for (dim, positions, heads) in shapes.into_iter().chain([(128, 257, 1), (160, 20, 2), (256, 40, 9)]) {
        for (keys, values) in kv_types(dim) {
            let layout = KvLayout::new(dim, keys, values).unwrap();
            let cache = Cache::random(&mut rng, Isa::detect(), layout, positions);
            for tokens in [1, 2, 7].map(|n: usize| n.min(positions)) {
                for first in [0, positions - tokens] {
                    let x = floats(&mut rng, tokens * heads * dim, 0.3);
                    let want = cache.expect(&x, heads, first);
                    for isa in Isa::available() {
                        let got = cache.attend(isa, &x, heads, first);
                        assert!(
                            bits(&got) == bits(&want),
                            "{} {layout:?}, {positions} positions, {tokens} tokens of {heads} heads from {first}",
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_twin_is_close_to_the_formula() {
    let mut rng = Rng(2);
    for (dim, positions) in [(8, 1), (64, 5), (80, 129), (128, 700)] {
        let (q, k, v) = (
            floats(&mut rng, dim, 0.3),
            floats(&mut rng, dim * positions, 1.0),
            floats(&mut rng, dim * positions, 1.0),
        );
        let score = |k: &[f32]| -> f64 { q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum() };
        let e: Vec<f64> = k.chunks(dim).map(|k| score(k).exp()).collect();
        let sum: f64 = e.iter().sum();
        for (d, got) in reference::attention(&q, &k, &v).into_iter().enumerate() {
            let want: f64 = e.iter().zip(v.chunks(dim)).map(|(e, v)| e / sum * f64::from(v[d])).sum();
            assert!((f64::from(got) - want).abs() < 1e-5, "{got} {want}");
        }
    }
}

/// As several workers do it for one token: a state for each span, merged afterwards, some dimensions at a time.
#[test]
fn spans_apart_give_equal_bits() {
    let mut rng = Rng(3);
    for positions in [1, SPAN, SPAN + 1, 5 * SPAN - 3] {
        let layout = KvLayout::new(64, KvType::F16, KvType::Q8_0).unwrap();
        let (isa, heads, dim, len) = (Isa::detect(), 3, 64, state_len(64));
        let cache = Cache::random(&mut rng, isa, layout, positions);
        let x = floats(&mut rng, heads * dim, 0.3);
        let queries = Queries { x: &x, heads, first: positions - 1 };
        let mut states = vec![0.0; span_count(positions) * heads * len]; // [span][head][state]
        for (span, states) in states.chunks_mut(heads * len).enumerate().rev() {
            attend(isa, cache.head(), queries, span..span + 1, states);
        }
        let mut out = vec![0.0; heads * dim];
        for (h, out) in out.chunks_mut(dim).enumerate() {
            merge(isa, &states[h * len..], heads * len, dim, 0..24, &mut out[..24]);
            merge(isa, &states[h * len..], heads * len, dim, 24..64, &mut out[24..]);
        }
        assert_eq!(bits(&out), bits(&cache.attend(isa, &x, heads, positions - 1)));
    }
}

/// Whatever comes later, finite or not, is not seen.
#[test]
fn queries_see_no_later_position() {
    let mut rng = Rng(4);
    for isa in Isa::available() {
        for (keys, values) in kv_types(32) {
            let layout = KvLayout::new(32, keys, values).unwrap();
            let mut cache = Cache::random(&mut rng, isa, layout, 9);
            cache.keys.resize(layout.key_bytes(12), 0);
            cache.values.resize(layout.value_bytes(12), 0);
            for bad in [f32::NAN, f32::INFINITY, 1.0] {
                cache.push(isa, &[bad; 32], &[bad; 32]);
            }
            let x = floats(&mut rng, 12 * 32, 0.3);
            let got = cache.attend(isa, &x, 1, 0);
            assert_eq!(bits(&got[..9 * 32]), bits(&cache.expect(&x[..9 * 32], 1, 0)), "{layout:?}");
            assert!(got[9 * 32..].iter().all(|x| x.is_nan()), "{layout:?}: {got:?}");
        }
    }
}

/// A value is what a single position gives back.
fn stored(isa: Isa, ty: KvType, x: &[f32]) -> Vec<f32> {
    let mut cache = Cache::new(KvLayout::new(x.len(), ty, ty).unwrap(), 1);
    cache.push(isa, &vec![0.0; x.len()], x);
    cache.attend(isa, &vec![0.0; x.len()], 1, 0)
}

#[test]
fn rounding_of_each_type() {
    let mut x = [0.0f32; 32];
    x[..6].copy_from_slice(&[127.0, 0.5, 1.5, -2.5, -126.6, 1e-3]);
    for isa in Isa::available() {
        assert_eq!(stored(isa, KvType::F32, &x), x);
        let half = stored(isa, KvType::F16, &x);
        assert_eq!(half[5], f16::from_f32(1e-3).to_f32());
        // d = 1: ties go to even.
        let q8 = stored(isa, KvType::Q8_0, &x);
        assert_eq!(q8[..6], [127.0, 0.0, 2.0, -2.0, -127.0, 0.0]);
        // d = -1: the largest magnitude is met exactly, its opposite is clamped. Of +8 and -8, + counts.
        x[..6].copy_from_slice(&[-8.0, 8.0, 0.5, -1.5, 7.6, -7.4]);
        assert_eq!(stored(isa, KvType::Q4_0, &x)[..6], [-7.0, 8.0, 0.0, -2.0, 8.0, -7.0]);
        x[..6].copy_from_slice(&[127.0, 0.5, 1.5, -2.5, -126.6, 1e-3]);
        for ty in [KvType::Q8_0, KvType::Q4_0] {
            assert_eq!(stored(isa, ty, &[0.0; 32]), [0.0; 32]);
            assert!(stored(isa, ty, &[1e-12; 32]).iter().all(|x| *x == 0.0), "below the smallest scale");
        }
    }
}

#[test]
fn what_is_kept_is_close() {
    let mut rng = Rng(5);
    let x = floats(&mut rng, 256, 3.0);
    for (ty, bound) in [(KvType::F16, 0.0005), (KvType::Q8_0, 0.0045), (KvType::Q4_0, 0.13)] {
        let kept = stored(Isa::detect(), ty, &x);
        for (x, kept) in x.chunks(32).zip(kept.chunks(32)) {
            let largest = x.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            for (x, kept) in x.iter().zip(kept) {
                assert!((x - kept).abs() <= bound * largest, "{}: {x} became {kept}", ty.name());
            }
        }
    }
}

#[test]
fn a_score_that_is_not_finite_makes_nan() {
    for isa in Isa::available() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for positions in [3, SPAN + 2] {
                let mut cache = Cache::new(KvLayout::new(8, KvType::F32, KvType::F32).unwrap(), positions);
                for i in 0..positions {
                    let key = if i == 1 { bad } else { 1.0 };
                    cache.push(isa, &[key; 8], &[1.0; 8]);
                }
                let out = cache.attend(isa, &[1.0; 8], 1, positions - 1);
                assert!(out.iter().all(|x| x.is_nan()), "{} {bad}: {out:?}", isa.name());
            }
        }
    }
}

#[test]
fn layouts_have_the_bits_they_are_named_for() {
    for (ty, bits) in [(KvType::F32, 32.0), (KvType::F16, 16.0), (KvType::Q8_0, 8.5), (KvType::Q4_0, 4.5)] {
        let l = KvLayout::new(64, ty, ty).unwrap();
        for bytes in [l.key_bytes(160), l.value_bytes(160)] {
            assert_eq!(bytes as f64, 160.0 * 64.0 * bits / 8.0, "{}", ty.name());
        }
        assert_eq!(l.key_bytes(1), l.key_bytes(16));
    }
    for (dim, keys, values) in
        [(0, KvType::F16, KvType::F16), (12, KvType::F16, KvType::F16), (264, KvType::F32, KvType::F32)]
    {
        let e = KvLayout::new(dim, keys, values).unwrap_err().to_string();
        assert!(e.contains(&dim.to_string()) && e.contains("multiple of 8"), "{e}");
    }
    let e = KvLayout::new(80, KvType::F16, KvType::Q8_0).unwrap_err().to_string();
    assert!(e.contains("80") && e.contains("multiple of 32") && e.contains("f16"), "{e}");
}
