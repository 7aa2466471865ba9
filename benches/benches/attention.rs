//! Attention over a cache of each type, on every tier: one token after many positions, and a block of a prompt.
//! "elem/s" are pairs of a query and a position; bytes are those of keys and values, each counted once.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lutite_kernels::attention::{Head, KvLayout, KvType, Queries, attend, merge, span_count, state_len};
use lutite_kernels::isa::Isa;
use std::hint::black_box;
use std::time::Duration;

/// Head dimensions, and query heads that share a KV head: SmolLM2-135M, Llama 3 8B, Llama 2 7B.
const SHAPES: [(usize, usize); 3] = [(64, 3), (128, 4), (128, 1)];

/// A head with `positions` positions stored.
struct Cache {
    layout: KvLayout,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Cache {
    fn new(dim: usize, ty: KvType, positions: usize) -> Cache {
        let layout = KvLayout::new(dim, ty, ty).expect("a multiple of 32");
        let (mut keys, mut values) =
            (vec![0; layout.key_bytes(positions)], vec![0; layout.value_bytes(positions)]);
        for position in 0..positions {
            let x: Vec<f32> = (0..dim).map(|i| ((position * dim + i) as f32).sin()).collect();
            layout.put_key(Isa::detect(), &mut keys, position, &x);
            layout.put_value(Isa::detect(), &mut values, position, &x);
        }
        Cache { layout, keys, values }
    }

    fn head(&self) -> Head<'_> {
        Head { layout: self.layout, keys: &self.keys, values: &self.values }
    }
}

fn queries(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32).cos() / 8.0).collect()
}

/// The last of `positions` tokens, a state for each span, as workers do it that share a head.
fn decode(c: &mut Criterion) {
    let mut g = c.benchmark_group("attention-decode");
    g.measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(200)).sample_size(20);
    for (dim, heads) in SHAPES {
        let (x, len) = (queries(heads * dim), state_len(dim));
        let mut out = vec![0.0; dim];
        for ty in KvType::ALL {
            for positions in [512, 4096, 8192] {
                let cache = Cache::new(dim, ty, positions);
                let mut states = vec![0.0; span_count(positions) * heads * len];
                g.throughput(Throughput::ElementsAndBytes {
                    elements: (heads * positions) as u64,
                    bytes: (cache.keys.len() + cache.values.len()) as u64,
                });
                for isa in Isa::available() {
                    let id = format!("{dim} dims {heads} heads {} {positions}", ty.name());
                    g.bench_function(BenchmarkId::new(isa.name(), id), |b| {
                        b.iter(|| {
                            let queries = Queries { x: black_box(&x), heads, first: positions - 1 };
                            states.fill(0.0);
                            for (span, states) in states.chunks_exact_mut(heads * len).enumerate() {
                                attend(isa, cache.head(), queries, span..span + 1, states);
                            }
                            for h in 0..heads {
                                merge(isa, &states[h * len..], heads * len, dim, 0..dim, black_box(&mut out));
                            }
                        });
                    });
                }
            }
        }
    }
    g.finish();
}

/// 16 to 48 tokens (48 queries) after 512 positions.
fn prompt(c: &mut Criterion) {
    let mut g = c.benchmark_group("attention-prompt");
    g.measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(200)).sample_size(20);
    for (dim, heads) in SHAPES {
        let (tokens, first) = (48 / heads, 512);
        let x = queries(tokens * heads * dim);
        let mut states = vec![0.0; tokens * heads * state_len(dim)];
        for ty in KvType::ALL {
            let cache = Cache::new(dim, ty, first + tokens);
            let pairs: usize = (0..tokens).map(|t| heads * (first + t + 1)).sum();
            g.throughput(Throughput::Elements(pairs as u64));
            for isa in Isa::available() {
                let id = format!("{dim} dims {heads} heads {} {tokens} x {first}", ty.name());
                g.bench_function(BenchmarkId::new(isa.name(), id), |b| {
                    b.iter(|| {
                        states.fill(0.0);
                        let queries = Queries { x: black_box(&x), heads, first };
                        let spans = 0..span_count(first + tokens);
                        attend(isa, cache.head(), queries, spans, black_box(&mut states));
                    });
                });
            }
        }
    }
    g.finish();
}

criterion_group!(benches, decode, prompt);
criterion_main!(benches);
