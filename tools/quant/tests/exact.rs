//! Exact import: codes give back the source's dequantized values bit for bit.

use lutite_kernels::ggml::{GgmlType, dequantize_row};
use lutite_quant::{PackJob, PackOptions, Plan, pack_in_memory};
use lutite_runtime::os::map::Map;
use lutite_runtime::store::{Gguf, GgufWriter, MatrixInfo};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Packs `source` exactly and returns the packed file.
fn pack(source: &[u8], threads: usize) -> lutite_quant::Result<Vec<u8>> {
    let gguf = Gguf::parse(source).unwrap();
    let plan = Plan::new(&gguf, &PackOptions::exact())?;
    assert_eq!(plan.fitted().count(), 0);
    let cancel = AtomicBool::new(false);
    let job = PackJob {
        source: &gguf,
        source_hash: 1,
        imatrix: None,
        fits: None,
        measure: None,
        threads,
        progress: &|_, _| {},
        cancel: &cancel,
    };
    pack_in_memory(&plan, &job)
}

/// Compares every matrix of the packed file with its source, and returns how many weights that were.
fn compare(source: &[u8], packed: &[u8]) -> usize {
    let (source, packed) = (Gguf::parse(source).unwrap(), Gguf::parse(packed).unwrap());
    let mut weights = 0;
    for line in packed.str_array("lutite.tensors").unwrap().unwrap() {
        let info = MatrixInfo::parse(line).unwrap();
        let w = info.view(info.find(&packed).unwrap().iter().map(|t| t.data)).unwrap();
        let t = source.require(&format!("{}.weight", info.name())).unwrap();
        let cols = info.shape().cols;
        let (mut got, mut want) = (vec![0.0; cols], vec![0.0; cols]);
        for (r, row) in t.data.chunks_exact(t.data.len() / info.shape().rows).enumerate() {
            dequantize_row(t.ty, row, &mut want).unwrap();
            w.dequantize_row(r, &mut got).unwrap();
            for (c, (g, w)) in got.iter().zip(&want).enumerate() {
                let same =
                    g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan()) || (*g == 0.0 && *w == 0.0);
                assert!(same, "{} row {r} column {c}: {g:e}, source {w:e}", t.name);
            }
        }
        weights += info.shape().rows * cols;
    }
    weights
}

/// The types that have codes, and where the f16 scales of a block are.
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

/// A model of one `[rows][cols]` matrix of random blocks for each type that fits: all bit patterns of codes,
/// sub-scales and finite scales, subnormal and huge ones among them. (Infinite ones are refused, see the command
/// line's tests of bad input.)
fn random(rows: u64, cols: u64, byte: &mut impl FnMut() -> u8) -> Vec<u8> {
    let fits = |ty: GgmlType| ty.row_bytes(cols as usize);
    let name = |ty: GgmlType| format!("{}.weight", ty.name());
    let mut w = GgufWriter::new();
    w.set("general.architecture", "llama").unwrap();
    for (ty, _) in TYPES.iter().filter(|t| fits(t.0).is_some()) {
        w.add_tensor(&name(*ty), *ty, &[cols, rows]).unwrap();
    }
    // An output of its own, so that nothing counts as a tied head.
    w.add_tensor("output.weight", GgmlType::Q8_0, &[cols, rows]).unwrap();
    let mut out = w.begin_in_memory().unwrap();
    for (ty, scales) in TYPES {
        let Some(row) = fits(ty) else { continue };
        let mut data: Vec<u8> = (0..row * rows as usize).map(|_| byte()).collect();
        for block in data.chunks_exact_mut(ty.block_bytes()) {
            for at in scales {
                let high = &mut block[at + 1];
                if *high & 0x7c == 0x7c {
                    *high ^= 0x40; // an exponent of all ones: make it finite
                }
            }
            if ty == GgmlType::MXFP4 {
                block[0] = 104 + block[0] % 40; // scales that an f16 holds
            }
        }
        out.tensor(&name(ty), &data).unwrap();
    }
    out.tensor("output.weight", &vec![3; fits(GgmlType::Q8_0).unwrap() * rows as usize]).unwrap();
    out.finish().unwrap()
}

#[test]
fn random_blocks_are_reproduced() {
    let mut seed = 1u64;
    let mut byte = || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (seed >> 56) as u8
    };
    for (rows, cols, matrices) in [(1, 32, 8), (40, 96, 8), (65, 320, 8), (1, 256, 16), (37, 768, 16)] {
        let source = random(rows, cols, &mut byte);
        let packed = pack(&source, 2).unwrap();
        assert_eq!(compare(&source, &packed), matrices * (rows * cols) as usize);
        assert!(packed == pack(&source, 1).unwrap(), "the result depends on the number of threads");
    }
}

/// An MXFP4 scale that no f16 holds is an error, but where all weights are 0 anyway.
#[test]
fn scales_beyond_f16_are_named() {
    let model = |block: &[u8; 17]| {
        let mut w = GgufWriter::new();
        w.set("general.architecture", "llama").unwrap();
        w.add_tensor("output.weight", GgmlType::MXFP4, &[32, 1]).unwrap();
        let mut out = w.begin_in_memory().unwrap();
        out.tensor("output.weight", block).unwrap();
        out.finish().unwrap()
    };
    let mut block = [0x88; 17];
    block[0] = 3;
    let source = model(&block);
    assert_eq!(compare(&source, &pack(&source, 1).unwrap()), 32);
    block[5] = 0x81;
    let error = pack(&model(&block), 1).unwrap_err().to_string();
    assert!(error.contains("output.weight") && error.contains("--bits 5"), "{error}");
}

/// Types without a reader are refused by name before anything is packed.
#[test]
fn unreadable_types_are_named() {
    for ty in [GgmlType::IQ2_XS, GgmlType::IQ1_M, GgmlType::NVFP4, GgmlType::Q1_0] {
        let mut w = GgufWriter::new();
        w.set("general.architecture", "llama").unwrap();
        w.add_tensor("blk.0.ffn_up.weight", ty, &[256, 1]).unwrap();
        let mut out = w.begin_in_memory().unwrap();
        out.tensor("blk.0.ffn_up.weight", &vec![0; ty.row_bytes(256).unwrap()]).unwrap();
        let error = pack(&out.finish().unwrap(), 1).unwrap_err().to_string();
        let (name, remedy) = (format!("of type {ty} cannot be read"), "convert to one of F32");
        assert!(error.contains("blk.0.ffn_up") && error.contains(&name) && error.contains(remedy), "{error}");
    }
}

/// Every tensor of a real model. Needs `LUTITE_TEST_DATA` (tools/fetch-test-data.sh).
#[test]
fn smollm2_is_reproduced() {
    let Some(dir) = std::env::var_os("LUTITE_TEST_DATA").map(PathBuf::from) else {
        assert!(std::env::var_os("CI").is_none(), "LUTITE_TEST_DATA must be set in CI");
        eprintln!("SKIPPED: LUTITE_TEST_DATA is not set (tools/fetch-test-data.sh fills a folder for it)");
        return;
    };
    let source = Map::open(dir.join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let packed = pack(&source, 2).unwrap();
    assert_eq!(compare(&source, &packed), 134_479_872);
    // At the source's own bits: what is added is the padding of tiles and the directory.
    let growth = packed.len() as f64 / source.len() as f64;
    assert!(growth < 1.002, "packed file is {growth} times its source");
}
