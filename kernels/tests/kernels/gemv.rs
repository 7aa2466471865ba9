//! The look-up kernels against their slow twins: bit for bit between tiers, and within the tables'
//! rounding error of the dequantized weights.

use crate::common::{HLQ, Matrix, Rng, UNIFORM, activations, same};
use lutite_kernels::isa::Isa;
use lutite_kernels::lut::table::PAIR_BYTES;
use lutite_kernels::lut::{TableShape, Tables, gemv, table};
use lutite_kernels::pack::{GROUPS, Packed, ParamKind};
use lutite_kernels::reference;
use proptest::prelude::*;

/// Tables of several tokens, built in one go, and the products over `tiles` tiles at a time, `[token][row]`.
fn lut(isa: Isa, m: &Matrix, xs: &[Vec<f32>], tiles: usize) -> Vec<Vec<f32>> {
    let shape = TableShape { cols: m.shape.cols, group: m.group };
    let build = |x: &Vec<f32>| {
        let mut entries = vec![0xa5; shape.entries_len()];
        let mut scales = vec![f32::NAN; shape.scales_len()];
        table::build(isa, shape, x, &mut entries, &mut scales).unwrap();
        (entries, scales)
    };
    let built: Vec<_> = xs.iter().map(build).collect();
    let t: Vec<_> = built.iter().map(|(e, s)| Tables::new(shape, e, s).unwrap()).collect();
    let mut out = vec![Vec::new(); xs.len()];
    for from in (0..m.shape.tiles()).step_by(tiles) {
        let part = from..(from + tiles).min(m.shape.tiles());
        let mut y = vec![[f32::NAN; 32]; part.len() * xs.len()];
        gemv(isa, &m.view(), &t, part.clone(), from % 2 * 4096, &mut y).unwrap();
        for (out, y) in out.iter_mut().zip(y.chunks(part.len())) {
            out.extend_from_slice(y.as_flattened());
        }
    }
    for row in &mut out {
        row.truncate(m.shape.rows);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_tier_and_number_of_tokens_equal_the_slow_twin_in_bits(
        seed: u64,
        rows in 1usize..100,
        cols in 1usize..400,
        q in 1usize..=8,
        group in prop::sample::select(GROUPS.to_vec()),
        kind in prop::sample::select(HLQ.to_vec()),
        style in 0usize..9,
        tokens in 1usize..=4,
        tiles in 1usize..4,
    ) {
        let mut rng = Rng(seed);
        let m = Matrix::random(&mut rng, rows, cols, q, group, kind);
        let x: Vec<_> = (0..tokens).map(|t| activations(&mut rng, cols, if t == 0 { style } else { 0 })).collect();
        for isa in Isa::available() {
            for (fast, x) in lut(isa, &m, &x, tiles).iter().zip(&x) {
                let slow = reference::gemv_lut(&m.view(), x);
                prop_assert!(same(fast, &slow), "{} {fast:?} {slow:?}", isa.name());
            }
        }
    }
}

/// The table's rounding error, as kernels.md measured it: below 1e-4 normalised mean square for Gaussian
/// inputs, a thousandth of what 2-bit weights lose.
#[test]
fn error_against_exact_weights_is_the_tables_rounding() {
    let mut rng = Rng(7);
    for kind in HLQ {
        for q in 1..=8 {
            for group in GROUPS {
                let m = Matrix::random(&mut rng, 64, 1024, q, group, kind);
                let x: Vec<f32> = (0..1024).map(|_| rng.normal()).collect();
                let exact = reference::gemv_f64(&m.view(), &x).unwrap();
                let y = &lut(Isa::detect(), &m, std::slice::from_ref(&x), 2)[0];
                // Error relative to what the planes alone contribute: a large z X would hide it.
                let plane_energy: f64 = (0..64)
                    .map(|r| {
                        let s: f64 = (0..1024 / group)
                            .map(|g| {
                                let k = |k| f64::from(m.view().coefficient(r, g, k));
                                (0..q).map(|p| k(p).powi(2)).sum::<f64>() / 4.0 * group as f64
                            })
                            .sum();
                        s
                    })
                    .sum();
                let err: f64 = exact.iter().zip(y).map(|(e, y)| (e - f64::from(*y)).powi(2)).sum();
                assert!(err / plane_energy < 1e-4, "{kind:?} q={q} g={group}: {:.1e}", err / plane_energy);
            }
        }
    }
}

/// All table entries at their bound of +-127, all bits equal: the largest sums there can be.
#[test]
fn sums_at_their_bound_stay_exact() {
    for kind in HLQ {
        for q in 1..=8 {
            for group in GROUPS {
                let mut m = Matrix::random(&mut Rng(3), 32, 512, q, group, kind);
                for fill in [0x00, 0xff] {
                    m.parts.iter_mut().for_each(|p| p.fill(fill));
                    let x = vec![1.0; 512];
                    let slow = reference::gemv_lut(&m.view(), &x);
                    for isa in Isa::available() {
                        for fast in lut(isa, &m, &[x.clone(), x.clone(), x.clone()], 1) {
                            assert!(same(&fast, &slow), "{kind:?} q={q} g={group} {}", isa.name());
                        }
                    }
                }
            }
        }
    }
}

/// No buffer needs any alignment: all of them one byte off give the same bits.
#[test]
fn unaligned_buffers_give_equal_bits() {
    let mut rng = Rng(5);
    for kind in HLQ {
        let m = Matrix::random(&mut rng, 70, 200, 6, 64, kind);
        let off = |bytes: &[u8]| [&[0u8], bytes].concat();
        let planes: Vec<Vec<u8>> = m.parts.iter().map(|p| off(p)).collect();
        let planes: Vec<&[u8]> = planes.iter().map(|p| &p[1..]).collect();
        let (params, row_scales) = (off(&m.params), off(&m.row_scales));
        let w =
            Packed::new(m.shape, m.group, kind, m.planes, &planes, &params[1..], &row_scales[1..]).unwrap();
        let x: Vec<f32> = (0..200).map(|_| rng.normal()).collect();
        let shape = TableShape { cols: 200, group: 64 };
        for isa in Isa::available() {
            let (mut e, mut s) = (vec![0; shape.entries_len() + 1], vec![0.0; shape.scales_len()]);
            table::build(isa, shape, &x, &mut e[1..], &mut s).unwrap();
            let t = Tables::new(shape, &e[1..], &s).unwrap();
            let mut y = [[0.0; 32]; 3];
            gemv(isa, &w, &[t], 0..3, 4096, &mut y).unwrap();
            assert!(
                same(&y.as_flattened()[..70], &lut(isa, &m, std::slice::from_ref(&x), 3)[0]),
                "{kind:?} {}",
                isa.name()
            );
        }
    }
}

#[test]
fn tables_built_in_parts_equal_tables_built_at_once() {
    let mut rng = Rng(11);
    let x: Vec<f32> = (0..700).map(|_| rng.normal()).collect();
    for group in GROUPS {
        for isa in Isa::available() {
            let all = TableShape { cols: 700, group };
            let (mut e, mut s) = (vec![0; all.entries_len()], vec![0.0; all.scales_len()]);
            table::build(isa, all, &x, &mut e, &mut s).unwrap();
            let (mut e2, mut s2) = (e.clone(), s.clone());
            e2.fill(1);
            s2.fill(1.0);
            let parts = x
                .chunks(256)
                .zip(e2.chunks_mut(32 * PAIR_BYTES))
                .zip(s2.chunks_mut(256 / group * all.scales_per_group()));
            for ((x, e), s) in parts {
                table::build(isa, TableShape { cols: x.len(), ..all }, x, e, s).unwrap();
            }
            assert!(e == e2 && same(&s, &s2));
        }
    }
}

#[test]
fn empty_and_unfitting_inputs_are_errors_or_nothing() {
    let mut rng = Rng(1);
    let m = Matrix::random(&mut rng, 40, 64, 2, 32, ParamKind::Hlq16);
    let shape = TableShape { cols: 64, group: 32 };
    let (mut e, mut s) = (vec![0; shape.entries_len()], vec![0.0; shape.scales_len()]);
    let isa = Isa::detect();
    assert!(table::build(isa, shape, &[0.0; 63], &mut e, &mut s).is_err());
    table::build(isa, shape, &[1.0; 64], &mut e, &mut s).unwrap();
    let t = Tables::new(shape, &e, &s).unwrap();
    let mut y = [[0.0; 32]; 10];
    let mut run = |t: &[Tables<'_>], tiles, n: usize| gemv(isa, &m.view(), t, tiles, 4096, &mut y[..n]);
    run(&[t], 1..1, 0).unwrap();
    run(&[], 0..2, 0).unwrap();
    run(&[t; 4], 0..2, 8).unwrap();
    assert!(run(&[t; 5], 0..2, 10).is_err());
    assert!(run(&[t], 0..2, 1).is_err());
    assert!(run(&[t], 1..3, 2).is_err());
    let other = TableShape { cols: 64, group: 64 };
    let t2 = Tables::new(other, &e, &s[..other.scales_len()]).unwrap();
    let message = run(&[t, t2], 0..2, 4).unwrap_err().to_string();
    assert!(message.contains("group"), "{message}");
    let zero = Matrix::random(&mut rng, 0, 64, 2, 32, ParamKind::Hlq16);
    gemv(isa, &zero.view(), &[t], 0..0, 4096, &mut []).unwrap();
    let codes = Matrix::random(&mut rng, 40, 64, 2, 32, UNIFORM[0]);
    let message = gemv(isa, &codes.view(), &[t], 0..2, 4096, &mut y[..2]).unwrap_err().to_string();
    assert!(message.contains("hlq16"), "{message}");
}
