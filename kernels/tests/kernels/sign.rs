//! Levels of signs against their slow twin, bit for bit on every tier, and against their weights.

use crate::common::{Rng, Signs, activations, same};
use lutite_kernels::dot::{Block, Tokens, product, quantize, rebuild, rebuilt_bytes};
use lutite_kernels::isa::Isa;
use lutite_kernels::lut::{SignTableShape, SignTables, sign, sign_lut};
use lutite_kernels::pack::{PlaneShape, RANKS, SignLevel};
use lutite_kernels::reference;
use proptest::prelude::*;

/// The tables' buffers, built in parts of `runs` runs.
fn tables(isa: Isa, w: &SignLevel<'_>, x: &[f32], runs: usize) -> (Vec<u8>, Vec<f32>) {
    let shape = SignTableShape { cols: x.len(), rank: w.rank() };
    let mut entries = vec![0xa5; shape.entries_len()];
    let mut scales = vec![f32::NAN; shape.scales_len()];
    let part = SignTableShape { cols: runs * sign::RUN_COLS, ..shape };
    let parts = entries.chunks_mut(part.entries_len()).zip(scales.chunks_mut(part.scales_len()));
    for (i, (x, (entries, scales))) in x.chunks(part.cols).zip(parts).enumerate() {
        sign::build(isa, w, i * part.cols, x, entries, scales).unwrap();
    }
    (entries, scales)
}

/// Adds the products to `y`, `tiles` tiles at a time.
fn add(isa: Isa, w: &SignLevel<'_>, x: &[f32], runs: usize, tiles: usize, y: &mut Vec<f32>) {
    let PlaneShape { rows, cols } = w.shape();
    let (entries, scales) = tables(isa, w, x, runs);
    let t = SignTables::new(SignTableShape { cols, rank: w.rank() }, &entries, &scales).unwrap();
    y.resize(w.shape().tiles() * 32, f32::NAN);
    for (i, y) in y.as_chunks_mut().0.chunks_mut(tiles).enumerate() {
        let from = i * tiles;
        sign_lut(isa, w, &t, from..from + y.len(), from % 2 * 4096, y).unwrap();
    }
    y.truncate(rows);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_tier_equals_the_slow_twin_in_bits(
        seed: u64,
        rows in 1usize..100,
        cols in prop_oneof![1usize..700, 1020usize..1030, 2040usize..2060],
        rank in prop::sample::select(RANKS.to_vec()),
        style in 0usize..12,
        runs in 1usize..4,
        tiles in 1usize..4,
    ) {
        let mut rng = Rng(seed);
        let m = Signs::random(&mut rng, rows, cols, rank);
        let x = activations(&mut rng, cols, style);
        let before: Vec<f32> = (0..rows).map(|_| rng.normal()).collect();
        let mut slow = before.clone();
        reference::sign_lut(&m.view(), &x, &mut slow);
        for isa in Isa::available() {
            let mut fast = before.clone();
            add(isa, &m.view(), &x, runs, tiles, &mut fast);
            prop_assert!(same(&fast, &slow), "{} {fast:?} {slow:?}", isa.name());
        }
    }
}

/// Two levels, against what their weights say: the tables' rounding error, relative to what the levels contribute, as for
/// planes.
#[test]
fn error_against_exact_weights_is_the_tables_rounding() {
    let mut rng = Rng(7);
    for rank in RANKS {
        let (rows, cols) = (64, 2048);
        let levels = [0; 2].map(|_| Signs::random(&mut rng, rows, cols, rank));
        let x: Vec<f32> = (0..cols).map(|_| rng.normal()).collect();
        let mut y = vec![0.0; rows];
        for level in &levels {
            add(Isa::detect(), &level.view(), &x, 8, 2, &mut y);
        }
        let (mut error, mut energy) = (0.0, 0.0);
        for (r, y) in y.iter().enumerate() {
            let mut w = vec![0.0; cols];
            levels.iter().for_each(|level| level.view().add_row(r, &mut w).unwrap());
            let exact: f64 = w.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            error += (exact - f64::from(*y)).powi(2);
            energy += w.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
        }
        println!("rank {rank}: {:.1e}", error / energy);
        assert!(error / energy < 1e-4, "rank {rank}: {:.1e}", error / energy);
    }
}

/// All table entries at their bound of +-127, all bits equal: the largest sums there can be.
#[test]
fn sums_at_their_bound_stay_exact() {
    for rank in RANKS {
        let mut m = Signs::random(&mut Rng(3), 32, 512, rank);
        let one = half::f16::ONE.to_le_bytes();
        m.v.as_chunks_mut().0.fill(one);
        for fill in [0x00, 0xff] {
            m.signs.fill(fill);
            let x = vec![1.0; 512];
            let mut slow = vec![0.0; 32];
            reference::sign_lut(&m.view(), &x, &mut slow);
            for isa in Isa::available() {
                let mut fast = vec![0.0; 32];
                add(isa, &m.view(), &x, 1, 1, &mut fast);
                assert!(same(&fast, &slow), "rank {rank} {}", isa.name());
            }
        }
    }
}

