//! The resident worker pool for decode and prefill.
//!
//! The forward pass is one program on the calling thread, and its stages are spread over all workers:
//!
//! ```text
//! pool.each(tokens, |t| norm(t));             // chunks of the stage, claimed one at a time
//! pool.each(row_chunks, |c| gemv(c));         // sees all of the stage before
//! sample();                                   // serial parts are plain code
//! ```
//!
//! A token has some ten stages per layer, so between two of them workers spin, and to begin and end a stage costs
//! well under a microsecond. Chunks are claimed from a shared counter and not dealt out beforehand, so that a slow
//! core (big.LITTLE, a busy sibling) takes fewer of them and does not become the clock of all others.
//!
//! **A stage ends when its chunks are done, not when all workers have come.** A worker that the system has put
//! aside holds others up only if it has a chunk in hand; otherwise it finds stages over, and takes part again
//! with the first one that it meets open. Who loses its CPU again and again leaves the stages to the others for a while.
//! So a machine that is busy with other work costs the time of a chunk now and then, and with one worker left the others'
//! absence costs nothing.
//!
//! Waiting workers spin for at most [`SPIN`] and then sleep. A stage wakes no more of them than it has chunks for,
//! and than CPUs may run: of 8 workers on 2 CPUs, 6 sleep at any time, and the rest runs as if it were alone.
//!
//! Data that stages hand to each other lives in [`crate::os::shared`]. A chunk that panics ends its stage with that
//! panic on the caller, after which the pool is as good as new.
//!
//! The pool has no global state, starts its threads in [`Pool::new`] and joins them on drop. The caller of `each` is
//! worker 0. The threads and the one unsafe slot are in `os/crew.rs`.

pub(crate) mod bell;
pub(crate) mod sync;

use crate::os::affinity::{PinError, pin_current};
use crate::os::crew::Crew;
use crate::os::topology::concurrency;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

/// Longest time that a waiting worker spins before it sleeps: above the length of most stages and the cost of
/// a wake-up (some 5 to 50 us), below what anybody would notice as a busy core.
pub const SPIN: Duration = Duration::from_micros(50);

/// How to make a [`Pool`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolConfig {
    /// Number of workers, the caller included; 0 counts as 1.
    pub workers: usize,
    /// The CPU to keep each worker on; none for workers past the end. The first entry is for the caller, whose
    /// thread is not the pool's to change: see [`crate::os::affinity::pin_current`], and use it after
    /// [`Pool::new`], since new threads inherit the CPUs of their maker.
    pub pin: Vec<usize>,
}

/// Why a [`Pool`] could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot start worker thread {id} of {workers}: {source}; ask for fewer threads")]
pub struct SpawnError {
    /// The worker that failed to start.
    pub id: usize,
    /// How many were asked for.
    pub workers: usize,
    /// What the system said.
    pub source: std::io::Error,
}

/// See the module's head.
pub struct Pool {
    crew: Crew,
    workers: usize,
    pin_error: Option<PinError>,
}

impl Pool {
    /// Starts the worker threads and waits until they are up.
    ///
    /// # Errors
    /// When the system refuses a thread; those already started are joined.
    pub fn new(config: &PoolConfig) -> Result<Self, SpawnError> {
        let workers = config.workers.max(1);
        let (started, starts) = mpsc::channel();
        let pin = config.pin.clone();
        let on_start = move |id: usize| {
            let refused = pin.get(id).and_then(|&cpu| pin_current(cpu).err());
            // Nobody listens if a later thread could not be started.
            let _ = started.send(refused.map_or(Vec::new(), |error| error.cpus));
        };
        let crew = Crew::new(workers, concurrency(), SPIN, on_start);
        let crew = crew.map_err(|(id, source)| SpawnError { id, workers, source })?;
        let mut cpus: Vec<usize> = starts.iter().take(workers - 1).flatten().collect();
        cpus.sort_unstable();
        let pin_error = (!cpus.is_empty()).then_some(PinError { cpus });
        Ok(Pool { crew, workers, pin_error })
    }

    /// Which workers could not be pinned; they work all the same.
    pub fn pin_error(&self) -> Option<&PinError> {
        self.pin_error.as_ref()
    }

    /// Number of workers, the caller included.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// A stage: calls `chunk` with each number below `n`, each on whichever worker claims it first, and returns
    /// when all calls have returned. What the stages before did is visible to all.
    ///
    /// A chunk should be worth 10 us or more: a claim costs a cache line that travels between cores, some 0.1 us. A
    /// single chunk runs on the caller.
    ///
    /// # Panics
    /// With the first panic of `chunk` on any worker, once the other chunks have ended. The pool can be used
    /// again afterwards.
    pub fn each(&mut self, n: usize, chunk: impl Fn(usize) + Sync) {
        self.each_by(n, |_, i| chunk(i));
    }

    /// As [`Pool::each`], for chunks that need something of which each worker has its own: `chunk(worker, i)`, where
    /// `worker` is below [`Pool::workers`], and a worker does one chunk at a time.
    ///
    /// # Panics
    /// As [`Pool::each`].
    pub fn each_by(&mut self, n: usize, chunk: impl Fn(usize, usize) + Sync) {
        if n <= 1 || self.workers == 1 {
            return (0..n).for_each(|i| chunk(0, i));
        }
        let panic = Mutex::new(None);
        self.crew.run(n, &|worker, i| {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| chunk(worker, i))) {
                panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
            }
        });
        let panic: Option<Box<dyn Any + Send>> = panic.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("workers", &self.workers).finish_non_exhaustive()
    }
}
