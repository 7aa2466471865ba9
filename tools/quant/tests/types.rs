//! A model in each of ggml's block formats: read plainly it is the model of its weights as f32, bit for bit, and packed
//! exactly it predicts nearly the same.

mod common;

use common::pack;
use lutite_kernels::ggml::{GgmlType, dequantize_row};
use lutite_kernels::isa::Isa;
use lutite_models::{OpenOptions, Path, open};
use lutite_quant::PackOptions;
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::store::{Bytes, Gguf, GgufWriter};

/// The types, and where the f16 scales of a block are; those after the first scale minima.
const TYPES: [(GgmlType, &[usize]); 15] = [
    (GgmlType::Q4_0, &[0]),
    (GgmlType::Q4_1, &[0, 2]),
    (GgmlType::Q5_0, &[0]),
    (GgmlType::Q5_1, &[0, 2]),
    (GgmlType::Q8_0, &[0]),
    (GgmlType::IQ4_NL, &[0]),
    (GgmlType::MXFP4, &[]),
    (GgmlType::Q2_K, &[80, 82]),
    (GgmlType::Q3_K, &[108]),
    (GgmlType::Q4_K, &[0, 2]),
    (GgmlType::Q5_K, &[0, 2]),
    (GgmlType::Q6_K, &[208]),
    (GgmlType::TQ1_0, &[52]),
    (GgmlType::TQ2_0, &[64]),
    (GgmlType::IQ4_XS, &[0]),
];

const DIM: u64 = 256;
const FFN: u64 = 512;
const KV: u64 = 128;
const VOCAB: u64 = 96;

/// Name, columns and rows of each matrix.
const MATRICES: [(&str, u64, u64); 9] = [
    ("token_embd.weight", DIM, VOCAB),
    ("output.weight", DIM, VOCAB),
    ("blk.0.attn_q.weight", DIM, DIM),
    ("blk.0.attn_k.weight", DIM, KV),
    ("blk.0.attn_v.weight", DIM, KV),
    ("blk.0.attn_output.weight", DIM, DIM),
    ("blk.0.ffn_gate.weight", DIM, FFN),
    ("blk.0.ffn_up.weight", DIM, FFN),
    ("blk.0.ffn_down.weight", FFN, DIM),
];

/// Random codes and sub-scales under an f16 of 2^-`exponent` (and a minimum of -2^-`exponent`).
fn matrix(ty: GgmlType, scales: &[usize], n: u64, exponent: u16, byte: &mut impl FnMut() -> u8) -> Vec<u8> {
    let mut data: Vec<u8> = (0..ty.row_bytes(n as usize).unwrap()).map(|_| byte()).collect();
    for block in data.chunks_exact_mut(ty.block_bytes()) {
        for (k, at) in scales.iter().enumerate() {
            // K-quants subtract their minimum themselves.
            let negative = k == 1 && ty.block_len() == 32;
            let half = (15 - exponent) << 10 | u16::from(negative) << 15;
            block[*at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        if ty == GgmlType::MXFP4 {
            block[0] = 120 + block[0] % 4;
        }
    }
    data
}

/// A Llama of one layer in `ty`, and the same with all matrices as f32.
fn models(ty: GgmlType, scales: &[usize]) -> (Vec<u8>, Vec<u8>) {
    let mut seed = u64::from(ty.id()) + 1;
    let mut byte = || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (seed >> 56) as u8
    };
    let floats = |data: &[u8], n: u64| {
        let mut w = vec![0.0f32; n as usize];
        dequantize_row(ty, data, &mut w).unwrap();
        w
    };
    // Weights of at most about 0.2, so that no softmax is a step.
    let sample = floats(&matrix(ty, scales, 4096, 10, &mut byte), 4096);
    let largest = sample.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    let exponent = (10.0 + (largest / 0.2).log2().ceil()).clamp(1.0, 14.0) as u16;

    let write = |tensors: &[(&str, GgmlType, [u64; 2], Vec<u8>)]| {
        let mut w = GgufWriter::new();
        w.set("general.architecture", "llama").unwrap();
        for (key, value) in [
            ("context_length", 32),
            ("embedding_length", DIM as u32),
            ("block_count", 1),
            ("feed_forward_length", FFN as u32),
            ("attention.head_count", 8),
            ("attention.head_count_kv", 4),
        ] {
            w.set(&format!("llama.{key}"), value).unwrap();
        }
        let norms = ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"];
        for name in norms {
            w.add_tensor(name, GgmlType::F32, &[DIM]).unwrap();
        }
        for (name, ty, shape, _) in tensors {
            w.add_tensor(name, *ty, shape).unwrap();
        }
        let mut out = w.begin_in_memory().unwrap();
        for name in norms {
            out.tensor(name, &1.0f32.to_le_bytes().repeat(DIM as usize)).unwrap();
        }
        for (name, _, _, data) in tensors {
            out.tensor(name, data).unwrap();
        }
        out.finish().unwrap()
    };
    let blocks = MATRICES.map(|(name, cols, rows)| {
        (name, ty, [cols, rows], matrix(ty, scales, cols * rows, exponent, &mut byte))
    });
    let plain = blocks.clone().map(|(name, _, shape, data)| {
        let w = floats(&data, shape[0] * shape[1]);
        (name, GgmlType::F32, shape, w.iter().flat_map(|w| w.to_le_bytes()).collect())
    });
    (write(&blocks), write(&plain))
}

/// The logits after each of some tokens.
fn logits(bytes: &[u8], path: Path) -> Vec<f32> {
    let o = OpenOptions { path, batch: 12, workers: 2, ..OpenOptions::new(Isa::detect()) };
    let mut model = open::open(&Bytes::new(bytes.to_vec()), &o).unwrap();
    model.step(&[3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26], Phase::Prompt, Logits::All).unwrap().to_vec()
}

#[test]
fn every_type_runs() {
    for (ty, scales) in TYPES {
        let (blocks, floats) = models(ty, scales);
        let expected = logits(&floats, Path::Plain);
        assert!(logits(&blocks, Path::Plain) == expected, "{ty}: plainly");

        let packed = pack(&Bytes::new(blocks.clone()), &PackOptions::exact());
        // The table of token vectors stays as it is; all else is planes.
        let gguf = Gguf::parse(&packed).unwrap();
        assert_eq!(gguf.str_array("lutite.tensors").unwrap().unwrap().count(), MATRICES.len() - 1);
        assert_eq!(gguf.tensor("token_embd.weight").unwrap().ty, ty);
        assert!(logits(&packed, Path::Plain) == expected, "{ty}: packed, plainly");
        let found = logits(&packed, Path::Lut);
        // Of what tells tokens apart: a position's mean is taken off.
        let (mut error, mut spread) = (0.0, 0.0);
        for (found, expected) in found.chunks(VOCAB as usize).zip(expected.chunks(VOCAB as usize)) {
            let mean = expected.iter().sum::<f32>() / VOCAB as f32;
            for (f, e) in found.iter().zip(expected) {
                error += f64::from(f - e).powi(2);
                spread += f64::from(e - mean).powi(2);
            }
        }
        let error = (error / spread).sqrt();
        println!("{ty}: relative error of the logits by tables {error:.5}");
        assert!(error < 0.02, "{ty}: {error}");
    }
}
