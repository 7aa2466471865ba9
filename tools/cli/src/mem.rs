//! How much memory the program may take, and what of it is left for a model.

use crate::args::Mem;
use crate::load::{self, Source};
use crate::ui;
use anyhow::Context;
use lutite_models::{Budget, Model};
use lutite_runtime::os::{memory, pressure};
use lutite_runtime::residency::{Reading, Watch};
use lutite_runtime::store::Directory;
use std::time::Duration;

/// What a program takes that has loaded nothing, where the system does not tell.
const PROGRAM_BYTES: u64 = 32 << 20;

/// How long a change of what is in memory is waited for, where nobody waits for an answer: longer than any disk takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// What is left free of what could be had, for `auto`.
const MARGIN: f64 = 0.1;

/// What was asked for; for stacked files without a word `auto`.
pub(crate) fn asked(mem: Option<Mem>, source: &Source) -> anyhow::Result<Option<Mem>> {
    let stacked = || -> anyhow::Result<bool> {
        let gguf = load::gguf(source)?;
        Ok(!Directory::base(&gguf)?.stack().blocks().is_empty())
    };
    Ok(if mem.is_none() && stacked()? { Some(Mem::Auto) } else { mem })
}

/// What the program takes by now.
pub(crate) fn taken() -> u64 {
    memory::resident().map_or(PROGRAM_BYTES, |r| r.now_bytes)
}

/// Bytes for all of the program, which takes `taken` by now.
///
/// # Errors
/// Where the system does not tell what there is.
pub(crate) fn bytes(mem: Mem, taken: u64) -> anyhow::Result<u64> {
    let known = || {
        memory::available().context("this system does not tell how much memory there is; give --mem a size")
    };
    Ok(match mem {
        Mem::Bytes(bytes) => bytes,
        Mem::Share(share) => (share * known()?.total_bytes as f64) as u64,
        Mem::Auto => taken + ((1.0 - MARGIN) * known()?.bytes as f64) as u64,
    })
}

/// What is left of bytes for all of the program beside the `taken` that are not its model's.
///
/// # Errors
/// Fewer than those.
pub(crate) fn beside(all: u64, taken: u64) -> anyhow::Result<u64> {
    all.checked_sub(taken)
        .with_context(|| format!("--mem: the program alone takes {}; allow more", ui::megabytes(taken)))
}

/// What a model that is opened now may take beside what the program has taken.
///
/// # Errors
/// Less than that; weights that lie in no file.
pub(crate) fn budget(mem: Mem, source: &Source, at_once: bool) -> anyhow::Result<Budget> {
    let file =
        source.data.clone().context("a model of several files, or in memory, cannot be held to a budget")?;
    let taken = taken();
    let all = bytes(mem, taken)?;
    let bytes = beside(all, taken)?;
    let (all, taken) = (ui::megabytes(all), ui::megabytes(taken));
    let bound = format!("--mem {all}, of which the program itself takes {taken}");
    Ok(Budget { bytes, bound, file, at_once })
}

/// What changes the model's budget as memory comes and goes, if that was asked for and it has blocks.
pub(crate) fn watch(mem: Mem, model: &Model) -> Option<Watch> {
    let handle = model.residency().filter(|_| mem == Mem::Auto)?;
    let read = || {
        let free = memory::available()?.bytes;
        Some(Reading { free, pressure: pressure::is_pressed().unwrap_or(false) })
    };
    Watch::start(handle, read).map_err(|e| ui::warn(format_args!("memory is not watched: {e}"))).ok()
}
