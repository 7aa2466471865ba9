//! NEON: every 64-bit Arm core. Two tiers above it add integer products: `dotprod` (Cortex-A55 and A76 on, Apple M1
//! on) and `i8mm` (Cortex-A510 and A710 on, Apple M2 on). Look-ups need neither.
//!
//! `sdot` and `smmla` have no stable intrinsics yet (rust-lang/rust 117224 and 117223), and neither has the conversion
//! of half floats (136306), though it is part of NEON's baseline: one line of assembly each.

use crate::simd::{BIAS, FINE_BIAS, FINE_STEPS, Kernel, LANES, Simd, TILE};
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
    /// See [`Simd::Products`].
    type Products: Copy;

    /// Whether this processor has the level.
    fn detected() -> bool;

    /// Runs `k` compiled with the level's features on.
    ///
    /// # Safety
    /// The processor must have them.
    unsafe fn enter<K: Kernel>(s: Neon<Self>, k: K) -> K::Output;

    /// See [`Simd::products_zero`].
    fn products_zero() -> Self::Products;

    /// See [`Simd::products_add`].
    ///
    /// # Safety
    /// The processor must have the level's features.
    unsafe fn products_add(t: Self::Products, a: [int8x16_t; 2], b: [int8x16_t; 2]) -> Self::Products;

    /// See [`Simd::products_sums`].
    fn products_sums(t: Self::Products) -> [i32; 4];
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

/// The four products of two rows with two others, 4 lanes each.
type Lanes = [int32x4_t; 4];

#[inline(always)]
fn lanes_zero() -> Lanes {
    op!([vdupq_n_s32(0); 4])
}

#[inline(always)]
fn lanes_sums(t: Lanes) -> [i32; 4] {
    op!([vaddvq_s32(t[0]), vaddvq_s32(t[1]), vaddvq_s32(t[2]), vaddvq_s32(t[3])])
}

impl Level for Base {
    type Products = Lanes;

    fn detected() -> bool {
        true // asserted at the head of this file
    }
    #[inline(always)]
    unsafe fn enter<K: Kernel>(s: Neon<Base>, k: K) -> K::Output {
        run_base(s, k)
    }
    #[inline(always)]
    fn products_zero() -> Lanes {
        lanes_zero()
    }
    #[inline(always)]
    unsafe fn products_add(mut t: Lanes, a: [int8x16_t; 2], b: [int8x16_t; 2]) -> Lanes {
        for i in 0..4 {
            let (a, b) = (a[i / 2], b[i % 2]);
            // A product of two bytes is at most 2^14: two of them in 16 bits would overflow at (-128)^2 + (-128)^2.
            op!({
                t[i] = vpadalq_s16(t[i], vmull_s8(vget_low_s8(a), vget_low_s8(b)));
                t[i] = vpadalq_s16(t[i], vmull_high_s8(a, b));
            });
        }
        t
    }
    #[inline(always)]
    fn products_sums(t: Lanes) -> [i32; 4] {
        lanes_sums(t)
    }
}

impl Level for Dot {
    type Products = Lanes;

    fn detected() -> bool {
        std::arch::is_aarch64_feature_detected!("dotprod")
    }
    #[inline(always)]
    unsafe fn enter<K: Kernel>(s: Neon<Dot>, k: K) -> K::Output {
        // SAFETY: the caller vouches for the features.
        unsafe { run_dot(s, k) }
    }
    #[inline(always)]
    fn products_zero() -> Lanes {
        lanes_zero()
    }
    #[inline(always)]
    unsafe fn products_add(mut t: Lanes, a: [int8x16_t; 2], b: [int8x16_t; 2]) -> Lanes {
        for i in 0..4 {
            // SAFETY: registers only; the caller vouches for dotprod.
            unsafe {
                asm!(".arch_extension dotprod", "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", ".arch_extension nodotprod",
                    inout(vreg) t[i], in(vreg) a[i / 2], in(vreg) b[i % 2],
                    options(pure, nomem, nostack, preserves_flags));
            }
        }
        t
    }
    #[inline(always)]
    fn products_sums(t: Lanes) -> [i32; 4] {
        lanes_sums(t)
    }
}

impl Level for I8mm {
    /// Row by row: `[a0 b0, a0 b1, a1 b0, a1 b1]`.
    type Products = int32x4_t;

