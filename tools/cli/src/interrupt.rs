//! Ctrl-C: once stops the work in hand (the answer, the download), twice quits.

use crate::ui::{self, Quit};
use anyhow::Context;
use std::sync::atomic::{AtomicBool, Ordering};

/// Relaxed everywhere: the flag publishes nothing but itself.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Starts to listen. Call once.
///
/// # Errors
/// If the system does not let a handler be set.
pub fn install() -> anyhow::Result<()> {
    // Where a file may not grow further (`ulimit -f`), the system would kill the process before `write` can say so.
    // With a handler, whatever it does, `write` fails and half-written files are removed.
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default())
        .context("cannot set a handler for SIGXFSZ")?;
    // The handler runs on a thread of its own, not inside the signal: printing and exiting are fine.
    ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(crate::INTERRUPTED));
        }
        ui::note("stopping; Ctrl-C again quits at once");
    })
    .context("cannot listen for Ctrl-C")
}

/// The flag that Ctrl-C sets, for loops that know no command line.
#[must_use]
pub fn flag() -> &'static AtomicBool {
    &REQUESTED
}

/// True once Ctrl-C was pressed.
#[must_use]
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Forgets a Ctrl-C that has done its work, such as stopping one answer of a chat.
pub fn clear() {
    REQUESTED.store(false, Ordering::Relaxed);
}

/// Fails if `flag` is set, to leave a long task by `?`.
///
/// # Errors
/// [`Quit::Interrupted`].
pub fn check(flag: &AtomicBool) -> anyhow::Result<()> {
    if flag.load(Ordering::Relaxed) { Err(Quit::Interrupted.into()) } else { Ok(()) }
}
