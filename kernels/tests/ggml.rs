//! The readers of ggml's types, against ggml's own output and against a naive reading of the block layouts.

use half::{bf16, f16};
use lutite_kernels::ggml::{
    GgmlError, GgmlType, READABLE, dequantize_row, superblock_format, superblock_row, uniform_format,
    uniform_row,
};
use proptest::prelude::*;

const UNIFORM: [GgmlType; 9] = [
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::TQ1_0,
    GgmlType::TQ2_0,
    GgmlType::IQ4_NL,
    GgmlType::MXFP4,
];

const SUPERBLOCKS: [GgmlType; 6] =
    [GgmlType::Q2_K, GgmlType::Q3_K, GgmlType::Q4_K, GgmlType::Q5_K, GgmlType::Q6_K, GgmlType::IQ4_XS];

/// For each block format: where its f16 scales are, and FNV-1a over the output of ggml 0.25 (`dequantize_row_*` of
/// libggml-base, through its C interface) on 512 blocks. Made by tools/make-ggml-hashes.py.
const GGML: [(GgmlType, &[usize], u64); 15] = [
    (GgmlType::Q4_0, &[0], 0x1f04_1c54_a888_8783),
    (GgmlType::Q4_1, &[0, 2], 0x8fe6_6601_a4f8_d3d1),
    (GgmlType::Q5_0, &[0], 0x3331_f1a9_5b93_c93d),
    (GgmlType::Q5_1, &[0, 2], 0xdfe0_bd69_3870_3061),
    (GgmlType::Q8_0, &[0], 0x8853_c5ef_40e2_0497),
    (GgmlType::Q2_K, &[80, 82], 0x3f8f_a55b_3f89_ec72),
    (GgmlType::Q3_K, &[108], 0x3f81_3123_b252_919d),
    (GgmlType::Q4_K, &[0, 2], 0xda5e_163d_403c_ebab),
    (GgmlType::Q5_K, &[0, 2], 0x01c9_7d46_90f3_2c38),
    (GgmlType::Q6_K, &[208], 0x56fc_db4e_7856_7adb),
    (GgmlType::TQ1_0, &[52], 0x734d_3473_b515_88a0),
    (GgmlType::TQ2_0, &[64], 0x4c7e_445d_d4b6_1370),
    (GgmlType::IQ4_NL, &[0], 0x5c1b_2d80_c04a_55c6),
    (GgmlType::IQ4_XS, &[0], 0x04ee_2465_d8e0_10d1),
    (GgmlType::MXFP4, &[], 0xae45_0756_8a87_4a31),
];

/// Where the f16 scales of a block are.
fn scales(ty: GgmlType) -> &'static [usize] {
    GGML.iter().find(|row| row.0 == ty).unwrap().1
}

/// The weight at `j` of one uniform block, element by element from the layout in ggml-common.h.
fn naive(ty: GgmlType, block: &[u8], j: usize) -> f32 {
    let half_at = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let nibble = |at: usize| if j < 16 { block[at + j] & 15 } else { block[at + j - 16] >> 4 };
    let fifth = |at: usize| (block[at + j / 8] >> (j % 8) & 1) << 4;
    match ty {
        GgmlType::Q4_0 => (f32::from(nibble(2)) - 8.0) * half_at(0),
        GgmlType::Q4_1 => f32::from(nibble(4)) * half_at(0) + half_at(2),
        GgmlType::Q5_0 => (f32::from(nibble(6) | fifth(2)) - 16.0) * half_at(0),
        GgmlType::Q5_1 => f32::from(nibble(8) | fifth(4)) * half_at(0) + half_at(2),
        GgmlType::Q8_0 => f32::from(block[2 + j] as i8) * half_at(0),
        GgmlType::TQ1_0 => {
            // Which byte, and which of its ternary digits.
            let (byte, digit) = match j {
                0..160 => (j % 32, j / 32),
                160..240 => (32 + j % 16, (j - 160) / 16),
                _ => (48 + j % 4, (j - 240) / 4),
            };
            // The fraction byte / 256 in base 3.
            let fraction = u32::from(block[byte]) * 3u32.pow(digit as u32) % 256;
            ((fraction * 3 / 256) as f32 - 1.0) * half_at(52)
        }
        GgmlType::TQ2_0 => {
            let code = block[j / 128 * 32 + j % 32] >> (j % 128 / 32 * 2) & 3;
            (f32::from(code) - 1.0) * half_at(64)
        }
        GgmlType::IQ4_NL => {
            const TABLE: [f32; 16] = [
                -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
                89.0, 113.0,
            ];
            TABLE[usize::from(nibble(2))] * half_at(0)
        }
        GgmlType::MXFP4 => {
            // A sign, two bits of exponent with bias 1, one of mantissa; the scale is a power of two with bias 127.
            let q = nibble(1);
            let (exponent, mantissa) = (i32::from(q >> 1 & 3), f64::from(q & 1));
            let size =
                if exponent == 0 { 0.5 * mantissa } else { (1.0 + 0.5 * mantissa) * 2f64.powi(exponent - 1) };
            let sign = if q >> 3 == 1 && size > 0.0 { -1.0 } else { 1.0 };
            (sign * size * 2f64.powi(i32::from(block[0]) - 127)) as f32
        }
        _ => unreachable!("{ty} is not uniform"),
    }
}

