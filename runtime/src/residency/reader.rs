//! The thread that reads versions and drops those that were replaced.

use super::{Change, Host, Matrix, Piece, Shared, State};
use crate::os::priority::yield_to_others;
use crate::store::MatrixInfo;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

/// How long to wait for a token to end before looking whether anybody computes at all.
const TOKEN: Duration = Duration::from_millis(2);

/// How often a file that is still arriving is looked at.
const ARRIVAL: Duration = Duration::from_millis(250);

/// Bytes that the disk is told of before they are read: some milliseconds of a fast one.
const AHEAD_BYTES: u64 = 8 << 20;

/// Bytes that may wait to be put in place on the way down, beside what they replace: one version always may.
const WAITING_BYTES: u64 = 4 << 20;

pub(super) fn run(shared: &Shared, host: &impl Host) {
    // Whoever computes waits for nobody who has time.
    yield_to_others();
    // Versions that the disk was told of, so that it works on the next ones while one is copied and checked.
    let mut told = HashSet::new();
    loop {
        let mut state = shared.lock();
        if state.stop {
            return;
        }
        shared.look_for_blocks(&mut state);
        turn_back(shared, &mut state);
        if !state.retired.is_empty() {
            let retired = std::mem::take(&mut state.retired);
            state.busy = true;
            drop(state);
            drop(retired);
            shared.lock().busy = false;
            shared.changed.notify_all();
            continue;
        }
        let coming = shared.coming(&state);
        let Some((matrix, version)) = coming.first().copied() else {
            told.clear();
            if state.pending.is_empty() {
                // A file that lacks blocks may be arriving.
                let arriving = state.present < shared.stack.blocks().len();
                wait(shared, state, if arriving { ARRIVAL } else { Duration::MAX });
            } else {
                put_in_place(shared, host, state);
            }
            continue;
        };
        let Matrix { name, versions, .. } = &shared.matrices[matrix];
        // Nothing of this matrix is pending: what was read is what is in use.
        let (piece, before) = (&versions[version], state.read[matrix]);
        let bytes = piece.bytes_beside(&versions[before].info);
        if !state.pending.is_empty() && !has_room(shared, &state, bytes, version > before) {
            put_in_place(shared, host, state);
            continue;
        }
        state.busy = true;
        let ahead = ahead(shared, &state, &coming, &mut told);
        told.remove(&(matrix, version));
        drop(state);
        ahead.into_iter().for_each(|(piece, before)| shared.home.ahead(piece, before));
        let loaded = shared.home.load(piece, host.current(name).as_ref());
        let mut state = shared.lock();
        state.busy = false;
        match loaded {
            Ok(loaded) => {
                state.pending.push(Change { matrix, version, loaded });
                state.read[matrix] = version;
                shared.waiting.store(true, Ordering::Release);
            }
            Err(e) => {
                state.fail(matrix, version, e.to_string());
                shared.changed.notify_all();
            }
        }
        drop(state);
        host.between_tokens(&mut |exchange| shared.apply(exchange));
    }
}

/// What the disk is to be told of: what comes, but for what it was told already.
fn ahead<'s>(
    shared: &'s Shared,
    state: &State,
    coming: &[(usize, usize)],
    told: &mut HashSet<(usize, usize)>,
) -> Vec<(&'s Piece, &'s MatrixInfo)> {
    let mut bytes = 0;
    let mut ahead = Vec::new();
    for &(matrix, version) in coming {
        let versions = &shared.matrices[matrix].versions;
        let (piece, before) = (&versions[version], &versions[state.read[matrix]].info);
        if told.insert((matrix, version)) {
            ahead.push((piece, before));
        }
        bytes += piece.bytes_beside(before);
        if bytes >= AHEAD_BYTES {
            break;
        }
    }
    ahead
}

/// Forgets what was read and is no longer wanted.
fn turn_back(shared: &Shared, state: &mut State) {
    for change in std::mem::take(&mut state.pending) {
        if shared.wanted_version(state, change.matrix) == change.version {
            state.pending.push(change);
        } else {
            state.read[change.matrix] = state.now[change.matrix];
            state.retired.push(change.loaded);
        }
    }
}

/// Whether a version of so many bytes may be read while others wait to be put in place.
fn has_room(shared: &Shared, state: &State, bytes: u64, up: bool) -> bool {
    let waiting: u64 = state.pending.iter().map(|c| c.loaded.bytes() as u64).sum();
    match (shared.home.account(), state.limit) {
        (Some(account), Some(limit)) if up => account.now() + bytes <= limit,
        (Some(_), _) => waiting + bytes <= WAITING_BYTES,
        _ => true,
    }
}

/// Puts in place what waits, or lets the one who computes do it before the next token.
fn put_in_place(shared: &Shared, host: &impl Host, state: MutexGuard<'_, State>) {
    drop(state);
    if !host.between_tokens(&mut |exchange| shared.apply(exchange)) {
        let state = shared.lock();
        if !state.pending.is_empty() {
            wait(shared, state, TOKEN);
        }
    }
}

fn wait(shared: &Shared, state: MutexGuard<'_, State>, time: Duration) {
    let _state = match time {
        Duration::MAX => shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
        time => shared.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
    };
}
