//! AVX2 + FMA + F16C + BMI2: every x86-64 core since Haswell (2013) and Zen (2017).

use crate::simd::{BIAS, Kernel, LANES, Simd, TILE, pair_of_dots};
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
    super::align_stack();
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

/// 32 floats within +-127, rounded to nearest even, plus `bias`, as bytes.
///
/// # Safety
/// AVX2 must be there.
#[inline(always)]
unsafe fn pack_bytes(t: [__m256; 4], bias: u8, out: &mut [u8; 32]) {
    // SAFETY: the caller vouches for AVX2; the store covers exactly the array.
    unsafe {
        let a = _mm256_packs_epi32(_mm256_cvtps_epi32(t[0]), _mm256_cvtps_epi32(t[1]));
        let b = _mm256_packs_epi32(_mm256_cvtps_epi32(t[2]), _mm256_cvtps_epi32(t[3]));
        let bytes = _mm256_packs_epi16(a, b);
        // packs works per 128-bit lane: 4 bytes of each vector's lower lane, then 4 of each one's upper lane.
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        let bytes = _mm256_add_epi8(bytes, _mm256_set1_epi8(bias.cast_signed()));
        _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes);
    }
}

impl Simd for Avx2 {
    type F = __m256;
    /// Each table twice, since look-ups do not leave a half of a register; by block.
    type Tables = [[__m256i; 2]; 2];
    /// Low and high ones, by block.
    type Nibbles = [[__m256i; 2]; 2];
    type Acc = Acc;
    type Sums = Sums;
    type Rows = [__m256; 4];
    /// 8 rows each.
    type Codes = [__m256i; 4];
    /// 8 rows each, as 8 32-bit sums, or where `BITS <= 4` as 16 of 16 bits, two for each row.
    type Dots = [__m256i; 4];
    type Pair = [[__m256i; 4]; 2];
    const PAIRS: bool = false;

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
    /// The same tree for eight at once: each step adds up the halves, quarters, eighths of two registers.
    #[inline(always)]
    fn sums_of(self, v: [__m256; LANES]) -> __m256 {
        let mut quarters = [self.splat(0.0); 2];
        for (q, v) in quarters.iter_mut().zip(v.as_chunks::<4>().0) {
            op!({
                let a = _mm256_castps_pd(_mm256_add_ps(
                    _mm256_permute2f128_ps::<0x20>(v[0], v[1]),
                    _mm256_permute2f128_ps::<0x31>(v[0], v[1]),
                ));
                let b = _mm256_castps_pd(_mm256_add_ps(
                    _mm256_permute2f128_ps::<0x20>(v[2], v[3]),
                    _mm256_permute2f128_ps::<0x31>(v[2], v[3]),
                ));
                *q = _mm256_add_ps(
                    _mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                    _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)),
                );
            });
        }
        let [a, b] = quarters;
        op!({
            let all = _mm256_add_ps(
                _mm256_shuffle_ps::<0b10_00_10_00>(a, b),
                _mm256_shuffle_ps::<0b11_01_11_01>(a, b),
            );
            _mm256_permutevar8x32_ps(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
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

    wide_as_pairs!();

    #[inline(always)]
    fn wide_i4(self, x: &[u8; 8]) -> [__m256; 2] {
        op!({
            let w = _mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().cast()));
            let (low, high) = (_mm256_and_si256(w, _mm256_set1_epi32(15)), _mm256_srli_epi32::<4>(w));
            let bias = _mm256_set1_epi32(8);
            [
                _mm256_cvtepi32_ps(_mm256_sub_epi32(low, bias)),
                _mm256_cvtepi32_ps(_mm256_sub_epi32(high, bias)),
            ]
        })
    }

    #[inline(always)]
    fn tuples(self, x: &[f32; 4 * LANES]) -> __m256 {
        op!({
            let (x, _) = x.as_chunks::<LANES>();
            let sign = _mm256_set1_ps(-0.0);
            let mut abs = [sign; 4];
            for i in 0..4 {
                abs[i] = _mm256_andnot_ps(sign, self.load(&x[i]));
            }
            _mm256_hadd_ps(_mm256_hadd_ps(abs[0], abs[1]), _mm256_hadd_ps(abs[2], abs[3]))
        })
    }
    #[inline(always)]
    fn build_tables(self, x: &[f32; 8], inv: f32, out: &mut [u8; 32]) {
        op!({
            // Lane e of the lower half: bit i of e clear means -x[i], a flip of the sign bit.
            const N: i32 = i32::MIN;
            let f0 = _mm256_castsi256_ps(_mm256_setr_epi32(N, 0, N, 0, N, 0, N, 0));
            let f1 = _mm256_castsi256_ps(_mm256_setr_epi32(N, N, 0, 0, N, N, 0, 0));
            let f2 = _mm256_castsi256_ps(_mm256_setr_epi32(N, N, N, N, 0, 0, 0, 0));
            let inv = _mm256_set1_ps(inv);
            let mut t = [inv; 4];
            for i in [0, 4] {
                let s01 = _mm256_add_ps(
                    _mm256_xor_ps(_mm256_set1_ps(x[i]), f0),
                    _mm256_xor_ps(_mm256_set1_ps(x[i + 1]), f1),
                );
                let s2 = _mm256_xor_ps(_mm256_set1_ps(x[i + 2]), f2);
                let x3 = _mm256_set1_ps(x[i + 3]);
                // Entries 0..8 have bit 3 clear, 8..16 set: (s2 - x3) equals (s2 + (-x3)) exactly.
                t[i / 2] = _mm256_mul_ps(_mm256_add_ps(s01, _mm256_sub_ps(s2, x3)), inv);
                t[i / 2 + 1] = _mm256_mul_ps(_mm256_add_ps(s01, _mm256_add_ps(s2, x3)), inv);
            }
            pack_bytes(t, BIAS, out);
        });
    }
    #[inline(always)]
    fn prefetch(self, at: &[u8], ahead: usize) {
        // A prefetch never faults, so the address may lie outside of the slice. Into L2: from there the hardware fetches
        // in time, and L1 asks for few lines at once.
        op!(_mm_prefetch::<_MM_HINT_T1>(at.as_ptr().wrapping_add(ahead).cast()));
    }
    #[inline(always)]
    fn tables(self, t: &[u8; 64]) -> Self::Tables {
        let (t, _) = t.as_chunks::<16>();
        let mut twice = [op!(_mm256_setzero_si256()); 4];
        for i in 0..4 {
            twice[i] = op!(_mm256_broadcastsi128_si256(_mm_loadu_si128(t[i].as_ptr().cast())));
        }
        [[twice[0], twice[1]], [twice[2], twice[3]]]
    }
    #[inline(always)]
    fn acc_less(self, bias: u16) -> Acc {
        op!(Acc {
            full: _mm256_set1_epi16(bias.wrapping_mul(0x101).wrapping_neg().cast_signed()),
            odd: _mm256_set1_epi16(bias.wrapping_neg().cast_signed()),
        })
    }
    #[inline(always)]
    fn nibbles(self, w: &[u8; 64]) -> Self::Nibbles {
        let mut nibbles = [[op!(_mm256_setzero_si256()); 2]; 2];
        for (n, w) in nibbles.iter_mut().zip(w.as_chunks::<32>().0) {
            op!({
                let (mask, w) = (_mm256_set1_epi8(15), _mm256_loadu_si256(w.as_ptr().cast()));
                *n = [_mm256_and_si256(w, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(w), mask)];
            });
        }
        nibbles
    }
    /// 8 operations for 256 weight bits, and 3 for their nibbles. Bytes are added as pairs: `full` takes both bytes of a
    /// 16-bit lane at once, `odd` the upper one alone, and `sums` takes them apart again (the
    /// accumulation of faiss' PQ fast scan, impl/pq4_fast_scan).
    #[inline(always)]
    fn accumulate(self, mut acc: Acc, t: Self::Tables, n: Self::Nibbles) -> Acc {
        for (t, n) in t.into_iter().zip(n) {
            op!({
                let (a, b) = (_mm256_shuffle_epi8(t[0], n[0]), _mm256_shuffle_epi8(t[1], n[1]));
                acc.full = _mm256_add_epi16(_mm256_add_epi16(acc.full, a), b);
                let (a, b) = (_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b));
                acc.odd = _mm256_add_epi16(_mm256_add_epi16(acc.odd, a), b);
            });
        }
        acc
    }
    #[inline(always)]
    fn sums(self, acc: Acc) -> Sums {
        op!(Sums { even: _mm256_sub_epi16(acc.full, _mm256_slli_epi16::<8>(acc.odd)), odd: acc.odd })
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
    fn rows_add_signed(self, mut a: Self::Rows, block: &[u8; TILE], bit: usize, x: f32) -> Self::Rows {
        let (block, _) = block.as_chunks::<16>();
        op!({
            let (plus, minus) = (_mm256_set1_ps(x), _mm256_set1_ps(-x));
            let bit = (bit % 8) as i32;
            for half in 0..2 {
                // Two rows to a lane, the second of them 16 further on; their bits become signs.
                let rows = _mm256_cvtepu16_epi32(_mm_loadu_si128(block[half].as_ptr().cast()));
                for (low, shift) in [(0, 31 - bit), (2, 23 - bit)] {
                    let set = _mm256_sll_epi32(rows, _mm_cvtsi32_si128(shift));
                    let x = _mm256_blendv_ps(minus, plus, _mm256_castsi256_ps(set));
                    a[low + half] = _mm256_add_ps(a[low + half], x);
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
    fn position(self, x: &[f32; 4 * LANES], m: f32) -> usize {
        let mut equal = 0u32;
        for (i, x) in x.as_chunks::<LANES>().0.iter().enumerate() {
            op!({
                let x = _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.load(x));
                let lanes = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(x, _mm256_set1_ps(m)));
                equal |= lanes.cast_unsigned() << (i * LANES);
            });
        }
        (equal.trailing_zeros() % u32::BITS) as usize
    }
    #[inline(always)]
    fn store_i8(self, v: [__m256; 4], out: &mut [i8; 4 * LANES]) {
        op!({
            let [a, b, c, d] = [
                _mm256_cvtps_epi32(v[0]),
                _mm256_cvtps_epi32(v[1]),
                _mm256_cvtps_epi32(v[2]),
                _mm256_cvtps_epi32(v[3]),
            ];
            // Packing goes by halves of 128 bits: fours of a, b, c, d, and then their other fours.
            let x = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let x = _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), x);
        });
    }

    #[inline(always)]
    fn codes(self, x: &[u8; 4 * TILE]) -> Self::Codes {
        let (x, _) = x.as_chunks::<32>();
        let mut codes = self.dots_zero();
        for (c, x) in codes.iter_mut().zip(x) {
            *c = op!(_mm256_loadu_si256(x.as_ptr().cast()));
        }
        codes
    }
    #[inline(always)]
    fn codes_store(self, c: Self::Codes, out: &mut [u8; 4 * TILE]) {
        for (out, c) in out.as_chunks_mut::<32>().0.iter_mut().zip(c) {
            op!(_mm256_storeu_si256(out.as_mut_ptr().cast(), c));
        }
    }
    #[inline(always)]
    fn codes_field(self, mut c: Self::Codes, shift: i32, mask: u8) -> Self::Codes {
        for c in &mut c {
            op!({
                let count = _mm_cvtsi32_si128(shift.abs());
                let shifted =
                    if shift < 0 { _mm256_sll_epi16(*c, count) } else { _mm256_srl_epi16(*c, count) };
                *c = _mm256_and_si256(shifted, _mm256_set1_epi8(mask.cast_signed()));
            });
        }
        c
    }
    #[inline(always)]
    fn codes_or(self, mut a: Self::Codes, b: Self::Codes) -> Self::Codes {
        for i in 0..4 {
            a[i] = op!(_mm256_or_si256(a[i], b[i]));
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
        /// Every second byte, four times: 8 rows of `pack::p32`.
        const ROWS: [i8; 32] = {
            let mut at = [0; 32];
            let mut i = 0;
            while i < 32 {
                at[i] = (i / 4 * 2) as i8;
                i += 1;
            }
            at
        };
        let (nibbles, _) = nibbles.as_chunks::<16>();
        for r in 0..4 {
            op!({
                let half = _mm_loadu_si128(nibbles[r % 2].as_ptr().cast());
                let rows = _mm256_add_epi8(
                    _mm256_loadu_si256(ROWS.as_ptr().cast()),
                    _mm256_set1_epi8((r / 2) as i8),
                );
                let row = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(half), rows);
                for (codes, bits) in codes.iter_mut().zip([0x0804_0201, 0x8040_2010_u32.cast_signed()]) {
                    let bits = _mm256_set1_epi32(bits);
                    let set = _mm256_cmpeq_epi8(_mm256_and_si256(row, bits), bits);
                    codes[r] = _mm256_add_epi8(codes[r], _mm256_and_si256(set, c[r]));
                }
            });
        }
        codes
    }
    #[inline(always)]
    fn code_at(self, c: Self::Codes, i: usize) -> Self::Rows {
        /// Byte `i` of each four, and zeros above it.
        const BYTE: [[i8; 16]; 4] = {
            let mut at = [[-1; 16]; 4];
            let mut i = 0;
            while i < 16 {
                at[i % 4][i / 4 * 4] = i as i8;
                i += 1;
            }
            at
        };
        let mut rows = [self.splat(0.0); 4];
        for r in 0..4 {
            op!({
                let at = _mm256_broadcastsi128_si256(_mm_loadu_si128(BYTE[i % 4].as_ptr().cast()));
                rows[r] = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(c[r], at));
            });
        }
        rows
    }
    #[inline(always)]
    fn dots_zero(self) -> Self::Dots {
        [op!(_mm256_setzero_si256()); 4]
    }
    #[inline(always)]
    fn dot<const BITS: usize>(self, mut sums: Self::Dots, c: Self::Codes, a: &[i8; 4]) -> Self::Dots {
        for i in 0..4 {
            op!({
                let a = _mm256_set1_epi32(a.as_ptr().cast::<i32>().read_unaligned());
                if BITS <= 4 {
                    sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(c[i], a));
                } else {
                    let two = if BITS <= 7 {
                        _mm256_maddubs_epi16(c[i], a)
                    } else {
                        // Signed codes, as what they are without their sign times activations that have it.
                        let c = _mm256_xor_si256(c[i], _mm256_set1_epi8(-128));
                        _mm256_maddubs_epi16(_mm256_abs_epi8(c), _mm256_sign_epi8(a, c))
                    };
                    sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
                }
            });
        }
        sums
    }
    #[inline(always)]
    fn dots_to_rows<const BITS: usize>(self, mut sums: Self::Dots, n: f32) -> Self::Rows {
        let mut rows = [self.splat(0.0); 4];
        for i in 0..4 {
            op!({
                if BITS <= 4 {
                    sums[i] = _mm256_madd_epi16(sums[i], _mm256_set1_epi16(1));
                }
                rows[i] = _mm256_cvtepi32_ps(sums[i]);
            });
            if BITS == 8 {
                rows[i] = self.fma(self.splat(n), self.splat(128.0), rows[i]);
            }
        }
        rows
    }
    pair_of_dots!();
}
