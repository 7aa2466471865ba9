//! The resident worker pool for decode and prefill.
//!
//! One token is one [`Pool::run`]: every worker executes the same closure from top to bottom (single program,
//! multiple data), and the stages of the forward pass meet at barriers:
//!
//! ```text
//! pool.run(|w| {
//!     w.each(tokens, |t| norm(t));             // chunks of the stage, claimed one at a time
//!     w.each(row_chunks, |c| gemv(c));         // sees all of the stage before
//!     if w.id() == 0 { sample() }              // serial part ...
//!     w.barrier();                             // ... seen by all from here on
//! });
//! ```
//!
//! A dispatch per stage would cost a wake-up per stage; here there are some ten barriers per layer, and a
//! barrier between spinning workers costs well under a microsecond. Chunks are claimed from a shared counter
//! and not dealt out beforehand, so that a slow core (big.LITTLE, a busy sibling) takes fewer of them and does
//! not become the clock of all others.
//!
//! Waiting workers spin for at most [`SPIN`] and then sleep; with more workers than cores that may run them
//! they sleep at once, since the one they wait for may need their core.
//!
//! Data that stages hand to each other lives in [`crate::os::shared`]. Wrong use does not hang: a panic on any
//! worker, or workers that do not pass the same barriers, ends the run on all of them with a panic on the
//! caller, after which the pool is as good as new.
//!
//! The pool has no global state, starts its threads in [`Pool::new`] and joins them on drop. The caller of
//! `run` is worker 0.

mod barrier;
pub(crate) mod gate;

use crate::os::affinity::{PinError, pin_current};
use crate::os::crew::Crew;
use crate::os::topology::concurrency;
use barrier::{Barrier, Broken};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
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
    barrier: Barrier,
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
        let spin = if workers > concurrency() { Duration::ZERO } else { SPIN };
        let unpinned = Arc::new(Mutex::new(Vec::new()));
        let (pin, refused) = (config.pin.clone(), Arc::clone(&unpinned));
        let on_start = move |id: usize| {
            if let Some(Err(error)) = pin.get(id).map(|&cpu| pin_current(cpu)) {
                refused.lock().unwrap_or_else(PoisonError::into_inner).extend(error.cpus);
            }
        };
        let crew = Crew::new(workers, spin, on_start);
        let mut crew = crew.map_err(|(id, source)| SpawnError { id, workers, source })?;
        // Whoever takes part in a run has started and been pinned.
        crew.run(&|_| {});
        let cpus = std::mem::take(&mut *unpinned.lock().unwrap_or_else(PoisonError::into_inner));
        let pin_error = (!cpus.is_empty()).then_some(PinError { cpus });
        Ok(Pool { crew, barrier: Barrier::new(workers, spin), workers, pin_error })
    }

    /// Which workers could not be pinned; they work all the same.
    pub fn pin_error(&self) -> Option<&PinError> {
        self.pin_error.as_ref()
    }

    /// Number of workers, the caller included.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Executes `program` once on every worker, and returns when all have finished.
    ///
    /// # Panics
    /// With the first panic of `program` on any worker; and when one worker returns while another waits for it
    /// at a barrier. The pool can be used again afterwards.
    pub fn run<F: Fn(&Worker<'_>) + Sync>(&mut self, program: F) {
        self.barrier.reset();
        let barrier = &self.barrier;
        if self.workers == 1 {
            return program(&Worker { id: 0, count: 1, barrier });
        }
        let panic = Mutex::new(None);
        self.crew.run(&|id| {
            let worker = Worker { id, count: self.workers, barrier };
            let body = || {
                program(&worker);
                worker.pass(barrier.leave());
            };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(body)) {
                if !payload.is::<SentAway>() {
                    panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
                }
                barrier.break_up();
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

/// With this a worker unwinds that did nothing wrong itself.
struct SentAway;

/// One of the executions of a run.
#[derive(Debug)]
pub struct Worker<'a> {
    id: usize,
    count: usize,
    barrier: &'a Barrier,
}

impl Worker<'_> {
    /// This worker's number, from 0 (the caller of [`Pool::run`]) to `count() - 1`.
    pub fn id(&self) -> usize {
        self.id
    }

    /// Number of workers in this run.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Waits until all workers are here. What each did before is visible to all afterwards.
    ///
    /// Every worker must pass the same barriers, those inside [`Worker::each`] included.
    pub fn barrier(&self) {
        if self.count > 1 {
            self.pass(self.barrier.meet());
        }
    }

    /// Calls `chunk` for each number below `n`, each on whichever worker claims it first, and returns on all
    /// workers when all calls have returned; their effects are then visible to all.
    ///
    /// All workers must give the same `n`. A chunk should be worth 10 us or more: a claim costs a cache line
    /// that travels between cores, some 0.1 us.
    pub fn each(&self, n: usize, mut chunk: impl FnMut(usize)) {
        if self.count == 1 {
            return (0..n).for_each(chunk);
        }
        loop {
            let i = self.barrier.claim();
            if i >= n {
                break;
            }
            chunk(i);
        }
        self.barrier();
    }

    fn pass(&self, met: Result<(), Broken>) {
        match met {
            Ok(()) => {}
            Err(Broken::ByPanic) => resume_unwind(Box::new(SentAway)),
            Err(Broken::ByLeaver) => panic!(
                "worker {} of {}: a worker left the run while another waits for it at a barrier; \
                 all workers of a run must pass the same barriers",
                self.id, self.count
            ),
        }
    }
}
