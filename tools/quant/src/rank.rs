//! In which order parts of a model are best brought from one level to the next.
//!
//! What a part gains was measured at each level, with all other parts at that level: measured with errors that are as large as
//! the differences between parts. So each gain per byte is drawn to the mean of its level, the more the less its level's differ
//! beyond their errors (James and Stein). Then every part climbs the concave hull of its gains: a step that brings more
//! for its bytes than the one before is taken together with it. All steps, the steepest first, are the order.

/// What bringing a part up from a level gains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gain {
    /// Bytes of memory that it takes more; above 0.
    pub bytes: u64,
    /// Loss that it takes away.
    pub kl: f64,
    /// Standard error of that.
    pub error: f64,
}

/// A part that is brought up to a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rise {
    /// Which part.
    pub part: usize,
    /// To which level; above the least, which is 0.
    pub level: usize,
}

/// The order of all rises; `gains` is `[part][level]`, from level 0 on, as long for all parts.
pub fn rank(gains: &[Vec<Gain>]) -> Vec<Rise> {
    let levels = gains.iter().map(Vec::len).min().unwrap_or(0);
    let mut density = vec![vec![0.0; levels]; gains.len()];
    for level in 0..levels {
        let per_byte: Vec<(f64, f64)> = (gains.iter().map(|g| &g[level]))
            .map(|g| (g.kl / g.bytes.max(1) as f64, g.error / g.bytes.max(1) as f64))
            .collect();
        for (part, shrunk) in shrunk(&per_byte).into_iter().enumerate() {
            density[part][level] = shrunk;
        }
    }
    let mut steps = Vec::new();
    for (part, (gains, density)) in gains.iter().zip(&density).enumerate() {
        // Last level, bytes, and gain of each step of the hull.
        let mut hull: Vec<(usize, f64, f64)> = Vec::new();
        for (level, (g, density)) in gains[..levels].iter().zip(density).enumerate() {
            let mut step = (level + 1, g.bytes as f64, density * g.bytes as f64);
            while let Some(last) = hull.last()
                && last.2 / last.1 <= step.2 / step.1
            {
                step = (step.0, step.1 + last.1, step.2 + last.2);
                hull.pop();
            }
            hull.push(step);
        }
        steps.extend(hull.into_iter().map(|(level, bytes, gain)| (gain / bytes, Rise { part, level })));
    }
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1.part, a.1.level).cmp(&(b.1.part, b.1.level))));
    steps.into_iter().map(|(_, rise)| rise).collect()
}

/// Values with errors, drawn to their mean.
fn shrunk(values: &[(f64, f64)]) -> Vec<f64> {
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|v| v.0).sum::<f64>() / n;
    let spread = values.iter().map(|v| (v.0 - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let noise = values.iter().map(|v| v.1 * v.1).sum::<f64>() / n;
    let true_spread = (spread - noise).max(0.0);
    let kept = |error: f64| if true_spread > 0.0 { true_spread / (true_spread + error * error) } else { 0.0 };
    values.iter().map(|(value, error)| mean + kept(*error) * (value - mean)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gain(bytes: u64, kl: f64, error: f64) -> Gain {
        Gain { bytes, kl, error }
    }

    #[test]
    fn steep_steps_come_first_and_parts_stay_in_their_order() {
        let gains = [
            vec![gain(10, 1.0, 0.0), gain(10, 0.5, 0.0)],
            vec![gain(10, 3.0, 0.0), gain(10, 0.1, 0.0)],
            // More behind than before: taken together.
            vec![gain(10, 0.2, 0.0), gain(10, 1.4, 0.0)],
        ];
        let order: Vec<(usize, usize)> = rank(&gains).iter().map(|r| (r.part, r.level)).collect();
        assert_eq!(order, [(1, 1), (0, 1), (2, 2), (0, 2), (1, 2)]);
        assert!(rank(&[]).is_empty());
    }

    #[test]
    fn what_is_only_noise_is_not_followed() {
        // The same for all, but for errors: then bytes decide nothing, and the order is that of the parts.
        let noise = [0.3, -0.2, 0.1, -0.4, 0.2];
        let gains: Vec<Vec<Gain>> = noise.iter().map(|n| vec![gain(10, 1.0 + n, 0.5)]).collect();
        let parts: Vec<usize> = rank(&gains).iter().map(|r| r.part).collect();
        assert_eq!(parts, [0, 1, 2, 3, 4]);
        // One that is far from the others is.
        let gains: Vec<Vec<Gain>> = [1.0, 1.1, 9.0, 0.9].iter().map(|kl| vec![gain(10, *kl, 0.1)]).collect();
        assert_eq!(rank(&gains)[0].part, 2);
    }
}
