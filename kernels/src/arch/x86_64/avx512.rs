//! AVX-512 with byte permutations and byte products: Ice Lake (2019), Zen 4 (2022) and later.
//!
//! The 8 lanes of the bit contract stay AVX2's. What this tier adds is look-ups of two blocks and four tables in one
//! register, sums of 32 bits that are made by byte products, and 16 rows to a register.

use super::avx2::Avx2;
use crate::pack::p32::byte_of_row;
use crate::simd::{BIAS, Kernel, LANES, Simd, TILE, WIDE, pair_of_dots};
use core::arch::x86_64::*;

/// Proof that the processor has AVX2's tier and AVX-512 F, BW, VL, DQ, VBMI and VNNI: only [`Avx512::detect`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(Avx2);

impl Avx512 {
    /// The token, if this processor has all of the tier's features.
    pub(crate) fn detect() -> Option<Avx512> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vnni");
        Avx2::detect().filter(|_| all).map(Avx512)
    }
}

/// Everything generic is inlined into this function, and so compiled with the features on.
#[target_feature(enable = "avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")]
fn run<K: Kernel>(s: Avx512, k: K) -> K::Output {
    super::align_stack();
    k.run(s)
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

/// Operations that are AVX2's.
macro_rules! as_avx2 {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)?;)*) => {
        $(
            #[inline(always)]
            fn $name(self $(, $arg: $ty)*) $(-> $out)? {
                self.0.$name($($arg),*)
            }
        )*
    };
}

/// Where each byte of two blocks goes so that a row's two bytes are neighbours. The 4 rows of a 64-bit lane are two of
/// the first 16 and two of the others: [`NIBBLES`] parts them.
const ROWS: [u8; 64] = {
    let mut at = [0; 64];
    let mut i = 0;
    while i < 64 {
        let (lane, row) = (i / 8, i % 8 / 2);
        let row = 2 * lane + row % 2 + row / 2 * 16;
        at[i] = (byte_of_row(row) + i % 2 * 32) as u8;
        i += 1;
    }
    at
};

/// The first bit of each nibble of a 64-bit lane: those of the first two rows, and of the other two.
const NIBBLES: [i64; 2] = [0x1c18_1410_0c08_0400, 0x3c38_3430_2c28_2420];

/// Which table is looked up by each nibble of a row, as the index of its first entry.
const TABLES: i32 = 0x3020_1000;

/// Two tables' sums with their signs, each in order.
///
/// # Safety
/// The tier's features must be there.
#[inline(always)]
unsafe fn sign_sums(x: __m512, inv: __m512) -> [__m512; 2] {
    const N: i32 = i32::MIN;
    // SAFETY: registers only; the caller vouches for the features.
    unsafe {
        // The four sums of each two activations: lane e of four adds the first where bit 0 of e is set, and the second
        // where bit 1 is.
        let even =
            _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6), x);
        let odd = _mm512_permutexvar_ps(_mm512_setr_epi32(1, 1, 1, 1, 3, 3, 3, 3, 5, 5, 5, 5, 7, 7, 7, 7), x);
        let even = _mm512_xor_ps(even, _mm512_castsi512_ps(_mm512_set4_epi32(0, N, 0, N)));
        let odd = _mm512_xor_ps(odd, _mm512_castsi512_ps(_mm512_set4_epi32(0, 0, N, N)));
        let pairs = _mm512_add_ps(even, odd);
        let bits23 = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        let mut t = [
            _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b00_00_00_00>(pairs, pairs),
                _mm512_permutexvar_ps(_mm512_add_epi32(bits23, _mm512_set1_epi32(4)), pairs),
            ),
            _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_10_10_10>(pairs, pairs),
                _mm512_permutexvar_ps(_mm512_add_epi32(bits23, _mm512_set1_epi32(12)), pairs),
            ),
        ];
        for t in &mut t {
            *t = _mm512_mul_ps(*t, inv);
        }
        t
    }
}

/// 32 floats within +-127, rounded to nearest even, plus `bias`, as bytes.
///
/// # Safety
/// The tier's features must be there.
#[inline(always)]
unsafe fn pack_bytes(t: [__m512; 2], bias: u8, out: &mut [u8; 32]) {
    // SAFETY: the caller vouches for the features; the store covers exactly the array.
    unsafe {
        let a = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(t[0]));
        let b = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(t[1]));
        let bytes = _mm256_add_epi8(_mm256_set_m128i(b, a), _mm256_set1_epi8(bias.cast_signed()));
        _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes);
    }
}

