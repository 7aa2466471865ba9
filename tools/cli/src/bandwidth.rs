//! How fast this machine's memory can be read: the roof of decoding, which reads every weight for every
//! token.
//!
//! A pure-read loop over a buffer that no cache holds, on the same worker pool as the models. What counts is
//! the fastest pass: a roof is what was possible, and a pass that another program disturbed says less about
//! it.

use crate::interrupt;
use anyhow::Context;
use lutite_runtime::os::{memory, topology};
use lutite_runtime::pool::{Pool, PoolConfig};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Least size of the buffer.
const BYTES_MIN: u64 = 256 << 20;

/// Words of a chunk that one worker claims: 1 MiB, some 50 us of reading.
const CHUNK: usize = (1 << 20) / size_of::<u64>();

/// Passes are timed for this long, and at least [`PASSES_MIN`] times.
const TIME: Duration = Duration::from_millis(400);
/// See [`TIME`].
const PASSES_MIN: usize = 5;

/// A buffer to read.
pub(crate) struct ReadBandwidth {
    words: Vec<u64>,
}

impl ReadBandwidth {
    /// Makes the buffer: 256 MiB or more, 8 times a last-level cache and twice all of them together, but no
    /// more than a quarter of what memory is left.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub(crate) fn new() -> anyhow::Result<ReadBandwidth> {
        let caches = topology::last_level_cache()
            .map_or(0, |c| c.bytes.saturating_mul(8).max(c.bytes.saturating_mul(2 * c.count as u64)));
        let room = memory::available().map_or(u64::MAX, |m| m.bytes / 4);
        let len = (caches.max(BYTES_MIN).min(room) as usize / size_of::<u64>()).max(CHUNK);
        let mut words = Vec::new();
        words
            .try_reserve_exact(len)
            .with_context(|| format!("no memory for a buffer of {} MiB to read", len >> 17))?;
        // Not zero: zeroed memory may be one page of the system's, mapped over and over.
        words.resize(len, 0x0123_4567_89ab_cdef);
        Ok(ReadBandwidth { words })
    }

    /// Bytes per second that `threads` workers read together.
    ///
    /// # Errors
    /// When the workers cannot be started; [`crate::ui::Quit::Interrupted`] after Ctrl-C.
    pub(crate) fn measure(&self, threads: usize) -> anyhow::Result<f64> {
        let mut pool = Pool::new(&PoolConfig { workers: threads, ..PoolConfig::default() })?;
        let chunks = self.words.len() / CHUNK;
        let mut best = Duration::MAX;
        let begin = Instant::now();
        let mut passes = 0;
        while passes < PASSES_MIN || begin.elapsed() < TIME {
            interrupt::check(interrupt::flag())?;
            let start = Instant::now();
            pool.each(chunks, |c| {
                black_box(sum(&self.words[c * CHUNK..(c + 1) * CHUNK]));
            });
            best = best.min(start.elapsed());
            passes += 1;
        }
        Ok((chunks * CHUNK * size_of::<u64>()) as f64 / best.as_secs_f64())
    }
}

/// In 16 independent lanes, which the compiler keeps in 8 registers of the oldest vector extension: two loads
/// per cycle, several times what memory delivers.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0_u64; 16];
    for block in words.as_chunks::<16>().0 {
        for (lane, word) in lanes.iter_mut().zip(block) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}
