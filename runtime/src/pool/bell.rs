//! Waiting for a condition that another thread will make true: spin for a while, then sleep until a bell rings.
//!
//! The stages of a token follow each other within microseconds, so a waiter spins first: a wake-up through the
//! kernel costs more than most stages last. It stops after a bounded time, because a spinning thread takes the
//! core (and the joules) from whoever it waits for when cores are short.
//!
//! No ring is lost. A waiter counts itself in `asleep` and then looks at its condition; a ringer makes the
//! condition true and then looks at `asleep`. Between the two steps both have a sequentially consistent fence,
//! so at least one of them sees what the other did: either the waiter does not sleep, or the ringer wakes it.
//!
//! A ringer takes those it wakes off `asleep` itself, and leaves each a permit: a thread that was woken but has
//! not got a core yet is not woken again with each stage that passes meanwhile.

use super::sync::atomic::{AtomicUsize, Ordering, fence};
use super::sync::{Condvar, Mutex, MutexGuard};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Spins between two looks at the clock: 1 to 3 us, against some 30 ns for the look.
const SPINS_PER_LOOK: u32 = 32;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Bell {
    /// Sleepers that nobody has woken yet; written under the lock only.
    asleep: AtomicUsize,
    /// Those who have been woken and do not know it yet.
    permits: Mutex<usize>,
    rung: Condvar,
}

impl Bell {
    pub(crate) fn new() -> Self {
        Bell { asleep: AtomicUsize::new(0), permits: Mutex::new(0), rung: Condvar::new() }
    }

    /// Returns once `ready` holds; spins for at most `spin` at a time, then sleeps.
    pub(crate) fn wait(&self, spin: Duration, ready: impl Fn() -> bool) {
        loop {
            if ready() {
                return;
            }
            let start = (!spin.is_zero()).then(Instant::now);
            while start.is_some_and(|start| start.elapsed() < spin) {
                for _ in 0..SPINS_PER_LOOK {
                    if ready() {
                        return;
                    }
                    std::hint::spin_loop();
                }
            }
            self.sleep(&ready);
        }
    }

    #[cold]
    fn sleep(&self, ready: impl Fn() -> bool) {
        let mut permits = self.lock();
        self.asleep.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if ready() {
            // Under the lock, so no ringer has counted on this sleeper.
            self.asleep.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        while *permits == 0 {
            permits = self.rung.wait(permits).unwrap_or_else(PoisonError::into_inner);
        }
        *permits -= 1;
    }

    /// Wakes `at_most` sleepers, but lets `rest` of them sleep on. The caller has made what they wait for true.
    pub(crate) fn ring(&self, at_most: usize, rest: usize) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) <= rest {
            return;
        }
        let mut permits = self.lock();
        let woken = self.asleep.load(Ordering::Relaxed).saturating_sub(rest).min(at_most);
        self.asleep.fetch_sub(woken, Ordering::Relaxed);
        *permits += woken;
        drop(permits);
        (0..woken).for_each(|_| self.rung.notify_one());
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.permits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
