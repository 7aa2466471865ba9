//! The sampler against a slow and obvious twin, against counts, and against its own promises.

use super::*;
use proptest::prelude::*;

/// The chain as its description reads: sort everything, filter, walk.
fn twin(config: &SamplerConfig, accepted: &[u32], logits: &[f32], position: u64) -> Option<u32> {
    let mut all: Vec<(f64, u32)> = Vec::new();
    let recent = &accepted[accepted.len().saturating_sub(config.repeat_last_n)..];
    for (id, &logit) in (0_u32..).zip(logits) {
        let mut logit = logit;
        if recent.contains(&id) && config.repeat_penalty != 1.0 {
            logit = if logit > 0.0 { logit / config.repeat_penalty } else { logit * config.repeat_penalty };
        }
        if logit != f32::NEG_INFINITY {
            all.push((f64::from(logit), id));
        }
    }
    all.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
    let best = all.first()?.0;
    if config.temperature == 0.0 {
        return Some(all[0].1);
    }
    if config.top_k > 0 {
        all.truncate(config.top_k);
    }
    let weight = |logit: f64, temperature: f32| libm::exp((logit - best) / f64::from(temperature));
    if config.top_p < 1.0 {
        let target: f64 = f64::from(config.top_p) * all.iter().map(|x| weight(x.0, 1.0)).sum::<f64>();
        let mut sum = 0.0;
        let last = all.iter().position(|x| {
            sum += weight(x.0, 1.0);
            sum >= target
        });
        all.truncate(last.map_or(all.len(), |i| i + 1));
    }
    if config.min_p > 0.0 {
        all.retain(|x| x.0 >= best + libm::log(f64::from(config.min_p)));
    }
    let total: f64 = all.iter().map(|x| weight(x.0, config.temperature)).sum();
    let target = rng::uniform(config.seed, position) * total;
    let mut sum = 0.0;
    for &(logit, id) in &all {
        sum += weight(logit, config.temperature);
        if sum > target {
            return Some(id);
        }
    }
    all.last().map(|x| x.1)
}

fn off() -> SamplerConfig {
    SamplerConfig { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerConfig::default() }
}

prop_compose! {
    fn any_config()(
        temperature in prop_oneof![Just(0.0_f32), Just(1.0), 0.01_f32..3.0],
        top_k in prop_oneof![Just(0_usize), 1_usize..8, 8_usize..400],
        top_p in prop_oneof![Just(1.0_f32), 0.01_f32..1.0],
        min_p in prop_oneof![Just(0.0_f32), 0.0_f32..1.0],
        repeat_penalty in prop_oneof![Just(1.0_f32), 0.5_f32..2.0],
        repeat_last_n in 0_usize..20,
        seed: u64,
    ) -> SamplerConfig {
        SamplerConfig { temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed }
    }
}

