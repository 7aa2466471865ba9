//! A budget that follows what memory there is: for those who were told nothing.
//!
//! Several times a second it looks at what could still be taken, and at whether the system is under pressure. Down it goes at
//! once; up only when the room for the next block has been there for a while, with a tenth to spare. Blocks whose loading makes
//! the room go away would else come and go for ever.

use super::{Handle, within};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often it looks.
const EVERY: Duration = Duration::from_millis(250);

/// How long room has to be there before it is taken.
const CALM: Duration = Duration::from_secs(2);

/// What is left to others, at the least, and as a share of the weights in use.
const RESERVE_BYTES: u64 = 32 << 20;
const RESERVE_SHARE: u64 = 20;

/// Under pressure so much of the weights goes at once, and again after [`CALM`]: what tells of pressure looks back further than
/// the time that giving memory back takes to help.
const PRESSURE_SHARE: u64 = 10;

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Bytes that this process could still take.
    pub free: u64,
    /// Whether processes wait for memory.
    pub pressure: bool,
}

/// When to change the limit, and to what.
#[derive(Debug, Default)]
struct Governor {
    /// Since when there has been room.
    since: Option<Instant>,
    /// When pressure last took its share.
    gave: Option<Instant>,
}

impl Governor {
    /// The bytes that weights may take from now on, if that changes: `used` is what they take now, `next` what the next block
    /// takes beside them, if there is one.
    fn look(&mut self, now: Instant, reading: Reading, used: u64, next: Option<u64>) -> Option<u64> {
        let reserve = RESERVE_BYTES.max(used / RESERVE_SHARE);
        let missing = reserve.saturating_sub(reading.free);
        if missing > 0 || reading.pressure {
            self.since = None;
            let gives = reading.pressure && self.gave.is_none_or(|gave| now.duration_since(gave) >= CALM);
            if gives {
                self.gave = Some(now);
            }
            let less = missing.max(if gives { used / PRESSURE_SHARE } else { 0 });
            return (less > 0).then(|| used.saturating_sub(less));
        }
        let room = reading.free - reserve;
        if next.is_none_or(|next| room < next + next / 10) {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) < CALM {
            return None;
        }
        self.since = None;
        Some(used + room)
    }
}

/// Follows what memory there is, until it is dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to change the limit of `handle` by what `read` finds; where that finds nothing, nothing changes.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn start(
        handle: Handle,
        mut read: impl FnMut() -> Option<Reading> + Send + 'static,
    ) -> std::io::Result<Watch> {
        let (stop, stopped) = mpsc::channel();
        let mut governor = Governor::default();
        let look = move || {
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let Some(reading) = read() else { continue };
                let stack = handle.stack();
                let resident = handle.resident();
                // What is on its way counts as used: else it would be given away twice.
                let target = resident.target;
                let used = resident.bytes.max(stack.resident_bytes(target));
                let next = stack.blocks().get(target).map(|b| b.bytes);
                let limit = governor.look(Instant::now(), reading, used, next);
                // Below the least there is nothing to give back. What changes nothing is not asked for: it would have versions
                // tried again that could not be had.
                let limit = limit.map(|limit| limit.max(stack.resident_bytes(0)));
                if let Some(limit) = limit.filter(|limit| within(stack, *limit).is_ok_and(|n| n != target)) {
                    let _ = handle.set_limit(limit);
                }
            }
        };
        let thread = thread::Builder::new().name("lutite-memory".into()).spawn(look)?;
        Ok(Watch { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn free(mb: u64) -> Reading {
        Reading { free: mb * MB, pressure: false }
    }

    #[test]
    fn down_at_once_and_up_after_a_while() {
        let (mut governor, start) = (Governor::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let (used, next) = (400 * MB, Some(10 * MB));
        // 32 MB are left to others.
        assert_eq!(governor.look(at(0), free(32), used, next), None);
        assert_eq!(governor.look(at(250), free(20), used, next), Some(388 * MB));
        assert_eq!(governor.look(at(500), free(0), used, next), Some(368 * MB));
        // Room for the block, but not with a tenth to spare.
        assert_eq!(governor.look(at(750), free(42), used, next), None);
        assert_eq!(governor.look(at(3000), free(42), used, next), None);
        // Room, which has to last.
        assert_eq!(governor.look(at(3250), free(132), used, next), None);
        assert_eq!(governor.look(at(4250), free(132), used, next), None);
        assert_eq!(governor.look(at(5250), free(132), used, next), Some(500 * MB));
        // A moment without it, and the wait begins again.
        assert_eq!(governor.look(at(5500), free(132), used, next), None);
        assert_eq!(governor.look(at(6500), free(40), used, next), None);
        assert_eq!(governor.look(at(7600), free(132), used, next), None);
        assert_eq!(governor.look(at(9600), free(132), used, next), Some(500 * MB));
        // Everything is there.
        assert_eq!(governor.look(at(9850), free(5000), used, None), None);
    }

    #[test]
    fn pressure_takes_a_share_now_and_then_however_much_is_free() {
        let (mut governor, start) = (Governor::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let pressed = Reading { free: 5000 * MB, pressure: true };
        assert_eq!(governor.look(at(0), pressed, 400 * MB, Some(MB)), Some(360 * MB));
        // It is told for longer than it lasts.
        assert_eq!(governor.look(at(250), pressed, 360 * MB, Some(MB)), None);
        assert_eq!(governor.look(at(1900), pressed, 360 * MB, Some(MB)), None);
        assert_eq!(governor.look(at(2000), pressed, 360 * MB, Some(MB)), Some(324 * MB));
        // What is missing goes at any time, and where it is more than the share, it is that.
        let both = Reading { free: 0, pressure: true };
        assert_eq!(governor.look(at(2250), both, 324 * MB, Some(MB)), Some(292 * MB));
        assert_eq!(governor.look(at(5000), both, 1000 * MB, Some(MB)), Some(900 * MB));
        assert_eq!(governor.look(at(8000), both, 100 * MB, Some(MB)), Some(68 * MB));
    }
}
