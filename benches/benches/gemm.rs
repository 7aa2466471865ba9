//! Products with the tokens of a prompt, cache-resident: every tier and width of codes. Throughput is counted in
//! multiply-adds ("elem/s").

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lutite_benches::Product;
use lutite_kernels::dot::MAX_TOKENS;
use lutite_kernels::isa::Isa;
use lutite_kernels::pack::ParamKind;
use std::hint::black_box;
use std::time::Duration;

fn products(c: &mut Criterion) {
    let mut g = c.benchmark_group("gemm");
    g.measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(200)).sample_size(20);
    for (rows, cols, q, group, kind) in [
        (128, 576, 4, 32, ParamKind::Uniform),
        (128, 1536, 4, 32, ParamKind::Uniform),
        (128, 4096, 2, 32, ParamKind::Uniform),
        (128, 576, 8, 32, ParamKind::Centered(128)),
    ] {
        let mut product = Product::new(rows, cols, q, group, kind);
        g.throughput(Throughput::Elements((product.weights() * MAX_TOKENS) as u64));
        let mut y = vec![[0.0; 32]; product.tiles() * MAX_TOKENS];
        for isa in Isa::available() {
            g.bench_function(BenchmarkId::new(isa.name(), product.name()), |b| {
                product.prepare_tokens(isa, MAX_TOKENS);
                b.iter(|| product.multiply(isa, 0..product.tiles(), black_box(&mut y)));
            });
        }
    }
    g.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);
