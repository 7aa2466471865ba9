//! Look-up GEMV over a matrix that no cache holds, beside a loop that only reads the same bytes.
//!
//!     cargo bench -p lutite-benches --bench dram [-- THREADS,...]          default: 1,2
//!
//! Passes of both are interleaved, so that what else the machine does hits both; the fastest of each counts. The share
//! is what the product reaches of the memory's speed.

use lutite_benches::Product;
use lutite_kernels::isa::Isa;
use lutite_kernels::pack::ParamKind;
use lutite_runtime::pool::{Pool, PoolConfig};
use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

const ROWS: usize = 65_536;
const COLS: usize = 4096;
const PASSES: usize = 15;
/// Tiles of 32 rows that a worker claims at once: some 300 KB.
const CHUNK_TILES: usize = 8;
/// Bytes that it claims of the loop that only reads.
const CHUNK_BYTES: usize = 1 << 18;

fn main() {
    // Cargo adds `--bench`.
    let given = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let threads: Vec<usize> = given
        .as_deref()
        .unwrap_or("1,2")
        .split(',')
        .map(|n| n.parse().expect("thread counts, with commas between"))
        .collect();
    println!("| matrix | tier | threads | ms | GB/s | weights/s | read loop GB/s | share |");
    println!("|---|---|---:|---:|---:|---:|---:|---:|");
    for (q, group, kind) in [
        (2, 128, ParamKind::Hlq16),
        (2, 64, ParamKind::Hlq8),
        (3, 128, ParamKind::Hlq16),
        (4, 128, ParamKind::Hlq16),
        (4, 32, ParamKind::Uniform),
    ] {
        let mut product = Product::new(ROWS, COLS, q, group, kind);
        // The scalar tier is far from the memory's speed.
        for isa in Isa::available().into_iter().filter(|isa| isa.name() != "scalar") {
            product.prepare(isa);
            for n in &threads {
                row(&product, isa, *n);
            }
        }
    }
}

fn row(product: &Product, isa: Isa, threads: usize) {
    let mut pool =
        Pool::new(&PoolConfig { workers: threads, ..PoolConfig::default() }).expect("threads start");
    // A lock for each chunk: nobody waits for one.
    let y: Vec<Mutex<Vec<[f32; 32]>>> =
        (0..product.tiles() / CHUNK_TILES).map(|_| Mutex::new(vec![[0.0; 32]; CHUNK_TILES])).collect();
    let parts: Vec<&[u8]> = product.streams().flat_map(|s| s.chunks(CHUNK_BYTES)).collect();
    let (mut reading, mut multiplying) = (f64::MAX, f64::MAX);
    for _ in 0..PASSES {
        let start = Instant::now();
        pool.each(parts.len(), |i| _ = black_box(sum(parts[i])));
        reading = reading.min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        pool.each(y.len(), |i| {
            let tiles = i * CHUNK_TILES..(i + 1) * CHUNK_TILES;
            product.multiply(isa, tiles, &mut y[i].lock().expect("no worker panicked"));
        });
        multiplying = multiplying.min(start.elapsed().as_secs_f64());
    }
    let per_second = |n: usize, seconds: f64| n as f64 / seconds / 1e9;
    println!(
        "| {} | {} | {threads} | {:.2} | {:.1} | {:.1} G | {:.1} | {:.0} % |",
        product.name(),
        isa.name(),
        multiplying * 1e3,
        per_second(product.bytes(), multiplying),
        per_second(product.weights(), multiplying),
        per_second(product.bytes(), reading),
        100.0 * reading / multiplying
    );
}

/// As the read loop of `lutite bench`: 16 lanes, two loads per cycle with the oldest vector extension.
fn sum(bytes: &[u8]) -> u64 {
    let mut lanes = [0_u64; 16];
    for block in bytes.as_chunks::<8>().0.as_chunks::<16>().0 {
        for (lane, word) in lanes.iter_mut().zip(block) {
            *lane = lane.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}
