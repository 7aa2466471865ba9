//! The resident threads of the pool, and the slot through which they get their work.
//!
//! A run hands every thread a reference to a closure on the caller's stack. Its lifetime cannot be written in
//! the type of a slot that outlives the run, so the slot holds a raw pointer, and this module keeps the rule
//! the lifetime would have kept: [`Crew::run`] does not return, nor unwind, before every thread has made its
//! last use of the pointer.
//!
//! One run goes as follows. The caller, alone at that point, writes the slot and the count of threads still
//! `busy`, and opens `start`. A thread that passes `start` reads the slot, calls the closure, and counts
//! itself out of `busy`; the last one opens `done`. The caller calls the closure as worker 0 and waits for
//! `done`. The write of the slot happens before its reads through `start`, and the reads happen before the
//! next write through `busy` and `done`.

use crate::pool::gate::Gate;
use std::cell::UnsafeCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a run executes on every worker, given the worker's number.
pub(crate) type Task<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    start: Gate,
    done: Gate,
    busy: AtomicUsize,
    stop: AtomicBool,
    spin: Duration,
    task: UnsafeCell<Option<*const Task<'static>>>,
}

// SAFETY: all fields but `task` are `Sync`. `task` is written only by `Crew::run`, which has `&mut Crew` and
// runs while no thread reads it (module's head), and it points to a `Sync` closure.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only followed during the run that wrote it.
unsafe impl Send for Shared {}

/// `workers - 1` threads that sleep between runs, and the caller of [`Crew::run`].
pub(crate) struct Crew {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    /// Starts threads "lutite-w1" up to "lutite-w(workers - 1)"; each calls `on_start` with its number first.
    ///
    /// # Errors
    /// The number of the thread that could not be started, and why; those started before are joined.
    pub(crate) fn new(
        workers: usize,
        spin: Duration,
        on_start: impl Fn(usize) + Send + Sync + 'static,
    ) -> Result<Self, (usize, io::Error)> {
        let shared = Arc::new(Shared {
            start: Gate::default(),
            done: Gate::default(),
            busy: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            spin,
            task: UnsafeCell::new(None),
        });
        let on_start = Arc::new(on_start);
        let mut crew = Crew { shared, threads: Vec::with_capacity(workers.saturating_sub(1)) };
        for id in 1..workers {
            let (shared, on_start) = (Arc::clone(&crew.shared), Arc::clone(&on_start));
            let body = move || {
                let guard = AbortOnUnwind;
                on_start(id);
                shared.serve(id);
                std::mem::forget(guard);
            };
            let thread = std::thread::Builder::new().name(format!("lutite-w{id}")).spawn(body);
            crew.threads.push(thread.map_err(|e| (id, e))?);
        }
        Ok(crew)
    }

    /// Calls `task` once per worker, number 0 on this thread, and returns when all calls have returned.
    ///
    /// `task` must not unwind: nobody could say what to do then, and the process aborts.
    pub(crate) fn run(&mut self, task: &Task<'_>) {
        let shared = &*self.shared;
        if self.threads.is_empty() {
            return task(0);
        }
        let guard = AbortOnUnwind;
        // SAFETY: only the lifetime changes. No thread follows the pointer after this function returns: it
        // waits for `done` below, and it does not unwind (`guard`).
        let slot: *const Task<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(task)) };
        // SAFETY: `busy` is zero and `start` is shut, so no thread reads the slot now.
        unsafe { *shared.task.get() = Some(slot) };
        shared.busy.store(self.threads.len(), Ordering::Relaxed);
        let before = shared.done.value();
        shared.start.open();
        task(0);
        shared.done.wait(before, shared.spin);
        std::mem::forget(guard);
    }
}

/// Ends the process when dropped, so that no frame of a run is left while a thread may still use it.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.start.open();
        for thread in self.threads.drain(..) {
            // A thread can only end by `stop`: a task that unwinds aborts.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, id: usize) {
        let mut seen = 0;
        loop {
            // Each run opens `start` once, and not again before this thread has counted itself out.
            seen = self.start.wait(seen, self.spin);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: the slot was written before `start` opened and is not written before this thread
            // counts itself out of `busy`.
            let slot = unsafe { *self.task.get() };
            if let Some(task) = slot {
                // SAFETY: the caller keeps the closure alive until this thread has counted itself out.
                unsafe { (*task)(id) };
            }
            if self.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.done.open();
            }
        }
    }
}
