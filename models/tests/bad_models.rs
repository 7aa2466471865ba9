//! Model files whose container is sound but whose model is not: each must give an error that says what and where,
//! without a panic and without allocating more than the budget that was given.

#[path = "common/edit.rs"]
mod edit;
#[path = "common/levels.rs"]
mod levels;
#[path = "../../runtime/tests/common/peak.rs"]
mod peak;

use edit::{NUMBERS, Tensor, edit, mutate, mutations, quantize, reference};
use lutite_kernels::ggml::GgmlType;
use lutite_kernels::isa::Isa;
use lutite_models::{Model, OpenOptions, Path, open};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::store::{Bytes, Gguf, Value};
use peak::peak_of;

/// What opening may allocate, beside what the reader takes for a file.
const BUDGET: usize = 4 << 20;

fn options() -> OpenOptions {
    OpenOptions {
        path: Path::Plain,
        context: Some(64),
        batch: 8,
        available: Some((BUDGET as u64, "this test".into())),
        ..OpenOptions::new(Isa::detect())
    }
}

/// Opens under the budget, whose every byte is counted.
fn try_open(file: &[u8], o: &OpenOptions) -> Result<Model, String> {
    let bytes = Bytes::new(file.to_vec());
    let len = bytes.len();
    let (result, peak) = peak_of(|| open::open(&bytes, o));
    let cap = BUDGET + 8 * len + (256 << 10);
    assert!(peak <= cap, "{peak} bytes held for a file of {len}, at most {cap} expected");
    result.map_err(|e| e.to_string())
}

fn seed() -> Vec<u8> {
    reference("llama3-ropefreqs.gguf")
}

/// The message for the seed with one key changed.
fn key(key: &str, value: impl Into<Option<Value<'static>>>) -> String {
    let file = edit(&seed(), &[(key, value.into())], |_| {});
    try_open(&file, &options()).err().unwrap_or_else(|| panic!("{key} was accepted"))
}

/// The message for the seed with its tensors changed.
fn tensors(change: impl FnOnce(&mut Vec<Tensor>)) -> String {
    try_open(&edit(&seed(), &[], change), &options()).expect_err("accepted")
}

fn named<'a>(all: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    all.iter_mut().find(|t| t.0 == name).unwrap()
}

