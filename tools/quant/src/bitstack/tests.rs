//! The decomposition against what a rank-k approximation can be at best, and against what the format says.

use super::*;
use lutite_runtime::sample::rng::uniform;

/// Roughly normal, mean 0, variance 1.
fn normal(seed: u64, n: usize) -> Vec<f32> {
    let one = |i: u64| (0..12).map(|j| uniform(seed, 12 * i + j)).sum::<f64>() as f32 - 6.0;
    (0..n as u64).map(one).collect()
}

fn shape(rows: usize, cols: usize) -> PlaneShape {
    PlaneShape { rows, cols }
}

/// Sums over some tokens whose inputs depend on each other and differ in size; input `dead` is always 0.
fn gram(n: usize, dead: Option<usize>) -> Gram {
    let mut x = normal(99, 2 * n * n);
    for token in x.chunks_exact_mut(n) {
        for j in 0..n {
            let before = if j > 0 { token[j - 1] } else { 0.0 };
            token[j] = 0.5 * before + token[j] * if j % 7 == 3 { 5.0 } else { 0.3 };
        }
        if let Some(j) = dead {
            token[j] = 0.0;
        }
    }
    let mut gram = Gram::new(n).unwrap();
    gram.add(Isa::scalar(), &x).unwrap();
    gram.finish();
    gram
}

fn views<'a>(levels: &'a [Level], shape: PlaneShape, rank: usize) -> Vec<SignLevel<'a>> {
    levels.iter().map(|l| SignLevel::new(shape, rank, &l.signs, &l.u, &l.v).unwrap()).collect()
}

/// What the levels stand for.
fn weights(levels: &[Level], shape: PlaneShape, rank: usize) -> Vec<f32> {
    let mut q = vec![0.0; shape.rows * shape.cols];
    for (row, q) in q.chunks_exact_mut(shape.cols).enumerate() {
        views(levels, shape, rank).iter().for_each(|level| level.add_row(row, q).unwrap());
    }
    q
}

/// Squares of the largest singular values of `a`, by power iteration in f64 until nothing changes, one after the other.
fn largest_squares(a: &[f32], cols: usize, count: usize) -> Vec<f64> {
    let mut a: Vec<f64> = a.iter().map(|a| f64::from(*a)).collect();
    let mut all = vec![];
    for i in 0..count {
        let mut v: Vec<f64> = (0..cols as u64).map(|c| uniform(7 + i as u64, c) + 0.1).collect();
        let mut square = 0.0;
        for _ in 0..20_000 {
            let y: Vec<f64> =
                a.chunks_exact(cols).map(|a| a.iter().zip(&v).map(|(a, v)| a * v).sum()).collect();
            let mut z = vec![0.0; cols];
            for (a, y) in a.chunks_exact(cols).zip(&y) {
                z.iter_mut().zip(a).for_each(|(z, a)| *z += a * y);
            }
            let length = z.iter().map(|z| z * z).sum::<f64>().sqrt();
            let done = (length - square).abs() <= 1e-13 * length;
            square = length;
            v = z.iter().map(|z| z / length.max(1e-300)).collect();
            if done {
                break;
            }
        }
        for a in a.chunks_exact_mut(cols) {
            let along: f64 = a.iter().zip(&v).map(|(a, v)| a * v).sum();
            a.iter_mut().zip(&v).for_each(|(a, v)| *a -= along * v);
        }
        all.push(square);
    }
    all
}