/// Few distinct values, so that ties are common, some forbidden tokens, and smooth ones.
fn any_logits() -> impl Strategy<Value = Vec<f32>> {
    let coarse = prop_oneof![8 => (-4_i8..5).prop_map(f32::from), 1 => Just(f32::NEG_INFINITY)];
    let fine = prop_oneof![20 => -12.0_f32..12.0, 1 => Just(f32::NEG_INFINITY)];
    prop_oneof![prop::collection::vec(coarse, 1..300), prop::collection::vec(fine, 1..300)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_the_twin(
        config in any_config(),
        logits in any_logits(),
        accepted in prop::collection::vec(0_u32..320, 0..40),
        position: u64,
    ) {
        let mut sampler = Sampler::new(config.clone()).unwrap();
        for &token in &accepted {
            sampler.accept(token);
        }
        // Twice: scratch left by one step must not leak into the next.
        let _ = sampler.sample(&logits[..logits.len() / 2], position);
        let got = sampler.sample(&logits, position).ok();
        prop_assert_eq!(got, twin(&config, &accepted, &logits, position));
    }
}

/// Chi-squared against the softmax at temperature 0.7, 40 thousand draws, fixed seed.
#[test]
fn draws_follow_the_distribution() {
    let logits = [1.0_f32, 0.0, 2.0, -1.0, 0.5, 1.5, -0.5, 0.25];
    let mut sampler = Sampler::new(SamplerConfig { temperature: 0.7, seed: 11, ..off() }).unwrap();
    let n = 40_000_u32;
    let mut counts = [0_u32; 8];
    for position in 0..u64::from(n) {
        counts[sampler.sample(&logits, position).unwrap() as usize] += 1;
    }
    let weights = logits.map(|x| (f64::from(x) / f64::from(0.7_f32)).exp());
    let total: f64 = weights.iter().sum();
    let chi_squared: f64 = (counts.iter().zip(weights))
        .map(|(&count, weight)| {
            let expected = f64::from(n) * weight / total;
            (f64::from(count) - expected).powi(2) / expected
        })
        .sum();
    // 7 degrees of freedom: 24.3 is passed once in a thousand seeds.
    assert!(chi_squared < 24.3, "{chi_squared}: {counts:?}");
}

#[test]
fn each_filter_bounds_what_is_drawn() {
    // Probabilities .5 .25 .125 .0625 .0625, in the order of ids 4 0 3 1 2.
    let logits = [-1.0, -3.0, -3.0, -2.0, 0.0].map(|x: f32| x * std::f32::consts::LN_2);
    let support = |config: &SamplerConfig| {
        let mut sampler = Sampler::new(config.clone()).unwrap();
        let mut seen: Vec<u32> = (0..2000).map(|p| sampler.sample(&logits, p).unwrap()).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    assert_eq!(support(&off()), [0, 1, 2, 3, 4]);
    assert_eq!(support(&SamplerConfig { top_k: 2, ..off() }), [0, 4]);
    assert_eq!(support(&SamplerConfig { top_k: 4, ..off() }), [0, 1, 3, 4], "a tie goes to the lower id");
    assert_eq!(support(&SamplerConfig { top_p: 0.7, ..off() }), [0, 4]);
    assert_eq!(support(&SamplerConfig { top_p: 0.8, ..off() }), [0, 3, 4]);
    assert_eq!(support(&SamplerConfig { min_p: 0.2, ..off() }), [0, 3, 4]);
    // After top-k of 2 the probabilities are 2/3 and 1/3: top-p works on what top-k left.
    assert_eq!(support(&SamplerConfig { top_k: 2, top_p: 0.6, ..off() }), [4]);
}

#[test]
fn penalty_divides_positive_and_multiplies_negative_once_per_token() {
    let config = SamplerConfig { repeat_penalty: 2.0, repeat_last_n: 3, ..SamplerConfig::greedy() };
    let mut sampler = Sampler::new(config).unwrap();
    let logits = [3.0, 2.0, 1.6];
    assert_eq!(sampler.sample(&logits, 0), Ok(0));
    sampler.accept(0);
    sampler.accept(0);
    assert_eq!(sampler.sample(&logits, 1), Ok(1), "3 / 2 is below 2, and would be also if halved twice");
    sampler.accept(1);
    assert_eq!(sampler.sample(&logits, 2), Ok(2), "1.5, 1, 1.6");
    sampler.accept(1);
    sampler.accept(1);
    assert_eq!(sampler.sample(&logits, 3), Ok(0), "the window has passed over token 0");
    assert_eq!(sampler.sample(&[-3.0, -1.0, -1.5], 4), Ok(2), "-1 becomes -2");
    sampler.reset();
    assert_eq!(sampler.sample(&[-3.0, -1.0, -1.5], 5), Ok(1));
}

#[test]
fn greedy_ties_go_to_the_lowest_id() {
    let mut sampler = Sampler::new(SamplerConfig::greedy()).unwrap();
    assert_eq!(sampler.sample(&[0.0, 1.0, 1.0], 0), Ok(1));
    assert_eq!(sampler.sample(&[-0.0, 0.0], 0), Ok(0), "the zeros are equal");
}

#[test]
fn a_draw_depends_on_seed_and_position_alone() {
    let logits: Vec<f32> = (0..1000_u16).map(|i| f32::from(i * 37 % 101) / 20.0).collect();
    let run = |seed: u64, positions: &mut dyn Iterator<Item = u64>| {
        let mut sampler = Sampler::new(SamplerConfig { seed, ..off() }).unwrap();
        positions.map(|p| sampler.sample(&logits, p).unwrap()).collect::<Vec<_>>()
    };
    let whole = run(3, &mut (0..50));
    assert_eq!(whole[20..], run(3, &mut (20..50)), "a sampler that takes over at 20");
    let mut backwards = run(3, &mut (0..50).rev());
    backwards.reverse();
    assert_eq!(whole, backwards);
    assert_ne!(whole, run(4, &mut (0..50)));
}

#[test]
fn a_large_vocabulary_is_selected_not_sorted_and_right() {
    let logits: Vec<f32> = (0..128_256_u64).map(|i| (rng::uniform(9, i) * 24.0 - 12.0) as f32).collect();
    let configs = [
        SamplerConfig::default(),
        SamplerConfig { top_k: 0, ..SamplerConfig::default() },
        SamplerConfig { top_k: 50_000, ..off() },
        off(),
    ];
    for config in configs {
        let mut sampler = Sampler::new(config.clone()).unwrap();
        for position in 0..4 {
            assert_eq!(
                sampler.sample(&logits, position).ok(),
                twin(&config, &[], &logits, position),
                "{config:?}"
            );
        }
    }
}

#[test]
fn bad_logits_are_errors() {
    for config in [SamplerConfig::default(), SamplerConfig::greedy()] {
        let mut sampler = Sampler::new(config).unwrap();
        for bad in [f32::NAN, f32::INFINITY, -f32::NAN] {
            let error = sampler.sample(&[0.0, bad, 1.0], 7).unwrap_err();
            assert!(matches!(error, SampleError::NotANumber { position: 7, token: 1, .. }), "{error}");
        }
        for logits in [&[][..], &[f32::NEG_INFINITY; 3]] {
            let error = sampler.sample(logits, 7).unwrap_err();
            assert_eq!(error, SampleError::NothingAllowed { position: 7, vocabulary: logits.len() });
        }
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, f32::MIN], 7), Ok(1));
    }
}

