//! Bits for every matrix of a model that shall have a given size (stage D).
//!
//! What a matrix costs is measured ([`Sensitivity`]): the KL divergence of the model with this one held by
//! [`PROXY_PLANES`] planes fitted to its weights and to how large its inputs are, which takes seconds. What it would cost
//! with other numbers of planes follows by `COST`, and a model costs the sum of its matrices. Bytes then go where they lower
//! that sum most: every matrix climbs the convex hull of its choices, the steepest step first (Lagrange's method).

use crate::error::{Error, Result};
use crate::pack::file_bytes;
use crate::plan::{Bits, PackOptions, Plan};
use lutite_runtime::store::Gguf;
use std::collections::BTreeMap;

/// Planes that sensitivities are measured with.
pub const PROXY_PLANES: usize = 3;

/// Calibrated planes and what they cost, relative to a matrix' [`Sensitivity`]: the KL divergence of SmolLM2-135M with all
/// matrices of layers at 2, 3 and 4 planes, over the sum of what these cost one by one (`docs/speed.md`), and the same
/// steps from there on. What single planes cost does not add up.
const COST: [(usize, f64); 6] = [(2, 2.05), (3, 0.64), (4, 0.165), (5, 0.045), (6, 0.012), (8, 0.001)];

/// What a matrix costs with [`PROXY_PLANES`] planes by stage B, with the importance of its inputs, all others exact.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    /// Without `.weight`.
    pub name: String,
    /// Mean KL divergence, in nats.
    pub kl: f64,
}

/// How large a model shall be at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// The whole file.
    Bytes(u64),
    /// Over all matrices, embedding and head included.
    BitsPerWeight(f64),
}

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// With bits for each matrix.
    pub options: PackOptions,
    /// The KL divergence that is to be expected.
    pub kl: f64,
}

/// A way to hold a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Choice {
    bits: Bits,
    bytes: u64,
    kl: f64,
}

/// Chooses bits for the matrices that sensitivities are known of; `options.bits` and `options.head` are not used for them.
/// `method` as in [`file_bytes`].
///
/// # Errors
/// A size that cannot be reached, which the message then names.
pub fn allocate(
    source: &Gguf<'_>,
    options: &PackOptions,
    sensitivities: &[Sensitivity],
    size: Size,
    method: &str,
) -> Result<Allocation> {
    let with = |bits: &dyn Fn(usize) -> Bits| -> PackOptions {
        let each = sensitivities.iter().enumerate().map(|(i, s)| (s.name.clone(), bits(i)));
        PackOptions { bits: Bits::Exact, head: None, each: each.collect(), ..options.clone() }
    };
    let mut choices = vec![Vec::new(); sensitivities.len()];
    let costs = COST.iter().map(|(q, cost)| (Bits::Planes(*q), *cost)).chain([(Bits::Exact, 0.0)]);
    for (bits, cost) in costs {
        let plan = Plan::new(source, &with(&|_| bits))?;
        let bytes: BTreeMap<&str, u64> = plan.matrices().map(|m| (m.name, m.bytes)).collect();
        for (s, choices) in sensitivities.iter().zip(&mut choices) {
            let missing = || Error::Options(format!("the model has no matrix {}", s.name));
            let bytes = *bytes.get(s.name.as_str()).ok_or_else(missing)?;
            choices.push(Choice { bits, bytes, kl: s.kl * cost });
        }
    }
    let hulls: Vec<Vec<Choice>> = choices.into_iter().map(hull).collect();
    // What all of it takes, in the measure of the target, beside the limit.
    let excess = |picks: &[usize]| -> Result<f64> {
        let plan = Plan::new(source, &with(&|i| hulls[i][picks[i]].bits))?;
        Ok(match size {
            Size::Bytes(limit) => file_bytes(&plan, source, Some(method))? as f64 - limit as f64,
            Size::BitsPerWeight(limit) => {
                let weights: u64 = plan.matrices().map(|m| m.weights).sum();
                (plan.bits_per_weight() - limit) * weights as f64 / 8.0
            }
        })
    };
    let least = vec![0; hulls.len()];
    let mut room = -excess(&least)?;
    if room < 0.0 {
        let plan = Plan::new(source, &with(&|i| hulls[i][0].bits))?;
        let why = match size {
            Size::Bytes(_) => {
                format!("the file would have {} bytes at least", file_bytes(&plan, source, Some(method))?)
            }
            Size::BitsPerWeight(_) => format!("{:.3} bits per weight are the least", plan.bits_per_weight()),
        };
        return Err(Error::Options(format!("the model cannot become as small: {why}")));
    }
    // Heads of files grow with the number of planes, which bytes of matrices do not tell.
    loop {
        let picks = climb(&hulls, room.max(0.0) as u64);
        let over = excess(&picks)?;
        if over <= 0.0 {
            let kl = picks.iter().zip(&hulls).map(|(i, hull)| hull[*i].kl).sum();
            return Ok(Allocation { options: with(&|i| hulls[i][picks[i]].bits), kl });
        }
        // By less than what is taken nothing would change.
        let taken: u64 = picks.iter().zip(&hulls).map(|(i, hull)| hull[*i].bytes - hull[0].bytes).sum();
        room = room.min(taken as f64) - over.max(1.0);
    }
}

/// The choices on the lower convex hull of KL over bytes, by ascending bytes.
fn hull(mut choices: Vec<Choice>) -> Vec<Choice> {
    choices.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.kl.total_cmp(&b.kl)));
    let mut hull: Vec<Choice> = Vec::new();
    for c in choices {
        if hull.last().is_some_and(|last| last.kl <= c.kl) {
            continue;
        }
        while let [.., a, b] = hull[..]
            && slope(&a, &b) <= slope(&b, &c)
        {
            hull.pop();
        }
        hull.push(c);
    }
    hull
}

