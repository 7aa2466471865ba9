//! The integer products against their slow twin: bit for bit on every tier and for any number of tokens, and within
//! the activations' rounding error of the dequantized weights.

use crate::common::{HLQ, Matrix, Rng, UNIFORM, activations, same};
use lutite_kernels::dot::{Block, TOGETHER, Tokens, expand, expanded_bytes, product, quantize};
use lutite_kernels::isa::Isa;
use lutite_kernels::pack::{GROUPS, Packed, ParamKind, PlaneShape, c32};
use lutite_kernels::reference;
use proptest::prelude::*;

fn one(isa: Isa, x: &[f32]) -> Vec<Block<1>> {
    let mut out = vec![Block::default(); x.len().div_ceil(32)];
    quantize(isa, [x], &mut out).unwrap();
    out
}

/// Products of all tokens, `[token][row]`, `tiles` tiles at a time; with `alone` of a single token as such.
fn products(isa: Isa, w: &Packed<'_>, tokens: &[Vec<f32>], tiles: usize, alone: bool) -> Vec<Vec<f32>> {
    let blocks = w.shape().cols.div_ceil(32);
    let mut many = vec![Block::default(); tokens.len().div_ceil(TOGETHER) * blocks];
    for (x, many) in tokens.chunks(TOGETHER).zip(many.chunks_mut(blocks)) {
        let mut together = [[].as_slice(); TOGETHER];
        together.iter_mut().zip(x).for_each(|(t, x)| *t = x);
        quantize(isa, together, many).unwrap();
    }
    let single = one(isa, &tokens[0]);
    let x = if alone { Tokens::One(&single) } else { Tokens::Many(&many, tokens.len()) };
    let shape = w.shape();
    let mut out = vec![Vec::new(); tokens.len()];
    for from in (0..shape.tiles()).step_by(tiles) {
        let part = from..(from + tiles).min(shape.tiles());
        let mut y = vec![[f32::NAN; 32]; part.len() * tokens.len()];
        product(isa, w, x, part.clone(), from % 2 * 4096, &mut y).unwrap();
        for (out, y) in out.iter_mut().zip(y.chunks(part.len())) {
            out.extend_from_slice(y.as_flattened());
        }
    }
    for row in &mut out {
        row.truncate(shape.rows);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_tier_and_any_number_of_tokens_equal_the_slow_twin_in_bits(
        seed: u64,
        rows in 1usize..100,
        cols in 1usize..400,
        bits in 1usize..=8,
        group in prop::sample::select(GROUPS.to_vec()),
        kind in prop::sample::select(UNIFORM.to_vec()),
        style in 0usize..9,
        tokens in 1usize..12,
        tiles in 1usize..4,
    ) {
        let mut rng = Rng(seed);
        let m = Matrix::random(&mut rng, rows, cols, bits, group, kind);
        let x: Vec<_> = (0..tokens).map(|t| activations(&mut rng, cols, if t == 0 { style } else { 0 })).collect();
        for isa in Isa::available() {
            let alone = products(isa, &m.view(), &x[..1], tiles, true);
            let together = products(isa, &m.view(), &x, tiles, false);
            for (fast, x) in alone.iter().chain(&together).zip(x.iter().take(1).chain(&x)) {
                let slow = reference::product(&m.view(), x);
                prop_assert!(same(fast, &slow), "{} {fast:?} {slow:?}", isa.name());
            }
        }
    }
}

/// All codes and activations at their bounds: the largest sums there can be, in one sign and in both.
#[test]
fn sums_at_their_bound_stay_exact() {
    for kind in UNIFORM {
        for bits in 1..=8 {
            for group in GROUPS {
                let mut m = Matrix::random(&mut Rng(3), 32, 512, bits, group, kind);
                for fill in [0x00, 0xff] {
                    m.parts.iter_mut().for_each(|p| p.fill(fill));
                    for x in [1.0, -1.0] {
                        let x = vec![x; 512];
                        let slow = reference::product(&m.view(), &x);
                        for isa in Isa::available() {
                            let fast = products(isa, &m.view(), &[x.clone(), x.clone(), x.clone()], 1, false);
                            assert!(
                                fast.iter().all(|f| same(f, &slow)),
                                "{kind:?} {bits} g={group} {}",
                                isa.name()
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Rounding Gaussian activations to 8 bits costs some 2.6e-5 (normalised mean square, codes around the middle), and no more
/// where one of a block is 20 times as large: it is not rounded.
#[test]
fn error_against_exact_weights_is_the_activations_rounding() {
    let mut rng = Rng(7);
    for bits in 1..=8 {
        for group in GROUPS {
            let m = Matrix::random(&mut rng, 64, 1024, bits, group, UNIFORM[0]);
            for outlier in [None, Some(20.0)] {
                let mut x: Vec<f32> = (0..1024).map(|_| rng.normal()).collect();
                if let Some(outlier) = outlier {
                    x.iter_mut().step_by(32).for_each(|x| *x = outlier);
                }
                let exact = reference::gemv_f64(&m.view(), &x).unwrap();
                let y = &products(Isa::detect(), &m.view(), std::slice::from_ref(&x), 2, true)[0];
                // Relative to what codes contribute by being other than the middle one: a large m X would hide it.
                let middle = f64::from(1u32 << (bits - 1));
                let variance =
                    (f64::from(1u32 << bits).powi(2) - 1.0) / 12.0 + (middle - (middle - 0.5)).powi(2);
                let energy: f64 = (0..64)
                    .flat_map(|r| (0..1024 / group).map(move |g| (r, g)))
                    .map(|(r, g)| f64::from(m.view().coefficient(r, g, 0)).powi(2) * variance * group as f64)
                    .sum();
                let err: f64 = exact.iter().zip(y).map(|(e, y)| (e - f64::from(*y)).powi(2)).sum();
                assert!(err / energy < 5e-5, "{bits} g={group} {outlier:?}: {:.1e}", err / energy);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Planes as codes: as the slow twin makes them on every tier, a byte each, and as near to the weights as is said.
    #[test]
    fn expanded_planes_equal_the_slow_twin(
        seed: u64,
        rows in 1usize..100,
        cols in 1usize..400,
        q in 1usize..=8,
        group in prop::sample::select(GROUPS.to_vec()),
        kind in prop::sample::select(HLQ.to_vec()),
        style in 0usize..4,
    ) {
        let mut rng = Rng(seed);
        let mut m = Matrix::random(&mut rng, rows, cols, q, group, kind);
        match style {
            1 => m.params.fill(0),
            2 => m.params.fill(0x80),
            // Of every magnitude, infinities and NaN among them.
            3 if kind == ParamKind::Hlq16 => m.params.iter_mut().for_each(|p| *p = rng.next() as u8),
            3 => m.row_scales.iter_mut().for_each(|p| *p = rng.next() as u8),
            _ => {}
        }
        let w = m.view();
        let tiles = rng.below(w.shape().tiles())..w.shape().tiles();
        for isa in Isa::available() {
            let mut room = vec![0xa5; expanded_bytes(tiles.len(), cols, group) + 7];
            let got = expand(isa, &w, tiles.clone(), &mut room[7..]).unwrap();
            prop_assert_eq!(got.shape(), PlaneShape { rows: 32 * tiles.len(), cols });
            for row in 32 * tiles.start..rows {
                let r = row - 32 * tiles.start;
                let (codes, params) = reference::expand(&w, row);
                let (mut exact, mut near, mut found) = (vec![0.0; cols], vec![0.0; cols], vec![0; cols]);
                w.dequantize_row(row, &mut exact).unwrap();
                got.dequantize_row(r, &mut near).unwrap();
                let tile = &got.parts()[0][r / 32 * c32::tile_bytes(w.shape(), 8)..];
                c32::unpack_row(8, &[tile], r % 32, 0, &mut found);
                for (g, (d, m)) in params.iter().enumerate() {
                    let columns = g * group..((g + 1) * group).min(cols);
                    let coefficients = [got.coefficient(r, g, 0), got.coefficient(r, g, 1)];
                    prop_assert!(same(&coefficients, &[*d, *m]), "{} {row} {g}", isa.name());
                    for (exact, near) in exact[columns.clone()].iter().zip(&near[columns]) {
                        let off = 0.5 * q as f32 * d + m.abs() / 2048.0 + 1e-7;
                        let wild = !exact.is_finite() || !near.is_finite();
                        prop_assert!(wild || (exact - near).abs() <= off, "{exact} {near} {off}");
                    }
                }
                prop_assert_eq!(&found, &codes, "{} {}", isa.name(), row);
            }
        }
    }
}

/// No buffer needs any alignment: all of them one byte off give the same bits.
#[test]
fn unaligned_buffers_give_equal_bits() {
    let mut rng = Rng(5);
    for kind in UNIFORM {
        let m = Matrix::random(&mut rng, 70, 200, 7, 64, kind);
        let off = |bytes: &[u8]| [&[0u8], bytes].concat();
        let parts: Vec<Vec<u8>> = m.parts.iter().map(|p| off(p)).collect();
        let parts: Vec<&[u8]> = parts.iter().map(|p| &p[1..]).collect();
        let (params, scales) = (off(&m.params), off(&m.row_scales));
        let w = Packed::new(m.shape, m.group, kind, m.planes, &parts, &params[1..], &scales[1..]).unwrap();
        let x = vec![activations(&mut rng, 200, 0)];
        for isa in Isa::available() {
            for alone in [false, true] {
                let expected = products(isa, &m.view(), &x, 3, alone);
                assert_eq!(products(isa, &w, &x, 3, alone), expected, "{kind:?} {}", isa.name());
            }
        }
    }
}

#[test]
fn empty_and_unfitting_inputs_are_errors_or_nothing() {
    let mut rng = Rng(1);
    let isa = Isa::detect();
    let m = Matrix::random(&mut rng, 40, 70, 4, 32, UNIFORM[0]);
    let (x, room) = (one(isa, &[1.0; 70]), [Block::default(); 3 * 5]);
    let (x, many) = (Tokens::One(&x), Tokens::Many(&room[..3], 1));
    let mut y = [[0.0; 32]; 2];
    let mut run = |x, tiles, n: usize| product(isa, &m.view(), x, tiles, 4096, &mut y[..n]);
    run(x, 0..2, 2).unwrap();
    run(x, 1..1, 0).unwrap();
    run(many, 0..2, 2).unwrap();
    run(Tokens::Many(&[], 0), 0..2, 0).unwrap();
    assert!(run(Tokens::One(&[]), 0..2, 2).is_err());
    assert!(run(Tokens::Many(&room[..2], 1), 0..2, 2).is_err());
    assert!(run(Tokens::Many(&room, 33), 0..2, 2).is_err());
    assert!(run(x, 0..1, 2).is_err());
    assert!(run(many, 0..1, 2).is_err());
    assert!(run(x, 1..3, 2).is_err());
    let (seventy, three) = (&[1.0; 70][..], &mut [Block::default(); 3]);
    assert!(quantize(isa, [seventy], &mut [Block::default(); 2]).is_err());
    assert!(quantize(isa, [seventy, &seventy[..69]], three).is_err());
    quantize(isa, [seventy, &[]], three).unwrap();
    quantize(isa, [&[], seventy], three).unwrap();
    quantize(isa, [&[]], &mut []).unwrap();
    let planes = Matrix::random(&mut rng, 40, 70, 4, 32, HLQ[0]);
    let message = product(isa, &planes.view(), x, 0..2, 4096, &mut y).unwrap_err().to_string();
    assert!(message.contains("uniform"), "{message}");
}
