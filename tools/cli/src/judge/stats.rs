//! From the scores of positions to the figures that are printed. The formulas are llama-perplexity's.

use super::score::Compared;
use serde::Serialize;

/// Mean of numbers and its standard error, in one pass (Welford's method: sums of squares would cancel).
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Mean {
    /// Takes one more number.
    pub fn push(&mut self, x: f64) {
        self.count += 1;
        let before = x - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (x - self.mean);
    }

    /// How many numbers were taken.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean; 0 of nothing.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// The standard error of the mean; 0 for fewer than 2 numbers.
    #[must_use]
    pub fn error(&self) -> f64 {
        let n = self.count as f64;
        if self.count < 2 { 0.0 } else { (self.squares / n / (n - 1.0)).sqrt() }
    }

    /// Of numbers that are minus logarithms of probabilities: the perplexity.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.mean.exp()
    }

    /// The standard error of [`Mean::perplexity`], to first order.
    #[must_use]
    pub fn perplexity_error(&self) -> f64 {
        self.perplexity() * self.error()
    }
}

impl FromIterator<f64> for Mean {
    fn from_iter<I: IntoIterator<Item = f64>>(numbers: I) -> Mean {
        let mut mean = Mean::default();
        numbers.into_iter().for_each(|x| mean.push(x));
        mean
    }
}

/// The number below which `fraction` of the sorted numbers lie, between two of them where it falls there; NaN of
/// none.
#[must_use]
pub fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = fraction.clamp(0.0, 1.0) * last as f64;
    let low = (at as usize).min(last);
    let part = at - low as f64;
    sorted[low] * (1.0 - part) + sorted[(low + 1).min(last)] * part
}

/// How far a model is from its reference. Probabilities are from 0 to 1, divergences in nats; `_error` is a
/// standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it, and are the keys of the JSON that is printed")]
pub struct Divergence {
    pub positions: usize,
    pub mean_kl: f64,
    pub mean_kl_error: f64,
    pub median_kl: f64,
    pub p99_kl: f64,
    pub p99_9_kl: f64,
    pub max_kl: f64,
    pub top1_agreement: f64,
    pub top1_agreement_error: f64,
    pub reference_perplexity: f64,
    pub reference_perplexity_error: f64,
    pub perplexity: f64,
    pub perplexity_error: f64,
    pub perplexity_ratio: f64,
    pub perplexity_ratio_error: f64,
    pub rms_p_diff: f64,
    pub rms_p_diff_error: f64,
}

impl Divergence {
    /// The figures of these positions.
    #[must_use]
    pub fn of(positions: &[Compared]) -> Divergence {
        let n = positions.len();
        let mean = |f: fn(&Compared) -> f64| positions.iter().map(f).collect::<Mean>();
        let kl = mean(|p| p.kl);
        let nll = mean(|p| p.nll);
        let reference = mean(|p| p.reference_nll);
        // The two are strongly correlated: the error of their difference is much below either's.
        let ratio = mean(|p| p.nll - p.reference_nll);
        let squares = mean(|p| p.p_diff * p.p_diff);
        let same = mean(|p| f64::from(u8::from(p.same_top)));
        let rms = squares.mean().sqrt();
        let mut sorted: Vec<f64> = positions.iter().map(|p| p.kl).collect();
        sorted.sort_by(f64::total_cmp);
        Divergence {
            positions: n,
            mean_kl: kl.mean(),
            mean_kl_error: kl.error(),
            median_kl: percentile(&sorted, 0.5),
            p99_kl: percentile(&sorted, 0.99),
            p99_9_kl: percentile(&sorted, 0.999),
            max_kl: percentile(&sorted, 1.0),
            top1_agreement: same.mean(),
            top1_agreement_error: same.error(),
            reference_perplexity: reference.perplexity(),
            reference_perplexity_error: reference.perplexity_error(),
            perplexity: nll.perplexity(),
            perplexity_error: nll.perplexity_error(),
            perplexity_ratio: ratio.perplexity(),
            perplexity_ratio_error: ratio.perplexity_error(),
            rms_p_diff: rms,
            rms_p_diff_error: if rms > 0.0 { 0.5 / rms * squares.error() } else { 0.0 },
        }
    }
}
