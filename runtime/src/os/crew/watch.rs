//! A worker's eye on how much of its time the system gives to others.
//!
//! Whoever is put aside with a chunk in hand holds all others up for milliseconds, where chunks take microseconds. Where that
//! happens again and again, the CPU has other work, and somebody sits out: the longer, the more was lost of late. What the
//! system does now and then in threads of its own is no reason yet.
//!
//! A chunk that takes long is no sign of it: those of a prompt take a millisecond. Nor is time off the CPU: it may have
//! gone to waiting for a disk. Only both together are, with a CPU that was taken away and none given up. Where the system
//! does not count that for each thread, nobody sits out.

use crate::os::usage::{self, Usage};
use std::time::{Duration, Instant};

/// How old a look at the thread's usage may be: looking costs as much as a small chunk.
const LOOK: Duration = Duration::from_millis(1);

/// What is lost counts for this much work of the thread: its share counts less and less.
const FORGET: Duration = Duration::from_millis(200);

/// Lost times above the first make somebody sit out, and above the second no longer than at it.
const LOST: [Duration; 2] = [Duration::from_millis(8), Duration::from_millis(16)];

/// How long to sit out at most.
const LONGEST: Duration = Duration::from_millis(320);

pub(super) struct Watch {
    /// Whether to look at all: at workers that spin. Others have given up their CPU between stages anyway.
    on: bool,
    /// What the thread had used, and when.
    seen: Option<(Instant, Usage)>,
    /// What it lost of late.
    lost: Duration,
    /// How long somebody has to sit out now.
    due: Option<Duration>,
}

impl Watch {
    pub(super) fn new(spin: Duration) -> Watch {
        Watch { on: !spin.is_zero(), seen: None, lost: Duration::ZERO, due: None }
    }

    /// After each chunk.
    pub(super) fn done(&mut self) {
        if !self.on {
            return;
        }
        let now = Instant::now();
        if self.seen.is_none_or(|(at, _)| now.saturating_duration_since(at) > LOOK) {
            match usage::of_this_thread() {
                Some(usage) => self.look(now, usage),
                None => self.on = false,
            }
        }
    }

    /// Whether the worker should leave the rest of a stage to the others.
    pub(super) fn aside(&self) -> bool {
        self.due.is_some()
    }

    /// For how long somebody has to sit out: this worker, or in its stead another one.
    pub(super) fn take(&mut self) -> Option<Duration> {
        self.due.take()
    }

    fn look(&mut self, now: Instant, usage: Usage) {
        let Some((at, before)) = self.seen.replace((now, usage)) else { return };
        let worked = usage.cpu.saturating_sub(before.cpu);
        self.lost = self.lost.mul_f64(1.0 - worked.div_duration_f64(FORGET).min(1.0));
        if usage.preempted > before.preempted && usage.waited == before.waited {
            let [first, most] = LOST;
            let time = now.saturating_duration_since(at).saturating_sub(worked);
            self.lost = (self.lost + time).min(most);
            let above = self.lost.saturating_sub(first).div_duration_f64(most - first);
            self.due = (time > LOOK / 4 && above > 0.0).then(|| LONGEST.mul_f64(above));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// For how many milliseconds to sit out after each of some looks, given by the milliseconds since the last one, those
    /// of work among them, and how often the CPU was lost and given up.
    fn rests(looks: &[(u64, u64, u64, u64)]) -> Vec<u128> {
        let mut now = Instant::now();
        let mut usage = Usage { cpu: Duration::ZERO, preempted: 0, waited: 0 };
        let mut watch = Watch::new(MS(1));
        watch.look(now, usage);
        let look = |&(passed, worked, preempted, waited): &(u64, u64, u64, u64)| {
            now += MS(passed);
            usage.cpu += MS(worked);
            usage.preempted += preempted;
            usage.waited += waited;
            watch.look(now, usage);
            watch.take().unwrap_or_default().as_millis()
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn a_long_chunk_and_a_wait_for_a_disk_are_no_signs() {
        assert_eq!(rests(&[(50, 50, 0, 0), (50, 50, 1, 0), (50, 0, 0, 1), (50, 0, 1, 1)]), [0; 4]);
    }

    #[test]
    fn what_the_system_does_now_and_then_is_none() {
        assert_eq!(rests(&[(3, 0, 1, 0), (150, 150, 0, 0)].repeat(20)), [0; 40]);
    }

    #[test]
    fn who_loses_much_sits_out_for_long_and_comes_back() {
        let slices = rests(&[(6, 3, 1, 0)].repeat(8));
        assert!(slices.is_sorted() && slices[..2] == [0, 0] && slices[7] > 200, "{slices:?}");
        // Sitting out forgets nothing, work does.
        let slice = (8, 0, 1, 0);
        assert_eq!(rests(&[slice, slice, (400, 0, 0, 1), slice]), [0, 320, 0, 320]);
        assert_eq!(rests(&[slice, slice, (200, 200, 0, 0), slice]), [0, 320, 0, 0]);
    }

    #[test]
    fn sleepers_are_not_watched() {
        let mut watch = Watch::new(Duration::ZERO);
        watch.done();
        assert!(watch.seen.is_none() && !watch.aside());
    }
}
