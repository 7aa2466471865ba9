//! The pool's promises: every chunk once, stages in order, nobody waits for who has nothing to do, and no hang when a
//! chunk goes wrong.

#[cfg(any(target_os = "linux", target_os = "android"))]
use lutite_runtime::os::{affinity::pin_current, topology::Topology};
use lutite_runtime::pool::{Pool, PoolConfig};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn pool(workers: usize) -> Pool {
    Pool::new(&PoolConfig { workers, ..PoolConfig::default() }).expect("threads start")
}

/// Runs a stage that must panic, and gives the panic's text.
fn panic_text(pool: &mut Pool, n: usize, chunk: impl Fn(usize) + Sync) -> String {
    let payload = catch_unwind(AssertUnwindSafe(|| pool.each(n, chunk))).expect_err("the stage must panic");
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast_ref::<&str>().expect("a text").to_string(),
    }
}

/// Whether two threads can run at once here; else the pool lets all but the caller sleep.
fn two_cpus() -> bool {
    std::thread::available_parallelism().is_ok_and(|n| n.get() > 1)
}

#[test]
fn each_claims_every_chunk_once_and_orders_stages() {
    const STAGES: usize = 50;
    for workers in [1, 2, 5] {
        let mut pool = pool(workers);
        for n in [0, 1, 2, 7, 100] {
            let stages: Vec<Vec<AtomicUsize>> =
                (0..STAGES).map(|_| (0..n).map(|_| AtomicUsize::new(0)).collect()).collect();
            for (s, stage) in stages.iter().enumerate() {
                pool.each(n, |i| {
                    // Relaxed on purpose: the end of the stage before alone must make it visible.
                    if s > 0 {
                        assert!(stages[s - 1].iter().all(|c| c.load(Ordering::Relaxed) == 1));
                    }
                    stage[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(stage.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }
}

#[test]
fn a_worker_does_one_chunk_at_a_time() {
    for workers in [1, 2, 3, 8] {
        let mut pool = pool(workers);
        let busy: Vec<AtomicBool> = (0..workers).map(|_| AtomicBool::new(false)).collect();
        for _ in 0..200 {
            pool.each_by(20, |worker, _| {
                assert!(!busy[worker].swap(true, Ordering::Relaxed));
                std::hint::spin_loop();
                busy[worker].store(false, Ordering::Relaxed);
            });
        }
    }
}

#[test]
fn serial_parts_are_seen_by_all_and_see_all() {
    let mut pool = pool(4);
    let mut value = vec![0; 8];
    for round in 1..500 {
        let sums: Vec<AtomicUsize> = (0..8).map(|_| AtomicUsize::new(0)).collect();
        pool.each(8, |i| sums[i].store(value[i] + 1, Ordering::Relaxed));
        value = sums.into_iter().map(AtomicUsize::into_inner).collect();
        assert_eq!(value, [round; 8]);
    }
}

#[test]
fn a_pool_may_change_threads_between_stages() {
    let mut pool = pool(2);
    let sum = AtomicUsize::new(0);
    let add = |i| _ = sum.fetch_add(i, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let pool = &mut pool;
        scope.spawn(|| pool.each(10, add));
    });
    std::thread::scope(|scope| _ = scope.spawn(move || pool.each(10, add)));
    assert_eq!(sum.into_inner(), 90);
}

#[test]
fn zero_workers_are_one() {
    assert_eq!(pool(0).workers(), 1);
}

#[test]
fn the_caller_is_worker_zero_and_threads_have_names() {
    let caller = std::thread::current().id();
    for _ in 0..20 {
        pool(3).each_by(100, |worker, _| match worker {
            0 => assert_eq!(std::thread::current().id(), caller),
            id => assert_eq!(std::thread::current().name(), Some(format!("lutite-w{id}").as_str())),
        });
    }
}

/// Waits until `ready`, for 20 seconds at most, and says whether it came.
fn wait(ready: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !ready() && start.elapsed() < Duration::from_secs(20) {
        std::thread::yield_now();
    }
    ready()
}

#[test]
fn a_chunk_that_takes_long_holds_up_no_other() {
    if !two_cpus() {
        return;
    }
    for workers in [2, 8] {
        let mut pool = pool(workers);
        for long in [0, 7, 99] {
            let done = AtomicUsize::new(0);
            pool.each(100, |i| {
                assert!(i != long || wait(|| done.load(Ordering::Relaxed) == 99), "the others were not done");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
    }
}

#[test]
fn sleepers_are_woken_for_a_stage() {
    if !two_cpus() {
        return;
    }
    let mut pool = pool(4);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(2));
        let others = AtomicUsize::new(0);
        // The caller's chunks end only when somebody else has had one.
        pool.each_by(8, |worker, _| {
            if worker > 0 {
                others.fetch_add(1, Ordering::Relaxed);
            }
            assert!(wait(|| others.load(Ordering::Relaxed) > 0), "nobody came");
        });
    }
}

/// A worker whose CPU has other work leaves the stages to the others for a while, and comes back.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[test]
fn a_worker_that_loses_its_cpu_sits_out() {
    let &[mine, other] = &Topology::read().worker_cpus(2)[..] else { return };
    let mut pool = Pool::new(&PoolConfig { workers: 2, pin: vec![mine, other] }).expect("two threads start");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin_current(other).expect("it is one of this process's CPUs");
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let start = Instant::now();
        // When the worker last did a chunk, in microseconds.
        let last = AtomicUsize::new(0);
        let (mut away, mut before) = (0, 0);
        while away < 40_000 && start.elapsed() < Duration::from_secs(20) {
            pool.each_by(8, |worker, _| {
                let end = Instant::now() + Duration::from_micros(20);
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
                if worker == 1 {
                    last.store(start.elapsed().as_micros() as usize, Ordering::Relaxed);
                }
            });
            let now = last.load(Ordering::Relaxed);
            away = away.max(now - before);
            before = now;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(away >= 40_000, "the worker was away for {away} us at most");
    });
}

#[test]
fn a_panic_in_a_chunk_is_the_callers_and_survived() {
    for workers in [1, 2, 3, 8] {
        let mut pool = pool(workers);
        for _ in 0..50 {
            assert_eq!(panic_text(&mut pool, 50, |i| assert!(i != 17, "chunk 17")), "chunk 17");
            assert_eq!(panic_text(&mut pool, 50, |_| panic!("all")), "all");
            assert_eq!(panic_text(&mut pool, 1, |_| panic!("the only one")), "the only one");
            let sum = AtomicUsize::new(0);
            pool.each(100, |i| _ = sum.fetch_add(i, Ordering::Relaxed));
            assert_eq!(sum.into_inner(), 4950);
        }
    }
}

#[test]
fn pools_can_be_dropped_at_any_time() {
    for pause_us in [0, 10, 60, 300] {
        for _ in 0..50 {
            let mut pool = pool(4);
            pool.each(4, |_| {});
            std::thread::sleep(Duration::from_micros(pause_us));
        }
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
        pinned.each_by(100, |worker, _| {
            let allowed = std::thread::available_parallelism().expect("known").get();
            assert!(worker == 0 || allowed == 1, "worker {worker} may use {allowed} CPUs");
        });
    }
    (0..100).for_each(|_| pinned.each(3, |_| {}));
    let mut refused =
        Pool::new(&PoolConfig { workers: 3, pin: vec![0, 1 << 21, 1 << 20] }).expect("threads start");
    assert_eq!(refused.pin_error().expect("there are no such CPUs").cpus, [1 << 20, 1 << 21]);
    refused.each(10, |_| {});
}
