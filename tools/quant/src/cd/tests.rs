use super::*;
use crate::gram::Gram;
use lutite_kernels::pack::ParamKind;

pub(super) fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        let mut sum = 0.0;
        for _ in 0..4 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            sum += (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
        }
        sum
    }
}

/// Inputs that have common causes and some large columns.
fn gram(n: usize, tokens: usize) -> Gram {
    let mut random = random(n as u64);
    let mix: Vec<f32> = (0..8 * n).map(|_| random()).collect();
    let x: Vec<f32> = (0..tokens)
        .flat_map(|_| {
            let causes: Vec<f32> = (0..8).map(|_| random()).collect();
            (0..n)
                .map(|j| {
                    let common: f32 = causes.iter().zip(&mix[8 * j..]).map(|(c, m)| c * m).sum();
                    (common + random()) * if j % 37 == 5 { 6.0 } else { 1.0 }
                })
                .collect::<Vec<_>>()
        })
        .collect();
    let mut gram = Gram::new(n).unwrap();
    x.chunks(n * 64).for_each(|x| gram.add(Isa::detect(), x).unwrap());
    gram.finish();
    gram
}

fn weights(rows: usize, n: usize) -> Vec<f32> {
    let mut random = random(7);
    (0..rows * n).map(|_| 0.02 * random()).collect()
}

fn falls<const Q: usize>(n: usize, group: usize, kind: ParamKind) {
    let isa = Isa::detect();
    let inputs = Inputs::new(isa, &gram(n, 4 * n), group).unwrap();
    let spec = FitSpec { planes: Q, group, kind, iterations: 0 };
    let mut tile = Tile::<Q>::new(isa, &inputs, &weights(5, n), &spec).unwrap();
    tile.start().unwrap();
    let mut last = tile.error(&tile.e).unwrap();
    let first = last;
    for i in 0..6 {
        if i == 3 {
            tile.store();
        }
        tile.sweep().unwrap();
        let error = tile.error(&tile.e).unwrap();
        // The one sweep that makes coefficients storable may lose something.
        assert!(i == 3 || error <= last * (1.0 + 1e-5), "sweep {i} of {Q} {n} {group}: {last} to {error}");
        last = error;
    }
    assert!(last < first, "{first} to {last}");
}

#[test]
fn the_objective_falls_with_every_sweep() {
    for kind in [ParamKind::Hlq8, ParamKind::Hlq16] {
        falls::<1>(96, 32, kind);
        falls::<2>(200, 64, kind);
        falls::<3>(130, 32, kind);
        falls::<4>(64, 64, kind);
        falls::<2>(40, 128, kind);
    }
}

#[test]
fn threads_and_tiers_change_no_byte() {
    let w = weights(100, 96);
    let spec = FitSpec { planes: 2, group: 32, kind: ParamKind::Hlq8, iterations: 0 };
    let run = |isa, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| fit(isa, &w, &Inputs::new(isa, &gram(96, 300), 32).unwrap(), &spec).unwrap().fitted)
    };
    let first = run(Isa::scalar(), 1);
    for isa in Isa::available() {
        assert_eq!(run(isa, 1), first);
        assert_eq!(run(isa, 3), first);
    }
}
