//! AVX2 + FMA + F16C + BMI2: every x86-64 core since Haswell (2013) and Zen (2017).

use crate::simd::{BIAS, FINE_BIAS, FINE_STEPS, Kernel, LANES, Simd, TILE};
use core::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA, F16C and BMI2: only [`Avx2::detect`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The token, if this processor has all of the tier's features.
    pub(crate) fn detect() -> Option<Avx2> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi2");
        all.then_some(Avx2(()))
    }
}

/// Everything generic is inlined into this function, and so compiled with the features on.
#[target_feature(enable = "avx2,fma,f16c,bmi2")]
fn run<K: Kernel>(s: Avx2, k: K) -> K::Output {
    k.run(s)
}

/// Sums of table entries; see `accumulate`.
#[derive(Clone, Copy)]
pub(crate) struct Acc {
    /// Per 16-bit lane: even byte + 256 * odd byte, modulo 2^16.
    full: __m256i,
    /// Per 16-bit lane: odd byte.
    odd: __m256i,
}

/// 16-bit sums: `even` holds rows 0..16, `odd` rows 16..32 (see the permutation in `pack::p32`).
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    even: __m256i,
    odd: __m256i,
}

/// Wraps an intrinsic call: the token `self` is the proof that its instruction exists.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: register-only intrinsics need nothing but their CPU feature, and loads and stores
        // get their pointer from an array reference of exactly the width they touch. The features
        // were detected when the token `self` was made.
        unsafe { $e }
    };
}

/// 16 floats within +-127, rounded to nearest even, plus `bias`, as bytes.
///
/// # Safety
/// AVX2 must be there.
#[inline(always)]
unsafe fn pack_bytes(lo: __m256, hi: __m256, bias: u8, out: &mut [u8; 16]) {
    // SAFETY: the caller vouches for AVX2; the store covers exactly the array.
    unsafe {
        let w = _mm256_packs_epi32(_mm256_cvtps_epi32(lo), _mm256_cvtps_epi32(hi));
        // packs works per 128-bit lane: [lo0-3 hi0-3 | lo4-7 hi4-7] -> [lo0-7 | hi0-7].
        let w = _mm256_permute4x64_epi64::<0b11_01_10_00>(w);
        let b = _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256::<1>(w));
        _mm_storeu_si128(out.as_mut_ptr().cast(), _mm_add_epi8(b, _mm_set1_epi8(bias.cast_signed())));
    }
}

/// Entries of both nibbles, added as bytes.
///
/// # Safety
/// AVX2 must be there.
#[inline(always)]
unsafe fn look_up_both(t: (__m256i, __m256i), w: &[u8; 32]) -> __m256i {
    // SAFETY: the caller vouches for AVX2; the load covers exactly the array.
    unsafe {
        let nibble = _mm256_set1_epi8(15);
        let w = _mm256_loadu_si256(w.as_ptr().cast());
        let a = _mm256_shuffle_epi8(t.0, _mm256_and_si256(w, nibble));
        let b = _mm256_shuffle_epi8(t.1, _mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble));
        _mm256_add_epi8(a, b)
    }
}

impl Simd for Avx2 {
    type F = __m256;
    type Tables = (__m256i, __m256i);
    type Acc = Acc;
    type Sums = Sums;
    type Rows = [__m256; 4];
    /// 8 lanes for each of the four.
    type Products = [__m256i; 4];

