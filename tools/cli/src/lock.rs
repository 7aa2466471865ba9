//! Waiting for another process.

use crate::pull::POLL_EVERY;
use crate::{interrupt, ui};
use anyhow::Context;
use std::fmt::Display;
use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Waits until nobody else has the lock at `path`, saying `busy` once. It is gone with the value, and with the process.
///
/// Some network file systems have no locks: `without` hears why, and the file comes back as it is.
///
/// # Errors
/// When the file cannot be made, or `stop` is set.
pub(crate) fn wait(
    path: &Path,
    busy: impl Display,
    stop: &AtomicBool,
    without: impl FnOnce(io::Error),
) -> anyhow::Result<File> {
    let lock = File::create(path).with_context(|| format!("cannot make the lock {}", path.display()))?;
    let mut told = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => {
                if !told {
                    ui::note(&busy);
                    told = true;
                }
                interrupt::check(stop)?;
                std::thread::sleep(POLL_EVERY);
            }
            Err(TryLockError::Error(error)) => {
                without(error);
                return Ok(lock);
            }
        }
    }
}
