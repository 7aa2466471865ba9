//! What the system has given a thread: time on a CPU, and how often it took it away.

use std::time::Duration;

/// Totals of one thread since it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Time on a CPU.
    pub(crate) cpu: Duration,
    /// How often it lost its CPU though it could have gone on.
    pub(crate) preempted: u64,
    /// How often it gave its CPU up, to wait for something.
    pub(crate) waited: u64,
}

/// As the kernel has it; `libc` does not have it for Android.
#[cfg(any(target_os = "linux", target_os = "android"))]
const RUSAGE_THREAD: libc::c_int = 1;

/// Those of the calling thread; none where the system counts for whole processes only. Takes some 0.2 us.
pub(crate) fn of_this_thread() -> Option<Usage> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the pointer is valid for writes, and all bits zero are a `rusage` even if nothing is written.
        let (failed, usage) = unsafe {
            let failed = libc::getrusage(RUSAGE_THREAD, usage.as_mut_ptr()) != 0;
            (failed, usage.assume_init())
        };
        if failed {
            return None;
        }
        let micros =
            |t: libc::timeval| (i128::from(t.tv_sec) * 1_000_000 + i128::from(t.tv_usec)).max(0) as u64;
        let cpu = Duration::from_micros(micros(usage.ru_utime).saturating_add(micros(usage.ru_stime)));
        let count = |n: libc::c_long| u64::try_from(n).unwrap_or(0);
        Some(Usage { cpu, preempted: count(usage.ru_nivcsw), waited: count(usage.ru_nvcsw) })
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    None
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn work_takes_cpu_time_and_sleep_does_not() {
        let before = of_this_thread().expect("Linux counts for threads");
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
        let slept = of_this_thread().expect("as before");
        assert!(slept.cpu - before.cpu < start.elapsed() / 2, "{before:?} {slept:?}");
        assert!(slept.waited > before.waited, "{before:?} {slept:?}");
        let mut n = 0_u64;
        // Until it has had its time, however long that takes on a busy machine.
        while of_this_thread().expect("as before").cpu - slept.cpu < Duration::from_millis(5) {
            n = std::hint::black_box(n + 1);
        }
        assert!(of_this_thread().expect("as before").preempted >= before.preempted);
    }
}
