//! Plain Rust: runs everywhere, and defines what the other tiers must compute.

use crate::pack::p32::byte_of_row;
use crate::simd::{BIAS, Kernel, LANES, Simd, TILE, pair_of_dots};
use half::f16;

/// Needs no instructions beyond the target's floor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

type F = [f32; LANES];

#[inline(always)]
fn map(a: F, f: impl Fn(f32) -> f32) -> F {
    core::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    core::array::from_fn(|i| f(a[i], b[i]))
}

/// The entries of both nibbles of the byte `at` of two blocks.
#[inline(always)]
fn look_up_both(t: &[u8; 64], at: usize, w: u8) -> u16 {
    let first = at / TILE * 32;
    u16::from(t[first + usize::from(w & 15)]) + u16::from(t[first + 16 + usize::from(w >> 4)])
}

impl Simd for Scalar {
    type F = F;
    type Tables = [u8; 64];
    type Nibbles = [u8; 64];
    type Acc = [u16; TILE];
    type Sums = [i16; TILE];
    type Rows = [f32; TILE];
    type Codes = [[u8; 4]; TILE];
    type Dots = [i32; TILE];
    type Pair = [[i32; TILE]; 2];
    const PAIRS: bool = false;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, k: K) -> K::Output {
        k.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &F) -> F {
        *x
    }
    #[inline(always)]
    fn store(self, v: F, out: &mut F) {
        *out = v;
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 16]) -> F {
        core::array::from_fn(|i| f16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn store_f16(self, v: F, out: &mut [u8; 16]) {
        for i in 0..LANES {
            out[2 * i..2 * i + 2].copy_from_slice(&f16::from_f32(v[i]).to_le_bytes());
        }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 16]) -> F {
        core::array::from_fn(|i| f32::from_bits(u32::from_le_bytes([0, 0, x[2 * i], x[2 * i + 1]])))
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; 8]) -> F {
        core::array::from_fn(|i| f32::from(x[i].cast_signed()))
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        core::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        map(a, f32::round_ties_even)
    }
    #[inline(always)]
    fn exp2i(self, n: F) -> F {
        map(n, |n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn sum(self, v: F) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    fn hmax(self, v: F) -> f32 {
        v.into_iter().fold(v[0], |a, b| if a > b { a } else { b })
    }

    wide_as_pairs!();

    #[inline(always)]
    fn wide_i4(self, x: &[u8; 8]) -> [F; 2] {
        let float = |n: u8| f32::from(n) - 8.0;
        [x.map(|b| float(b & 15)), x.map(|b| float(b >> 4))]
    }

    #[inline(always)]
    fn tuples(self, x: &[f32; 4 * LANES]) -> F {
        core::array::from_fn(|i| {
            (x[4 * i].abs() + x[4 * i + 1].abs()) + (x[4 * i + 2].abs() + x[4 * i + 3].abs())
        })
    }
    #[inline(always)]
    fn build_tables(self, x: &[f32; 8], inv: f32, out: &mut [u8; 32]) {
        for (at, out) in out.iter_mut().enumerate() {
            let v = |i: usize| if at >> i & 1 == 1 { x[at / 16 * 4 + i] } else { -x[at / 16 * 4 + i] };
            let t = ((v(0) + v(1)) + (v(2) + v(3))) * inv;
            *out = (t.round_ties_even() as i32).wrapping_add(i32::from(BIAS)) as u8;
        }
    }
    #[inline(always)]
    fn prefetch(self, _: &[u8], _: usize) {}
    #[inline(always)]
    fn tables(self, t: &[u8; 64]) -> [u8; 64] {
        *t
    }
    #[inline(always)]
    fn acc_less(self, bias: u16) -> [u16; TILE] {
        [bias.wrapping_neg(); TILE]
    }
    #[inline(always)]
    fn nibbles(self, w: &[u8; 64]) -> [u8; 64] {
        *w
    }
    #[inline(always)]
    fn accumulate(self, mut acc: [u16; TILE], t: [u8; 64], w: [u8; 64]) -> [u16; TILE] {
        // Byte b belongs to row perm(b); the sums are kept in byte order until `sums_to_rows`.
        for (at, w) in w.iter().enumerate() {
            acc[at % TILE] = acc[at % TILE].wrapping_add(look_up_both(&t, at, *w));
        }
        acc
    }
    #[inline(always)]
    fn sums(self, acc: [u16; TILE]) -> [i16; TILE] {
        acc.map(u16::cast_signed)
    }
    #[inline(always)]
    fn sums_to_rows(self, s: [i16; TILE]) -> [f32; TILE] {
        core::array::from_fn(|row| f32::from(s[2 * (row % 16) + row / 16]))
    }

    #[inline(always)]
    fn rows_splat(self, x: f32) -> [f32; TILE] {
        [x; TILE]
    }
    #[inline(always)]
    fn rows_load_f16(self, x: &[u8; 2 * TILE]) -> [f32; TILE] {
        core::array::from_fn(|i| f16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn rows_load_i8(self, x: &[u8; TILE]) -> [f32; TILE] {
        x.map(|x| f32::from(x.cast_signed()))
    }
    #[inline(always)]
    fn rows_store(self, v: [f32; TILE], out: &mut [f32; TILE]) {
        *out = v;
    }
    #[inline(always)]
    fn rows_mul(self, a: [f32; TILE], b: [f32; TILE]) -> [f32; TILE] {
        core::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn rows_fma(self, a: [f32; TILE], b: [f32; TILE], c: [f32; TILE]) -> [f32; TILE] {
        core::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn rows_add_signed(self, mut a: Self::Rows, block: &[u8; TILE], bit: usize, x: f32) -> Self::Rows {
        for (r, a) in a.iter_mut().enumerate() {
            *a += if block[byte_of_row(r)] >> (bit % 8) & 1 == 1 { x } else { -x };
        }
        a
    }
    #[inline(always)]
    fn rows_load(self, x: &[f32; TILE]) -> [f32; TILE] {
        *x
    }
    #[inline(always)]
    fn store_i8(self, v: [F; 4], out: &mut [i8; 4 * LANES]) {
        out.iter_mut().zip(v.as_flattened()).for_each(|(out, v)| *out = *v as i8);
    }

    #[inline(always)]
    fn codes(self, x: &[u8; 4 * TILE]) -> Self::Codes {
        let mut codes = [[0; 4]; TILE];
        codes.as_flattened_mut().copy_from_slice(x);
        codes
    }
    #[inline(always)]
    fn codes_store(self, c: Self::Codes, out: &mut [u8; 4 * TILE]) {
        out.copy_from_slice(c.as_flattened());
    }
    #[inline(always)]
    fn codes_field(self, mut c: Self::Codes, shift: i32, mask: u8) -> Self::Codes {
        for c in c.as_flattened_mut() {
            *c = (if shift < 0 { *c << -shift } else { *c >> shift }) & mask;
        }
        c
    }
    #[inline(always)]
    fn codes_or(self, mut a: Self::Codes, b: Self::Codes) -> Self::Codes {
        for (a, b) in a.as_flattened_mut().iter_mut().zip(b.as_flattened()) {
            *a |= b;
        }
        a
    }
    #[inline(always)]
    fn codes_add_where(
        self,
        mut codes: [Self::Codes; 2],
        nibbles: &[u8; TILE],
        c: Self::Codes,
    ) -> [Self::Codes; 2] {
        for (high, codes) in codes.iter_mut().enumerate() {
            for (r, (codes, c)) in codes.iter_mut().zip(&c).enumerate() {
                let nibble = nibbles[byte_of_row(r)] >> (4 * high);
                for (i, (code, c)) in codes.iter_mut().zip(c).enumerate() {
                    *code = code.wrapping_add(if nibble >> i & 1 == 1 { *c } else { 0 });
                }
            }
        }
        codes
    }
    #[inline(always)]
    fn code_at(self, c: Self::Codes, i: usize) -> Self::Rows {
        c.map(|c| f32::from(c[i]))
    }
    #[inline(always)]
    fn dots_zero(self) -> [i32; TILE] {
        [0; TILE]
    }
    #[inline(always)]
    fn dot<const BITS: usize>(self, mut sums: [i32; TILE], c: Self::Codes, a: &[i8; 4]) -> [i32; TILE] {
        for (sum, c) in sums.iter_mut().zip(c) {
            for i in 0..4 {
                *sum += i32::from(c[i]) * i32::from(a[i]);
            }
        }
        sums
    }
    #[inline(always)]
    fn dots_to_rows<const BITS: usize>(self, sums: [i32; TILE], _: f32) -> [f32; TILE] {
        sums.map(|sum| sum as f32)
    }
    pair_of_dots!();
}
