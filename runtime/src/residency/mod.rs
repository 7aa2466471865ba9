//! Which versions of a stacked file's matrices are in memory, while tokens are generated.
//!
//! Wanted is always a prefix of the stack. A thread of its own reads the versions that it asks for and that are not there, each
//! matrix' last one only: upwards in the order of the stack, downwards against it. What it has read waits until no token is in
//! flight; then all that waits is put in place at once, which exchanges a few pointers. Versions that were replaced are dropped by
//! that thread, since giving memory back takes longer than a token may wait.
//!
//! ```text
//! reader:   read next version, check it, push it to `pending`;  nobody computes?  exchange them
//! decoder:  before a token: anything pending?  exchange them;  compute
//! reader:   drop what was replaced
//! ```
//!
//! Memory of its own is never taken beyond the limit on the way up: a version is read only when there is room for it beside
//! the one that it replaces. On the way down the version that takes over has to be read first; few at a time then wait. A matrix of
//! levels keeps those that both versions have: upwards the others are read, downwards none.

mod home;
mod reader;
#[cfg(test)]
mod tests;
mod watch;

pub use home::{Account, Home, Piece};
pub use watch::{Reading, Watch};

use crate::error::{Error, Result};
use crate::store::{Gguf, Loaded, Stack};
use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Puts a version of a matrix, which has this name, in the place of the one that it is in, which is returned.
pub type Exchange<'a> = dyn FnMut(&str, Loaded) -> std::result::Result<Loaded, String> + 'a;

/// Who computes with the matrices.
pub trait Host: Send {
    /// Lets `apply` exchange matrices, unless a token is in flight; says whether it did.
    fn between_tokens(&self, apply: &mut dyn FnMut(&mut Exchange<'_>)) -> bool;

    /// The version of a matrix that is in use; its data are not copied.
    fn current(&self, matrix: &str) -> Option<Loaded>;
}

/// What is in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Resident {
    /// Blocks in use.
    pub blocks: usize,
    /// Blocks that the budget allows and the file has.
    pub target: usize,
    /// Blocks of the whole stack.
    pub all: usize,
    /// Bytes of weights in use.
    pub bytes: u64,
    /// KL divergence to the unquantized model, as it was measured when the file was made.
    pub kl: Option<f32>,
    /// Why it cannot come to `target`, if it cannot.
    pub failure: Option<String>,
}

/// How much a system wants back of the memory that a process takes, as phones put it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// It begins to run low: a quarter of what weights take beyond their least.
    Moderate,
    /// Others are being ended: half of it.
    Low,
    /// This process is next: all of it.
    Critical,
}

impl Shortage {
    /// What may stay of four quarters.
    fn quarters(self) -> u64 {
        match self {
            Shortage::Moderate => 3,
            Shortage::Low => 2,
            Shortage::Critical => 0,
        }
    }
}

/// The stack of an open model; dropped, its thread ends.
#[derive(Debug)]
pub struct Residency {
    handle: Handle,
    reader: Option<JoinHandle<()>>,
}

/// Changes a model's budget, from any thread.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stack: Stack,
    matrices: Vec<Matrix>,
    home: Home,
    state: Mutex<State>,
    /// Signalled with every change of `state`.
    changed: Condvar,
    /// Whether `pending` has anything: looked at before every token.
    waiting: AtomicBool,
}

/// A matrix that blocks speak of.
#[derive(Debug)]
struct Matrix {
    name: String,
    /// From the least on.
    versions: Vec<Piece>,
    /// The block of each version but the least.
    blocks: Vec<usize>,
}

impl Matrix {
    /// The version that the first `blocks` blocks make.
    fn version_at(&self, blocks: usize) -> usize {
        self.blocks.partition_point(|b| *b < blocks)
    }
}

#[derive(Debug, Default)]
struct State {
    /// Blocks that are wanted.
    wanted: usize,
    /// Blocks that are in the file.
    present: usize,
    /// The version in use of each matrix, and the one that will be once everything pending is in place.
    now: Vec<usize>,
    read: Vec<usize>,
    pending: Vec<Change>,
    /// What was replaced, to be dropped.
    retired: Vec<Loaded>,
    /// Whether the reader has something in hand: a version that is being read, or some that are being dropped.
    busy: bool,
    /// Bytes that versions may take.
    limit: Option<u64>,
    /// Versions that could not be had, by matrix: the next lower one does instead, until something else is asked for.
    bad: Vec<(usize, usize)>,
    /// Why the first of them could not.
    failure: Option<String>,
    stop: bool,
}

/// A version that was read.
#[derive(Debug)]
struct Change {
    matrix: usize,
    version: usize,
    loaded: Loaded,
}

impl State {
    fn target(&self) -> usize {
        self.wanted.min(self.present)
    }

    /// Does without a version.
    fn fail(&mut self, matrix: usize, version: usize, why: String) {
        self.bad.push((matrix, version));
        self.failure.get_or_insert(why);
    }

