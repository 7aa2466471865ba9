//! Look-up GEMV, cache-resident, and the building of tables: every tier, kind and number of planes. Throughput is
//! counted in weights ("elem/s") and in bytes of the matrix. `dram.rs` has matrices that no cache holds.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lutite_benches::Product;
use lutite_kernels::isa::Isa;
use lutite_kernels::pack::ParamKind;
use std::hint::black_box;
use std::time::Duration;

/// (rows, columns, planes, columns of a group, kind)
type Case = (usize, usize, usize, usize, ParamKind);

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for side in [2048, 4096] {
        for q in 1..=4 {
            for group in [32, 64, 128] {
                all.extend([ParamKind::Hlq16, ParamKind::Hlq8].map(|kind| (side, side, q, group, kind)));
            }
        }
    }
    // SmolLM2's exact import: a body and a head.
    all.push((1536, 576, 4, 32, ParamKind::Uniform));
    all.push((4096, 576, 8, 32, ParamKind::Centered(128)));
    all
}

fn products(c: &mut Criterion) {
    let mut g = c.benchmark_group("gemv");
    g.measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(200)).sample_size(20);
    for (rows, cols, q, group, kind) in cases() {
        let mut product = Product::new(rows, cols, q, group, kind);
        g.throughput(Throughput::ElementsAndBytes {
            elements: product.weights() as u64,
            bytes: product.bytes() as u64,
        });
        let mut y = vec![[0.0; 32]; rows / 32];
        for isa in Isa::available() {
            g.bench_function(BenchmarkId::new(isa.name(), product.name()), |b| {
                product.prepare(isa);
                b.iter(|| product.multiply(isa, 0..product.tiles(), black_box(&mut y)));
            });
        }
    }
    g.finish();
}

fn tables(c: &mut Criterion) {
    let mut g = c.benchmark_group("table");
    g.measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(200)).sample_size(20);
    for (cols, group) in [(2048, 128), (4096, 32), (4096, 64), (4096, 128)] {
        let mut product = Product::new(32, cols, 1, group, ParamKind::Hlq16);
        g.throughput(Throughput::Elements(cols as u64 / 4));
        for isa in Isa::available() {
            g.bench_function(BenchmarkId::new(isa.name(), format!("{cols} activations g={group}")), |b| {
                b.iter(|| black_box(&mut product).prepare(isa));
            });
        }
    }
    g.finish();
}

criterion_group!(benches, products, tables);
criterion_main!(benches);
