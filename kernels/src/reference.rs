//! The slow, obvious twins: written row by row from the formulas, sharing nothing with the kernels but
//! the meaning of the formats. Tests hold every tier to these.

use crate::attention::{KvType, SPAN};
use crate::error::Result;
use crate::pack::{Packed, SignLevel};
use half::f16;

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
/// `x` has the columns of `w`, which is of an HLQ kind.
pub fn gemv_lut(w: &Packed<'_>, x: &[f32]) -> Vec<f32> {
    rows(w, x, |acc, r, g, x, codes| {
        let (planes, sum) = (w.planes(), lane_sum(x));
        let mut acc = acc;
        for p in 0..planes {
            let mut t = 0.5 * sum;
            for (x, c) in x.chunks(64).zip(codes.chunks(64)) {
                let (apart, x) = apart(x);
                if let Some((at, x)) = apart {
                    t += if c[at] >> p & 1 == 1 { 0.5 * x } else { -0.5 * x };
                }
                let (inv, delta) = table_scale(&x);
                let a: i32 = x.chunks(4).zip(c.chunks(4)).map(|(x, c)| entry(x, c, p, inv)).sum();
                t = (a as f32).mul_add(0.5 * delta, t);
            }
            acc = w.coefficient(r, g, p).mul_add(t, acc);
        }
        w.coefficient(r, g, planes).mul_add(sum, acc)
    })
}

/// Adds a level's products to `y` by the arithmetic of [`crate::lut::sign`], one row and one number `i` at a time: equal in
/// bits to every tier. `x` has the columns of `w`, `y` its rows.
pub fn sign_lut(w: &SignLevel<'_>, x: &[f32], y: &mut [f32]) {
    for (r, y) in y.iter_mut().enumerate() {
        for (g, x) in x.chunks(256).enumerate() {
            let bits: Vec<u8> = (0..x.len()).map(|c| u8::from(w.sign(r, 256 * g + c) > 0.0)).collect();
            for i in 0..w.rank() {
                let vx: Vec<f32> = x.iter().enumerate().map(|(c, x)| w.v(i, 256 * g + c) * x).collect();
                let (apart, vx) = apart(&vx);
                let apart = apart.map_or(0.0, |(at, x)| if bits[at] == 1 { x } else { -x });
                let (inv, delta) = table_scale(&vx);
                let a: i32 = vx.chunks(4).zip(bits.chunks(4)).map(|(x, b)| entry(x, b, 0, inv)).sum();
                *y = w.u(i, r).mul_add((a as f32).mul_add(delta, apart), *y);
            }
        }
    }
}

/// The integer arithmetic of [`crate::dot`], one weight at a time: equal in bits to every tier. `x` has the columns of
/// `w`, which is of a uniform kind.
pub fn product(w: &Packed<'_>, x: &[f32]) -> Vec<f32> {
    // 32 columns share a scale, also where a group has only 16.
    let blocks: Vec<_> = x.chunks(32).map(dot_block).collect();
    let whole: Vec<i32> = blocks.iter().flat_map(|b| b.a.clone()).collect();
    let center = w.kind().center().map_or(1 << (w.planes() - 1), i32::from);
    let step = w.group().min(32);
    rows(w, x, |mut acc, r, g, _, codes| {
        let (d, from) = (w.coefficient(r, g, 0), g * w.group());
        for (i, codes) in codes.chunks(step).enumerate() {
            let at = from + i * step;
            let (block, columns) = (&blocks[at / 32], at..at + codes.len());
            let dot = codes.iter().zip(&whole[at..]).map(|(c, a)| i32::from(*c) * a).sum::<i32>() as f32;
            let sum = whole[columns.clone()].iter().sum::<i32>() as f32;
            let all = x[columns.clone()].chunks(16).map(lane_sum).fold(0.0, |sum, x| sum + x);
            let top = at / 32 * 32 + block.at;
            let (largest, code) =
                if columns.contains(&top) { (block.largest, codes[top - at]) } else { (0.0, 0) };
            let lost = all - sum.mul_add(block.delta, largest);
            let minimum = w.kind().center().is_none();
            let off = if minimum { lost } else { lost - all };
            let others = f32::from(code).mul_add(largest, center as f32 * off);
            acc = d.mul_add(dot.mul_add(block.delta, others), acc);
            if minimum {
                acc = w.coefficient(r, g, 1).mul_add(all, acc);
            }
        }
        acc
    })
}