/// How much KL a byte saves between two choices.
fn slope(a: &Choice, b: &Choice) -> f64 {
    (a.kl - b.kl) / (b.bytes - a.bytes) as f64
}

/// From the least bytes on, takes the step that saves most for its bytes, as long as one fits into `room`.
fn climb(hulls: &[Vec<Choice>], mut room: u64) -> Vec<usize> {
    let mut picks = vec![0; hulls.len()];
    loop {
        let steps = (0..hulls.len()).filter_map(|i| {
            let (now, next) = (&hulls[i][picks[i]], hulls[i].get(picks[i] + 1)?);
            let bytes = next.bytes - now.bytes;
            (bytes <= room).then_some((slope(now, next), i, bytes))
        });
        // Of equal ones the first.
        let Some((_, i, bytes)) = steps.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1))) else {
            return picks;
        };
        picks[i] += 1;
        room -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lutite_runtime::os::map::Map;
    use lutite_runtime::store::{Bytes, ModelFile};
    use std::path::Path;

    fn random(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed;
        move |below| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        }
    }

    /// Least KL within `room` bytes over the least, by trying everything.
    fn best(choices: &[Vec<Choice>], room: u64) -> f64 {
        let least: u64 = choices.iter().map(|c| c.iter().map(|c| c.bytes).min().unwrap_or(0)).sum();
        let mut reached = vec![(0u64, 0.0)];
        for choices in choices {
            let all =
                reached.iter().flat_map(|(b, kl)| choices.iter().map(move |c| (b + c.bytes, kl + c.kl)));
            reached = all.filter(|(bytes, _)| *bytes <= least + room).collect();
        }
        reached.into_iter().map(|(_, kl)| kl).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn climbing_is_as_good_as_trying_everything_but_for_one_step() {
        let mut random = random(3);
        for _ in 0..300 {
            let mut choice = || {
                let planes = 1 + random(8) as usize;
                Choice { bits: Bits::Planes(planes), bytes: 10 + random(90), kl: random(1000) as f64 }
            };
            let choices: Vec<Vec<Choice>> = (0..5).map(|_| (0..4).map(|_| choice()).collect()).collect();
            let hulls: Vec<Vec<Choice>> = choices.iter().cloned().map(hull).collect();
            for hull in &hulls {
                assert!(hull.is_sorted_by(|a, b| a.bytes < b.bytes && a.kl > b.kl));
                assert!(hull.windows(3).all(|w| slope(&w[0], &w[1]) > slope(&w[1], &w[2])));
            }
            let room = random(300);
            let picks = climb(&hulls, room);
            let of = |f: &dyn Fn(&Choice) -> f64| -> f64 {
                hulls.iter().zip(&picks).map(|(h, i)| f(&h[*i])).sum()
            };
            let least: u64 = hulls.iter().map(|h| h[0].bytes).sum();
            assert!(of(&|c| c.bytes as f64) <= (least + room) as f64);
            // The largest step that there is, for the one that did not fit.
            let steps = hulls.iter().flat_map(|h| h.windows(2).map(|w| w[0].kl - w[1].kl));
            let found = of(&|c| c.kl);
            let (best, step) = (best(&choices, room), steps.fold(0.0, f64::max));
            assert!(best <= found && found <= best + step, "{best} {found} {step}");
        }
    }

    #[test]
    fn the_file_has_the_size_at_most_and_no_byte_too_few() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/data/reference/stories260K-f32.gguf");
        let file = ModelFile::from(&Bytes::new(Map::open(Path::new(path)).unwrap()));
        let gguf = file.gguf().unwrap();
        let options = PackOptions { group: 32, ..PackOptions::exact() };
        let all = Plan::new(&gguf, &PackOptions { bits: Bits::Planes(3), ..options.clone() }).unwrap();
        let mut random = random(5);
        let sensitivities: Vec<Sensitivity> = all
            .fitted()
            .map(|name| Sensitivity { name: name.into(), kl: random(100) as f64 / 1e4 })
            .collect();
        assert_eq!(sensitivities.len(), 36);
        let of = |size| allocate(&gguf, &options, &sensitivities, size, "cd");
        let mut last = f64::INFINITY;
        for bytes in [150_000, 160_000, 200_000, 250_000, 400_000, 2_000_000] {
            let found = of(Size::Bytes(bytes)).unwrap();
            let plan = Plan::new(&gguf, &found.options).unwrap();
            let size = file_bytes(&plan, &gguf, Some("cd")).unwrap();
            let largest = plan.matrices().map(|m| m.bytes).max().unwrap();
            assert!(size <= bytes && (found.kl == 0.0 || size + largest > bytes), "{size} {bytes}");
            assert!(found.kl < last);
            last = found.kl;
        }
        assert_eq!(last, 0.0);
        for bits in [3.7, 4.2, 5.0] {
            let found = of(Size::BitsPerWeight(bits)).unwrap();
            let is = Plan::new(&gguf, &found.options).unwrap().bits_per_weight();
            assert!(is <= bits && is > bits - 0.2, "{is} {bits}");
        }
        let why = of(Size::Bytes(90_000)).unwrap_err().to_string();
        assert!(why.contains("cannot become as small: the file would have "), "{why}");
        let why = of(Size::BitsPerWeight(1.0)).unwrap_err().to_string();
        assert!(why.contains("bits per weight are the least"), "{why}");
        let unknown = [Sensitivity { name: "blk.9.nothing".into(), kl: 1.0 }];
        assert!(allocate(&gguf, &options, &unknown, Size::Bytes(1 << 20), "cd").is_err());
    }
}
