// LONG: all operations of one architecture, in the trait's order.
//! NEON: every 64-bit Arm core. Two tiers above it add integer products: `dotprod` (Cortex-A55 and A76 on, Apple M1
//! on) and `i8mm` (Cortex-A510 and A710 on, Apple M2 on). Look-ups need neither.
//!
//! `sdot` and `smmla` have no stable intrinsics yet (rust-lang/rust 117224 and 117223), and neither has the conversion
//! of half floats (136306), though it is part of NEON's baseline: one line of assembly each.

use crate::simd::{BIAS, Kernel, LANES, Simd, TILE};
use core::arch::aarch64::*;
use core::arch::asm;
use core::marker::PhantomData;

// So on all targets with a standard library.
const _: () = assert!(cfg!(target_feature = "neon"), "NEON has to be in the target's baseline");

/// Wraps intrinsic calls.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: NEON is in the target's baseline (asserted above), and loads and stores get their pointer from an
        // array reference of exactly the width they touch.
        unsafe { $e }
    };
}

/// Proof that the processor has NEON and what the level `L` adds to it: only [`Neon::detect`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon<L>(PhantomData<L>);

/// NEON alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Base;
/// NEON and `sdot`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dot;
/// NEON, `sdot` and `smmla`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct I8mm;

/// What a level adds: how to enter it, and its integer products.
pub(crate) trait Level: Copy {
    /// See [`Simd::Pair`].
    type Pair: Copy;

    /// Whether this processor has the level.
    fn detected() -> bool;

    /// Runs `k` compiled with the level's features on.
    ///
    /// # Safety
    /// The processor must have them.
    unsafe fn enter<K: Kernel>(s: Neon<Self>, k: K) -> K::Output;

    /// Adds the products of 4 rows' 4 columns with the same 4 activations, four times.
    ///
    /// # Safety
    /// The processor must have the level's features.
    unsafe fn dot(sums: int32x4_t, c: int8x16_t, a: int8x16_t) -> int32x4_t;

    /// No products added yet.
    fn pair_zero() -> Self::Pair;

    /// Adds the products of 8 columns with those of two tokens, one after another in `a`.
    ///
    /// # Safety
    /// The processor must have the level's features.
    unsafe fn pair_dot(sums: Self::Pair, c: [Codes; 2], a: int8x16_t) -> Self::Pair;

    /// Either token's sums.
    fn pair_sums(sums: Self::Pair) -> [Dots; 2];
}

/// 4 signed codes of each of 4 rows in every register.
type Codes = [int8x16_t; 8];
/// 4 rows in every register.
type Dots = [int32x4_t; 8];

/// [`Level::pair_dot`] by [`Level::dot`].
///
/// # Safety
/// The processor must have the level's features.
#[inline(always)]
unsafe fn pair_by_dots<L: Level>(mut sums: [Dots; 2], c: [Codes; 2], a: int8x16_t) -> [Dots; 2] {
    let four = op!({
        let a = vreinterpretq_s32_s8(a);
        [vdupq_laneq_s32::<0>(a), vdupq_laneq_s32::<1>(a), vdupq_laneq_s32::<2>(a), vdupq_laneq_s32::<3>(a)]
            .map(|a| vreinterpretq_s8_s32(a))
    });
    for t in 0..2 {
        for i in 0..8 {
            // SAFETY: the caller vouches for the features.
            unsafe {
                sums[t][i] = L::dot(sums[t][i], c[0][i], four[2 * t]);
                sums[t][i] = L::dot(sums[t][i], c[1][i], four[2 * t + 1]);
            }
        }
    }
    sums
}

impl<L: Level> Neon<L> {
    /// The token, if this processor has all of the level's features.
    pub(crate) fn detect() -> Option<Neon<L>> {
        L::detected().then_some(Neon(PhantomData))
    }

    /// Every level holds the base.
    #[inline(always)]
    pub(crate) fn base(self) -> Neon<Base> {
        Neon(PhantomData)
    }
}

/// Everything generic is inlined into these functions, and so compiled with their features on. Each is compiled once
/// for a kernel, however many tiers enter it.
#[inline(never)]
fn run_base<K: Kernel>(s: Neon<Base>, k: K) -> K::Output {
    k.run(s)
}