    fn detected() -> bool {
        std::arch::is_aarch64_feature_detected!("dotprod") && std::arch::is_aarch64_feature_detected!("i8mm")
    }
    #[inline(always)]
    unsafe fn enter<K: Kernel>(s: Neon<I8mm>, k: K) -> K::Output {
        // SAFETY: the caller vouches for the features.
        unsafe { run_i8mm(s, k) }
    }
    #[inline(always)]
    fn products_zero() -> int32x4_t {
        op!(vdupq_n_s32(0))
    }
    #[inline(always)]
    unsafe fn products_add(mut t: int32x4_t, a: [int8x16_t; 2], b: [int8x16_t; 2]) -> int32x4_t {
        // smmla takes 8 columns of two rows in one register.
        let pair = |r: [int8x16_t; 2]| {
            op!({
                let (x, y) = (vreinterpretq_s64_s8(r[0]), vreinterpretq_s64_s8(r[1]));
                [vreinterpretq_s8_s64(vzip1q_s64(x, y)), vreinterpretq_s8_s64(vzip2q_s64(x, y))]
            })
        };
        for (a, b) in pair(a).into_iter().zip(pair(b)) {
            // SAFETY: registers only; the caller vouches for i8mm.
            unsafe {
                asm!(".arch_extension i8mm", "smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", ".arch_extension noi8mm",
                    inout(vreg) t, in(vreg) a, in(vreg) b,
                    options(pure, nomem, nostack, preserves_flags));
            }
        }
        t
    }
    #[inline(always)]
    fn products_sums(t: int32x4_t) -> [i32; 4] {
        let mut out = [0; 4];
        op!(vst1q_s32(out.as_mut_ptr(), t));
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

/// 16 integral floats within +-127, plus `bias`, as bytes.
#[inline(always)]
fn pack_bytes(t: [float32x4_t; 4], bias: u8, out: &mut [u8; 16]) {
    op!({
        let half = |a, b| vmovn_s16(vcombine_s16(vmovn_s32(vcvtq_s32_f32(a)), vmovn_s32(vcvtq_s32_f32(b))));
        let b = vreinterpretq_u8_s8(vcombine_s8(half(t[0], t[1]), half(t[2], t[3])));
        vst1q_u8(out.as_mut_ptr(), vaddq_u8(b, vdupq_n_u8(bias)));
    });
}

/// Entries of the low nibbles in the first table, and of the high ones in the second.
#[inline(always)]
fn look_up(t: (uint8x16_t, uint8x16_t), w: uint8x16_t) -> (uint8x16_t, uint8x16_t) {
    op!((vqtbl1q_u8(t.0, vandq_u8(w, vdupq_n_u8(15))), vqtbl1q_u8(t.1, vshrq_n_u8::<4>(w))))
}

/// Entries of both nibbles, added as bytes.
#[inline(always)]
fn look_up_both(t: (uint8x16_t, uint8x16_t), w: uint8x16_t) -> uint8x16_t {
    let (a, b) = look_up(t, w);
    op!(vaddq_u8(a, b))
}

impl<L: Level> Simd for Neon<L> {
    type F = F;
    type Tables = (uint8x16_t, uint8x16_t);
    /// In the order of bytes, as they lie in a plane.
    type Acc = [uint16x8_t; 4];
    /// In the order of bytes.
    type Sums = [int16x8_t; 4];
    type Rows = [F; 4];
    type Products = L::Products;

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
        widen_i16(op!(vmovl_s8(vreinterpret_s8_u8(vld1_u8(x.as_ptr())))))
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

    #[inline(always)]
    fn build_table(self, x: &[f32; 4], inv: f32, out: &mut [u8; 16], fine: Option<&mut [u8; 16]>) {
        op!({
            // Lane e: bit i of e clear means -x[i], a flip of the sign bit. Bits 2 and 3 tell the vectors apart.
            const N: u32 = 1 << 31;
            let flip = |x: f32, bits: &[u32; 4]| {
                let x = vreinterpretq_u32_f32(vdupq_n_f32(x));
                vreinterpretq_f32_u32(veorq_u32(x, vld1q_u32(bits.as_ptr())))
            };
            let s01 = vaddq_f32(flip(x[0], &[N, 0, N, 0]), flip(x[1], &[N, N, 0, 0]));
            let s23 = [-x[2] - x[3], x[2] - x[3], x[3] - x[2], x[2] + x[3]];
            let (mut rounded, mut lost) = ([s01; 4], [s01; 4]);
            for i in 0..4 {
                let t = vmulq_n_f32(vaddq_f32(s01, vdupq_n_f32(s23[i])), inv);
                rounded[i] = vrndnq_f32(t);
                lost[i] = vrndnq_f32(vmulq_n_f32(vsubq_f32(t, rounded[i]), FINE_STEPS));
            }
            pack_bytes(rounded, BIAS, out);
            if let Some(fine) = fine {
                pack_bytes(lost, FINE_BIAS, fine);
            }
        });
    }
    #[inline(always)]
    fn prefetch(self, at: &[u8], ahead: usize) {
        let at = at.as_ptr().addr().wrapping_add(ahead);
        // SAFETY: a prefetch never faults, so the address may lie outside of the slice.
        unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) at, options(nomem, nostack, preserves_flags)) };
    }
    #[inline(always)]
    fn tables(self, t: &[u8; 32]) -> Self::Tables {
        op!((vld1q_u8(t.as_ptr()), vld1q_u8(t.as_ptr().add(16))))
    }
    #[inline(always)]
    fn acc_zero(self) -> Self::Acc {
        op!([vdupq_n_u16(0); 4])
    }
    /// 8 operations for 128 weight bits: mask, shift, two look-ups, four widening additions.
    #[inline(always)]
    fn accumulate(self, mut acc: Self::Acc, t: Self::Tables, w: &[u8; 32]) -> Self::Acc {
        for (i, w) in w.as_chunks::<16>().0.iter().enumerate() {
            let (a, b) = look_up(t, bytes(w));
            op!({
                acc[2 * i] = vaddw_u8(vaddw_u8(acc[2 * i], vget_low_u8(a)), vget_low_u8(b));
                acc[2 * i + 1] = vaddw_high_u8(vaddw_high_u8(acc[2 * i + 1], a), b);
            });
        }
        acc
    }
    /// 10 operations for 128 weight bits of both planes, beside the masks and shifts of `accumulate`: all four look-ups
    /// fit a byte together.
    #[inline(always)]
    fn accumulate_fine(
        self,
        mut acc: Self::Acc,
        t: Self::Tables,
        top: &[u8; 32],
        second: Option<&[u8; 32]>,
    ) -> Self::Acc {
        for (i, top) in top.as_chunks::<16>().0.iter().enumerate() {
            let a = look_up_both(t, bytes(top));
            op!({
                let mut c = vaddq_u8(a, a);
                if let Some(second) = second {
                    c = vaddq_u8(c, look_up_both(t, bytes(&second.as_chunks::<16>().0[i])));
                }
                acc[2 * i] = vaddw_u8(acc[2 * i], vget_low_u8(c));
                acc[2 * i + 1] = vaddw_high_u8(acc[2 * i + 1], c);
            });
        }
        acc
    }
    #[inline(always)]
    fn sums(self, acc: Self::Acc, bias: u16) -> Self::Sums {
        op!({
            let bias = vdupq_n_u16(bias);
            acc.map(|a| vreinterpretq_s16_u16(vsubq_u16(a, bias)))
        })
    }
    #[inline(always)]
    fn double_add(self, hi: Self::Sums, mut lo: Self::Sums) -> Self::Sums {
        for i in 0..4 {
            lo[i] = op!(vaddq_s16(vaddq_s16(hi[i], hi[i]), lo[i]));
        }
        lo
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
    fn products_zero(self) -> L::Products {
        L::products_zero()
    }
    #[inline(always)]
    fn products_add(self, t: L::Products, a: [&[i8; 16]; 2], b: [&[i8; 16]; 2]) -> L::Products {
        let load = |r: [&[i8; 16]; 2]| op!([vld1q_s8(r[0].as_ptr()), vld1q_s8(r[1].as_ptr())]);
        // SAFETY: the token proves the level's features.
        unsafe { L::products_add(t, load(a), load(b)) }
    }
    #[inline(always)]
    fn products_sums(self, t: L::Products) -> [i32; 4] {
        L::products_sums(t)
    }
}
