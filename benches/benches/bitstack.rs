//! Products with a level of signs, cache-resident: every tier and rank. Weights are counted once, whatever the rank. Then the
//! rebuilding of 8 tiles of 1 and of 4 levels to codes.
//!
//!     cargo bench -p lutite-benches --bench bitstack [-- PASSES]          default: 60
//!
//! The fastest pass counts. A cycle is a third of a multiplication that waits for the one before it.

use lutite_kernels::dot::{rebuild, rebuilt_bytes};
use lutite_kernels::isa::Isa;
use lutite_kernels::lut::{SignTableShape, SignTables, sign, sign_lut};
use lutite_kernels::pack::{PlaneShape, RANKS, SignLevel};
use std::hint::black_box;
use std::time::Instant;

fn main() {
    // Cargo adds `--bench`.
    let given = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let passes: usize = given.as_deref().unwrap_or("60").parse().expect("a number of passes");
    println!("| level | tier | us | weights/cycle | tables, us | GHz |");
    println!("|---|---|---:|---:|---:|---:|");
    // The scalar tier is for tests.
    let tiers: Vec<Isa> = Isa::available().into_iter().filter(|isa| isa.name() != "scalar").collect();
    for side in [2048, 4096] {
        for rank in RANKS {
            tiers.iter().for_each(|isa| row(*isa, PlaneShape { rows: side, cols: side }, rank, passes));
        }
    }
    println!();
    println!("| rebuilt | tier | us | weights/cycle | GHz |");
    println!("|---|---|---:|---:|---:|");
    for levels in [1, 4] {
        for rank in RANKS {
            tiers.iter().for_each(|isa| rebuilding(*isa, levels, rank, passes));
        }
    }
}

/// The fastest of some passes, in seconds.
fn fastest(passes: usize, mut run: impl FnMut()) -> f64 {
    (0..passes).fold(f64::MAX, |best, _| {
        let start = Instant::now();
        run();
        best.min(start.elapsed().as_secs_f64())
    })
}

/// The buffers of a level.
struct Buffers {
    shape: PlaneShape,
    rank: usize,
    signs: Vec<u8>,
    u: Vec<u8>,
    v: Vec<u8>,
}

impl Buffers {
    fn new(shape: PlaneShape, rank: usize) -> Buffers {
        let PlaneShape { rows, cols } = shape;
        let signs = (0..rows * cols / 8).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 16) as u8).collect();
        // Some small half float.
        Buffers { shape, rank, signs, u: vec![0x31; 2 * rank * rows], v: vec![0x31; 2 * rank * cols] }
    }

    fn view(&self) -> SignLevel<'_> {
        SignLevel::new(self.shape, self.rank, &self.signs, &self.u, &self.v)
            .expect("lengths follow from the shape")
    }
}

fn row(isa: Isa, shape: PlaneShape, rank: usize, passes: usize) {
    let PlaneShape { rows, cols } = shape;
    let level = Buffers::new(shape, rank);
    let level = level.view();
    let x = lutite_benches::activations(cols);
    let tables = SignTableShape { cols, rank };
    let (mut entries, mut scales) = (vec![0; tables.entries_len()], vec![0.0; tables.scales_len()]);
    let building = fastest(passes, || {
        sign::build(isa, &level, 0, black_box(&x), &mut entries, &mut scales)
            .expect("lengths follow from the shape");
    });
    let t = SignTables::new(tables, &entries, &scales).expect("lengths follow from the shape");
    let mut y = vec![[0.0; 32]; shape.tiles()];
    let product = fastest(passes, || {
        sign_lut(isa, &level, &t, 0..shape.tiles(), 4096, black_box(&mut y)).expect("y has the tiles' rows");
    });
    let hertz = hertz();
    println!(
        "| {rows}x{cols} k={rank} | {} | {:.1} | {:.1} | {:.1} | {:.2} |",
        isa.name(),
        product * 1e6,
        (rows * cols) as f64 / product / hertz,
        building * 1e6,
        hertz / 1e9,
    );
}

fn rebuilding(isa: Isa, levels: usize, rank: usize, passes: usize) {
    let shape = PlaneShape { rows: 256, cols: 4096 };
    let all: Vec<Buffers> = (0..levels).map(|_| Buffers::new(shape, rank)).collect();
    let views: Vec<SignLevel<'_>> = all.iter().map(Buffers::view).collect();
    let mut out = vec![0; rebuilt_bytes(shape.tiles(), shape.cols)];
    let time = fastest(passes, || {
        rebuild(isa, &views, 0..shape.tiles(), black_box(&mut out)).expect("there is room");
    });
    let hertz = hertz();
    println!(
        "| {levels} of 256x4096 k={rank} | {} | {:.1} | {:.2} | {:.2} |",
        isa.name(),
        time * 1e6,
        (shape.rows * shape.cols) as f64 / time / hertz,
        hertz / 1e9,
    );
}

/// Cycles a second.
fn hertz() -> f64 {
    3e6 / fastest(10, multiply_a_million_times)
}

fn multiply_a_million_times() {
    let (mut x, by) = (black_box(3_u64), black_box(5_u64));
    for _ in 0..1_000_000 / 8 {
        // Written out, so that nothing but multiplications takes time; squares keep the compiler from multiplying by a power at once.
        x = x.wrapping_mul(by);
        x = x.wrapping_mul(x);
        x = x.wrapping_mul(by);
        x = x.wrapping_mul(x);
        x = x.wrapping_mul(by);
        x = x.wrapping_mul(x);
        x = x.wrapping_mul(by);
        x = x.wrapping_mul(x);
    }
    black_box(x);
}
