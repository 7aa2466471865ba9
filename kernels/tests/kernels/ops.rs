//! f32 operations: every tier equal in bits to the scalar one, and close to f64 arithmetic.

use crate::common::Rng;
use half::{bf16, f16};
use lutite_kernels::isa::Isa;
use lutite_kernels::ops::{act, norm, rope, softmax};
use lutite_kernels::plain::{self, PlainType};

fn vector(rng: &mut Rng, n: usize, scale: f32) -> Vec<f32> {
    (0..n).map(|_| rng.normal() * scale).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Runs `f` on every tier, checks that all give the same bits, and returns the result.
fn on_all_tiers(f: impl Fn(Isa) -> Vec<f32>) -> Vec<f32> {
    let first = f(Isa::scalar());
    for isa in Isa::available() {
        assert_eq!(bits(&first), bits(&f(isa)), "{}", isa.name());
    }
    first
}

fn close(a: f32, b: f64, rel: f64, abs: f64) {
    assert!((f64::from(a) - b).abs() <= rel * b.abs() + abs, "{a} {b}");
}

#[test]
fn softmax_on_odd_lengths() {
    let mut rng = Rng(1);
    for n in (0..40).chain([1000]) {
        let x = vector(&mut rng, n, 8.0);
        let got = on_all_tiers(|isa| {
            let mut y = x.clone();
            softmax::softmax(isa, &mut y);
            y
        });
        let max = x.iter().fold(f64::MIN, |a, b| a.max(f64::from(*b)));
        let e: Vec<f64> = x.iter().map(|x| (f64::from(*x) - max).exp()).collect();
        let sum: f64 = e.iter().sum();
        for ((g, e), x) in got.iter().zip(&e).zip(&x) {
            // The difference to the maximum is rounded to f32 before it is exponentiated.
            let rounding = (max - f64::from(*x)) * f64::from(f32::EPSILON);
            close(*g, e / sum, 1e-6 + rounding, 1e-37);
        }
    }
    for bad in [f32::NAN, f32::INFINITY] {
        for at in [0, 9] {
            let mut x = vec![0.0; 10];
            x[at] = bad;
            for isa in Isa::available() {
                let mut y = x.clone();
                softmax::softmax(isa, &mut y);
                assert!(y.iter().all(|y| y.is_nan()), "{} {bad} at {at}: {y:?}", isa.name());
            }
        }
    }
}

#[test]
fn silu_over_its_whole_range() {
    let g: Vec<f32> = (-2000..2001).map(|i| i as f32 * 0.1).collect();
    let u = vec![1.0; g.len()];
    let got = on_all_tiers(|isa| {
        let mut y = vec![0.0; g.len()];
        act::silu_mul(isa, &g, &u, &mut y);
        y
    });
    for (g, y) in g.iter().zip(got) {
        let g = f64::from(*g);
        close(y, g / (1.0 + (-g).exp()), 1e-6, 2e-36);
    }
}

#[test]
fn norm_and_plain_products_on_odd_lengths() {
    let mut rng = Rng(2);
    for n in [1, 7, 8, 9, 63, 576] {
        let x = vector(&mut rng, n, 3.0);
        let got = on_all_tiers(|isa| vec![norm::inverse_rms(isa, &x, 1e-5)]);
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64;
        close(got[0], 1.0 / (mean + 1e-5).sqrt(), 1e-6, 0.0);

        let w = vector(&mut rng, 5 * n, 0.1);
        let xs = vector(&mut rng, 7 * n, 1.0);
        for ty in [PlainType::F32, PlainType::F16, PlainType::Bf16] {
            let (bytes, w): (Vec<u8>, Vec<f32>) = match ty {
                PlainType::F32 => (w.iter().flat_map(|w| w.to_le_bytes()).collect(), w.clone()),
                PlainType::F16 => {
                    let h: Vec<f16> = w.iter().map(|w| f16::from_f32(*w)).collect();
                    (h.iter().flat_map(|h| h.to_le_bytes()).collect(), h.iter().map(|h| h.to_f32()).collect())
                }
                PlainType::Bf16 => {
                    let h: Vec<bf16> = w.iter().map(|w| bf16::from_f32(*w)).collect();
                    (h.iter().flat_map(|h| h.to_le_bytes()).collect(), h.iter().map(|h| h.to_f32()).collect())
                }
            };
            let run = |isa, tokens: usize| {
                let mut y = vec![0.0; tokens * 5];
                plain::gemm(isa, ty, &bytes, n, &xs[..tokens * n], &mut |t, r, v| {
                    y[t * 5 + r..][..v.len()].copy_from_slice(v);
                })
                .unwrap();
                y
            };
            let got = on_all_tiers(|isa| run(isa, 7));
            // A token's result does not depend on how many are computed beside it.
            assert_eq!(bits(&got[..5]), bits(&run(Isa::detect(), 1)));
            for t in 0..7 {
                for r in 0..5 {
                    let row = &bytes[r * n * ty.bytes()..(r + 1) * n * ty.bytes()];
                    let mut alone = [0.0];
                    let x = &xs[t * n..(t + 1) * n];
                    plain::gemm(Isa::detect(), ty, row, n, x, &mut |_, _, v| alone.copy_from_slice(v))
                        .unwrap();
                    assert_eq!(alone[0].to_bits(), got[t * 5 + r].to_bits());
                    let exact: f64 = (0..n).map(|i| f64::from(w[r * n + i]) * f64::from(xs[t * n + i])).sum();
                    close(got[t * 5 + r], exact, 1e-5, 1e-5);
                }
            }
        }
    }
}

#[test]
fn rope_rotates_by_position_times_frequency() {
    let config =
        rope::RopeConfig { dims: 8, base: 10000.0, factors: vec![], scaling: rope::RopeScaling::None };
    let r = rope::Rope::new(&config);
    let mut angles = vec![0.0; 8];
    r.angles(5, &mut angles);
    let mut x = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
    rope::rotate_adjacent(&mut x, &angles);
    for i in 0..4 {
        let a = 5.0 * 10000f64.powf(-2.0 * i as f64 / 8.0);
        close(x[2 * i], a.cos(), 0.0, 1e-7);
        close(x[2 * i + 1], a.sin(), 0.0, 1e-7);
    }
    let linear = rope::RopeConfig { scaling: rope::RopeScaling::Linear { factor: 5.0 }, ..config.clone() };
    let mut scaled = vec![0.0; 8];
    rope::Rope::new(&linear).angles(25, &mut scaled);
    for (a, b) in scaled.iter().zip(&angles) {
        close(*a, f64::from(*b), 0.0, 1e-6);
    }
}
