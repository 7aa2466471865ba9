//! A counter that threads wait on: spin for a while, then sleep.
//!
//! The stages of a token follow each other within microseconds, so a waiter spins first: a wake-up through
//! the kernel costs more than most stages last. It stops spinning after a bounded time, because a spinning
//! thread takes the core (and the joules) from whoever it waits for when cores are short.
//!
//! No wake-up is lost. A sleeper writes `sleepers` and then reads `value`; the opener writes `value` and then
//! reads `sleepers`. All four are sequentially consistent, so at least one of them sees the other's write:
//! either the sleeper sees the new value and does not sleep, or the opener sees the sleeper. In the second
//! case the opener takes the lock before it notifies, and the sleeper looks at `value` under that lock, so
//! the notification comes either before that look (which then sees the new value) or once it sleeps.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Spins between two looks at the clock: 1 to 3 us, against some 30 ns for the look.
const SPINS_PER_LOOK: u32 = 32;

/// See the module's head. The counter wraps; a waiter only ever compares for equality with the last value.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    value: AtomicU32,
    sleepers: AtomicU32,
    lock: Mutex<()>,
    opened: Condvar,
}

impl Gate {
    /// The current value. What the opener did before [`Gate::open`] is visible once this returns its result.
    pub(crate) fn value(&self) -> u32 {
        self.value.load(Ordering::SeqCst)
    }

    /// Steps the value and lets all waiters go.
    pub(crate) fn open(&self) {
        self.value.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.opened.notify_all();
        }
    }

    /// Waits until the value differs from `seen`; spins for at most `spin`, then sleeps.
    pub(crate) fn wait(&self, seen: u32, spin: Duration) -> u32 {
        let value = self.value();
        if value != seen {
            return value;
        }
        if !spin.is_zero() {
            let start = Instant::now();
            while start.elapsed() < spin {
                for _ in 0..SPINS_PER_LOOK {
                    let value = self.value();
                    if value != seen {
                        return value;
                    }
                    std::hint::spin_loop();
                }
            }
        }
        self.sleep(seen)
    }

    #[cold]
    fn sleep(&self, seen: u32) -> u32 {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let value = loop {
            let value = self.value();
            if value != seen {
                break value;
            }
            held = self.opened.wait(held).unwrap_or_else(PoisonError::into_inner);
        };
        drop(held);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        value
    }
}
