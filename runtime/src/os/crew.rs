//! The resident threads of the pool, and the slot through which they get their work.
//!
//! A stage is `n` calls of a closure on the caller's stack. Its lifetime cannot be written in the type of a slot
//! that outlives the stage, so the slot holds a raw pointer, and this module keeps the rule that the lifetime
//! would have kept: **the pointer is followed only with a claimed chunk in hand, and [`Crew::run`] neither
//! returns nor unwinds before every chunk has been done.**
//!
//! ```text
//! caller                                      thread
//!   slot = (task, n)                            wait until left > 0
//!   unfinished = n                              while left > 0 and left is changed to left - 1:   (a claim)
//!   left = n, and wakes sleepers                    task(n - left)
//!   claims chunks like the threads                  unfinished -= 1; the last one wakes the caller
//!   waits until unfinished = 0
//! ```
//!
//! - *The slot is not written while it is read.* It is read between a claim and the count of that chunk in
//!   `unfinished`. It is written with `&mut Crew`, thus after the stage before has ended with `unfinished` at
//!   zero: all claims have been counted, and none can be made, since `left` is zero too.
//! - *A claim is of the stage that the slot holds.* A thread may have been put aside for hours between reading
//!   `left` and changing it. The change succeeds only if `left` has that value now, and then it is a claim of
//!   the stage of now; the slot is read afterwards.
//! - *Memory order.* A claim acquires the caller's release of `left`, directly or through the claims before
//!   (changes of an atomic by reading and writing continue its release sequence); so it sees the slot and all
//!   that the stages before did. The counts in `unfinished` are released, and acquired by the caller.
//!
//! A thread without a chunk owes nothing to anybody: it may sleep, be put aside by the system, or wake up
//! stages too late, and nobody waits for it. A wake-up at the start of a stage is a wish.
//!
//! A thread that is put aside with chunks in hand again and again sits out for a while ([`Watch`]), and where it is the
//! caller, some thread does so, and leaves the caller its CPU.

use crate::pool::bell::Bell;
use crate::pool::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::pool::sync::{Arc, Builder, JoinHandle, UnsafeCell};
use std::io;
use std::time::{Duration, Instant};
use watch::Watch;

#[cfg(all(test, loom))]
mod model;
mod watch;