/// See [`run_base`].
#[target_feature(enable = "neon,dotprod")]
fn run_dot<K: Kernel>(s: Neon<Dot>, k: K) -> K::Output {
    k.run(s)
}

/// See [`run_base`].
#[target_feature(enable = "neon,dotprod,i8mm")]
fn run_i8mm<K: Kernel>(s: Neon<I8mm>, k: K) -> K::Output {
    k.run(s)
}

impl Level for Base {
    type Pair = [Dots; 2];

    fn detected() -> bool {
        true // asserted at the head of this file
    }
    #[inline(always)]
    unsafe fn enter<K: Kernel>(s: Neon<Base>, k: K) -> K::Output {
        run_base(s, k)
    }
    /// Two products of a byte of -128..=127 and one of +-127 fit 16 bits.
    #[inline(always)]
    unsafe fn dot(sums: int32x4_t, c: int8x16_t, a: int8x16_t) -> int32x4_t {
        op!({
            let two = vpaddq_s16(vmull_s8(vget_low_s8(c), vget_low_s8(a)), vmull_high_s8(c, a));
            vpadalq_s16(sums, two)
        })
    }
    #[inline(always)]
    fn pair_zero() -> [Dots; 2] {
        [[op!(vdupq_n_s32(0)); 8]; 2]
    }
    #[inline(always)]
    unsafe fn pair_dot(sums: [Dots; 2], c: [Codes; 2], a: int8x16_t) -> [Dots; 2] {
        // SAFETY: the base needs no features.
        unsafe { pair_by_dots::<Self>(sums, c, a) }
    }
    #[inline(always)]
    fn pair_sums(sums: [Dots; 2]) -> [Dots; 2] {
        sums
    }
}

impl Level for Dot {
    type Pair = [Dots; 2];

    fn detected() -> bool {
        std::arch::is_aarch64_feature_detected!("dotprod")
    }
    #[inline(always)]
    unsafe fn enter<K: Kernel>(s: Neon<Dot>, k: K) -> K::Output {
        // SAFETY: the caller vouches for the features.
        unsafe { run_dot(s, k) }
    }
    #[inline(always)]
    unsafe fn dot(mut sums: int32x4_t, c: int8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: registers only; the caller vouches for dotprod.
        unsafe {
            asm!(".arch_extension dotprod", "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", ".arch_extension nodotprod",
                inout(vreg) sums, in(vreg) c, in(vreg) a,
                options(pure, nomem, nostack, preserves_flags));
        }
        sums
    }
    #[inline(always)]
    fn pair_zero() -> [Dots; 2] {
        Base::pair_zero()
    }
    #[inline(always)]
    unsafe fn pair_dot(sums: [Dots; 2], c: [Codes; 2], a: int8x16_t) -> [Dots; 2] {
        // SAFETY: the caller vouches for dotprod.
        unsafe { pair_by_dots::<Self>(sums, c, a) }
    }
    #[inline(always)]
    fn pair_sums(sums: [Dots; 2]) -> [Dots; 2] {
        sums
    }
}

impl Level for I8mm {
    /// Two rows in every register: `[row 0 token 0, row 0 token 1, row 1 token 0, row 1 token 1]`.
    type Pair = [int32x4_t; 16];

