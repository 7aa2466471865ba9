//! Exact import: planes give back the source's dequantized values bit for bit.

use lutite_kernels::ggml::{GgmlType, dequantize_row};
use lutite_kernels::pack::Packed;
use lutite_quant::{PackJob, PackOptions, Plan, pack_in_memory};
use lutite_runtime::os::map::Map;
use lutite_runtime::store::{Gguf, GgufWriter, PackedInfo};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Packs `source` exactly and returns the packed file.
fn pack(source: &[u8], threads: usize) -> Vec<u8> {
    let gguf = Gguf::parse(source).unwrap();
    let plan = Plan::new(&gguf, &PackOptions::exact()).unwrap();
    let cancel = AtomicBool::new(false);
    let job = PackJob {
        source: &gguf,
        source_hash: 1,
        imatrix: None,
        threads,
        progress: &|_, _| {},
        cancel: &cancel,
    };
    pack_in_memory(&plan, &job).unwrap()
}

/// Compares every matrix of the packed file with its source, and returns how many weights that were.
fn compare(source: &[u8], packed: &[u8]) -> usize {
    let (source, packed) = (Gguf::parse(source).unwrap(), Gguf::parse(packed).unwrap());
    let mut weights = 0;
    for line in packed.str_array("lutite.tensors").unwrap().unwrap() {
        let info = PackedInfo::parse(line).unwrap();
        let data = |name: &str| packed.require(name).unwrap().data;
        let planes: Vec<&[u8]> = (0..info.planes).map(|p| data(&info.plane_name(p))).collect();
        let w =
            Packed::new(info.shape, info.group, info.kind, &planes, data(&info.params_name()), &[]).unwrap();
        let t = source.require(&format!("{}.weight", info.name)).unwrap();
        let cols = info.shape.cols;
        let (mut got, mut want) = (vec![0.0; cols], vec![0.0; cols]);
        for (r, row) in t.data.chunks_exact(t.data.len() / info.shape.rows).enumerate() {
            dequantize_row(t.ty, row, &mut want).unwrap();
            w.dequantize_row(r, &mut got).unwrap();
            for (c, (g, w)) in got.iter().zip(&want).enumerate() {
                let same =
                    g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan()) || (*g == 0.0 && *w == 0.0);
                assert!(same, "{} row {r} column {c}: {g:e}, source {w:e}", t.name);
            }
        }
        weights += info.shape.rows * cols;
    }
    weights
}

/// Random blocks of every importable type: all bit patterns of codes and of finite scales, subnormal and huge
/// ones among them. (Infinite ones are refused, see the command line's tests of bad input.)
#[test]
fn random_blocks_are_reproduced() {
    let types = [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::Q8_0];
    let mut seed = 1u64;
    let mut byte = || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (seed >> 56) as u8
    };
    for (rows, cols) in [(1, 32), (40, 96), (65, 320)] {
        let mut w = GgufWriter::new();
        w.set("general.architecture", "llama").unwrap();
        // An output of its own, so that nothing counts as a tied head.
        for ty in types {
            w.add_tensor(&format!("{}.weight", ty.name()), ty, &[cols, rows]).unwrap();
        }
        w.add_tensor("output.weight", GgmlType::Q8_0, &[cols, rows]).unwrap();
        let mut out = w.begin_in_memory().unwrap();
        for ty in types {
            let n = ty.row_bytes(cols as usize).unwrap() * rows as usize;
            let mut data: Vec<u8> = (0..n).map(|_| byte()).collect();
            let scales = if matches!(ty, GgmlType::Q4_1 | GgmlType::Q5_1) { 2 } else { 1 };
            for block in data.chunks_exact_mut(ty.block_bytes()) {
                for scale in block.chunks_exact_mut(2).take(scales) {
                    if scale[1] & 0x7c == 0x7c {
                        scale[1] ^= 0x40; // an exponent of all ones: make it finite
                    }
                }
            }
            out.tensor(&format!("{}.weight", ty.name()), &data).unwrap();
        }
        let n = GgmlType::Q8_0.row_bytes(cols as usize).unwrap() * rows as usize;
        out.tensor("output.weight", &vec![3; n]).unwrap();
        let source = out.finish().unwrap();
        let packed = pack(&source, 2);
        assert_eq!(compare(&source, &packed), 6 * (rows * cols) as usize);
        assert!(packed == pack(&source, 1), "the result depends on the number of threads");
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
    let packed = pack(&source, 2);
    assert_eq!(compare(&source, &packed), 134_479_872);
    // At the source's own bits: what is added is the padding of tiles and the directory.
    let growth = packed.len() as f64 / source.len() as f64;
    assert!(growth < 1.002, "packed file is {growth} times its source");
}
