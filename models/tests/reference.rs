//! The plain path against logits that llama.cpp computed for tiny random models and a float64 NumPy
//! forward for stories260K (`data/reference/README.md`).

use lutite_kernels::isa::Isa;
use lutite_models::{OpenOptions, Path, open};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::kv::KvType;
use lutite_runtime::os::map::Map;
use lutite_runtime::store::{Bytes, Gguf, GgufWriter};
use std::path::PathBuf;

fn file(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/reference")).join(name)
}

fn tokens(name: &str) -> Vec<u32> {
    std::fs::read(file(name)).unwrap().as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// Opens a model on the plain path and compares its logits, in steps of many tokens and of one.
fn largest_difference(model: &str, bytes: &Bytes, tokens: &[u32], expected: &[f64]) -> f64 {
    let mut worst = 0.0f64;
    for isa in Isa::available() {
        let mut first: Option<Vec<f32>> = None;
        for (batch, workers) in [(64, 2), (7, 3), (1, 1)] {
            let o = OpenOptions {
                path: Path::Plain,
                kv: KvType::F32.into(),
                workers,
                batch,
                ..OpenOptions::new(isa)
            };
            let mut m = open::open(bytes, &o).unwrap();
            let mut got = Vec::new();
            for t in tokens.chunks(batch) {
                got.extend_from_slice(m.step(t, Phase::Prompt, Logits::All).unwrap());
            }
            assert_eq!(got.len(), expected.len());
            let diff = got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - e).abs()).fold(0.0, f64::max);
            worst = worst.max(diff);
            let first = first.get_or_insert_with(|| got.clone());
            assert!(first.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()), "batch {batch} differs");
        }
    }
    println!("{model}: largest difference of a logit {worst:.1e}");
    worst
}

fn map(model: &str) -> Bytes {
    Bytes::new(Map::open(file(model)).unwrap())
}

/// Little-endian f32 logits.
fn logits(name: &str) -> Vec<f64> {
    let bytes = std::fs::read(file(name)).unwrap();
    bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
}

#[test]
fn plain_path_equals_llama_cpp_on_tiny_models() {
    for name in ["llama", "llama3-ropefreqs"] {
        let model = format!("{name}.gguf");
        let expected = logits(&format!("{name}.logits.f32"));
        let diff = largest_difference(name, &map(&model), &tokens("tiny-tokens.u32"), &expected);
        assert!(diff < 1e-4, "{name}: {diff:e}");
    }
}

/// The same model, said to have been stretched.
#[test]
fn rope_scaling_is_that_of_llama_cpp() {
    let source = map("llama.gguf");
    let gguf = Gguf::parse(&source).unwrap();
    for (kind, factor, original) in [("linear", 4.0f32, None), ("yarn", 8.0, Some(64u32))] {
        let mut w = GgufWriter::new();
        for (key, value) in gguf.metadata() {
            w.set(key, *value).unwrap();
        }
        w.set("llama.rope.scaling.type", kind).unwrap();
        w.set("llama.rope.scaling.factor", factor).unwrap();
        if let Some(n) = original {
            w.set("llama.rope.scaling.original_context_length", n).unwrap();
        }
        for t in gguf.tensors() {
            w.add_tensor(t.name, t.ty, t.shape()).unwrap();
        }
        let mut out = w.begin_in_memory().unwrap();
        for t in gguf.tensors() {
            out.tensor(t.name, t.data).unwrap();
        }
        let model = Bytes::new(out.finish().unwrap());
        let expected = logits(&format!("llama-{kind}.logits.f32"));
        let diff = largest_difference(kind, &model, &tokens("tiny-tokens.u32"), &expected);
        assert!(diff < 1e-4, "{kind}: {diff:e}");
    }
}

#[test]
fn plain_path_equals_numpy_on_stories260k() {
    let expected: Vec<f64> = std::fs::read(file("stories260K.logits.f64"))
        .unwrap()
        .as_chunks()
        .0
        .iter()
        .map(|b| f64::from_le_bytes(*b))
        .collect();
    let diff = largest_difference(
        "stories260K",
        &map("stories260K-f32.gguf"),
        &tokens("stories260K-ids.u32")[..8],
        &expected,
    );
    assert!(diff < 1e-4, "{diff:e}");
}
