//! Keeping a thread on one CPU.
//!
//! Worth it where the scheduler moves threads between unlike cores; never needed for right results. Linux,
//! Android and Windows obey. macOS takes it as a hint and Apple's own processors refuse it. A refusal is a
//! value, to be shown once and then ignored.

use core_affinity::CoreId;

/// The largest CPU number that the system's mask can hold, plus one.
const CPUS_MAX: usize = if cfg!(windows) { usize::BITS as usize } else { 1024 };

/// The system would not keep threads on these CPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot pin threads to CPUs {cpus:?}: refused by the system; speed may vary, or leave pinning off")]
pub struct PinError {
    /// The CPUs asked for in vain.
    pub cpus: Vec<usize>,
}

/// Keeps the calling thread on `cpu` from now on. Threads that it starts later inherit this.
///
/// # Errors
/// When the system refuses; the thread then runs where it did before.
pub fn pin_current(cpu: usize) -> Result<(), PinError> {
    if cpu < CPUS_MAX && core_affinity::set_for_current(CoreId { id: cpu }) {
        Ok(())
    } else {
        Err(PinError { cpus: vec![cpu] })
    }
}
