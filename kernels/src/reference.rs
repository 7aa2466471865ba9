//! The slow, obvious twins: written row by row from the formulas, sharing nothing with the kernels but
//! the meaning of the formats. Tests hold every tier to these.

use crate::error::Result;
use crate::pack::{Packed, ParamKind, p32};

/// `y[r] = sum over c of w[r][c] x[c]` in f64 over the dequantized weights: what the numbers mean.
///
/// # Errors
/// As [`Packed::dequantize_row`].
pub fn gemv_f64(w: &Packed<'_>, x: &[f32]) -> Result<Vec<f64>> {
    let mut row = vec![0.0; w.shape().cols];
    (0..w.shape().rows)
        .map(|r| {
            w.dequantize_row(r, &mut row)?;
            Ok(row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum())
        })
        .collect()
}

/// The table arithmetic of [`crate::lut`], one row and one bit at a time: equal in bits to every tier.
/// `x` has `w`'s columns.
pub fn gemv_lut(w: &Packed<'_>, x: &[f32]) -> Vec<f32> {
    let shape = w.shape();
    let planes = w.planes().len();
    let mut codes = vec![0u8; shape.cols];
    (0..shape.rows)
        .map(|r| {
            p32::unpack_row(shape, w.planes(), r, &mut codes);
            let mut acc = 0.0f32;
            for (g, (x, codes)) in x.chunks(w.group()).zip(codes.chunks(w.group())).enumerate() {
                let sum = lane_sum(x);
                let chunks = || x.chunks(w.group().min(64)).zip(codes.chunks(w.group().min(64)));
                // A_p of one chunk, in units of that chunk's table scale.
                let signed = |p: usize, x: &[f32], codes: &[u8]| -> i32 {
                    let (inv, _) = table_scale(x);
                    x.chunks(4).zip(codes.chunks(4)).map(|(x, c)| entry(x, c, p, inv)).sum()
                };
                let coef = |k| w.coefficient(r, g, k);
                match w.kind() {
                    ParamKind::Hlq16 | ParamKind::Hlq8 => {
                        for p in 0..planes {
                            let mut t = 0.5 * sum;
                            for (x, c) in chunks() {
                                t = (signed(p, x, c) as f32).mul_add(0.5 * table_scale(x).1, t);
                            }
                            acc = coef(p).mul_add(t, acc);
                        }
                        acc = coef(planes).mul_add(sum, acc);
                    }
                    ParamKind::Uniform
                    | ParamKind::Centered(_)
                    | ParamKind::UniformK
                    | ParamKind::CenteredK(_) => {
                        let center = f32::from(w.kind().center().unwrap_or(0));
                        let mut t = (((1u32 << planes) - 1) as f32 * 0.5 - center) * sum;
                        for (x, c) in chunks() {
                            // Two passes above 4 planes; the last two planes of all are refined.
                            let low = if planes == 5 { 3 } else { planes.min(4) };
                            let high = planes - low;
                            let pass = |from: usize, n: usize| -> f32 {
                                (0..n).map(|p| signed(from + p, x, c) << p).sum::<i32>() as f32
                            };
                            let (inv, _) = table_scale(x);
                            let fine = |p: usize| -> i32 {
                                let tuples = x.chunks(4).zip(c.chunks(4));
                                let lost = tuples.map(|(x, c)| {
                                    let t = signed_sum(x, c, p) * inv;
                                    ((t - t.round_ties_even()) * 40.0).round_ties_even() as i32
                                });
                                lost.sum()
                            };
                            let top = if high > 0 { high } else { low };
                            let second = if top > 1 { fine(planes - 2) } else { 0 };
                            let fine = (2 * fine(planes - 1) + second) as f32;
                            let step = (1u32 << top) as f32 / 160.0;
                            let a = if high > 0 {
                                let weight = (1u32 << low) as f32;
                                fine.mul_add(step, pass(low, high)).mul_add(weight, pass(0, low))
                            } else {
                                fine.mul_add(step, pass(0, low))
                            };
                            t = a.mul_add(0.5 * table_scale(x).1, t);
                        }
                        acc = coef(0).mul_add(t, acc);
                        if w.kind().center().is_none() {
                            acc = coef(1).mul_add(sum, acc);
                        }
                    }
                }
            }
            acc
        })
        .collect()
}

/// `(1 / delta, delta)` of a chunk of activations.
fn table_scale(x: &[f32]) -> (f32, f32) {
    let at = |t: &[f32], i: usize| t.get(i).copied().unwrap_or(0.0).abs();
    let sums = x.chunks(4).map(|t| (at(t, 0) + at(t, 1)) + (at(t, 2) + at(t, 3)));
    let mut m = 0.0f32;
    for s in sums {
        if !s.is_finite() {
            return (0.0, f32::NAN);
        }
        m = m.max(s);
    }
    if m < 1e-30 { (0.0, 0.0) } else { (127.0 / m, m / 127.0) }
}

/// The table entry of up to 4 activations under plane `p`'s bits.
fn entry(x: &[f32], codes: &[u8], p: usize, inv: f32) -> i32 {
    (signed_sum(x, codes, p) * inv).round_ties_even() as i32
}

/// The sum of up to 4 activations with the signs of plane `p`'s bits.
fn signed_sum(x: &[f32], codes: &[u8], p: usize) -> f32 {
    let v = |i: usize| match (x.get(i), codes.get(i)) {
        (Some(x), Some(c)) if c >> p & 1 == 1 => *x,
        (Some(x), Some(_)) => -*x,
        _ => 0.0,
    };
    (v(0) + v(1)) + (v(2) + v(3))
}

/// The 8-lane sum of the bit contract.
pub fn lane_sum(x: &[f32]) -> f32 {
    let mut v = [0.0f32; 8];
    for (i, x) in x.iter().enumerate() {
        v[i % 8] += x;
    }
    ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
}