impl Simd for Avx512 {
    type F = <Avx2 as Simd>::F;
    type Tables = __m512i;
    type Nibbles = [__m512i; 2];
    /// Rows 0..16 and 16..32.
    type Acc = [__m512i; 2];
    type Sums = [__m512i; 2];
    type Rows = [__m512; 2];
    type W = __m512;
    /// Rows 0..16 and 16..32, 4 bytes each.
    type Codes = [__m512i; 2];
    type Dots = [__m512i; 2];
    type Pair = [Self::Dots; 2];
    const PAIRS: bool = false;
    const WIDES: usize = 32;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, k: K) -> K::Output {
        // SAFETY: the token proves the features that `run` enables.
        unsafe { run(self, k) }
    }

    as_avx2! {
        fn splat(x: f32) -> Self::F;
        fn load(x: &[f32; LANES]) -> Self::F;
        fn store(v: Self::F, out: &mut [f32; LANES]);
        fn load_f16(x: &[u8; 16]) -> Self::F;
        fn store_f16(v: Self::F, out: &mut [u8; 16]);
        fn load_bf16(x: &[u8; 16]) -> Self::F;
        fn load_i8(x: &[u8; 8]) -> Self::F;
        fn add(a: Self::F, b: Self::F) -> Self::F;
        fn sub(a: Self::F, b: Self::F) -> Self::F;
        fn mul(a: Self::F, b: Self::F) -> Self::F;
        fn div(a: Self::F, b: Self::F) -> Self::F;
        fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
        fn max(a: Self::F, b: Self::F) -> Self::F;
        fn min(a: Self::F, b: Self::F) -> Self::F;
        fn round(a: Self::F) -> Self::F;
        fn exp2i(n: Self::F) -> Self::F;
        fn sum(v: Self::F) -> f32;
        fn sums_of(v: [Self::F; LANES]) -> Self::F;
        fn hmax(v: Self::F) -> f32;
        fn tuples(x: &[f32; 4 * LANES]) -> Self::F;
        fn prefetch(at: &[u8], ahead: usize);
        fn position(x: &[f32; 4 * LANES], m: f32) -> usize;
        fn store_i8(v: [Self::F; 4], out: &mut [i8; 4 * LANES]);
    }

    #[inline(always)]
    fn build_tables(self, x: &[f32; 8], inv: f32, out: &mut [u8; 32]) {
        op!({
            let t = sign_sums(_mm512_castps256_ps512(self.load(x)), _mm512_set1_ps(inv));
            pack_bytes(t, BIAS, out);
        });
    }
    #[inline(always)]
    fn tables(self, t: &[u8; 64]) -> __m512i {
        op!(_mm512_loadu_si512(t.as_ptr().cast()))
    }
    #[inline(always)]
    fn acc_less(self, bias: u16) -> Self::Acc {
        op!([_mm512_set1_epi32(-i32::from(bias)); 2])
    }
    /// The four of a row in one 32-bit lane, rows 0..16 and 16..32, with their tables' first entries.
    #[inline(always)]
    fn nibbles(self, w: &[u8; 64]) -> Self::Nibbles {
        op!({
            let rows = _mm512_loadu_si512(ROWS.as_ptr().cast());
            let w = _mm512_permutexvar_epi8(rows, _mm512_loadu_si512(w.as_ptr().cast()));
            let mut nibbles = [w; 2];
            for (nibbles, first) in nibbles.iter_mut().zip(NIBBLES) {
                let n = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(first), w);
                // (n & 15) | TABLES
                *nibbles = _mm512_ternarylogic_epi32::<0b1110_1010>(
                    n,
                    _mm512_set1_epi8(15),
                    _mm512_set1_epi32(TABLES),
                );
            }
            nibbles
        })
    }
    /// 4 operations for 512 weight bits, and 5 for their nibbles: byte products with 1 add up the four entries of a row.
    #[inline(always)]
    fn accumulate(self, mut acc: Self::Acc, t: __m512i, n: Self::Nibbles) -> Self::Acc {
        for (acc, n) in acc.iter_mut().zip(n) {
            let entries = op!(_mm512_permutexvar_epi8(n, t));
            *acc = op!(_mm512_dpbusd_epi32(*acc, entries, _mm512_set1_epi8(1)));
        }
        acc
    }
    #[inline(always)]
    fn sums(self, acc: Self::Acc) -> Self::Sums {
        acc
    }
    #[inline(always)]
    fn sums_to_rows(self, s: Self::Sums) -> Self::Rows {
        op!([_mm512_cvtepi32_ps(s[0]), _mm512_cvtepi32_ps(s[1])])
    }

    #[inline(always)]
    fn rows_splat(self, x: f32) -> Self::Rows {
        op!([_mm512_set1_ps(x); 2])
    }
    #[inline(always)]
    fn rows_load_f16(self, x: &[u8; 2 * TILE]) -> Self::Rows {
        let (x, _) = x.as_chunks::<32>();
        [self.wide_f16(&x[0]), self.wide_f16(&x[1])]
    }
    #[inline(always)]
    fn rows_load_i8(self, x: &[u8; TILE]) -> Self::Rows {
        let (x, _) = x.as_chunks::<16>();
        [self.wide_i8(&x[0]), self.wide_i8(&x[1])]
    }
    #[inline(always)]
    fn rows_store(self, v: Self::Rows, out: &mut [f32; TILE]) {
        for (out, v) in out.as_chunks_mut::<16>().0.iter_mut().zip(v) {
            op!(_mm512_storeu_ps(out.as_mut_ptr(), v));
        }
    }
    #[inline(always)]
    fn rows_mul(self, a: Self::Rows, b: Self::Rows) -> Self::Rows {
        op!([_mm512_mul_ps(a[0], b[0]), _mm512_mul_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn rows_fma(self, a: Self::Rows, b: Self::Rows, c: Self::Rows) -> Self::Rows {
        op!([_mm512_fmadd_ps(a[0], b[0], c[0]), _mm512_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn rows_add_signed(self, a: Self::Rows, block: &[u8; TILE], bit: usize, x: f32) -> Self::Rows {
        /// The byte of each row.
        const ROWS: [u8; TILE] = {
            let mut at = [0; TILE];
            let mut r = 0;
            while r < TILE {
                at[r] = byte_of_row(r) as u8;
                r += 1;
            }
            at
        };
        op!({
            let rows = _mm256_loadu_si256(ROWS.as_ptr().cast());
            let bytes = _mm256_permutexvar_epi8(rows, _mm256_loadu_si256(block.as_ptr().cast()));
            let set = _mm256_test_epi8_mask(bytes, _mm256_set1_epi8(1i8 << (bit % 8)));
            let x = _mm512_set1_ps(x);
            let less = [_mm512_sub_ps(a[0], x), _mm512_sub_ps(a[1], x)];
            [
                _mm512_mask_add_ps(less[0], set as u16, a[0], x),
                _mm512_mask_add_ps(less[1], (set >> 16) as u16, a[1], x),
            ]
        })
    }
    #[inline(always)]
    fn rows_load(self, x: &[f32; TILE]) -> Self::Rows {
        let (x, _) = x.as_chunks::<WIDE>();
        [self.wide_load(&x[0]), self.wide_load(&x[1])]
    }

    #[inline(always)]
    fn wide_splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn wide_splat_f16(self, x: [u8; 2]) -> __m512 {
        op!(_mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes(x))))
    }
    #[inline(always)]
    fn wide_f32(self, x: &[u8; 64]) -> __m512 {
        op!(_mm512_loadu_ps(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn wide_f16(self, x: &[u8; 32]) -> __m512 {
        op!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn wide_i8(self, x: &[u8; 16]) -> __m512 {
        op!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))))
    }
    #[inline(always)]
    fn wide_i4(self, x: &[u8; 8]) -> __m512 {
        op!({
            let x = _mm_loadl_epi64(x.as_ptr().cast());
            let x = _mm_and_si128(_mm_unpacklo_epi64(x, _mm_srli_epi16::<4>(x)), _mm_set1_epi8(15));
            _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(x), _mm512_set1_epi32(8)))
        })
    }
    #[inline(always)]
    fn wide_load(self, x: &[f32; WIDE]) -> __m512 {
        op!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn wide_store(self, v: __m512, out: &mut [f32; WIDE]) {
        op!(_mm512_storeu_ps(out.as_mut_ptr(), v));
    }
    #[inline(always)]
    fn wide_add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn wide_sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn wide_mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn wide_div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn wide_max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn wide_min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn wide_fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn wide_round(self, a: __m512) -> __m512 {
        op!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn wide_exp2i(self, n: __m512) -> __m512 {
        op!({
            let e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(e))
        })
    }

    #[inline(always)]
    fn codes(self, x: &[u8; 4 * TILE]) -> Self::Codes {
        let (x, _) = x.as_chunks::<64>();
        op!([_mm512_loadu_si512(x[0].as_ptr().cast()), _mm512_loadu_si512(x[1].as_ptr().cast())])
    }
    #[inline(always)]
    fn codes_store(self, c: Self::Codes, out: &mut [u8; 4 * TILE]) {
        for (out, c) in out.as_chunks_mut::<64>().0.iter_mut().zip(c) {
            op!(_mm512_storeu_si512(out.as_mut_ptr().cast(), c));
        }
    }
    #[inline(always)]
    fn codes_field(self, mut c: Self::Codes, shift: i32, mask: u8) -> Self::Codes {
        for c in &mut c {
            op!({
                let count = _mm_cvtsi32_si128(shift.abs());
                let shifted =
                    if shift < 0 { _mm512_sll_epi16(*c, count) } else { _mm512_srl_epi16(*c, count) };
                *c = _mm512_and_si512(shifted, _mm512_set1_epi8(mask.cast_signed()));
            });
        }
        c
    }
    #[inline(always)]
    fn codes_or(self, a: Self::Codes, b: Self::Codes) -> Self::Codes {
        op!([_mm512_or_si512(a[0], b[0]), _mm512_or_si512(a[1], b[1])])
    }
    #[inline(always)]
    fn codes_add_where(
        self,
        mut codes: [Self::Codes; 2],
        nibbles: &[u8; TILE],
        c: Self::Codes,
    ) -> [Self::Codes; 2] {
        /// Each row's byte four times: those of the first 16 rows, and of the other 16.
        const ROWS: [[u8; 64]; 2] = {
            let mut at = [[0; 64]; 2];
            let mut i = 0;
            while i < 128 {
                at[i / 64][i % 64] = byte_of_row(i / 4) as u8;
                i += 1;
            }
            at
        };
        for r in 0..2 {
            op!({
                let nibbles = _mm256_loadu_si256(nibbles.as_ptr().cast());
                let rows = _mm512_loadu_si512(ROWS[r].as_ptr().cast());
                let row = _mm512_permutexvar_epi8(rows, _mm512_castsi256_si512(nibbles));
                for (codes, bits) in codes.iter_mut().zip([0x0804_0201, 0x8040_2010_u32.cast_signed()]) {
                    let set = _mm512_test_epi8_mask(row, _mm512_set1_epi32(bits));
                    codes[r] = _mm512_mask_add_epi8(codes[r], set, codes[r], c[r]);
                }
            });
        }
        codes
    }
    #[inline(always)]
    fn code_at(self, c: Self::Codes, i: usize) -> Self::Rows {
        /// In a 64-bit lane of two rows, the first bit of byte `i` of each.
        const BYTE: [i64; 4] = [0x20_0000_0000, 0x28_0000_0008, 0x30_0000_0010, 0x38_0000_0018];
        let mut rows = [self.wide_splat(0.0); 2];
        for r in 0..2 {
            op!({
                let at = _mm512_set1_epi64(BYTE[i % 4]);
                let byte = _mm512_maskz_multishift_epi64_epi8(0x1111_1111_1111_1111, at, c[r]);
                rows[r] = _mm512_cvtepi32_ps(byte);
            });
        }
        rows
    }
    #[inline(always)]
    fn dots_zero(self) -> Self::Dots {
        op!([_mm512_setzero_si512(); 2])
    }
    /// 2 operations for 128 products, whatever the codes' width.
    #[inline(always)]
    fn dot<const BITS: usize>(self, sums: Self::Dots, c: Self::Codes, a: &[i8; 4]) -> Self::Dots {
        op!({
            let a = _mm512_set1_epi32(i32::from_le_bytes([
                a[0].cast_unsigned(),
                a[1].cast_unsigned(),
                a[2].cast_unsigned(),
                a[3].cast_unsigned(),
            ]));
            [_mm512_dpbusd_epi32(sums[0], c[0], a), _mm512_dpbusd_epi32(sums[1], c[1], a)]
        })
    }
    #[inline(always)]
    fn dots_to_rows<const BITS: usize>(self, sums: Self::Dots, _: f32) -> Self::Rows {
        op!([_mm512_cvtepi32_ps(sums[0]), _mm512_cvtepi32_ps(sums[1])])
    }
    pair_of_dots!();
}
