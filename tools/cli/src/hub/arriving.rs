//! A stacked file that is used while it arrives.
//!
//! Its first bytes are a model, and each further block makes it better (`lutite_runtime::residency`). So the download goes on
//! in a thread of its own once they are here. The file does not have its hash yet, which is of all its bytes; until then
//! there are the checksums that lie in it (`docs/security.md`).

use super::{Name, ensure};
use crate::interrupt;
use crate::pull::{POLL_EVERY, Pulled};
use crate::ui::{self, Quit};
use anyhow::Context;
use lutite_runtime::os::file::DataFile;
use lutite_runtime::os::map::Map;
use lutite_runtime::store::{Fault, Stack};
use std::cell::Cell;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};

/// A file as far as it is here. It is open, whatever becomes of its name.
pub(crate) struct Part {
    /// The name that it will have.
    pub(crate) name: PathBuf,
    /// What is here now.
    pub(crate) map: Map,
    /// The same, and what will come.
    pub(crate) data: DataFile,
}

/// What came is not what the listing says. It was removed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Mismatch(pub(super) String);

/// Hands a file out once, by the one who fetches it.
pub(crate) struct Early {
    to: Sender<Part>,
    out: Cell<bool>,
}

impl Early {
    pub(super) fn is_out(&self) -> bool {
        self.out.get()
    }

    pub(super) fn hand_out(&self, part: Part) {
        // Nobody there means that the thread was stopped.
        self.out.set(self.to.send(part).is_ok());
    }
}

/// What has come of a file.
pub(super) enum Look {
    /// No model yet; worth looking at again with so many bytes.
    Again(u64),
    /// A model.
    Ready(Part),
}

/// Looks at the file at `path`, of which `have` bytes are here, and which will have the name `name`.
pub(super) fn look(path: &Path, name: &Path, have: u64) -> Look {
    let never = Look::Again(u64::MAX);
    let Ok(map) = Map::open(path) else { return never };
    match Stack::least_bytes(&map) {
        Ok(Some(least)) if least <= have => {}
        Ok(Some(least)) => return Look::Again(least),
        // The head ends further on.
        Err(e) if matches!(e.fault(), Fault::Truncated { .. } | Fault::Count { .. }) => {
            return Look::Again(have + have / 8);
        }
        Ok(None) | Err(_) => return never,
    }
    // What lay here before may be anything: then all of it is waited for, and its hash decides.
    let fine = lutite_models::verify(&map, 1).is_ok();
    // Pages of a map that was read would count as what the program itself takes.
    drop(map);
    match (Map::open(path), DataFile::open(path)) {
        (Ok(map), Ok(data)) if fine => Look::Ready(Part { name: name.to_owned(), map, data }),
        _ => never,
    }
}

/// The rest of a file, on its way in a thread. Dropped, the thread ends, and what has come is kept.
pub(crate) struct Arriving {
    thread: Option<JoinHandle<anyhow::Result<Pulled>>>,
    stop: Arc<AtomicBool>,
    /// Why the rest does not come.
    failed: Option<anyhow::Error>,
}

/// A model that can be used.
pub(crate) enum Begun {
    /// All of it is here.
    Whole(PathBuf),
    /// A stacked file, of which more arrives.
    Part(Part, Arriving),
}

/// Makes sure that a model is in the cache, as [`ensure`] does without asking, or that it arrives and can be used.
///
/// # Errors
/// As [`ensure`]; a thread that cannot be started.
pub(crate) fn begin(name: Name) -> anyhow::Result<Begun> {
    let stop = Arc::new(AtomicBool::new(false));
    let (to, parts) = channel();
    let early = Early { to, out: Cell::new(false) };
    let of_thread = stop.clone();
    let fetch = move || ensure(&name, false, &of_thread, Some(&early));
    let thread = thread::Builder::new().name("lutite-fetch".into()).spawn(fetch);
    let thread = thread.context("cannot start a thread to fetch the model")?;
    loop {
        match parts.recv_timeout(POLL_EVERY) {
            Ok(part) => {
                return Ok(Begun::Part(part, Arriving { thread: Some(thread), stop, failed: None }));
            }
            Err(RecvTimeoutError::Disconnected) => return ended(thread).map(|p| Begun::Whole(p.path)),
            // Not the flag itself: once the model answers, Ctrl-C is for the answer.
            Err(RecvTimeoutError::Timeout) => stop.store(interrupt::requested(), Ordering::Relaxed),
        }
    }
}

fn ended(thread: JoinHandle<anyhow::Result<Pulled>>) -> anyhow::Result<Pulled> {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

impl Arriving {
    /// Whether all of it has come, and is another file than was listed.
    pub(crate) fn is_wrong(&mut self) -> bool {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.wait();
        }
        self.failed.as_ref().is_some_and(|e| e.is::<Mismatch>())
    }

    /// Warns, once, if the rest does not come.
    ///
    /// # Errors
    /// [`Mismatch`]
    pub(crate) fn report(&mut self) -> anyhow::Result<()> {
        let wrong = self.is_wrong();
        match self.failed.take() {
            Some(error) if wrong => return Err(error),
            // It was stopped, and has said so.
            Some(error) if error.is::<Quit>() => {}
            Some(error) => ui::warn(format_args!("{error:#}")),
            None => {}
        }
        Ok(())
    }

    /// Leaves the rest for the next time.
    ///
    /// # Errors
    /// As [`Self::report`].
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.wait();
        self.report()
    }

    fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.failed = ended(thread).err();
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whoever leaves like this has something else to say.
            let _ = thread.join();
        }
    }
}
