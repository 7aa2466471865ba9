//! What a dispatch and a barrier cost, and what too many workers cost. Timing depends on the machine and its
//! other load, hence `#[ignore]`; run with `cargo test --test pool_latency -- --ignored --nocapture`.

use lutite_runtime::pool::{Pool, PoolConfig};
use std::time::{Duration, Instant};

fn pool(workers: usize) -> Pool {
    Pool::new(&PoolConfig { workers, ..PoolConfig::default() }).expect("threads start")
}

/// Minimum and median of the samples.
fn min_median(mut samples: Vec<Duration>) -> (Duration, Duration) {
    samples.sort_unstable();
    (samples[0], samples[samples.len() / 2])
}

#[test]
#[ignore = "timing"]
fn dispatch_and_barrier_latency() {
    const BARRIERS: u32 = 1000;
    for workers in [1, 2, 4, 8] {
        let mut pool = pool(workers);
        let empty = (0..2000).map(|_| {
            let start = Instant::now();
            pool.run(|_| {});
            start.elapsed()
        });
        let (min, median) = min_median(empty.collect());
        println!("{workers} workers: empty dispatch min {min:?}, median {median:?}");
        let idle = (0..50).map(|_| {
            std::thread::sleep(Duration::from_millis(2));
            let start = Instant::now();
            pool.run(|_| {});
            start.elapsed()
        });
        let (min, median) = min_median(idle.collect());
        println!("{workers} workers: dispatch to sleepers min {min:?}, median {median:?}");
        let rounds = if workers > 2 { 10 } else { 100 };
        let barrier = (0..rounds).map(|_| {
            let start = Instant::now();
            pool.run(|w| (0..BARRIERS).for_each(|_| w.barrier()));
            start.elapsed() / BARRIERS
        });
        let (min, median) = min_median(barrier.collect());
        println!("{workers} workers: barrier min {min:?}, median {median:?}");
    }
}

/// A token of a small model: 200 stages of 1 ms of work on one core, in chunks of some 30 us.
#[test]
#[ignore = "timing"]
fn oversubscription_is_survived() {
    fn spin_work(units: u32) {
        let mut x = 1u32;
        for _ in 0..units {
            x = std::hint::black_box(x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        }
    }
    let start = Instant::now();
    spin_work(1_000_000);
    let units_per_30us = (1_000_000.0 * 30e-6 / start.elapsed().as_secs_f64()) as u32;
    let time = |workers: usize, stages: usize, chunks: usize| {
        let mut pool = pool(workers);
        let tokens = (0..7).map(|_| {
            let start = Instant::now();
            pool.run(|w| (0..stages).for_each(|_| w.each(chunks, |_| spin_work(units_per_30us))));
            start.elapsed()
        });
        min_median(tokens.collect()).1
    };
    for (stages, chunks) in [(200, 32), (1000, 4)] {
        let two = time(2, stages, chunks);
        let eight = time(8, stages, chunks);
        let ratio = eight.as_secs_f64() / two.as_secs_f64();
        println!(
            "{stages} stages of {chunks} chunks: 2 workers {two:?}, 8 workers {eight:?}, ratio {ratio:.2}"
        );
        // A pure spin barrier loses 80 times; 4 leaves room for a loaded machine.
        assert!(ratio < 4.0, "8 workers take {ratio:.2} times as long as 2");
    }
}
