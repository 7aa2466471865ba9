//! Products with one vector, cache-resident: every tier, plane count, kind and a few shapes. Throughput is counted in
//! weight bits (bits of planes), so that Criterion's "elem/s" over the clock rate is weight bits per cycle.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lutite_kernels::dot::{Block, product, quantize};
use lutite_kernels::isa::Isa;
use lutite_kernels::lut::{TableShape, Tables, gemv, table};
use lutite_kernels::pack::{Packed, ParamKind, PlaneShape};
use std::hint::black_box;
use std::time::Duration;

fn bench(c: &mut Criterion) {
    let cases = [
        (2048, 2048, 2, 128, ParamKind::Hlq16),
        (2048, 2048, 2, 64, ParamKind::Hlq8),
        (2048, 2048, 3, 128, ParamKind::Hlq16),
        (2048, 2048, 4, 128, ParamKind::Hlq16),
        (1536, 576, 4, 32, ParamKind::Uniform),
        (4096, 576, 8, 32, ParamKind::Centered(128)),
    ];
    let mut g = c.benchmark_group("gemv");
    g.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500)).sample_size(20);
    for (rows, cols, q, group, kind) in cases {
        let shape = PlaneShape { rows, cols };
        let part = |width: &usize| vec![0x5a_u8; kind.part_bytes(shape, *width).unwrap_or(0)];
        let parts: Vec<_> = kind.widths(q).iter().map(part).collect();
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let params = vec![0x11_u8; kind.set_bytes(shape, q, group).unwrap_or(0)];
        let scales = vec![0x11_u8; kind.row_scale_bytes(shape, q)];
        let w = Packed::new(shape, group, kind, q, &parts, &params, &scales)
            .expect("sizes follow from the shape");
        let ts = TableShape { cols, group };
        let x: Vec<f32> = (0..cols).map(|i| (i as f32).sin()).collect();
        let (mut e, mut s) = (vec![0; ts.entries_len()], vec![0.0; ts.scales_len()]);
        let mut blocks = vec![Block::default(); cols.div_ceil(32)];
        let mut y = vec![[0.0; 32]; shape.tiles()];
        for isa in Isa::available() {
            let id = BenchmarkId::new(isa.name(), format!("{rows}x{cols} q={q} g={group} {}", kind.name()));
            g.throughput(Throughput::Elements((rows * cols * q) as u64));
            g.bench_function(id, |b| {
                table::build(isa, ts, &x, &mut e, &mut s).expect("sizes follow from the shape");
                quantize(isa, &x, &mut blocks).expect("sizes follow from the shape");
                let t = Tables::new(ts, &e, &s).expect("sizes follow from the shape");
                b.iter(|| {
                    let (y, tiles) = (black_box(&mut y), 0..shape.tiles());
                    let done = match kind.is_uniform() {
                        true => product(isa, &w, &blocks, tiles, false, y),
                        false => gemv(isa, &w, &t, tiles, false, y.as_flattened_mut()),
                    };
                    done.expect("sizes fit");
                });
            });
        }
    }
    g.finish();

    let mut g = c.benchmark_group("table");
    g.measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(300)).sample_size(20);
    for isa in Isa::available() {
        let ts = TableShape { cols: 4096, group: 128 };
        let x: Vec<f32> = (0..4096).map(|i| (i as f32).sin()).collect();
        let (mut e, mut s) = (vec![0; ts.entries_len()], vec![0.0; ts.scales_len()]);
        g.throughput(Throughput::Elements(1024));
        g.bench_function(isa.name(), |b| b.iter(|| table::build(isa, ts, black_box(&x), &mut e, &mut s)));
    }
    g.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