/// No buffer needs any alignment: all of them one byte off give the same bits.
#[test]
fn unaligned_buffers_give_equal_bits() {
    let mut rng = Rng(5);
    for rank in RANKS {
        let m = Signs::random(&mut rng, 70, 300, rank);
        let x: Vec<f32> = (0..300).map(|_| rng.normal()).collect();
        let off = |bytes: &[u8]| [&[0u8], bytes].concat();
        let (signs, u, v) = (off(&m.signs), off(&m.u), off(&m.v));
        let w = SignLevel::new(m.shape, rank, &signs[1..], &u[1..], &v[1..]).unwrap();
        for isa in Isa::available() {
            let (entries, scales) = tables(isa, &w, &x, 2);
            let entries = off(&entries);
            let t = SignTables::new(SignTableShape { cols: 300, rank }, &entries[1..], &scales).unwrap();
            let mut y = [[0.0; 32]; 3];
            sign_lut(isa, &w, &t, 0..3, 4096, &mut y).unwrap();
            let mut aligned = vec![0.0; 70];
            add(isa, &m.view(), &x, 1, 3, &mut aligned);
            assert!(same(&y.as_flattened()[..70], &aligned), "rank {rank} {}", isa.name());
        }
    }
}

#[test]
fn empty_and_unfitting_inputs_are_errors_or_nothing() {
    let mut rng = Rng(1);
    let isa = Isa::detect();
    let m = Signs::random(&mut rng, 40, 300, 2);
    let (shape, w) = (m.shape, m.view());
    for rank in [0, 3, 32] {
        assert!(SignLevel::new(shape, rank, &m.signs, &m.u, &m.v).is_err());
        assert!(SignTables::new(SignTableShape { cols: 0, rank }, &[], &[]).is_err());
    }
    for (signs, u, v) in
        [(&m.signs[1..], &m.u[..], &m.v[..]), (&m.signs, &m.u[2..], &m.v), (&m.signs, &m.u, &m.v[2..])]
    {
        assert!(SignLevel::new(shape, 2, signs, u, v).is_err());
    }
    let huge = PlaneShape { rows: usize::MAX, cols: usize::MAX };
    assert!(SignLevel::new(huge, 2, &m.signs, &m.u, &m.v).is_err());
    let mut row = vec![0.0; 300];
    w.add_row(39, &mut row).unwrap();
    assert!(w.add_row(40, &mut row).is_err() && w.add_row(0, &mut row[1..]).is_err());

    let x = activations(&mut rng, 300, 0);
    let (mut e, mut s) = tables(isa, &w, &x, 1);
    for (from, n) in [(1, 256), (0, 299), (256, 45), (512, 0), (0, 300), (256, 44)] {
        let part = SignTableShape { cols: n, rank: 2 };
        let (e, s) = (&mut e[..part.entries_len()], &mut s[..part.scales_len()]);
        let built = sign::build(isa, &w, from, &x[..n], e, s);
        assert_eq!(built.is_ok(), matches!((from, n), (0, 300) | (256, 44)), "{from} {n}");
    }
    let (mut e, mut s) = tables(isa, &w, &x, 1);
    assert!(sign::build(isa, &w, 0, &x, &mut e[1..], &mut s).is_err());
    assert!(sign::build(isa, &w, 0, &x, &mut e, &mut s[1..]).is_err());
    let t = SignTables::new(SignTableShape { cols: 300, rank: 2 }, &e, &s).unwrap();
    let mut y = [[0.0; 32]; 3];
    sign_lut(isa, &w, &t, 1..1, 0, &mut []).unwrap();
    sign_lut(isa, &w, &t, 0..2, 0, &mut y[..2]).unwrap();
    assert!(sign_lut(isa, &w, &t, 0..2, 0, &mut y).is_err());
    assert!(sign_lut(isa, &w, &t, 1..3, 0, &mut y[..2]).is_err());
    let other = Signs::random(&mut rng, 40, 300, 4);
    assert!(sign_lut(isa, &other.view(), &t, 0..2, 0, &mut y[..2]).is_err());
    let other = Signs::random(&mut rng, 40, 299, 2);
    assert!(sign_lut(isa, &other.view(), &t, 0..2, 0, &mut y[..2]).is_err());

    for (rows, cols) in [(0, 300), (40, 0)] {
        let zero = Signs::random(&mut rng, rows, cols, 2);
        let mut y = vec![1.0; rows];
        add(isa, &zero.view(), &activations(&mut rng, cols, 0), 1, 1, &mut y);
        assert!(y.iter().all(|y| *y == 1.0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn rebuilt_tiles_equal_the_slow_twin_in_bits(
        seed: u64,
        rows in 1usize..100,
        cols in 1usize..200,
        ranks in prop::collection::vec(prop::sample::select(RANKS.to_vec()), 1..5),
        style in 0usize..6,
        tiles in 1usize..4,
    ) {
        let mut rng = Rng(seed);
        let mut levels: Vec<_> = ranks.iter().map(|rank| Signs::random(&mut rng, rows, cols, *rank)).collect();
        match style {
            1 => levels[0].u.fill(0),
            // The smallest numbers, the largest, infinities.
            2 => levels.iter_mut().for_each(|l| l.v.as_chunks_mut().0.fill([1, 0])),
            3 => levels.iter_mut().for_each(|l| l.v.as_chunks_mut().0.fill([0xff, 0x7b])),
            4 => levels[0].v.as_chunks_mut().0.fill([0, 0x7c]),
            _ => {}
        }
        let views: Vec<_> = levels.iter().map(Signs::view).collect();
        for isa in Isa::available() {
            let all = views[0].shape().tiles();
            for from in (0..all).step_by(tiles) {
                let part = from..(from + tiles).min(all);
                // One byte off, and longer than asked for.
                let mut out = vec![0xa5; rebuilt_bytes(part.len(), cols) + 3];
                let w = rebuild(isa, &views, part.clone(), &mut out[1..]).unwrap();
                for row in 32 * from..(32 * part.end).min(rows) {
                    let (codes, scales) = reference::rebuild(&views, row).unwrap();
                    let found: Vec<_> = (0..scales.len()).map(|g| w.coefficient(row - 32 * from, g, 0)).collect();
                    prop_assert!(same(&found, &scales), "{} row {row}", isa.name());
                    let field = w.parts()[0];
                    for (c, code) in codes.iter().enumerate() {
                        let at = ((row / 32 - from) * cols.div_ceil(32) * 8 + c / 4) * 128 + row % 32 * 4 + c % 4;
                        prop_assert_eq!(field[at], *code, "{} row {} column {}", isa.name(), row, c);
                    }
                }
            }
        }
    }
}

/// Both ways to multiply agree within the rounding of either.
#[test]
fn rebuilt_tiles_multiply_as_levels_do() {
    let mut rng = Rng(17);
    let isa = Isa::detect();
    let (rows, cols) = (96, 1024);
    let levels = [16, 2, 1].map(|rank| Signs::random(&mut rng, rows, cols, rank));
    let views: Vec<_> = levels.iter().map(Signs::view).collect();
    let x: Vec<f32> = (0..cols).map(|_| rng.normal()).collect();
    let mut by_tables = vec![0.0; rows];
    views.iter().for_each(|level| add(isa, level, &x, 4, 3, &mut by_tables));
    let mut out = vec![0; rebuilt_bytes(3, cols)];
    let w = rebuild(isa, &views, 0..3, &mut out).unwrap();
    let mut blocks = vec![Block::default(); cols / 32];
    quantize(isa, [&x[..]], &mut blocks).unwrap();
    let mut by_codes = vec![[0.0; 32]; 3];
    product(isa, &w, Tokens::One(&blocks), 0..3, 0, &mut by_codes).unwrap();
    let energy: f32 = by_tables.iter().map(|y| y * y).sum();
    let error: f32 = by_tables.iter().zip(by_codes.as_flattened()).map(|(a, b)| (a - b).powi(2)).sum();
    println!("apart by {:.1e}", error / energy);
    assert!(error / energy < 3e-4, "{}", error / energy);
}

#[test]
fn what_cannot_be_rebuilt_is_an_error() {
    let mut rng = Rng(2);
    let isa = Isa::detect();
    let (a, b) = (Signs::random(&mut rng, 40, 64, 2), Signs::random(&mut rng, 40, 65, 2));
    let mut out = vec![0; rebuilt_bytes(2, 64)];
    rebuild(isa, &[a.view()], 0..2, &mut out).unwrap();
    rebuild(isa, &[a.view()], 1..1, &mut []).unwrap();
    assert!(rebuild(isa, &[], 0..0, &mut out).is_err());
    assert!(rebuild(isa, &[a.view(), b.view()], 0..1, &mut out).is_err());
    assert!(rebuild(isa, &[a.view()], 1..3, &mut out).is_err());
    assert!(rebuild(isa, &[a.view()], 0..2, &mut out[1..]).is_err());
}
