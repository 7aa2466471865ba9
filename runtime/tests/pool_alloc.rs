//! A token must not allocate in the pool. Its own test target, because it replaces the allocator.

#[path = "common/allocations.rs"]
mod allocations;

use allocations::allocations_of;
use lutite_runtime::pool::{Pool, PoolConfig};
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn stages_do_not_allocate() {
    // The counter counts.
    assert!(allocations_of(|| drop(std::hint::black_box(vec![0u8; 100]))) > 0);
    for workers in [1, 2, 6] {
        let mut pool = Pool::new(&PoolConfig { workers, ..PoolConfig::default() }).expect("threads start");
        let sum = AtomicUsize::new(0);
        let mut rounds = |n: usize| {
            for _ in 0..20 * n {
                pool.each(10, |i| {
                    sum.fetch_add(i, Ordering::Relaxed);
                });
            }
        };
        // Thread start-up and the first use of locks may allocate on some systems: until all threads have come.
        rounds(1);
        std::thread::sleep(std::time::Duration::from_millis(100));
        rounds(1);
        assert_eq!(allocations_of(|| rounds(100)), 0, "{workers} workers");
    }
}