    /// Wants something else.
    fn ask(&mut self, blocks: usize) {
        (self.wanted, self.failure) = (blocks, None);
        self.bad.clear();
    }
}

/// What is needed to begin with.
pub struct Start<'a> {
    /// The file, parsed.
    pub gguf: &'a Gguf<'a>,
    /// Its stack.
    pub stack: &'a Stack,
    /// Checksums of its tensors, in listing order.
    pub sums: &'a [u64],
    /// Where versions come from.
    pub home: Home,
    /// Blocks that are in use already.
    pub blocks: usize,
    /// Blocks that are wanted.
    pub wanted: usize,
    /// Bytes that versions may take.
    pub limit: Option<u64>,
}

impl Residency {
    /// Takes over a model's matrices.
    ///
    /// # Errors
    /// A file whose stack is damaged, a thread that cannot be started.
    pub fn start(start: Start<'_>, host: impl Host + 'static) -> Result<Residency> {
        let Start { gguf, stack, sums, home, blocks, wanted, limit } = start;
        let matrices = matrices(stack, gguf, sums)?;
        let now: Vec<usize> = matrices.iter().map(|m| m.version_at(blocks)).collect();
        let state = State { wanted, read: now.clone(), now, limit, ..State::default() };
        let shared = Shared {
            matrices,
            home,
            state: Mutex::new(state),
            changed: Condvar::new(),
            waiting: AtomicBool::new(false),
            stack: stack.clone(),
        };
        shared.look_for_blocks(&mut shared.lock());
        let shared = Arc::new(shared);
        let of_reader = shared.clone();
        let reader = thread::Builder::new()
            .name("lutite-blocks".into())
            .spawn(move || reader::run(&of_reader, &host))
            .map_err(|e| Error::Io { path: "lutite-blocks".into(), what: "start thread", source: e })?;
        Ok(Residency { handle: Handle(shared), reader: Some(reader) })
    }

    /// To change the budget from elsewhere.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Whether versions wait to be put in place.
    pub fn is_waiting(&self) -> bool {
        self.handle.0.waiting.load(Ordering::Acquire)
    }

    /// Puts in place what waits; the caller sees to it that no token is in flight.
    pub fn apply(&self, exchange: &mut Exchange<'_>) {
        self.handle.0.apply(exchange);
    }
}

impl Drop for Residency {
    fn drop(&mut self) {
        self.handle.0.lock().stop = true;
        self.handle.0.changed.notify_all();
        if let Some(reader) = self.reader.take() {
            // It has nothing to say that `failure` did not.
            let _ = reader.join();
        }
    }
}

impl Handle {
    /// The stack of the file.
    pub fn stack(&self) -> &Stack {
        &self.0.stack
    }

    /// Wants the first `blocks` blocks, as far as the file has them, whatever the limit is; returns at once.
    pub fn set_blocks(&self, blocks: usize) {
        self.0.lock().ask(blocks.min(self.0.stack.blocks().len()));
        self.0.changed.notify_all();
    }

    /// Wants as many blocks as fit into `bytes` of weights; returns at once what that is.
    ///
    /// # Errors
    /// [`Error::Budget`] if not even the least versions fit; nothing has changed then.
    pub fn set_limit(&self, bytes: u64) -> Result<usize> {
        let blocks = within(&self.0.stack, bytes)?;
        let mut state = self.0.lock();
        state.limit = Some(bytes);
        state.ask(blocks);
        drop(state);
        self.0.changed.notify_all();
        Ok(blocks)
    }

    /// Gives memory back, as a system asks for it; returns at once how many blocks are left to be. Another budget may bring the
    /// others back.
    pub fn trim(&self, shortage: Shortage) -> usize {
        let stack = &self.0.stack;
        let mut state = self.0.lock();
        let (least, used) = (stack.resident_bytes(0), stack.resident_bytes(state.target()));
        let keeps = used.saturating_sub(least) / 4 * shortage.quarters();
        let bytes = least.saturating_add(keeps).min(state.limit.unwrap_or(u64::MAX).max(least));
        // Not less than the least: there is no error.
        let blocks = within(stack, bytes).unwrap_or(0).min(state.target());
        state.limit = Some(bytes);
        state.ask(blocks);
        drop(state);
        self.0.changed.notify_all();
        blocks
    }

    /// What is in memory.
    pub fn resident(&self) -> Resident {
        let state = self.0.lock();
        let (stack, matrices) = (&self.0.stack, &self.0.matrices);
        // The first block that is not in use.
        let missing = matrices.iter().zip(&state.now).filter_map(|(m, now)| m.blocks.get(*now)).min();
        let blocks = missing.copied().unwrap_or(stack.blocks().len());
        let bytes = |m: &Matrix, version: usize| m.versions[version].info.bytes().unwrap_or(0) as u64;
        // A version may be smaller than the least: nothing but sense forbids it.
        let swap = |sum: u64, (m, now): (&Matrix, &usize)| sum + bytes(m, *now) - bytes(m, 0);
        let bytes = matrices.iter().zip(&state.now).fold(stack.resident_bytes(0), swap);
        Resident {
            blocks,
            target: state.target(),
            all: stack.blocks().len(),
            bytes,
            kl: stack.kl(blocks),
            failure: state.failure.clone(),
        }
    }