#[test]
fn magnitudes_are_as_near_as_their_rank_allows() {
    for (rows, cols) in [(96, 128), (200, 64), (33, 257), (128, 128)] {
        let e = normal(5, rows * cols);
        let s: Vec<f32> = (0..cols).map(|j| 0.5 + (j % 5) as f32).collect();
        let a: Vec<f32> = e.iter().zip(s.iter().cycle()).map(|(e, s)| e.abs() * s).collect();
        let whole: f64 = a.iter().map(|a| f64::from(*a).powi(2)).sum();
        let squares = largest_squares(&a, cols, 16);
        for rank in RANKS {
            let of = Magnitudes { isa: Isa::detect(), e: &e, shape: shape(rows, cols), s: &s };
            let factors = of.factors(rank, 0).unwrap();
            let mut left = a.clone();
            for (u, v) in &factors {
                for (left, u) in left.chunks_exact_mut(cols).zip(u) {
                    left.iter_mut().zip(v).for_each(|(left, v)| *left -= u * v);
                }
            }
            let found: f64 = left.iter().map(|a| f64::from(*a).powi(2)).sum();
            let best = whole - squares[..rank].iter().sum::<f64>();
            println!("{rows}x{cols} rank {rank}: {:.2e} above the best", found / best - 1.0);
            assert!(
                found <= best * (1.0 + 1e-3) && found >= best * (1.0 - 1e-4),
                "{rows}x{cols} rank {rank}"
            );
        }
    }
}

#[test]
fn errors_fall_with_every_level_and_are_those_of_the_weights() {
    let shape = shape(70, 150);
    let w = normal(1, 70 * 150);
    for gram in [None, Some(gram(150, None)), Some(gram(150, Some(5)))] {
        let h = |i: usize, j: usize| match &gram {
            Some(gram) => f64::from(gram.sums()[i * 150 + j]),
            None => f64::from(u8::from(i == j)),
        };
        let energy = |e: &[f32]| -> f64 {
            let of_row = |e: &[f32]| -> f64 {
                (0..150)
                    .map(|i| (0..150).map(|j| f64::from(e[i]) * h(i, j) * f64::from(e[j])).sum::<f64>())
                    .sum()
            };
            e.chunks_exact(150).map(of_row).sum()
        };
        for rank in RANKS {
            let spec = StackSpec { levels: 6, rank };
            let levels = decompose(Isa::detect(), &w, shape, gram.as_ref(), &spec).unwrap();
            let mut before = 1.0;
            for (i, level) in levels.iter().enumerate() {
                let q = weights(&levels[..=i], shape, rank);
                let e: Vec<f32> = q.iter().zip(&w).map(|(q, w)| q - w).collect();
                let error = energy(&e) / energy(&w);
                assert!((error - level.error).abs() <= 1e-3 * error + 1e-6, "{error} {}", level.error);
                assert!(level.error < before, "rank {rank}, level {i}: {} after {before}", level.error);
                before = level.error;
            }
        }
    }
}

/// What random matrices lose, level after level: `cargo test -p lutite-quant bitstack -- --nocapture` prints it.
#[test]
fn errors_of_random_matrices_are_as_they_were_measured() {
    // A normal number's magnitude is 1 - 2 / pi of its square from its mean; more ranks take little more of a large matrix.
    for (rows, cols) in [(256, 256), (512, 384)] {
        let w = normal(3, rows * cols);
        for rank in [1, 4, 16] {
            let spec = StackSpec { levels: 4, rank };
            let levels = decompose(Isa::detect(), &w, shape(rows, cols), None, &spec).unwrap();
            let errors: Vec<String> = levels.iter().map(|l| format!("{:.4}", l.error)).collect();
            println!("{rows}x{cols} rank {rank}: {}", errors.join(" "));
            assert!(levels[0].error < 1.0 - std::f64::consts::FRAC_2_PI && levels[0].error > 0.25);
        }
    }
}

#[test]
fn scales_of_inputs_help_outputs() {
    let (w, gram) = (normal(8, 64 * 160), gram(160, None));
    let spec = StackSpec { levels: 3, rank: 2 };
    let with = decompose(Isa::detect(), &w, shape(64, 160), Some(&gram), &spec).unwrap();
    let without = decompose(Isa::detect(), &w, shape(64, 160), None, &spec).unwrap();
    let e: Vec<f32> = weights(&without, shape(64, 160), 2).iter().zip(&w).map(|(q, w)| q - w).collect();
    let of = |e: &[f32]| energy(Isa::detect(), e, 160, Some(&gram)).unwrap();
    println!("with scales {}, without {}", with[2].error, of(&e) / of(&w));
    assert!(with[2].error < of(&e) / of(&w));
}