#[test]
fn extremes_stay_finite() {
    let config = SamplerConfig { temperature: f32::from_bits(1), repeat_penalty: 1e-30, ..off() };
    let mut sampler = Sampler::new(config).unwrap();
    sampler.accept(1);
    assert_eq!(
        sampler.sample(&[f32::MAX, 1e20, f32::MIN], 0),
        Ok(0),
        "the rewarded one stops at the finite end"
    );
}

#[test]
fn settings_out_of_range_are_named() {
    let d = SamplerConfig::default;
    let bad = [
        ("temperature", SamplerConfig { temperature: -0.1, ..d() }),
        ("temperature", SamplerConfig { temperature: f32::NAN, ..d() }),
        ("temperature", SamplerConfig { temperature: f32::INFINITY, ..d() }),
        ("top-p", SamplerConfig { top_p: 0.0, ..d() }),
        ("top-p", SamplerConfig { top_p: 1.01, ..d() }),
        ("top-p", SamplerConfig { top_p: f32::NAN, ..d() }),
        ("min-p", SamplerConfig { min_p: -0.01, ..d() }),
        ("min-p", SamplerConfig { min_p: 1.5, ..d() }),
        ("repeat-penalty", SamplerConfig { repeat_penalty: 0.0, ..d() }),
    ];
    for (name, config) in bad {
        let error = Sampler::new(config).unwrap_err();
        assert!(matches!(error, SampleError::Config { field, .. } if field == name), "{error}");
        assert!(error.to_string().contains(name));
    }
    assert!(Sampler::new(d()).is_ok());
}