fn f32s(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn the_seed_is_fine_as_it_is_and_rewritten() {
    try_open(&seed(), &options()).unwrap();
    try_open(&edit(&seed(), &[], |_| {}), &options()).unwrap();
    try_open(&edit(&seed(), &[], |t| quantize(t)), &options()).unwrap();
}

#[test]
fn hyperparameters_that_lie() {
    let sizes = [
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "rope.dimension_count",
    ];
    let file = seed();
    let original = Gguf::parse(&file).unwrap();
    for name in sizes.map(|s| format!("llama.{s}")) {
        for n in NUMBERS {
            let file = edit(&seed(), &[(&name, Some(Value::U64(n)))], |_| {});
            if let Err(message) = try_open(&file, &options()) {
                assert!(
                    message.contains(&name) || message.contains("tensor") || message.contains("llama."),
                    "{name} = {n}: {message}"
                );
                assert!(!message.contains("memory"), "{name} = {n} is not the memory's fault: {message}");
            } else {
                // Its own number, or one that the tensors' shapes do not contradict.
                let own = Gguf::parse(&file).unwrap().u64(&name).unwrap() == original.u64(&name).unwrap();
                assert!(own || name == "llama.rope.dimension_count", "{name} = {n}");
            }
        }
    }
    let wrong = |name: &str, value, why: &str| {
        let message = key(name, value);
        assert!(message.contains(name) && message.contains(why), "{name}: {message}");
    };
    wrong("llama.block_count", Value::U32(1 << 31), "out of range");
    wrong("llama.block_count", Value::U32(1), "but the file has the tensor \"blk.1.");
    wrong("llama.block_count", Value::Str("two"), "is str");
    wrong("llama.context_length", Value::U64(1 << 40), "fits u32");
    wrong("llama.context_length", Value::U32(1 << 31), "out of range");
    wrong("llama.context_length", Value::U32(0), "out of range");
    wrong("llama.attention.head_count_kv", Value::U32(3), "does not divide");
    wrong("llama.attention.value_length", Value::U32(16), "differs from key_length");
    wrong("llama.rope.dimension_count", Value::U32(7), "no even number");
    wrong("llama.rope.freq_base", Value::F32(f32::NAN), "no finite number");
    wrong("llama.rope.freq_base", Value::F32(0.5), "not above 1");
    wrong("llama.rope.scaling.factor", Value::F32(0.0), "not above 0");
    wrong("llama.rope.scaling.type", Value::Str("spiral"), "not supported");
    wrong("llama.expert_count", Value::U32(8), "mixtures");
    for eps in [f32::NAN, f32::INFINITY, 0.0, -1e-5, 2.0] {
        wrong("llama.attention.layer_norm_rms_epsilon", Value::F32(eps), "");
    }
    assert!(key("llama.block_count", None).contains("llama.block_count: missing"));
    assert!(key("llama.embedding_length", None).contains("llama.embedding_length: missing"));
}

#[test]
fn another_architecture() {
    for arch in ["mamba", "", "gpt2", "lutllama"] {
        let message = key("general.architecture", Value::Str(arch));
        assert!(message.contains("is not supported; this build reads: llama"), "{message}");
    }
    assert!(key("general.architecture", None).contains("(none)"));
    // Packed in name only.
    let message = key("general.architecture", Value::Str("lut-llama"));
    assert!(message.contains("packed model file: format version 0"), "{message}");
}

#[test]
fn every_tensor_missing_or_of_another_shape_is_named() {
    let file = seed();
    let gguf = Gguf::parse(&file).unwrap();
    for name in gguf.tensors().iter().map(|t| t.name) {
        let without = |all: &mut Vec<Tensor>| all.retain(|t| t.0 != name);
        match try_open(&edit(&file, &[], without), &options()) {
            Ok(_) => assert_eq!(name, "rope_freqs.weight", "is not needed?"),
            Err(message) if name == "token_embd.weight" => {
                assert!(message.contains("token_embd"), "{message}");
            }
            Err(message) => {
                assert!(message.starts_with(&format!("GGUF tensor `{name}`: is missing")), "{message}");
            }
        }
        let message = tensors(|all| {
            let (_, ty, shape, data) = named(all, name);
            *shape = vec![8, 8];
            *data = vec![0; ty.row_bytes(64).unwrap()];
        });
        // Another embedding is first of all another vocabulary.
        let said = if name == "token_embd.weight" { "tokenizer.ggml.tokens" } else { name };
        assert!(message.contains(said), "{name}: {message}");
        let message = tensors(|all| {
            let (_, ty, shape, data) = named(all, name);
            (*ty, *data) = (GgmlType::I32, vec![0; 4 * shape.iter().product::<u64>() as usize]);
        });
        assert!(message.contains(name) && message.contains("I32 cannot be read here"), "{name}: {message}");
    }
}

#[test]
fn a_vocabulary_that_does_not_fit_the_weights() {
    let message = tensors(|all| {
        let (_, _, shape, data) = named(all, "token_embd.weight");
        shape[1] = 500;
        data.truncate(500 * 128 * 2);
    });
    assert_eq!(
        message,
        "tokenizer.ggml.tokens: 512 tokens, but the embedding has 500 rows; tokenizer and weights are of different models"
    );
    // A padded embedding is what many models have.
    let padded = edit(&seed(), &[], |all| {
        let (_, _, shape, data) = named(all, "token_embd.weight");
        shape[1] = 520;
        data.resize(520 * 128 * 2, 0);
    });
    assert_eq!(try_open(&padded, &options()).unwrap().vocab(), 520);
}

#[test]
fn numbers_that_are_none() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for name in ["blk.1.ffn_norm.weight", "output_norm.weight"] {
            let message = tensors(|all| named(all, name).3[8..12].copy_from_slice(&bad.to_le_bytes()));
            assert!(
                message.starts_with(&format!("tensor {name:?}: value 2 is {bad}, no finite")),
                "{message}"
            );
        }
        let message = tensors(|all| named(all, "rope_freqs.weight").3 = f32s(&[bad; 16]));
        assert!(message.contains("rope_freqs.weight"), "{message}");
        // In a matrix nobody looks beforehand: the logits say so (`SampleError::NotANumber`), nothing panics.
        for name in ["token_embd.weight", "blk.0.attn_q.weight", "blk.1.ffn_down.weight"] {
            let file = edit(&seed(), &[], |all| {
                let t = named(all, name);
                let n = t.3.len() / 2;
                t.3 = half(bad).repeat(n);
            });
            let mut m = try_open(&file, &options()).unwrap();
            m.step(&[1, 2, 3], Phase::Prompt, Logits::All).unwrap();
        }
    }
    assert!(tensors(|all| named(all, "rope_freqs.weight").3 = f32s(&[0.0; 16])).contains("not above 0"));
}