    #[inline(always)]
    fn vectorize<K: Kernel>(self, k: K) -> K::Output {
        // SAFETY: the token proves the features that `run` enables.
        unsafe { run(self, k) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        op!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m256 {
        op!(_mm256_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn store(self, v: __m256, out: &mut [f32; LANES]) {
        op!(_mm256_storeu_ps(out.as_mut_ptr(), v));
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 16]) -> __m256 {
        op!(_mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn store_f16(self, v: __m256, out: &mut [u8; 16]) {
        op!(_mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)));
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 16]) -> __m256 {
        op!({
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; 8]) -> __m256 {
        op!(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().cast()))))
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        op!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        op!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn exp2i(self, n: __m256) -> __m256 {
        op!({
            let e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(e))
        })
    }
    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        op!({
            let q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let h = _mm_add_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)))
        })
    }
    #[inline(always)]
    fn hmax(self, v: __m256) -> f32 {
        op!({
            let q = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let h = _mm_max_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)))
        })
    }

    #[inline(always)]
    fn build_table(self, x: &[f32; 4], inv: f32, out: &mut [u8; 16], fine: Option<&mut [u8; 16]>) {
        op!({
            // Lane e of the lower half: bit i of e clear means -x[i], a flip of the sign bit.
            const N: i32 = i32::MIN;
            let f0 = _mm256_castsi256_ps(_mm256_setr_epi32(N, 0, N, 0, N, 0, N, 0));
            let f1 = _mm256_castsi256_ps(_mm256_setr_epi32(N, N, 0, 0, N, N, 0, 0));
            let f2 = _mm256_castsi256_ps(_mm256_setr_epi32(N, N, N, N, 0, 0, 0, 0));
            let s01 = _mm256_add_ps(
                _mm256_xor_ps(_mm256_set1_ps(x[0]), f0),
                _mm256_xor_ps(_mm256_set1_ps(x[1]), f1),
            );
            let s2 = _mm256_xor_ps(_mm256_set1_ps(x[2]), f2);
            let x3 = _mm256_set1_ps(x[3]);
            let inv = _mm256_set1_ps(inv);
            // Entries 0..8 have bit 3 clear, 8..16 set: (s2 - x3) equals (s2 + (-x3)) exactly.
            let lo = _mm256_mul_ps(_mm256_add_ps(s01, _mm256_sub_ps(s2, x3)), inv);
            let hi = _mm256_mul_ps(_mm256_add_ps(s01, _mm256_add_ps(s2, x3)), inv);
            let (lo_r, hi_r) = (self.round(lo), self.round(hi));
            pack_bytes(lo_r, hi_r, BIAS, out);
            if let Some(fine) = fine {
                let steps = _mm256_set1_ps(FINE_STEPS);
                let lo = _mm256_mul_ps(_mm256_sub_ps(lo, lo_r), steps);
                let hi = _mm256_mul_ps(_mm256_sub_ps(hi, hi_r), steps);
                pack_bytes(lo, hi, FINE_BIAS, fine);
            }
        });
    }
    #[inline(always)]
    fn prefetch(self, at: &[u8], ahead: usize) {
        // A prefetch never faults, so the address may lie outside of the slice.
        op!(_mm_prefetch::<_MM_HINT_T0>(at.as_ptr().wrapping_add(ahead).cast()));
    }
    #[inline(always)]
    fn tables(self, t: &[u8; 32]) -> (__m256i, __m256i) {
        op!({
            let p: *const __m128i = t.as_ptr().cast();
            (
                _mm256_broadcastsi128_si256(_mm_loadu_si128(p)),
                _mm256_broadcastsi128_si256(_mm_loadu_si128(p.add(1))),
            )
        })
    }
    #[inline(always)]
    fn acc_zero(self) -> Acc {
        op!(Acc { full: _mm256_setzero_si256(), odd: _mm256_setzero_si256() })
    }
    /// 11 operations for 256 weight bits. Bytes are added as pairs: `full` takes both bytes of a
    /// 16-bit lane at once, `odd` the upper one alone, and `sums` takes them apart again (the
    /// accumulation of faiss' PQ fast scan, impl/pq4_fast_scan).
    #[inline(always)]
    fn accumulate(self, acc: Acc, t: Self::Tables, w: &[u8; 32]) -> Acc {
        op!({
            let nibble = _mm256_set1_epi8(15);
            let w = _mm256_loadu_si256(w.as_ptr().cast());
            let a = _mm256_shuffle_epi8(t.0, _mm256_and_si256(w, nibble));
            let b = _mm256_shuffle_epi8(t.1, _mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble));
            Acc {
                full: _mm256_add_epi16(_mm256_add_epi16(acc.full, a), b),
                odd: _mm256_add_epi16(
                    _mm256_add_epi16(acc.odd, _mm256_srli_epi16::<8>(a)),
                    _mm256_srli_epi16::<8>(b),
                ),
            }
        })
    }
    /// 11 operations for the two planes, beside what `accumulate` has worked out of them: all four look-ups
    /// fit a byte together.
    #[inline(always)]
    fn accumulate_fine(self, acc: Acc, t: Self::Tables, top: &[u8; 32], second: Option<&[u8; 32]>) -> Acc {
        op!({
            let a = look_up_both(t, top);
            let mut c = _mm256_add_epi8(a, a);
            if let Some(second) = second {
                c = _mm256_add_epi8(c, look_up_both(t, second));
            }
            Acc {
                full: _mm256_add_epi16(acc.full, c),
                odd: _mm256_add_epi16(acc.odd, _mm256_srli_epi16::<8>(c)),
            }
        })
    }
    #[inline(always)]
    fn sums(self, acc: Acc, bias: u16) -> Sums {
        op!({
            let bias = _mm256_set1_epi16(bias.cast_signed());
            let even = _mm256_sub_epi16(acc.full, _mm256_slli_epi16::<8>(acc.odd));
            Sums { even: _mm256_sub_epi16(even, bias), odd: _mm256_sub_epi16(acc.odd, bias) }
        })
    }
    #[inline(always)]
    fn double_add(self, hi: Sums, lo: Sums) -> Sums {
        op!(Sums {
            even: _mm256_add_epi16(_mm256_add_epi16(hi.even, hi.even), lo.even),
            odd: _mm256_add_epi16(_mm256_add_epi16(hi.odd, hi.odd), lo.odd),
        })
    }
    #[inline(always)]
    fn sums_to_rows(self, s: Sums) -> [__m256; 4] {
        op!({
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(s.even))),
                _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(s.even))),
                _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(s.odd))),
                _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(s.odd))),
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
    fn products_zero(self) -> [__m256i; 4] {
        op!([_mm256_setzero_si256(); 4])
    }
    /// Bytes are widened first: `maddubs` on them would take one side unsigned, and saturate.
    #[inline(always)]
    fn products_add(self, mut t: [__m256i; 4], a: [&[i8; 16]; 2], b: [&[i8; 16]; 2]) -> [__m256i; 4] {
        op!({
            for i in 0..4 {
                let a = _mm256_cvtepi8_epi16(_mm_loadu_si128(a[i / 2].as_ptr().cast()));
                let b = _mm256_cvtepi8_epi16(_mm_loadu_si128(b[i % 2].as_ptr().cast()));
                t[i] = _mm256_add_epi32(t[i], _mm256_madd_epi16(a, b));
            }
            t
        })
    }
    #[inline(always)]
    fn products_sums(self, t: [__m256i; 4]) -> [i32; 4] {
        op!({
            let mut out = [0; 4];
            for i in 0..4 {
                let q = _mm_add_epi32(_mm256_castsi256_si128(t[i]), _mm256_extracti128_si256::<1>(t[i]));
                let h = _mm_add_epi32(q, _mm_shuffle_epi32::<0b01_00_11_10>(q));
                out[i] = _mm_cvtsi128_si32(_mm_add_epi32(h, _mm_shuffle_epi32::<0b10_11_00_01>(h)));
            }
            out
        })
    }
}