    /// Memory that is counted, if it is any of its own.
    pub fn account(&self) -> Option<&Account> {
        self.0.home.account()
    }

    /// Waits until what is wanted is in use, or as much of it as there can be, and what was replaced is gone; at most `time`.
    /// Says whether it is what was wanted.
    pub fn wait(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut state = self.0.lock();
        loop {
            let settled = state.pending.is_empty() && state.retired.is_empty() && !state.busy;
            let done = settled && self.0.coming(&state).is_empty();
            let left = end.saturating_duration_since(Instant::now());
            if done || left.is_zero() {
                return done && state.failure.is_none();
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// As many blocks as can be reached with `bytes` of memory: on the way there is room for each beside what it replaces.
///
/// # Errors
/// [`Error::Budget`] if not even the least versions fit.
pub fn within(stack: &Stack, bytes: u64) -> Result<usize> {
    let least = stack.resident_bytes(0);
    if bytes < least {
        return Err(Error::Budget { bytes, least });
    }
    let beyond = (1..=stack.blocks().len()).find(|n| needed_for(stack, *n) > bytes);
    Ok(beyond.map_or(stack.blocks().len(), |n| n - 1))
}

/// The memory that it takes to come to the first `blocks` blocks: [`within`] so many bytes are they.
pub fn needed(stack: &Stack, blocks: usize) -> u64 {
    (1..=blocks).map(|n| needed_for(stack, n)).fold(stack.resident_bytes(0), u64::max)
}

/// What the last step to `n` blocks takes: room for a block beside what it replaces.
fn needed_for(stack: &Stack, n: usize) -> u64 {
    stack.resident_bytes(n - 1).saturating_add(stack.blocks()[n - 1].bytes)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the blocks that the file has by now.
    fn look_for_blocks(&self, state: &mut State) {
        let len = self.home.len();
        let blocks = self.stack.blocks();
        while blocks.get(state.present).is_some_and(|b| b.range.end <= len) {
            state.present += 1;
        }
    }

    /// The version that a matrix is to be in.
    fn wanted_version(&self, state: &State, matrix: usize) -> usize {
        let wanted = self.matrices[matrix].version_at(state.target());
        let good = (0..=wanted).rev().find(|v| !state.bad.contains(&(matrix, *v)));
        good.unwrap_or(state.now[matrix])
    }

    /// The versions to read, and their matrices. Room first: from the last block that is too much on; then from the first that
    /// is missing.
    fn coming(&self, state: &State) -> Vec<(usize, usize)> {
        let (mut down, mut up) = (Vec::new(), Vec::new());
        for (i, (matrix, read)) in self.matrices.iter().zip(&state.read).enumerate() {
            match self.wanted_version(state, i) {
                to if to < *read => down.push((Reverse(matrix.blocks[read - 1]), (i, to))),
                to if to > *read => up.push((matrix.blocks[to - 1], (i, to))),
                _ => {}
            }
        }
        down.sort_unstable();
        up.sort_unstable();
        down.into_iter().map(|(_, change)| change).chain(up.into_iter().map(|(_, change)| change)).collect()
    }

    fn apply(&self, exchange: &mut Exchange<'_>) {
        let mut state = self.lock();
        for Change { matrix, version, loaded } in std::mem::take(&mut state.pending) {
            match exchange(&self.matrices[matrix].name, loaded) {
                Ok(old) => {
                    state.retired.push(old);
                    state.now[matrix] = version;
                }
                Err(why) => {
                    state.read[matrix] = state.now[matrix];
                    state.fail(matrix, version, why);
                }
            }
        }
        self.waiting.store(false, Ordering::Release);
        self.changed.notify_all();
    }
}

/// What blocks speak of, in the order in which they first do.
fn matrices(stack: &Stack, gguf: &Gguf<'_>, sums: &[u64]) -> Result<Vec<Matrix>> {
    let mut all: Vec<Matrix> = Vec::new();
    for (i, block) in stack.blocks().iter().enumerate() {
        let piece = Piece::find(gguf, &block.info, sums)?;
        match all.iter_mut().find(|m| m.name == block.matrix) {
            Some(m) => {
                m.versions.push(piece);
                m.blocks.push(i);
            }
            None => {
                let least = stack.older(i).map(|info| Piece::find(gguf, info, sums)).transpose()?;
                let versions = least.into_iter().chain([piece]).collect();
                all.push(Matrix { name: block.matrix.clone(), versions, blocks: vec![i] });
            }
        }
    }
    Ok(all)
}
