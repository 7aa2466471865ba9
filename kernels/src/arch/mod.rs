//! One thin file per instruction set: the operations of [`crate::simd::Simd`] and nothing else.
//! With `mem`, the only room of this crate that holds `unsafe`.
#![allow(unsafe_code)]

/// The operations on 16 lanes, within an `impl Simd`, for tiers whose registers do not have as many: by pairs of 8.
macro_rules! wide_as_pairs {
    () => {
        type W = [Self::F; 2];
        /// Of 16 registers of 8 lanes, or 32 of 4.
        const WIDES: usize = 8;

        #[inline(always)]
        fn wide_splat(self, x: f32) -> Self::W {
            [self.splat(x); 2]
        }
        #[inline(always)]
        fn wide_splat_f16(self, x: [u8; 2]) -> Self::W {
            let [a, b] = x;
            [self.load_f16(&[a, b, a, b, a, b, a, b, a, b, a, b, a, b, a, b]); 2]
        }
        #[inline(always)]
        fn wide_f32(self, x: &[u8; 64]) -> Self::W {
            self.wide_load(&crate::mem::floats(*x))
        }
        #[inline(always)]
        fn wide_f16(self, x: &[u8; 32]) -> Self::W {
            let (x, _) = x.as_chunks();
            [self.load_f16(&x[0]), self.load_f16(&x[1])]
        }
        #[inline(always)]
        fn wide_i8(self, x: &[u8; 16]) -> Self::W {
            let (x, _) = x.as_chunks();
            [self.load_i8(&x[0]), self.load_i8(&x[1])]
        }
        #[inline(always)]
        fn wide_load(self, x: &[f32; crate::simd::WIDE]) -> Self::W {
            let (x, _) = x.as_chunks();
            [self.load(&x[0]), self.load(&x[1])]
        }
        #[inline(always)]
        fn wide_store(self, v: Self::W, out: &mut [f32; crate::simd::WIDE]) {
            let (out, _) = out.as_chunks_mut();
            self.store(v[0], &mut out[0]);
            self.store(v[1], &mut out[1]);
        }
        #[inline(always)]
        fn wide_add(self, a: Self::W, b: Self::W) -> Self::W {
            [self.add(a[0], b[0]), self.add(a[1], b[1])]
        }
        #[inline(always)]
        fn wide_sub(self, a: Self::W, b: Self::W) -> Self::W {
            [self.sub(a[0], b[0]), self.sub(a[1], b[1])]
        }
        #[inline(always)]
        fn wide_mul(self, a: Self::W, b: Self::W) -> Self::W {
            [self.mul(a[0], b[0]), self.mul(a[1], b[1])]
        }
        #[inline(always)]
        fn wide_div(self, a: Self::W, b: Self::W) -> Self::W {
            [self.div(a[0], b[0]), self.div(a[1], b[1])]
        }
        #[inline(always)]
        fn wide_max(self, a: Self::W, b: Self::W) -> Self::W {
            [self.max(a[0], b[0]), self.max(a[1], b[1])]
        }
        #[inline(always)]
        fn wide_min(self, a: Self::W, b: Self::W) -> Self::W {
            [self.min(a[0], b[0]), self.min(a[1], b[1])]
        }
        #[inline(always)]
        fn wide_fma(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W {
            [self.fma(a[0], b[0], c[0]), self.fma(a[1], b[1], c[1])]
        }
        #[inline(always)]
        fn wide_round(self, a: Self::W) -> Self::W {
            [self.round(a[0]), self.round(a[1])]
        }
        #[inline(always)]
        fn wide_exp2i(self, n: Self::W) -> Self::W {
            [self.exp2i(n[0]), self.exp2i(n[1])]
        }
    };
}

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::neon::{Base, Dot, I8mm, Neon};
pub(crate) use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{avx2::Avx2, avx512::Avx512};
