//! A token must not allocate in the pool. Its own test target, because it replaces the allocator.

use lutite_runtime::pool::{Pool, PoolConfig};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Set on the pool's threads: what the test harness allocates on its own is none of our business.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.try_with(Cell::get).unwrap_or(false) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn stages_do_not_allocate() {
    for workers in [1, 2, 6] {
        let mut pool = Pool::new(&PoolConfig { workers, ..PoolConfig::default() }).expect("threads start");
        let sum = AtomicUsize::new(0);
        let mut round = || {
            for _ in 0..20 {
                pool.each(10, |i| {
                    COUNTED.set(true);
                    sum.fetch_add(i, Ordering::Relaxed);
                });
            }
        };
        // Thread start-up and the first use of locks may allocate on some systems.
        round();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..100 {
            round();
        }
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{workers} workers");
        COUNTED.set(false);
    }
}