/// The codes of [`crate::dot::expand()`] of row `row`, and `(d, m)` of each of its groups: `w` is of an HLQ kind.
pub fn expand(w: &Packed<'_>, row: usize) -> (Vec<u8>, Vec<(f32, f32)>) {
    let (cols, group, planes) = (w.shape().cols, w.group(), w.planes());
    let (mut codes, mut params) = (vec![0u8; cols], vec![]);
    for (g, codes) in codes.chunks_mut(group).enumerate() {
        w.unpack_group(row, g, codes);
        let s: Vec<f32> = (0..planes).map(|p| w.coefficient(row, g, p)).collect();
        let top = s.iter().fold(0.0f32, |top, s| if s.abs() > top { s.abs() } else { top });
        let n = (top * (255.0 - planes as f32 / 2.0) / s.iter().fold(0.0, |sum, s| sum + s.abs())).floor();
        let n = if n > 0.0 { n } else { 1.0 };
        let tried = (0..8).map(|i| n - i as f32).filter(|n| *n > 0.0);
        let left = |n: f32| {
            let steps = s.iter().map(|s| s * (1.0 / top) * n);
            steps.map(|s| s - s.round_ties_even()).fold(0.0, |sum, e| sum + e * e)
        };
        let (mut best, mut least) = (n, f32::INFINITY);
        for n in tried {
            if left(n) * (best * best) < least * (n * n) {
                (best, least) = (n, left(n));
            }
        }
        let least = top / best;
        let mut d = f16::from_f32(least);
        if d.to_f32() < least {
            d = f16::from_bits(d.to_bits() + 1);
        }
        let d = d.to_f32();
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let finite = |c: f32| if c.is_finite() { c } else { 0.0 };
        let c: Vec<i32> = s.iter().map(|s| finite(s * inverse).round_ties_even() as i32).collect();
        let offset = -c.iter().map(|c| c.min(&0)).sum::<i32>();
        for code in codes {
            let set = (0..planes).filter(|p| *code >> p & 1 == 1);
            *code = (offset + set.map(|p| c[p]).sum::<i32>()) as u8;
        }
        let m = f16::from_f32(w.coefficient(row, g, planes) - d * offset as f32).to_f32();
        params.push((d, m));
    }
    (codes, params)
}

