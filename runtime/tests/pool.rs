//! The pool's promises: every chunk once, stages in order, and no hang when a program goes wrong.

use lutite_runtime::pool::{Pool, PoolConfig, Worker};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn pool(workers: usize) -> Pool {
    Pool::new(&PoolConfig { workers, ..PoolConfig::default() }).expect("threads start")
}

/// Runs a program that must panic, and gives the panic's text.
fn panic_text(pool: &mut Pool, program: impl Fn(&Worker<'_>) + Sync) -> String {
    let payload = catch_unwind(AssertUnwindSafe(|| pool.run(program))).expect_err("the run must panic");
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast_ref::<&str>().expect("a text").to_string(),
    }
}

#[test]
fn every_worker_runs_once() {
    for workers in [1, 2, 3, 8] {
        let mut pool = pool(workers);
        for _ in 0..200 {
            let seen: Vec<AtomicUsize> = (0..workers).map(|_| AtomicUsize::new(0)).collect();
            pool.run(|w| {
                assert_eq!(w.count(), workers);
                seen[w.id()].fetch_add(1, Ordering::Relaxed);
            });
            assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
        }
    }
}

#[test]
fn a_pool_may_change_threads_between_runs() {
    let mut pool = pool(2);
    std::thread::scope(|scope| {
        let pool = &mut pool;
        scope.spawn(|| pool.run(|w| w.barrier()));
    });
    std::thread::spawn(move || pool.run(|w| w.barrier())).join().expect("no panic");
}

#[test]
fn zero_workers_are_one() {
    assert_eq!(pool(0).workers(), 1);
}

#[test]
fn the_caller_is_worker_zero_and_threads_have_names() {
    let caller = std::thread::current().id();
    pool(3).run(|w| match w.id() {
        0 => assert_eq!(std::thread::current().id(), caller),
        id => assert_eq!(std::thread::current().name(), Some(format!("lutite-w{id}").as_str())),
    });
}

#[test]
fn each_claims_every_chunk_once_and_orders_stages() {
    const STAGES: usize = 50;
    for workers in [1, 2, 5] {
        for n in [0, 1, 2, 7, 100] {
            let stages: Vec<Vec<AtomicUsize>> =
                (0..STAGES).map(|_| (0..n).map(|_| AtomicUsize::new(0)).collect()).collect();
            pool(workers).run(|w| {
                for (s, stage) in stages.iter().enumerate() {
                    w.each(n, |i| {
                        // Relaxed on purpose: the barrier alone must make the stage before visible.
                        if s > 0 {
                            assert!(stages[s - 1].iter().all(|c| c.load(Ordering::Relaxed) == 1));
                        }
                        stage[i].fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
            assert!(stages.iter().flatten().all(|c| c.load(Ordering::Relaxed) == 1));
        }
    }
}

#[test]
fn barrier_shows_serial_parts_to_all() {
    let value = AtomicUsize::new(0);
    pool(4).run(|w| {
        for round in 1..500 {
            if w.id() == round % w.count() {
                value.store(round, Ordering::Relaxed);
            }
            w.barrier();
            assert_eq!(value.load(Ordering::Relaxed), round);
            w.barrier();
        }
    });
}

#[test]
fn a_panic_ends_the_run_on_all_workers() {
    let mut pool = pool(4);
    for culprit in 0..4 {
        let passed = AtomicBool::new(false);
        let text = panic_text(&mut pool, |w| {
            w.barrier();
            assert!(w.id() != culprit, "worker {culprit} fails");
            w.barrier();
            passed.store(true, Ordering::Relaxed);
        });
        assert_eq!(text, format!("worker {culprit} fails"));
        assert!(!passed.load(Ordering::Relaxed));
        let sum = AtomicUsize::new(0);
        pool.run(|w| w.each(100, |i| _ = sum.fetch_add(i, Ordering::Relaxed)));
        assert_eq!(sum.load(Ordering::Relaxed), 4950);
    }
}

#[test]
fn a_panic_in_a_chunk_or_on_all_workers_is_survived() {
    let mut pool = pool(3);
    for _ in 0..100 {
        assert_eq!(panic_text(&mut pool, |w| w.each(50, |i| assert!(i != 17, "chunk 17"))), "chunk 17");
        assert_eq!(panic_text(&mut pool, |_| panic!("all")), "all");
    }
    assert_eq!(panic_text(&mut self::pool(1), |w| w.each(3, |i| assert!(i < 2, "alone"))), "alone");
}

#[test]
fn workers_that_part_ways_are_told_so() {
    let mut pool = pool(3);
    for odd_one in 0..3 {
        let text = panic_text(&mut pool, |w| {
            w.barrier();
            if w.id() != odd_one {
                w.barrier();
            }
        });
        assert!(text.contains("must pass the same barriers"), "{text}");
        let text = panic_text(&mut pool, |w| {
            if w.id() == odd_one {
                w.barrier();
            }
        });
        assert!(text.contains("must pass the same barriers"), "{text}");
    }
    pool.run(|w| w.barrier());
}

#[test]
fn short_runs_never_look_like_parting() {
    let mut pool = pool(4);
    for _ in 0..5_000 {
        pool.run(|w| w.barrier());
    }
}

#[test]
fn pinning_is_obeyed_or_reported() {
    use lutite_runtime::os::topology::Topology;
    // All workers on one CPU: it exists, it may be used, and too many workers for it must still come to an end.
    let cpu = Topology::read().cores[0].cpus[0];
    let mut pinned = Pool::new(&PoolConfig { workers: 3, pin: vec![cpu; 3] }).expect("threads start");
    if cfg!(target_os = "linux") {
        assert_eq!(pinned.pin_error(), None);
        pinned.run(|w| {
            let allowed = std::thread::available_parallelism().expect("known").get();
            assert!(w.id() == 0 || allowed == 1, "worker {} may use {allowed} CPUs", w.id());
        });
    }
    pinned.run(|w| (0..100).for_each(|_| w.barrier()));
    let mut refused = Pool::new(&PoolConfig { workers: 2, pin: vec![0, 1 << 20] }).expect("threads start");
    assert_eq!(refused.pin_error().expect("there is no such CPU").cpus, [1 << 20]);
    refused.run(|w| w.barrier());
}
