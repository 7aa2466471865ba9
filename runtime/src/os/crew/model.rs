//! The crew under loom, which runs a small program in every order of events that the memory model allows.
//!
//!     .ci/run loom
//!
//! Loom finds accesses that race, to the slot and to the data that the stages hand to each other; and orders in which
//! everybody sleeps. Nobody spins here (`SPIN`), so each wait takes the way through the lock.

use super::Crew;
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const SPIN: Duration = Duration::ZERO;

/// Data that chunks write, without any protection of its own.
struct Cells([UnsafeCell<usize>; 2]);

// SAFETY: not in general; loom tells when it is not so.
unsafe impl Sync for Cells {}

impl Cells {
    fn new() -> Self {
        Cells([UnsafeCell::new(0), UnsafeCell::new(0)])
    }

    fn get(&self, i: usize) -> usize {
        // SAFETY: loom has checked that nobody writes.
        self.0[i].with(|value| unsafe { *value })
    }

    fn set(&self, i: usize, to: usize) {
        // SAFETY: loom has checked that nobody else has access.
        self.0[i].with_mut(|value| unsafe { *value = to });
    }
}

/// `preemptions`: how often a thread may be put aside where it does not wait itself. Without a
/// bound it takes hours; nearly all mistakes show with one or two.
fn explore(preemptions: usize, program: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(program);
}

fn crew(workers: usize, cpus: usize) -> Crew {
    Crew::new(workers, cpus, SPIN, |_| {}).unwrap_or_else(|_| panic!("threads start"))
}

/// The second stage reads what the first one wrote, in the other order, and lives on a stack frame of its own.
fn two_stages(workers: usize, cpus: usize) {
    let mut crew = crew(workers, cpus);
    let (first, second) = (Cells::new(), Cells::new());
    crew.run(2, &|_, i| first.set(i, i + 1));
    crew.run(2, &|_, i| second.set(i, first.get(1 - i) + 10));
    assert_eq!([second.get(0), second.get(1)], [12, 11]);
}

fn one_stage(workers: usize, cpus: usize) {
    let mut crew = crew(workers, cpus);
    let cells = Cells::new();
    crew.run(2, &|_, i| cells.set(i, i + 1));
    assert_eq!([cells.get(0), cells.get(1)], [1, 2]);
}

#[test]
fn stages_see_each_other() {
    explore(2, || two_stages(2, 2));
}

#[test]
fn three_workers_end_their_stage() {
    explore(1, || one_stage(3, 3));
}

/// With fewer CPUs than workers some sleep through all stages, and must still hear that they are to stop.
#[test]
fn sleepers_beyond_the_cpus_are_not_needed() {
    explore(1, || one_stage(3, 2));
    explore(2, || two_stages(2, 1));
}

#[test]
fn every_chunk_is_done_once() {
    explore(3, || {
        let mut crew = crew(2, 2);
        let done = [AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0)];
        crew.run(3, &|_, i| _ = done[i].fetch_add(1, Ordering::Relaxed));
        assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1));
    });
}

#[test]
fn a_crew_without_work_ends() {
    explore(4, || drop(crew(2, 2)));
}
