//! From logits to the scores of a position.
//!
//! All in f64: a KL divergence of 1e-5 is the small difference of numbers around 10. The exponential is a
//! polynomial in plain arithmetic, which compilers turn into vector code and which gives the same on every
//! machine; the C library's would take most of the time of a small model's evaluation.

use std::f64::consts::LOG2_E;

/// Sums run side by side in so many parts, so that they vectorize.
const LANES: usize = 8;

/// e^x for x from about -708, below which it stays at e^-708, to 709; relative error below 1e-11.
#[inline(always)]
fn exp(x: f64) -> f64 {
    // ln 2 in two parts, the first with enough zeros at its end for n * LN2_HIGH to be exact (Cody and Waite).
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    // 1.5 * 2^52: what is added to it is rounded to a whole number, which then stands in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    // Taylor's series: on |r| <= ln(2)/2 the first term left out is 0.3466^10 / 10! = 7e-12.
    const C: [f64; 9] = [
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
    ];
    let x = if x > -708.0 { x } else { -708.0 };
    let t = x * LOG2_E + ROUND;
    let n = t - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = C[0];
    for c in &C[1..] {
        p = p * r + c;
    }
    p = p * r + 1.0;
    // Adds n to the exponent; it stays that of a normal number.
    f64::from_bits(p.to_bits().wrapping_add(t.to_bits() << 52))
}

/// Largest number of a row, or `None` where a number is not finite or there is none.
fn largest(row: &[f32]) -> Option<f32> {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut odd = [0.0f32; LANES]; // becomes NaN where a number is not finite
    let (whole, rest) = row.as_chunks::<LANES>();
    for b in whole {
        for j in 0..LANES {
            max[j] = if b[j] > max[j] { b[j] } else { max[j] };
            odd[j] += b[j] * 0.0;
        }
    }
    let max = max.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max);
    let finite = odd.into_iter().all(|x| x == 0.0) && rest.iter().all(|x| x.is_finite());
    (finite && !row.is_empty()).then_some(max)
}

/// log(sum(exp(x))) of a row of logits; `None` where one is not finite or there is none. Error below 1e-10.
#[must_use]
pub fn log_sum_exp(row: &[f32]) -> Option<f64> {
    let max = f64::from(largest(row)?);
    let mut sums = [0.0; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for b in whole {
        for j in 0..LANES {
            sums[j] += exp(f64::from(b[j]) - max);
        }
    }
    let rest: f64 = rest.iter().map(|x| exp(f64::from(*x) - max)).sum();
    Some(max + (sums.into_iter().sum::<f64>() + rest).ln())
}

/// Minus the logarithm of the probability that `logits` give to `target`; `None` where they are not finite or
/// do not have it.
#[must_use]
pub fn nll(logits: &[f32], target: u32) -> Option<f64> {
    let of_target = *logits.get(target as usize)?;
    Some(log_sum_exp(logits)? - f64::from(of_target))
}

/// The reference's word on a position.
#[derive(Clone, Copy, Debug)]
pub enum Reference<'a> {
    /// Logits of a model.
    Logits(&'a [f32]),
    /// Logarithms of probabilities, as a file of llama.cpp has them: rounded, and cut off at some 16 below the
    /// largest logit. What llama.cpp leaves out of its sum, below [`FLOOR`], is left out.
    LogProbs(&'a [f32]),
}

/// Logarithms of probabilities up to this do not count in [`Reference::LogProbs`].
pub const FLOOR: f32 = -16.0;

/// Scores of a position against the reference's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// KL(reference || model), in nats.
    pub kl: f64,
    /// Minus the logarithm of the model's probability of the true next token.
    pub nll: f64,
    /// The same of the reference's.
    pub reference_nll: f64,
    /// The model's probability of the true next token less the reference's.
    pub p_diff: f64,
    /// Whether both have the same best token.
    pub same_top: bool,
}

/// Compares a row of `logits` with the reference's; `None` where a number is not finite, the lengths differ or
/// `target` is in neither.
#[must_use]
pub fn compare(reference: Reference<'_>, logits: &[f32], target: u32) -> Option<Compared> {
    let (row, shift, floor) = match reference {
        Reference::Logits(row) => (row, log_sum_exp(row)?, f64::NEG_INFINITY),
        Reference::LogProbs(row) => (row, 0.0, f64::from(FLOOR)),
    };
    let (best, own_best) = (largest(row)?, largest(logits)?);
    let norm = log_sum_exp(logits)?;
    if row.len() != logits.len() {
        return None;
    }
    let nll = norm - f64::from(*logits.get(target as usize)?);
    let reference_nll = shift - f64::from(*row.get(target as usize)?);
    Some(Compared {
        kl: divergence(row, shift, floor, logits, norm),
        nll,
        reference_nll,
        p_diff: (-nll).exp() - (-reference_nll).exp(),
        same_top: row.iter().position(|x| *x == best) == logits.iter().position(|x| *x == own_best),
    })
}

/// sum(p * (log p - log q)) over what has log p above `floor`, where log p = a - `a_norm` and log q = b - `b_norm`.
fn divergence(a: &[f32], a_norm: f64, floor: f64, b: &[f32], b_norm: f64) -> f64 {
    let term = |a: f32, b: f32| {
        let log_p = f64::from(a) - a_norm;
        let term = exp(log_p) * (log_p - (f64::from(b) - b_norm));
        if log_p > floor { term } else { 0.0 }
    };
    let mut sums = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for j in 0..LANES {
            sums[j] += term(a[j], b[j]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| term(*a, *b)).sum();
    sums.into_iter().sum::<f64>() + rest
}

/// `f` of 0 to `n`, in order, computed on up to `threads` threads.
pub fn each<T: Send>(threads: usize, n: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let share = n.div_ceil(threads.max(1)).max(1);
    let f = &f;
    std::thread::scope(|s| {
        let part = move |from: usize| (from..n.min(from + share)).map(f).collect::<Vec<T>>();
        let others: Vec<_> = (share..n).step_by(share).map(|from| s.spawn(move || part(from))).collect();
        let mut all = part(0);
        for other in others {
            // A panic over there is one here.
            all.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        all
    })
}
/// The KL divergence of `found` from `expected` at each position, logits of `vocab` tokens each, on `threads` threads; `None`
/// where a logit is not finite.
pub(crate) fn divergences(expected: &[f32], found: &[f32], vocab: usize, threads: usize) -> Option<Vec<f64>> {
    let one = |(expected, found): (&[f32], &[f32])| {
        compare(Reference::Logits(expected), found, 0).map(|one| one.kl)
    };
    // Positions are shared out among threads, and come back in their order.
    let part = (expected.len() / vocab).div_ceil(threads.max(1)).max(1) * vocab;
    std::thread::scope(|scope| {
        let parts = expected.chunks(part).zip(found.chunks(part));
        let threads: Vec<_> = parts
            .map(|(expected, found)| {
                let positions = move || expected.chunks_exact(vocab).zip(found.chunks_exact(vocab));
                scope.spawn(move || positions().map(one).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().unwrap_or_else(|_| vec![None])).collect()
    })
}