    fn detected() -> bool {
        std::arch::is_aarch64_feature_detected!("dotprod") && std::arch::is_aarch64_feature_detected!("i8mm")
    }
    #[inline(always)]
    unsafe fn enter<K: Kernel>(s: Neon<I8mm>, k: K) -> K::Output {
        // SAFETY: the caller vouches for the features.
        unsafe { run_i8mm(s, k) }
    }
    #[inline(always)]
    unsafe fn dot(sums: int32x4_t, c: int8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: the caller vouches for i8mm, and `detected` asks for dotprod as well.
        unsafe { Dot::dot(sums, c, a) }
    }
    #[inline(always)]
    fn pair_zero() -> [int32x4_t; 16] {
        [op!(vdupq_n_s32(0)); 16]
    }
    #[inline(always)]
    unsafe fn pair_dot(mut sums: [int32x4_t; 16], c: [Codes; 2], a: int8x16_t) -> [int32x4_t; 16] {
        for i in 0..8 {
            // smmla takes 8 columns of two rows in one register.
            let rows = op!({
                let (x, y) = (vreinterpretq_s32_s8(c[0][i]), vreinterpretq_s32_s8(c[1][i]));
                [vreinterpretq_s8_s32(vzip1q_s32(x, y)), vreinterpretq_s8_s32(vzip2q_s32(x, y))]
            });
            for (sums, rows) in sums[2 * i..2 * i + 2].iter_mut().zip(rows) {
                // SAFETY: registers only; the caller vouches for i8mm.
                unsafe {
                    asm!(".arch_extension i8mm", "smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", ".arch_extension noi8mm",
                        inout(vreg) *sums, in(vreg) rows, in(vreg) a,
                        options(pure, nomem, nostack, preserves_flags));
                }
            }
        }
        sums
    }
    #[inline(always)]
    fn pair_sums(sums: [int32x4_t; 16]) -> [Dots; 2] {
        let mut out = Base::pair_zero();
        for i in 0..8 {
            op!({
                out[0][i] = vuzp1q_s32(sums[2 * i], sums[2 * i + 1]);
                out[1][i] = vuzp2q_s32(sums[2 * i], sums[2 * i + 1]);
            });
        }
        out
    }
}

/// 8 floats.
#[derive(Clone, Copy)]
pub(crate) struct F {
    lo: float32x4_t,
    hi: float32x4_t,
}

/// The 16 bytes of an array.
#[inline(always)]
fn bytes(x: &[u8; 16]) -> uint8x16_t {
    op!(vld1q_u8(x.as_ptr()))
}