/// What a stage executes for each of its chunks, given the worker's number and the chunk's.
pub(crate) type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Keeps counters of different use on different cache lines (128 bytes: x86 fetches lines in pairs, and Apple's
/// are that long).
#[repr(align(128))]
struct Line<T>(T);

/// What a claim reads and writes, on one line, since it needs all of it.
struct Stage {
    /// Chunks that nobody has claimed.
    left: AtomicUsize,
    /// The closure of the stage, and its number of chunks.
    slot: UnsafeCell<Option<(*const Task<'static>, usize)>>,
}

struct Shared {
    stage: Line<Stage>,
    /// Chunks that have not been done.
    unfinished: Line<AtomicUsize>,
    /// Threads wait here for a stage.
    work: Bell,
    /// The caller waits here for its end.
    end: Bell,
    stop: AtomicBool,
    /// Milliseconds that a thread has to sit out for the caller, which was put aside: the one that resets it.
    make_way: AtomicUsize,
    spin: Duration,
}

// SAFETY: all fields but the slot are `Sync`. The slot is written only by `Crew::run`, which has `&mut Crew`, while
// no thread reads it (module's head), and it points to a `Sync` closure.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only followed during the stage that wrote it.
unsafe impl Send for Shared {}

/// `workers - 1` threads that sleep between stages, and the caller of [`Crew::run`].
pub(crate) struct Crew {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Threads that a stage does not wake because no CPU would be left for them.
    rest: usize,
    watch: Watch,
}

impl Crew {
    /// Starts threads "lutite-w1" up to "lutite-w(workers - 1)"; each calls `on_start` with its number first. At
    /// most `cpus` workers are kept awake.
    ///
    /// # Errors
    /// The number of the thread that could not be started, and why; those started before are joined.
    pub(crate) fn new(
        workers: usize,
        cpus: usize,
        spin: Duration,
        on_start: impl Fn(usize) + Send + Sync + 'static,
    ) -> Result<Self, (usize, io::Error)> {
        let shared = Arc::new(Shared {
            stage: Line(Stage { left: AtomicUsize::new(0), slot: UnsafeCell::new(None) }),
            unfinished: Line(AtomicUsize::new(0)),
            work: Bell::new(),
            end: Bell::new(),
            stop: AtomicBool::new(false),
            make_way: AtomicUsize::new(0),
            spin,
        });
        let on_start = Arc::new(on_start);
        let threads = Vec::with_capacity(workers.saturating_sub(1));
        let (rest, watch) = (workers.saturating_sub(cpus), Watch::new(spin));
        let mut crew = Crew { shared, threads, rest, watch };
        for id in 1..workers {
            let (shared, on_start) = (Arc::clone(&crew.shared), Arc::clone(&on_start));
            let body = move || {
                let guard = AbortOnUnwind;
                on_start(id);
                shared.serve(id);
                std::mem::forget(guard);
            };
            let thread = Builder::new().name(format!("lutite-w{id}")).spawn(body);
            crew.threads.push(thread.map_err(|e| (id, e))?);
        }
        Ok(crew)
    }

    /// Calls `task` with each number below `n`, on any worker, number 0 being this thread, and returns when all
    /// calls have returned; their effects are then visible here, and to the stages that follow.
    ///
    /// `task` must not unwind: nobody could say what to do then, and the process aborts.
    pub(crate) fn run(&mut self, n: usize, task: &Task<'_>) {
        if n <= 1 || self.threads.is_empty() {
            return (0..n).for_each(|i| task(0, i));
        }
        let Shared { stage: Line(stage), unfinished: Line(unfinished), work, end, spin, .. } = &*self.shared;
        let guard = AbortOnUnwind;
        // SAFETY: only the lifetime changes. No thread follows the pointer after this function returns: it waits
        // for `unfinished` to be zero below, and it does not unwind (`guard`).
        let task: *const Task<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(task)) };
        // SAFETY: the stage before has ended and this one is not open, so no thread reads the slot now.
        stage.slot.with_mut(|slot| unsafe { *slot = Some((task, n)) });
        unfinished.store(n, Ordering::Relaxed);
        stage.left.store(n, Ordering::Release);
        work.ring(n - 1, self.rest);
        self.shared.take_part(0, &mut self.watch);
        if let Some(rest) = self.watch.take() {
            self.shared.make_way.store(rest.as_millis() as usize, Ordering::Relaxed);
        }
        end.wait(*spin, || unfinished.load(Ordering::Acquire) == 0);
        std::mem::forget(guard);
    }
}

/// Ends the process when dropped, so that no frame of a stage is left while a thread may still use it.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.work.ring(usize::MAX, 0);
        for thread in self.threads.drain(..) {
            // A thread can only end by `stop`: a task that unwinds aborts.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A thread's life.
    fn serve(&self, id: usize) {
        let (left, stop) = (&self.stage.0.left, &self.stop);
        let mut watch = Watch::new(self.spin);
        loop {
            self.work.wait(self.spin, || left.load(Ordering::Relaxed) > 0 || stop.load(Ordering::Acquire));
            if stop.load(Ordering::Acquire) {
                return;
            }
            self.take_part(id, &mut watch);
            // Read first: a change would take the line from the others at every stage.
            let make_way = match self.make_way.load(Ordering::Relaxed) {
                0 => 0,
                _ => self.make_way.swap(0, Ordering::Relaxed),
            };
            let rest = watch.take().unwrap_or_default().max(Duration::from_millis(make_way as u64));
            if !rest.is_zero() {
                let until = Instant::now() + rest;
                // In parts, so that nobody waits long for it to stop.
                while Instant::now() < until && !stop.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    /// Claims and does chunks until all are claimed, or a thread has to sit out.
    fn take_part(&self, id: usize, watch: &mut Watch) {
        let Stage { left, slot } = &self.stage.0;
        let mut seen = left.load(Ordering::Relaxed);
        while seen > 0 && (id == 0 || !watch.aside()) {
            if let Err(now) = left.compare_exchange(seen, seen - 1, Ordering::Acquire, Ordering::Relaxed) {
                seen = now;
                continue;
            }
            // SAFETY: a chunk of the open stage is in hand, so the slot is not written (module's head).
            if let Some((task, n)) = slot.with(|slot| unsafe { *slot }) {
                // SAFETY: the caller keeps the closure alive until this chunk has been counted below.
                unsafe { (*task)(id, n - seen) };
            }
            if self.unfinished.0.fetch_sub(1, Ordering::Release) == 1 && id != 0 {
                self.end.ring(1, 0);
            }
            watch.done();
            seen = left.load(Ordering::Relaxed);
        }
    }
}
