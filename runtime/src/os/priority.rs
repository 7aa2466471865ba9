//! Who may wait.

/// Lets the calling thread run with what time others leave, where the system can do that for a single thread. Without it
/// nothing is wrong: others wait for it a little longer.
pub fn yield_to_others() {
    // Linux keeps it for each thread, whatever the standard says of processes.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = rustix::process::nice(BACKGROUND);
}

/// Half of the way to the least: some tenth of the time of a thread that computes beside it.
#[cfg(any(target_os = "linux", target_os = "android"))]
const BACKGROUND: i32 = 10;
