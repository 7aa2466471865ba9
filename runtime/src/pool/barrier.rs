//! The meeting point of all workers of one run, and the counter from which they claim chunks.
//!
//! One counter is enough for all stages of a run: the last worker to arrive resets it before it opens the
//! gate. At that moment every worker has arrived, so nobody claims, and whoever passes the gate sees zero.
//!
//! A run that goes wrong must end, not hang. A worker that unwinds *breaks* the barrier: it raises `broken`,
//! then opens the gate. A worker that arrives reads the gate's value first and `broken` second. If it read
//! the value from before that opening, its wait ends at once; if it read the value after, it sees `broken`.
//! The same holds for a worker that returns while others still wait for it (the closure took different
//! paths on different workers): it counts itself in `left`, and then looks whether somebody has arrived,
//! while one who arrives counts itself and then looks at `left`, so one of the two sees the other.

use super::gate::Gate;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Keeps hot counters of different use on different cache lines (128 bytes: x86 fetches lines in pairs, and
/// Apple's are that long).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line<T>(T);

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Barrier {
    workers: usize,
    spin: Duration,
    claims: Line<AtomicUsize>,
    arrived: Line<AtomicUsize>,
    gate: Line<Gate>,
    left: AtomicUsize,
    broken: AtomicBool,
}

/// How a wait at the barrier ended when not all workers met there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// Another worker unwound.
    ByPanic,
    /// Another worker has left the run without coming to this barrier.
    ByLeaver,
}

impl Barrier {
    pub(crate) fn new(workers: usize, spin: Duration) -> Self {
        Barrier {
            workers,
            spin,
            claims: Line::default(),
            arrived: Line::default(),
            gate: Line::default(),
            left: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        }
    }

    /// Makes the barrier ready for a run. Only while no worker is in one; the dispatch publishes it to them.
    pub(crate) fn reset(&mut self) {
        *self.claims.0.get_mut() = 0;
        *self.arrived.0.get_mut() = 0;
        *self.left.get_mut() = 0;
        *self.broken.get_mut() = false;
    }

    /// The next unclaimed chunk of this stage. Relaxed: the barrier that ends the stage orders the work.
    pub(crate) fn claim(&self) -> usize {
        self.claims.0.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits for all workers. What each did before is visible to all after.
    pub(crate) fn meet(&self) -> Result<(), Broken> {
        let seen = self.gate.0.value();
        if self.broken.load(Ordering::SeqCst) {
            return Err(Broken::ByPanic);
        }
        if self.arrived.0.fetch_add(1, Ordering::SeqCst) + 1 == self.workers {
            self.arrived.0.store(0, Ordering::SeqCst);
            self.claims.0.store(0, Ordering::Relaxed);
            self.gate.0.open();
            return Ok(());
        }
        // A worker may leave right after this meeting, so only a leaver while the gate is still shut counts.
        if self.left.load(Ordering::SeqCst) > 0 && self.gate.0.value() == seen {
            return Err(Broken::ByLeaver);
        }
        self.gate.0.wait(seen, self.spin);
        if self.broken.load(Ordering::SeqCst) { Err(Broken::ByPanic) } else { Ok(()) }
    }

    /// Notes that a worker has returned. `Err` when others are waiting for it at a barrier.
    pub(crate) fn leave(&self) -> Result<(), Broken> {
        self.left.fetch_add(1, Ordering::SeqCst);
        if self.arrived.0.load(Ordering::SeqCst) > 0 && !self.broken.load(Ordering::SeqCst) {
            return Err(Broken::ByLeaver);
        }
        Ok(())
    }

    /// Sends everybody away who waits now or arrives later in this run.
    pub(crate) fn break_up(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.gate.0.open();
    }
}