#[test]
fn threads_and_tiers_give_equal_bytes() {
    let w = normal(2, 100 * 700);
    let gram = gram(700, Some(0));
    let spec = StackSpec { levels: 2, rank: 4 };
    let run = |isa, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| decompose(isa, &w, shape(100, 700), Some(&gram), &spec).unwrap())
    };
    let first = run(Isa::scalar(), 1);
    for isa in Isa::available() {
        for threads in [1, 2, 5] {
            assert!(run(isa, threads) == first, "{} {threads} threads", isa.name());
        }
    }
}

#[test]
fn odd_shapes_zeros_and_extremes_give_finite_levels() {
    for (rows, cols) in [(1, 1), (1, 300), (300, 1), (33, 9), (5, 5)] {
        let normal = normal(4, rows * cols);
        let scaled =
            |by: f32| -> Vec<f32> { normal.iter().map(|x| x.signum() * x.abs().max(0.1) * by).collect() };
        let mut spike = vec![0.0; rows * cols];
        spike[rows * cols / 2] = -60_000.0;
        for w in [vec![0.0; rows * cols], normal.clone(), scaled(1e4), scaled(1e-7), spike] {
            for rank in RANKS {
                let shape = shape(rows, cols);
                let spec = StackSpec { levels: 3, rank };
                let levels = decompose(Isa::detect(), &w, shape, None, &spec).unwrap();
                let q = weights(&levels, shape, rank);
                assert!(q.iter().all(|q| q.is_finite()) && levels[2].error.is_finite());
                // One row or column has rank 1.
                assert!(rows.min(cols) > 1 || levels[2].error < 1e-3, "{rows}x{cols}: {}", levels[2].error);
            }
        }
    }
}

#[test]
fn inputs_without_tokens_or_far_apart_are_no_trouble() {
    let w = normal(6, 40 * 64);
    let none = Gram::new(64).unwrap();
    let mut apart = Gram::new(64).unwrap();
    let x: Vec<f32> = normal(7, 64 * 64)
        .iter()
        .enumerate()
        .map(|(i, x)| x * f32::powi(10.0, (i % 64) as i32 / 8 - 4))
        .collect();
    apart.add(Isa::detect(), &x).unwrap();
    apart.finish();
    for gram in [none, apart] {
        let spec = StackSpec { levels: 3, rank: 2 };
        let levels = decompose(Isa::detect(), &w, shape(40, 64), Some(&gram), &spec).unwrap();
        assert!(weights(&levels, shape(40, 64), 2).iter().all(|q| q.is_finite()));
        assert!(levels.iter().all(|l| l.error.is_finite() && l.error < 1.0));
    }
}

#[test]
fn ranks_fit_into_a_tenth_of_a_bit() {
    for (rows, cols, rank) in [(4096, 4096, 8), (14336, 4096, 16), (576, 576, 1), (896, 4864, 4), (1, 1, 1)] {
        assert_eq!(rank_for(shape(rows, cols)), rank, "{rows}x{cols}");
    }
}

#[test]
fn what_makes_no_sense_is_an_error() {
    let (isa, w, other) = (Isa::detect(), vec![1.0; 12], Gram::new(3).unwrap());
    let spec = StackSpec { levels: 1, rank: 1 };
    let run = |w: &[f32], rows, cols, gram, spec| decompose(isa, w, shape(rows, cols), gram, &spec);
    run(&w, 3, 4, None, spec).unwrap();
    assert!(run(&w, 3, 5, None, spec).is_err());
    assert!(run(&[], 0, 4, None, spec).is_err());
    assert!(run(&w, 3, 4, Some(&other), spec).is_err());
    assert!(run(&w, 3, 4, None, StackSpec { levels: 0, ..spec }).is_err());
    assert!(run(&w, 3, 4, None, StackSpec { rank: 3, ..spec }).is_err());
    for bad in [f32::NAN, f32::INFINITY, 1e5] {
        let mut w = w.clone();
        w[6] = bad;
        let message = run(&w, 3, 4, None, spec).unwrap_err().to_string();
        assert!(message.contains("row 1, column 2"), "{message}");
    }
}