/// NaN and the infinities as f16.
fn half(x: f32) -> [u8; 2] {
    let bits: u16 = if x.is_nan() {
        0x7e00
    } else if x > 0.0 {
        0x7c00
    } else {
        0xfc00
    };
    bits.to_le_bytes()
}

#[test]
fn contexts_that_do_not_fit() {
    let with = |context, available: Option<(u64, String)>| {
        try_open(&seed(), &OpenOptions { context: Some(context), available, ..options() })
            .map(|m| m.context())
    };
    let limited = || Some((BUDGET as u64, "this test".to_owned()));
    let message = with(100_000_000, limited()).unwrap_err();
    assert!(message.starts_with("not enough memory: a context of 100000000 positions"), "{message}");
    assert!(message.contains("4 MiB are available (bound by this test)"), "{message}");
    assert!(with(1 << 40, limited()).unwrap_err().contains("not enough memory"));
    for context in [usize::MAX / 2, usize::MAX] {
        assert!(with(context, limited()).unwrap_err().contains("not enough memory"));
        assert!(with(context, None).unwrap_err().contains("cannot allocate a buffer"));
    }
    assert!(with(0, limited()).unwrap_err().contains("ask for at least 1"));
    assert_eq!(with(1, limited()).unwrap(), 1);
}

#[test]
fn tokens_outside_and_prompts_too_long() {
    let mut m = try_open(&seed(), &options()).unwrap();
    assert!(
        m.step(&[512], Phase::Prompt, Logits::Last)
            .unwrap_err()
            .to_string()
            .contains("outside of the vocabulary of 512")
    );
    assert!(m.step(&[u32::MAX], Phase::Prompt, Logits::Last).is_err());
    assert!(
        m.step(&[1; 9], Phase::Prompt, Logits::Last).is_err()
            && m.step(&[], Phase::Answer, Logits::Last).is_err()
    );
    assert_eq!(m.position(), 0);
    let message = m.check_room(65).unwrap_err().to_string();
    assert!(
        message.starts_with("65 positions are needed, but the context has 64; shorten the prompt"),
        "{message}"
    );
}

#[test]
fn mutated_models() {
    // Without the tokenizer the header is small, and most mutations hit what this is about.
    let strip: Vec<(&str, Option<Value<'_>>)> = ["tokens", "scores", "token_type"]
        .map(|k| match k {
            "tokens" => "tokenizer.ggml.tokens",
            "scores" => "tokenizer.ggml.scores",
            _ => "tokenizer.ggml.token_type",
        })
        .map(|key| (key, None))
        .to_vec();
    let seeds = [
        edit(&seed(), &strip, |_| {}),
        edit(&seed(), &strip, |t| quantize(t)),
        edit(&reference("stories260K-f32.gguf"), &strip, |_| {}),
        levels::with_levels(&edit(&seed(), &strip, |_| {}), &[1, 3], 2),
    ];
    let heads = seeds.each_ref().map(|s| Gguf::parse(s).unwrap().data_offset() as usize);
    mutations(|rng| {
        let which = rng.below(seeds.len());
        let mut file = seeds[which].clone();
        for _ in 0..1 + rng.below(4) {
            mutate(rng, &mut file, heads[which]);
        }
        // Levels have no checksums here, which mutations would have to match.
        let path = if which == seeds.len() - 1 { Path::Lut } else { Path::Plain };
        let o = OpenOptions { context: None, verify: path == Path::Plain, path, ..options() };
        let run =
            |mut m: Model| m.step(&[1], Phase::Prompt, Logits::Last).map(|_| ()).map_err(|e| e.to_string());
        try_open(&file, &o).map(run).is_ok()
    });
}
