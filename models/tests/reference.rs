//! The plain path against logits that llama.cpp computed for tiny random models and a float64 NumPy
//! forward for stories260K. Needs the shared test data: `LUTITE_TEST_DATA` names its folder.

use lutite_kernels::isa::Isa;
use lutite_models::{OpenOptions, Path, open};
use lutite_runtime::decode::{Decoder, Logits};
use lutite_runtime::kv::KvType;
use lutite_runtime::os::map::Map;
use lutite_runtime::store::Bytes;
use std::io::Read;
use std::path::PathBuf;

/// The folder of test data. Without it a test is skipped, loudly, but never in CI.
fn data() -> Option<PathBuf> {
    let dir = std::env::var_os("LUTITE_TEST_DATA").map(PathBuf::from).filter(|d| d.is_dir());
    if dir.is_none() {
        assert!(std::env::var_os("CI").is_none(), "LUTITE_TEST_DATA must name the test data in CI");
        eprintln!("SKIPPED: LUTITE_TEST_DATA names no folder of test data");
    }
    dir
}

/// One array of a NumPy archive as f64, with its shape.
fn npz(path: &std::path::Path, name: &str) -> (Vec<usize>, Vec<f64>) {
    let mut zip = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut b = Vec::new();
    zip.by_name(&format!("{name}.npy")).unwrap().read_to_end(&mut b).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([b[8], b[9]]));
    let text = String::from_utf8_lossy(&b[10..header]).into_owned();
    let inside = |open: &str, close: char| {
        let from = text.find(open).unwrap() + open.len();
        text[from..from + text[from..].find(close).unwrap()].to_owned()
    };
    let shape = inside("'shape': (", ')').split(',').filter_map(|n| n.trim().parse().ok()).collect();
    let values = match inside("'descr': '", '\'').as_str() {
        "<f4" => b[header..].as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        "<f8" => b[header..].as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        "<i4" => b[header..].as_chunks().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect(),
        "<i8" => b[header..].as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
        other => panic!("{name}: type {other}"),
    };
    (shape, values)
}

fn largest_difference(model: &std::path::Path, tokens: &[u32], expected: &[f64]) -> f64 {
    let bytes = Bytes::new(Map::open(model).unwrap());
    let mut worst = 0.0f64;
    for isa in Isa::available() {
        // In one step and token by token: the same numbers.
        for batch in [64, 1] {
            let o = OpenOptions {
                path: Path::Plain,
                kv: KvType::F32,
                workers: 2,
                batch,
                ..OpenOptions::new(isa)
            };
            let mut m = open::open(&bytes, &o).unwrap();
            let mut got = Vec::new();
            for t in tokens.chunks(batch) {
                got.extend_from_slice(m.step(t, Logits::All).unwrap());
            }
            assert_eq!(got.len(), expected.len());
            let diff = got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - e).abs()).fold(0.0, f64::max);
            worst = worst.max(diff);
        }
    }
    worst
}

#[test]
fn plain_path_equals_llama_cpp_on_tiny_models() {
    let Some(data) = data() else { return };
    let archive = data.join("tiny-random/reference_logits.npz");
    let tokens: Vec<u32> = npz(&archive, "tokens").1.iter().map(|t| *t as u32).collect();
    for name in ["llama", "llama3-ropefreqs"] {
        let expected = npz(&archive, name).1;
        let diff = largest_difference(&data.join(format!("tiny-random/{name}.gguf")), &tokens, &expected);
        println!("{name}: largest difference of a logit {diff:.1e}");
        assert!(diff < 1e-4, "{name}: {diff:e}");
    }
}

#[test]
fn plain_path_equals_numpy_on_stories260k() {
    let Some(data) = data() else { return };
    let archive = data.join("stories260K/reference.npz");
    let ids: Vec<u32> = npz(&archive, "ids").1.iter().map(|t| *t as u32).collect();
    let (shape, logits) = npz(&archive, "logits_first8");
    let diff = largest_difference(&data.join("stories260K/stories260K-f32.gguf"), &ids[..shape[0]], &logits);
    println!("stories260K: largest difference of a logit {diff:.1e}");
    assert!(diff < 1e-4, "{diff:e}");
}
