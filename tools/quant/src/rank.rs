//! In which order parts of a model are best brought from one level to the next.
//!
//! What a part costs at each level is known. Every part climbs the concave hull of what it gains: a step that brings more for its
//! bytes than the one before is taken together with it. All steps, the steepest first, are the order.

/// What a part is at a level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Bytes of memory; ascending with levels.
    pub bytes: u64,
    /// Loss of the model, compared to the part being exact.
    pub kl: f64,
}

/// A part that is brought up to a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rise {
    /// Which part.
    pub part: usize,
    /// To which level; above the least, which is 0.
    pub level: usize,
}

/// The order of all rises; `costs` is `[part][level]`, as long for all parts. A rise that costs no bytes is one of the first.
pub fn rank(costs: &[Vec<Cost>]) -> Vec<Rise> {
    let mut steps = Vec::new();
    for (part, costs) in costs.iter().enumerate() {
        // Last level, bytes, and gain of each step of the hull.
        let mut hull: Vec<(usize, f64, f64)> = Vec::new();
        for (level, pair) in costs.windows(2).enumerate() {
            let bytes = pair[1].bytes.saturating_sub(pair[0].bytes).max(1) as f64;
            let mut step = (level + 1, bytes, pair[0].kl - pair[1].kl);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steep_steps_come_first_and_parts_stay_in_their_order() {
        let part =
            |kls: [f64; 3]| (0..).zip(kls).map(|(level, kl)| Cost { bytes: 7 + 10 * level, kl }).collect();
        let costs = [
            part([2.0, 1.0, 0.5]),
            part([3.2, 0.2, 0.1]),
            // More behind than before: taken together.
            part([1.7, 1.5, 0.1]),
            // Nothing gained, or less than nothing: last.
            part([0.0, 0.1, 0.1]),
        ];
        let order: Vec<(usize, usize)> = rank(&costs).iter().map(|r| (r.part, r.level)).collect();
        assert_eq!(order, [(1, 1), (0, 1), (2, 2), (0, 2), (1, 2), (3, 2)]);
        assert!(rank(&[]).is_empty());
    }
}
