//! The tokens still in the running, kept sorted only as far as somebody looked.
//!
//! A vocabulary has 50 to 260 thousand tokens and nearly all of the probability lies on a few dozen. So nothing here
//! sorts the whole list: top-k selects as it reads, and the others ask for the front of the list in doubling steps.

use std::cmp::Ordering;

/// A token and its logit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) logit: f32,
    pub(super) id: u32,
}

/// Highest logit first, then lowest id: a total order on the logits that [`super::Sampler`] lets in (no NaN; and
/// `total_cmp` alone would put 0.0 before -0.0, which compare equal to every reader).
fn before(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Candidates whose first `sorted` entries are in their final order and come before all the others.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    items: Vec<Candidate>,
    sorted: usize,
}

impl Candidates {
    /// Reads the logits, keeping the `k` best (0 or more than there are: all). Drops forbidden tokens (-inf).
    ///
    /// One pass. Only what beats the worst of the best `k` seen so far is kept; when `2 k` have gathered, a selection
    /// throws half away. That is linear in the vocabulary, whatever `k` is, and a compare per token for small `k`.
    pub(super) fn read(&mut self, logits: &[f32], k: usize) {
        self.items.clear();
        self.sorted = 0;
        let k = if k == 0 { logits.len() } else { k.min(logits.len()) };
        let high_water = k.saturating_mul(2).min(logits.len());
        self.items.reserve(high_water);
        let mut bar = f32::NEG_INFINITY;
        for (id, &logit) in (0_u32..).zip(logits) {
            // A later token with the bar's own logit has a higher id than `k` at least as good: it is not wanted.
            if logit > bar {
                self.items.push(Candidate { logit, id });
                if self.items.len() == high_water && high_water > k {
                    bar = self.items.select_nth_unstable_by(k - 1, before).1.logit;
                    self.items.truncate(k);
                }
            }
        }
        if self.items.len() > k {
            self.items.select_nth_unstable_by(k - 1, before);
            self.items.truncate(k);
        }
    }

    /// In final order as far as [`Self::sort_front`] went, in no particular order from there.
    pub(super) fn as_slice(&self) -> &[Candidate] {
        &self.items
    }

    /// Puts at least the first `n` into their final order.
    pub(super) fn sort_front(&mut self, n: usize) {
        let n = n.min(self.items.len());
        if n <= self.sorted {
            return;
        }
        let rest = &mut self.items[self.sorted..];
        let wanted = n - self.sorted;
        if wanted < rest.len() {
            rest.select_nth_unstable_by(wanted - 1, before);
        }
        rest[..wanted].sort_unstable_by(before);
        self.sorted = n;
    }

    /// The best candidate.
    pub(super) fn best(&mut self) -> Option<Candidate> {
        self.sort_front(1);
        self.items.first().copied()
    }

    /// Keeps the first `n`.
    pub(super) fn truncate(&mut self, n: usize) {
        self.sort_front(n);
        self.items.truncate(n);
        self.sorted = self.sorted.min(n);
    }

    /// Keeps those whose logit is at least `floor`.
    pub(super) fn retain_from(&mut self, floor: f64) {
        let keeps = |c: &Candidate| f64::from(c.logit) >= floor;
        let front = self.items[..self.sorted].partition_point(keeps);
        if front < self.sorted {
            // The sorted front ends the list; nothing behind it can be better.
            self.items.truncate(front);
        } else {
            self.items.retain(keeps);
        }
        self.sorted = front;
    }

    /// How many candidates, best first, it takes for their weights to pass `target`; all of them if they never do.
    ///
    /// Sorts in doubling steps, so it costs as much order as the answer is long.
    pub(super) fn count_until(&mut self, target: Target, weight: impl Fn(Candidate) -> f64) -> usize {
        let (mut done, mut sum) = (0, 0.0);
        while done < self.items.len() {
            self.sort_front((2 * done).max(FIRST_STEP));
            for &candidate in &self.items[done..self.sorted] {
                done += 1;
                sum += weight(candidate);
                if target.is_met_by(sum) {
                    return done;
                }
            }
        }
        done
    }
}

/// Enough for nearly every nucleus of a trained model, so that the doubling seldom starts.
const FIRST_STEP: usize = 64;

/// When a running sum of weights is enough.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// Reached or passed.
    AtLeast(f64),
    /// Passed.
    MoreThan(f64),
}

impl Target {
    fn is_met_by(self, sum: f64) -> bool {
        match self {
            Self::AtLeast(target) => sum >= target,
            Self::MoreThan(target) => sum > target,
        }
    }
}
