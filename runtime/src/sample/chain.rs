//! The steps of the chain, each a function on what the step before it left.

use super::candidates::{Candidate, Candidates, Target};
use std::collections::{HashMap, VecDeque};

/// The last `n` tokens, with how often each is among them.
#[derive(Clone, Debug)]
pub(super) struct Recent {
    window: VecDeque<u32>,
    counts: HashMap<u32, u32>,
    size: usize,
}

impl Recent {
    /// `size` may be a whole context, so memory grows with what is seen and is not taken beforehand.
    pub(super) fn new(size: usize) -> Self {
        Self { window: VecDeque::new(), counts: HashMap::new(), size }
    }

    pub(super) fn push(&mut self, token: u32) {
        if self.size == 0 {
            return;
        }
        if self.window.len() == self.size {
            self.pop_oldest();
        }
        self.window.push_back(token);
        *self.counts.entry(token).or_insert(0) += 1;
    }

    fn pop_oldest(&mut self) {
        let Some(oldest) = self.window.pop_front() else { return };
        if let Some(count) = self.counts.get_mut(&oldest) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.window.clear();
        self.counts.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.window.is_empty()
    }

    /// Divides the positive and multiplies the negative logits of the tokens seen, once each however often they were
    /// seen (llama.cpp, `llama_sampler_penalties_apply`; Keskar et al., "CTRL", 2019, section 4.1, has only the
    /// division, which would reward a negative logit).
    pub(super) fn penalise(&self, logits: &mut [f32], penalty: f32) {
        for &token in self.counts.keys() {
            // A token this vocabulary lacks cannot be drawn, so there is nothing to penalise.
            if let Some(logit) = logits.get_mut(token as usize) {
                let scaled = if *logit <= 0.0 { *logit * penalty } else { *logit / penalty };
                // A penalty below 1 is a reward; it must not turn a large finite logit into +inf.
                *logit = scaled.min(f32::MAX);
            }
        }
    }
}

/// Nucleus sampling: the fewest best candidates that together have probability `p`.
///
/// Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020, section 3.1. As in llama.cpp the
/// probabilities are those among the candidates left, at temperature 1.
pub(super) fn top_p(candidates: &mut Candidates, p: f32) {
    if p >= 1.0 {
        return;
    }
    let Some(best) = candidates.best() else { return };
    let weight = |c: Candidate| weight(c, best, 1.0);
    let total = candidates.as_slice().iter().map(|&c| weight(c)).sum::<f64>();
    let keep = candidates.count_until(Target::AtLeast(f64::from(p) * total), weight);
    candidates.truncate(keep);
}

/// Keeps the candidates at least `p` times as probable as the best.
///
/// Nguyen et al., "Turning Up the Heat: Min-p Sampling", ICLR 2025, section 3. The ratio of two probabilities is the
/// exponential of the difference of their logits, so no sum is needed.
pub(super) fn min_p(candidates: &mut Candidates, p: f32) {
    if p <= 0.0 {
        return;
    }
    let Some(best) = candidates.best() else { return };
    candidates.retain_from(f64::from(best.logit) + libm::log(f64::from(p)));
}

/// The first candidate, best first, at which the running sum of probabilities passes `u`, for `u` in `[0, 1)`.
///
/// The order is part of the contract: it makes a draw a function of logits and `u` alone.
pub(super) fn draw(candidates: &mut Candidates, temperature: f32, u: f64) -> Option<u32> {
    let best = candidates.best()?;
    let weight = |c: Candidate| weight(c, best, temperature);
    let total = candidates.as_slice().iter().map(|&c| weight(c)).sum::<f64>();
    let passed = candidates.count_until(Target::MoreThan(u * total), weight);
    // Where the sums round apart by the order of addition, the last candidate takes what is left of [0, 1).
    Some(candidates.as_slice()[passed - 1].id)
}

/// `exp((logit - best) / temperature)`, in `[0, 1]`.
///
/// By `libm`, not by the platform: every machine must draw the same token, also where a model is split between two.
fn weight(candidate: Candidate, best: Candidate, temperature: f32) -> f64 {
    libm::exp((f64::from(candidate.logit) - f64::from(best.logit)) / f64::from(temperature))
}