/// 4 half floats, exactly widened.
#[inline(always)]
fn widen_f16(x: uint16x4_t) -> float32x4_t {
    let out;
    // SAFETY: registers only; the instruction is part of NEON.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) out, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// 8 integers as floats.
#[inline(always)]
fn widen_i16(x: int16x8_t) -> F {
    op!(F { lo: vcvtq_f32_s32(vmovl_s16(vget_low_s16(x))), hi: vcvtq_f32_s32(vmovl_high_s16(x)) })
}

/// Rounds 4 floats to half floats, ties to even (the rounding mode that programs start with).
#[inline(always)]
fn narrow_f16(x: float32x4_t) -> uint16x4_t {
    let out;
    // SAFETY: registers only; the instruction is part of NEON.
    unsafe {
        asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) out, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// 8 signed bytes, exactly widened.
#[inline(always)]
fn widen_i8(x: int8x8_t) -> F {
    widen_i16(op!(vmovl_s8(x)))
}

/// 16 integral floats within +-127, plus `bias`, as bytes.
#[inline(always)]
fn pack_bytes(t: [float32x4_t; 4], bias: u8, out: &mut [u8; 16]) {
    op!({
        let half = |a, b| vmovn_s16(vcombine_s16(vmovn_s32(vcvtq_s32_f32(a)), vmovn_s32(vcvtq_s32_f32(b))));
        let b = vreinterpretq_u8_s8(vcombine_s8(half(t[0], t[1]), half(t[2], t[3])));
        vst1q_u8(out.as_mut_ptr(), vaddq_u8(b, vdupq_n_u8(bias)));
    });
}

/// The 16 sums of 4 activations with their signs, times `inv`.
#[inline(always)]
fn sign_sums(x: &[f32; 4], inv: f32) -> [float32x4_t; 4] {
    // Lane e: bit i of e clear means -x[i], a flip of the sign bit. Bits 2 and 3 tell the vectors apart.
    const N: u32 = 1 << 31;
    op!({
        let flip = |x: f32, bits: &[u32; 4]| {
            let x = vreinterpretq_u32_f32(vdupq_n_f32(x));
            vreinterpretq_f32_u32(veorq_u32(x, vld1q_u32(bits.as_ptr())))
        };
        let s01 = vaddq_f32(flip(x[0], &[N, 0, N, 0]), flip(x[1], &[N, N, 0, 0]));
        let s23 = [-x[2] - x[3], x[2] - x[3], x[3] - x[2], x[2] + x[3]];
        s23.map(|s| vmulq_n_f32(vaddq_f32(s01, vdupq_n_f32(s)), inv))
    })
}

impl<L: Level> Simd for Neon<L> {
    type F = F;
    type Tables = [uint8x16_t; 4];
    /// Low and high ones of 16 bytes each.
    type Nibbles = [[uint8x16_t; 2]; 4];
    /// In the order of bytes, as they lie in a plane.
    type Acc = [uint16x8_t; 4];
    /// In the order of bytes.
    type Sums = [int16x8_t; 4];
    type Rows = [F; 4];
    type Codes = [uint8x16_t; 8];
    type Dots = Dots;
    type Pair = L::Pair;
    const PAIRS: bool = true;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, k: K) -> K::Output {
        // SAFETY: the token proves the features.
        unsafe { L::enter(self, k) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F {
        op!(F { lo: vdupq_n_f32(x), hi: vdupq_n_f32(x) })
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> F {
        op!(F { lo: vld1q_f32(x.as_ptr()), hi: vld1q_f32(x.as_ptr().add(4)) })
    }
    #[inline(always)]
    fn store(self, v: F, out: &mut [f32; LANES]) {
        op!({
            vst1q_f32(out.as_mut_ptr(), v.lo);
            vst1q_f32(out.as_mut_ptr().add(4), v.hi);
        });
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 16]) -> F {
        op!({
            let h = vreinterpretq_u16_u8(bytes(x));
            F { lo: widen_f16(vget_low_u16(h)), hi: widen_f16(vget_high_u16(h)) }
        })
    }
    #[inline(always)]
    fn store_f16(self, v: F, out: &mut [u8; 16]) {
        op!({
            let h = vcombine_u16(narrow_f16(v.lo), narrow_f16(v.hi));
            vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_u16(h));
        });
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 16]) -> F {
        op!({
            let h = vreinterpretq_u16_u8(bytes(x));
            F {
                lo: vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(h))),
                hi: vreinterpretq_f32_u32(vshll_high_n_u16::<16>(h)),
            }
        })
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; 8]) -> F {
        op!(widen_i8(vreinterpret_s8_u8(vld1_u8(x.as_ptr()))))
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        op!(F { lo: vaddq_f32(a.lo, b.lo), hi: vaddq_f32(a.hi, b.hi) })
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        op!(F { lo: vsubq_f32(a.lo, b.lo), hi: vsubq_f32(a.hi, b.hi) })
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        op!(F { lo: vmulq_f32(a.lo, b.lo), hi: vmulq_f32(a.hi, b.hi) })
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        op!(F { lo: vdivq_f32(a.lo, b.lo), hi: vdivq_f32(a.hi, b.hi) })
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        op!(F { lo: vfmaq_f32(c.lo, a.lo, b.lo), hi: vfmaq_f32(c.hi, a.hi, b.hi) })
    }
    /// Compare and select: `fmax` gives NaN where either is one.
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        op!(F {
            lo: vbslq_f32(vcgtq_f32(a.lo, b.lo), a.lo, b.lo),
            hi: vbslq_f32(vcgtq_f32(a.hi, b.hi), a.hi, b.hi),
        })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        op!(F {
            lo: vbslq_f32(vcltq_f32(a.lo, b.lo), a.lo, b.lo),
            hi: vbslq_f32(vcltq_f32(a.hi, b.hi), a.hi, b.hi),
        })
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        op!(F { lo: vrndnq_f32(a.lo), hi: vrndnq_f32(a.hi) })
    }
    #[inline(always)]
    fn exp2i(self, n: F) -> F {
        op!({
            let power =
                |n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127))));
            F { lo: power(n.lo), hi: power(n.hi) }
        })
    }
    #[inline(always)]
    fn sum(self, v: F) -> f32 {
        op!({
            let q = vaddq_f32(v.lo, v.hi);
            vpadds_f32(vadd_f32(vget_low_f32(q), vget_high_f32(q)))
        })
    }
    #[inline(always)]
    fn hmax(self, v: F) -> f32 {
        op!(vmaxvq_f32(vmaxq_f32(v.lo, v.hi)))
    }

    wide_as_pairs!();

    #[inline(always)]
    fn wide_i4(self, x: &[u8; 8]) -> [F; 2] {
        op!({
            let x = vld1_u8(x.as_ptr());
            let (low, high) = (vand_u8(x, vdup_n_u8(15)), vshr_n_u8::<4>(x));
            let bias = vdup_n_u8(8);
            [
                widen_i8(vreinterpret_s8_u8(vsub_u8(low, bias))),
                widen_i8(vreinterpret_s8_u8(vsub_u8(high, bias))),
            ]
        })
    }

    #[inline(always)]
    fn tuples(self, x: &[f32; 4 * LANES]) -> F {
        let (x, _) = x.as_chunks::<4>();
        op!({
            let abs = |i: usize| vabsq_f32(vld1q_f32(x[i].as_ptr()));
            let four = |i| {
                let pairs = vpaddq_f32(abs(i), abs(i + 1));
                vpaddq_f32(pairs, vpaddq_f32(abs(i + 2), abs(i + 3)))
            };
            F { lo: four(0), hi: four(4) }
        })
    }
    #[inline(always)]
    fn build_tables(self, x: &[f32; 8], inv: f32, out: &mut [u8; 32]) {
        for (x, out) in x.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
            let mut t = sign_sums(x, inv);
            for t in &mut t {
                *t = op!(vrndnq_f32(*t));
            }
            pack_bytes(t, BIAS, out);
        }
    }
    #[inline(always)]
    fn prefetch(self, at: &[u8], ahead: usize) {
        let at = at.as_ptr().addr().wrapping_add(ahead);
        // SAFETY: a prefetch never faults, so the address may lie outside of the slice.
        unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) at, options(nomem, nostack, preserves_flags)) };
    }
    #[inline(always)]
    fn tables(self, t: &[u8; 64]) -> Self::Tables {
        let (t, _) = t.as_chunks();
        [bytes(&t[0]), bytes(&t[1]), bytes(&t[2]), bytes(&t[3])]
    }
    #[inline(always)]
    fn acc_less(self, bias: u16) -> Self::Acc {
        op!([vdupq_n_u16(bias.wrapping_neg()); 4])
    }
    #[inline(always)]
    fn nibbles(self, w: &[u8; 64]) -> Self::Nibbles {
        let mut nibbles = [[op!(vdupq_n_u8(0)); 2]; 4];
        for (n, w) in nibbles.iter_mut().zip(w.as_chunks::<16>().0) {
            let w = bytes(w);
            *n = op!([vandq_u8(w, vdupq_n_u8(15)), vshrq_n_u8::<4>(w)]);
        }
        nibbles
    }
    /// 6 operations for 128 weight bits, two look-ups and four widening additions, and 2 for their nibbles.
    #[inline(always)]
    fn accumulate(self, mut acc: Self::Acc, t: Self::Tables, n: Self::Nibbles) -> Self::Acc {
        for i in 0..4 {
            let (first, at) = (i / 2 * 2, i % 2 * 2);
            op!({
                let (a, b) = (vqtbl1q_u8(t[first], n[i][0]), vqtbl1q_u8(t[first + 1], n[i][1]));
                acc[at] = vaddw_u8(vaddw_u8(acc[at], vget_low_u8(a)), vget_low_u8(b));
                acc[at + 1] = vaddw_high_u8(vaddw_high_u8(acc[at + 1], a), b);
            });
        }
        acc
    }
    #[inline(always)]
    fn sums(self, mut acc: Self::Acc) -> Self::Sums {
        let mut out = [op!(vdupq_n_s16(0)); 4];
        for (out, acc) in out.iter_mut().zip(&mut acc) {
            *out = op!(vreinterpretq_s16_u16(*acc));
        }
        out
    }
    #[inline(always)]
    fn sums_to_rows(self, s: Self::Sums) -> [F; 4] {
        op!({
            // Even bytes are rows 0 to 15, odd ones rows 16 to 31 (`pack::p32`).
            [
                widen_i16(vuzp1q_s16(s[0], s[1])),
                widen_i16(vuzp1q_s16(s[2], s[3])),
                widen_i16(vuzp2q_s16(s[0], s[1])),
                widen_i16(vuzp2q_s16(s[2], s[3])),
            ]
        })
    }

    #[inline(always)]
    fn rows_splat(self, x: f32) -> Self::Rows {
        [self.splat(x); 4]
    }
    #[inline(always)]
    fn rows_load_f16(self, x: &[u8; 2 * TILE]) -> Self::Rows {
        let (x, _) = x.as_chunks();
        [self.load_f16(&x[0]), self.load_f16(&x[1]), self.load_f16(&x[2]), self.load_f16(&x[3])]
    }
    #[inline(always)]
    fn rows_load_i8(self, x: &[u8; TILE]) -> Self::Rows {
        let (x, _) = x.as_chunks();
        [self.load_i8(&x[0]), self.load_i8(&x[1]), self.load_i8(&x[2]), self.load_i8(&x[3])]
    }
    #[inline(always)]
    fn rows_store(self, v: Self::Rows, out: &mut [f32; TILE]) {
        for (out, v) in out.as_chunks_mut().0.iter_mut().zip(v) {
            self.store(v, out);
        }
    }
    #[inline(always)]
    fn rows_mul(self, mut a: Self::Rows, b: Self::Rows) -> Self::Rows {
        for i in 0..4 {
            a[i] = self.mul(a[i], b[i]);
        }
        a
    }
    #[inline(always)]
    fn rows_fma(self, a: Self::Rows, b: Self::Rows, mut c: Self::Rows) -> Self::Rows {
        for i in 0..4 {
            c[i] = self.fma(a[i], b[i], c[i]);
        }
        c
    }

    #[inline(always)]
    fn rows_add_signed(self, mut a: Self::Rows, block: &[u8; TILE], bit: usize, x: f32) -> Self::Rows {
        let (block, _) = block.as_chunks();
        op!({
            let (first, second) = (bytes(&block[0]), bytes(&block[1]));
            let (plus, minus) = (vdupq_n_f32(x), vdupq_n_f32(-x));
            let tested = vdupq_n_u8(1 << (bit % 8));
            for (sixteen, rows) in
                [vuzp1q_u8(first, second), vuzp2q_u8(first, second)].into_iter().enumerate()
            {
                // All ones where the bit is set, widened to a float's width.
                let set = vreinterpretq_s8_u8(vtstq_u8(rows, tested));
                let eights = [vmovl_s8(vget_low_s8(set)), vmovl_high_s8(set)];
                for (eight, set) in eights.into_iter().enumerate() {
                    let F { lo, hi } = &mut a[2 * sixteen + eight];
                    for (a, set) in
                        [lo, hi].into_iter().zip([vmovl_s16(vget_low_s16(set)), vmovl_high_s16(set)])
                    {
                        *a = vaddq_f32(*a, vbslq_f32(vreinterpretq_u32_s32(set), plus, minus));
                    }
                }
            }
        });
        a
    }
    #[inline(always)]
    fn rows_load(self, x: &[f32; TILE]) -> Self::Rows {
        let (x, _) = x.as_chunks();
        [self.load(&x[0]), self.load(&x[1]), self.load(&x[2]), self.load(&x[3])]
    }
    #[inline(always)]
    fn store_i8(self, v: [F; 4], out: &mut [i8; 4 * LANES]) {
        for (v, out) in v.into_iter().zip(out.as_chunks_mut::<LANES>().0) {
            op!({
                let w = vcombine_s16(vmovn_s32(vcvtq_s32_f32(v.lo)), vmovn_s32(vcvtq_s32_f32(v.hi)));
                vst1_s8(out.as_mut_ptr(), vmovn_s16(w));
            });
        }
    }

    #[inline(always)]
    fn codes(self, x: &[u8; 4 * TILE]) -> Self::Codes {
        let (x, _) = x.as_chunks();
        core::array::from_fn(|i| bytes(&x[i]))
    }
    #[inline(always)]
    fn codes_store(self, c: Self::Codes, out: &mut [u8; 4 * TILE]) {
        for (out, c) in out.as_chunks_mut::<16>().0.iter_mut().zip(c) {
            op!(vst1q_u8(out.as_mut_ptr(), c));
        }
    }
    #[inline(always)]
    fn codes_field(self, c: Self::Codes, shift: i32, mask: u8) -> Self::Codes {
        c.map(|c| op!(vandq_u8(vshlq_u8(c, vdupq_n_s8(-shift as i8)), vdupq_n_u8(mask))))
    }
    #[inline(always)]
    fn codes_or(self, mut a: Self::Codes, b: Self::Codes) -> Self::Codes {
        for i in 0..8 {
            a[i] = op!(vorrq_u8(a[i], b[i]));
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
        /// Every second byte, four times: 4 rows of `pack::p32`.
        const ROWS: [u8; 16] = [0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6];
        let (nibbles, _) = nibbles.as_chunks();
        for r in 0..8 {
            op!({
                let from = vdupq_n_u8((r % 2 * 8 + r / 4) as u8);
                let row = vqtbl1q_u8(bytes(&nibbles[r / 2 % 2]), vaddq_u8(bytes(&ROWS), from));
                for (codes, bits) in codes.iter_mut().zip([0x0804_0201, 0x8040_2010]) {
                    let set = vtstq_u8(row, vreinterpretq_u8_u32(vdupq_n_u32(bits)));
                    codes[r] = vaddq_u8(codes[r], vandq_u8(set, c[r]));
                }
            });
        }
        codes
    }
    #[inline(always)]
    fn code_at(self, c: Self::Codes, i: usize) -> Self::Rows {
        op!({
            let right = vdupq_n_s32(-8 * i as i32);
            core::array::from_fn(|r| {
                let row = |c| {
                    let byte = vandq_u32(vshlq_u32(vreinterpretq_u32_u8(c), right), vdupq_n_u32(255));
                    vcvtq_f32_u32(byte)
                };
                F { lo: row(c[2 * r]), hi: row(c[2 * r + 1]) }
            })
        })
    }
    #[inline(always)]
    fn dots_zero(self) -> Dots {
        [op!(vdupq_n_s32(0)); 8]
    }
    #[inline(always)]
    fn dot<const BITS: usize>(self, mut sums: Dots, c: Self::Codes, a: &[i8; 4]) -> Dots {
        let a = op!(vreinterpretq_s8_s32(vld1q_dup_s32(a.as_ptr().cast())));
        let c = signed::<BITS>(c);
        for i in 0..8 {
            // SAFETY: the token proves the level's features.
            sums[i] = unsafe { L::dot(sums[i], c[i], a) };
        }
        sums
    }
    #[inline(always)]
    fn dots_to_rows<const BITS: usize>(self, sums: Dots, n: f32) -> Self::Rows {
        core::array::from_fn(|i| {
            let rows = op!(F { lo: vcvtq_f32_s32(sums[2 * i]), hi: vcvtq_f32_s32(sums[2 * i + 1]) });
            if BITS == 8 { self.fma(self.splat(n), self.splat(128.0), rows) } else { rows }
        })
    }
    #[inline(always)]
    fn pair_zero(self) -> L::Pair {
        L::pair_zero()
    }
    #[inline(always)]
    fn pair_dot<const BITS: usize>(self, sums: L::Pair, c: [Self::Codes; 2], a: [&[i8; 8]; 2]) -> L::Pair {
        let a = op!(vcombine_s8(vld1_s8(a[0].as_ptr()), vld1_s8(a[1].as_ptr())));
        // SAFETY: the token proves the level's features.
        unsafe { L::pair_dot(sums, [signed::<BITS>(c[0]), signed::<BITS>(c[1])], a) }
    }
    #[inline(always)]
    fn pair_to_rows<const BITS: usize>(self, sums: L::Pair, n: [f32; 2]) -> [Self::Rows; 2] {
        let [a, b] = L::pair_sums(sums);
        [self.dots_to_rows::<BITS>(a, n[0]), self.dots_to_rows::<BITS>(b, n[1])]
    }
}

/// Codes as signed bytes: those of 8 bits less 128.
#[inline(always)]
fn signed<const BITS: usize>(c: [uint8x16_t; 8]) -> Codes {
    c.map(|c| {
        op!({
            let c = if BITS == 8 { veorq_u8(c, vdupq_n_u8(128)) } else { c };
            vreinterpretq_s8_u8(c)
        })
    })
}