/// The codes of [`crate::dot::rebuild()`] of row `row`, and the scale of each 32 of them.
///
/// # Errors
/// As [`SignLevel::add_row`].
pub fn rebuild(levels: &[SignLevel<'_>], row: usize) -> Result<(Vec<u8>, Vec<f32>)> {
    let mut w = vec![0.0; levels.first().map_or(0, |level| level.shape().cols)];
    levels.iter().try_for_each(|level| level.add_row(row, &mut w))?;
    let (mut codes, mut scales) = (vec![], vec![]);
    for w in w.chunks(32) {
        let least = w.iter().fold(0.0f32, |most, w| if w.abs() > most { w.abs() } else { most }) / 127.0;
        let mut d = f16::from_f32(least);
        if d.to_f32() < least {
            d = f16::from_bits(d.to_bits() + 1);
        }
        let d = d.to_f32();
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        codes.extend(w.iter().map(|w| {
            let x = w * inverse;
            (if x.abs() <= 256.0 { x.round_ties_even() } else { 0.0 } + 128.0) as u8
        }));
        scales.push(d);
    }
    Ok((codes, scales))
}

/// `step(accumulator, row, group, its activations, its codes)` over all groups of each row.
fn rows(w: &Packed<'_>, x: &[f32], step: impl Fn(f32, usize, usize, &[f32], &[u8]) -> f32) -> Vec<f32> {
    let mut codes = vec![0u8; w.group()];
    (0..w.shape().rows)
        .map(|r| {
            let mut acc = 0.0;
            for (g, x) in x.chunks(w.group()).enumerate() {
                let codes = &mut codes[..x.len()];
                w.unpack_group(r, g, codes);
                acc = step(acc, r, g, x, codes);
            }
            acc
        })
        .collect()
}

/// Activations under one scale, all but the largest.
struct DotBlock {
    a: Vec<i32>,
    delta: f32,
    at: usize,
    largest: f32,
}

fn dot_block(x: &[f32]) -> DotBlock {
    if !x.iter().all(|x| x.is_finite()) {
        return DotBlock { a: vec![0; x.len()], delta: f32::NAN, at: 0, largest: 0.0 };
    }
    let max = |x: &[f32]| x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let at = x.iter().position(|v| v.abs() == max(x)).unwrap_or(0);
    let mut others = x.to_vec();
    others[at] = 0.0;
    let m = max(&others);
    let (inverse, delta) = if m < 1e-30 { (0.0, 0.0) } else { (127.0 / m, m * (1.0 / 127.0)) };
    let a = others.iter().map(|x| (x * inverse).round_ties_even() as i32).collect();
    DotBlock { a, delta, at, largest: x[at] }
}

/// A chunk's largest activation with its place, if it is not in the chunk's tables, and what is in them.
fn apart(x: &[f32]) -> (Option<(usize, f32)>, Vec<f32>) {
    let top = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let mut others = x.to_vec();
    if let Some(at) = x.iter().position(|v| v.abs() == top) {
        others[at] = 0.0;
        if max_tuple(&others) < max_tuple(x) * (2.0 / 3.0) && max_tuple(x).is_finite() {
            return (Some((at, x[at])), others);
        }
    }
    (None, x.to_vec())
}

/// The largest sum of 4 magnitudes; NaN if any is infinite or NaN.
fn max_tuple(x: &[f32]) -> f32 {
    let at = |t: &[f32], i: usize| t.get(i).copied().unwrap_or(0.0).abs();
    let sums = x.chunks(4).map(|t| (at(t, 0) + at(t, 1)) + (at(t, 2) + at(t, 3)));
    sums.fold(0.0f32, |m, s| if s.is_finite() && m.is_finite() { m.max(s) } else { f32::NAN })
}

/// `(1 / delta, delta)` of a chunk of activations.
fn table_scale(x: &[f32]) -> (f32, f32) {
    let m = max_tuple(x);
    if !m.is_finite() {
        return (0.0, f32::NAN);
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

/// What a cache keeps of the key or value `x` of one position: the numbers that it stands for afterwards.
pub fn kv_stored(ty: KvType, x: &[f32]) -> Vec<f32> {
    let quantized = |x: &[f32], d: f32, low: f32, high: f32| -> Vec<f32> {
        let d = f16::from_f32(d).to_f32();
        let code = |x: &f32| if d == 0.0 { 0.0 } else { (x / d).round_ties_even().clamp(low, high) };
        x.iter().map(|x| code(x) * d).collect()
    };
    let largest = |x: &[f32]| {
        let finite = x.iter().all(|x| x.is_finite());
        let largest = |a: f32, b: &f32| if b.abs() > a.abs() || (*b == -a && *b > 0.0) { *b } else { a };
        if finite { x.iter().fold(0.0, largest) } else { f32::NAN }
    };
    match ty {
        KvType::F32 => x.to_vec(),
        KvType::F16 => x.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
        KvType::Q8_0 => {
            x.chunks(32).flat_map(|x| quantized(x, largest(x).abs() / 127.0, -127.0, 127.0)).collect()
        }
        KvType::Q4_0 => x.chunks(32).flat_map(|x| quantized(x, largest(x) / -8.0, -8.0, 7.0)).collect(),
    }
}

/// The arithmetic of [`crate::attention`] for one query (times `1 / sqrt(head_dim)`) that sees all of `keys` and
/// `values`, `[positions][head_dim]` each: equal in bits to every tier, batch and number of workers.
pub fn attention(query: &[f32], keys: &[f32], values: &[f32]) -> Vec<f32> {
    let dim = query.len();
    let (mut max, mut sum, mut out) = (0.0f32, 0.0f32, vec![0.0f32; dim]);
    for (keys, values) in keys.chunks(SPAN * dim).zip(values.chunks(SPAN * dim)) {
        let product = |k: &[f32]| query.iter().zip(k).fold(0.0f32, |sum, (q, k)| k.mul_add(*q, sum));
        let mut weights: Vec<f32> = keys.chunks(dim).map(product).collect();
        let top = weights.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        let finite = weights.iter().all(|x| x.is_finite());
        weights.iter_mut().for_each(|x| *x = exp(*x - top));
        let mixed = |d: usize| {
            weights.iter().zip(values.chunks(dim)).fold(0.0f32, |sum, (w, v)| v[d].mul_add(*w, sum))
        };
        let new = if finite { lane_sum(&weights) } else { f32::NAN };
        let (a, b) = if sum == 0.0 {
            (max, sum) = (top, new);
            (0.0, 1.0)
        } else {
            let both = max.max(top);
            let (a, b) = (exp(max - both), exp(top - both));
            (max, sum) = (both, new.mul_add(b, sum * a));
            (a, b)
        };
        out.iter_mut().enumerate().for_each(|(d, o)| *o = mixed(d).mul_add(b, *o * a));
    }
    out.iter_mut().for_each(|o| *o *= 1.0 / sum);
    out
}

/// The exponential of the bit contract for numbers that are not above 0 (`simd::exp`).
fn exp(x: f32) -> f32 {
    let x = x.max(-87.336_54);
    let n = (x * core::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let c = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let p = c.into_iter().fold(0.0f32, |p, c| p.mul_add(r, c));
    (p.mul_add(r * r, r) + 1.0) * f32::powi(2.0, n as i32)
}