/// Bits, with every NaN made the same one: inf * 0 has no promised payload.
fn bits(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

/// The same scales as a search by hand would try: zeros, subnormals, extremes, infinities, NaN, and anything.
fn any_f16() -> impl Strategy<Value = u16> {
    const SPECIAL: [u16; 14] = [
        0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x8400, 0x7bff, 0xfbff, 0x3c00, 0x7c00,
        0xfc00, 0x7e00,
    ];
    prop_oneof![prop::sample::select(SPECIAL.to_vec()), any::<u16>()]
}

fn any_row(types: &'static [GgmlType]) -> impl Strategy<Value = (GgmlType, Vec<u8>)> {
    (prop::sample::select(types), 0usize..6).prop_flat_map(|(ty, blocks)| {
        let block = (any_f16(), any_f16(), prop::collection::vec(any::<u8>(), ty.block_bytes()));
        prop::collection::vec(block, blocks).prop_map(move |blocks| {
            let mut row = Vec::new();
            for (d, m, mut bytes) in blocks {
                for (at, scale) in scales(ty).iter().zip([d, m]) {
                    bytes[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
                row.extend(bytes);
            }
            (ty, row)
        })
    })
}

proptest! {
    #[test]
    fn codes_and_scales_give_the_dequantized_row((ty, row) in any_row(&UNIFORM)) {
        let format = uniform_format(ty).unwrap();
        let blocks = row.len() / ty.block_bytes();
        let n = blocks * format.block;
        let mut out = vec![0.0f32; n];
        dequantize_row(ty, &row, &mut out).unwrap();

        let mut codes = vec![0u8; n];
        let mut d = vec![f16::ZERO; blocks];
        let mut m = vec![f16::ZERO; if format.center.is_some() { 0 } else { blocks }];
        uniform_row(ty, &row, &mut codes, &mut d, &mut m).unwrap();

        for i in 0..n {
            let (b, j) = (i / format.block, i % format.block);
            prop_assert!(u32::from(codes[i]) < 1 << format.bits);
            let expected = naive(ty, &row[b * ty.block_bytes()..], j);
            prop_assert_eq!(bits(expected), bits(out[i]), "{} weight {}", ty, i);
            if ty == GgmlType::MXFP4 && d[b].is_nan() {
                // Half of the scale, which is one for doubled values, is no f16.
                prop_assert!(!(104..144).contains(&row[b * ty.block_bytes()]));
                continue;
            }
            let weight = match format.center {
                Some(c) => d[b].to_f32() * (f32::from(codes[i]) - f32::from(c)),
                None => d[b].to_f32() * f32::from(codes[i]) + m[b].to_f32(),
            };
            prop_assert_eq!(bits(weight), bits(out[i]), "{} weight {}", ty, i);
        }
    }

    #[test]
    fn both_levels_of_scales_give_the_dequantized_row((ty, row) in any_row(&SUPERBLOCKS)) {
        let format = superblock_format(ty).unwrap();
        let k = format.coefficients();
        let n = row.len() / ty.block_bytes() * format.superblock;
        let mut out = vec![0.0f32; n];
        dequantize_row(ty, &row, &mut out).unwrap();

        let mut codes = vec![0u8; n];
        let mut sub_scales = vec![0i8; n / format.group * k];
        let mut scales = vec![f16::ZERO; n / format.superblock * k];
        superblock_row(ty, &row, &mut codes, &mut sub_scales, &mut scales).unwrap();

        for i in 0..n {
            let (code, g, s) = (codes[i], i / format.group * k, i / format.superblock * k);
            prop_assert!(u32::from(code) < 1 << format.bits);
            let coefficient = |j: usize| scales[s + j].to_f32() * f32::from(sub_scales[g + j]);
            let weight = match format.center {
                Some(c) => coefficient(0) * (f32::from(code) - f32::from(c)),
                None => coefficient(0) * f32::from(code) + coefficient(1),
            };
            prop_assert_eq!(bits(weight), bits(out[i]), "{} weight {}", ty, i);
        }
    }
}

#[test]
fn rows_equal_the_output_of_ggml() {
    for (ty, scales, expected) in GGML {
        let mut state = 1u64;
        let mut row = Vec::new();
        for _ in 0..512 {
            let at = row.len();
            for _ in 0..ty.block_bytes() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                row.push((state >> 56) as u8);
            }
            for s in scales {
                let high = &mut row[at + s + 1];
                if *high & 0x7c == 0x7c {
                    *high ^= 0x40; // Infinities and NaN become finite.
                }
            }
        }
        let mut out = vec![0.0; 512 * ty.block_len()];
        dequantize_row(ty, &row, &mut out).unwrap();
        let hash = out
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        assert_eq!(hash, expected, "{ty}");
    }
}

#[test]
fn plain_types_widen_exactly() {
    let mut out = [0.0f32; 1];
    for raw in 0..=u16::MAX {
        let bytes = raw.to_le_bytes();
        dequantize_row(GgmlType::F16, &bytes, &mut out).unwrap();
        assert_eq!(bits(out[0]), bits(f16::from_bits(raw).to_f32()));
        dequantize_row(GgmlType::BF16, &bytes, &mut out).unwrap();
        assert_eq!(bits(out[0]), bits(bf16::from_bits(raw).to_f32()));
    }
    for x in [0.0f32, -0.0, 1.5, f32::MIN_POSITIVE, f32::MAX, f32::NEG_INFINITY] {
        dequantize_row(GgmlType::F32, &x.to_le_bytes(), &mut out).unwrap();
        assert_eq!(out[0].to_bits(), x.to_bits());
    }
}

#[test]
fn the_table_is_consistent() {
    for pair in GgmlType::ALL.windows(2) {
        assert!(pair[0].id() < pair[1].id());
    }
    for &ty in GgmlType::ALL {
        assert_eq!(GgmlType::from_id(ty.id()), Some(ty));
        assert_eq!(ty.row_bytes(ty.block_len() * 3), Some(ty.block_bytes() * 3));
        assert_eq!(ty.row_bytes(0), Some(0));
        if ty.block_len() > 1 {
            assert_eq!(ty.row_bytes(ty.block_len() + 1), None);
        }
        // Every type that is said to be readable or to split is, and nothing else.
        let one = vec![0u8; ty.block_bytes()];
        let read = dequantize_row(ty, &one, &mut vec![1.0; ty.block_len()]);
        assert_eq!(read.is_ok(), READABLE.contains(&ty), "{ty}");
        assert_eq!(uniform_format(ty).is_some(), UNIFORM.contains(&ty), "{ty}");
        assert_eq!(superblock_format(ty).is_some(), SUPERBLOCKS.contains(&ty), "{ty}");
    }
    for withdrawn in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
        assert_eq!(GgmlType::from_id(withdrawn), None);
    }
    assert_eq!(GgmlType::F64.row_bytes(usize::MAX), None);
    assert_eq!(GgmlType::Q4_0.row_bytes(4096), Some(2304));
}

#[test]
fn slices_that_disagree_are_refused() {
    let length = |slice, expected, found| GgmlError::Length { ty: GgmlType::Q4_1, slice, expected, found };
    let ty = GgmlType::Q4_1;
    let row = [0u8; 40];
    assert_eq!(dequantize_row(ty, &row, &mut [0.0; 33]), Err(length("out", 64, 33)));
    assert_eq!(dequantize_row(ty, &row[..39], &mut [0.0; 64]), Err(length("bytes", 40, 39)));
    let (mut codes, mut d, mut m) = ([0u8; 64], [f16::ZERO; 2], [f16::ZERO; 2]);
    assert_eq!(uniform_row(ty, &row, &mut codes[..32], &mut d, &mut m), Err(length("bytes", 20, 40)));
    assert_eq!(uniform_row(ty, &row, &mut codes, &mut d[..1], &mut m), Err(length("d", 2, 1)));
    assert_eq!(uniform_row(ty, &row, &mut codes, &mut d, &mut []), Err(length("m", 2, 0)));
    assert_eq!(uniform_row(ty, &row, &mut codes, &mut d, &mut m), Ok(()));

    let error = uniform_row(GgmlType::Q4_K, &[0; 144], &mut [0; 256], &mut [], &mut []).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensors of type Q4_K cannot be read here; convert to one of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, TQ1_0, TQ2_0, IQ4_NL, MXFP4"
    );

    let ty = GgmlType::Q4_K;
    let length = |slice, expected, found| Err(GgmlError::Length { ty, slice, expected, found });
    let (row, mut codes) = ([0u8; 288], [0u8; 512]);
    let (mut sub, mut scales) = ([0i8; 32], [f16::ZERO; 4]);
    assert_eq!(superblock_row(ty, &row, &mut codes[1..], &mut sub, &mut scales), length("codes", 512, 511));
    assert_eq!(
        superblock_row(ty, &row, &mut codes, &mut sub[1..], &mut scales),
        length("sub_scales", 32, 31)
    );
    assert_eq!(superblock_row(ty, &row, &mut codes, &mut sub, &mut scales[1..]), length("scales", 4, 3));
    assert_eq!(superblock_row(ty, &row, &mut codes, &mut sub, &mut scales), Ok(()));
    let error = superblock_row(GgmlType::Q8_0, &[0; 34], &mut [0; 32], &mut [], &mut []).unwrap_err();
    assert!(matches!(error, GgmlError::Unsupported { ty: GgmlType::Q8_0, .. }), "{error}");
}
