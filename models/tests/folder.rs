//! A Hugging Face folder and the GGUF file of the same model: equal logits, equal tokens.

#[path = "common/edit.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod edit;
#[path = "common/folder.rs"]
mod folder;

use edit::edit;
use folder::{Files, folder_of, hf_tensors, opener, safetensors, tokenizer, tokenizer_config};
use lutite_kernels::ggml::GgmlType;
use lutite_kernels::isa::Isa;
use lutite_models::hf::tokenizer::{Files as TokenizerFiles, HfTokenizer, ModelIds};
use lutite_models::sampling::SamplingDefaults;
use lutite_models::{ChatTemplate, OpenOptions, Path, Tokenizer, TokenizerSpec, hf, open};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::store::{Bytes, Gguf, ModelFile, Value};
use serde_json::json;
use std::path::PathBuf;

fn reference() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/reference"))
}

fn twin() -> Bytes {
    Bytes::new(std::fs::read(reference().join("stories260K-f32.gguf")).unwrap())
}

/// The folder in the repository, whose weights the safetensors library wrote.
fn stories() -> Files {
    let entries = std::fs::read_dir(reference().join("stories260K")).unwrap().map(|e| e.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries.map(|path| (name(&path), std::fs::read(path).unwrap())).collect()
}

fn import(files: &Files) -> ModelFile {
    let imported = hf::import("test", &mut opener(files)).unwrap();
    assert!(imported.warnings.is_empty(), "{:?}", imported.warnings);
    imported.file
}

/// Logits of a few tokens as bits.
fn logits(file: impl Into<ModelFile>, vocab: u32) -> Vec<u32> {
    let o =
        OpenOptions { path: Path::Plain, workers: 2, context: Some(64), ..OpenOptions::new(Isa::detect()) };
    let mut m = open::open(file, &o).unwrap();
    let tokens: Vec<u32> = (0..24).map(|i| (i * 37 + 1) % vocab).collect();
    m.step(&tokens, Phase::Prompt, Logits::All).unwrap().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_folder_gives_the_bits_of_its_gguf_file() {
    let (folder, twin) = (import(&stories()), ModelFile::from(&twin()));
    assert!(logits(&folder, 512) == logits(&twin, 512), "logits differ");
    // The same tokens with the same meaning.
    let (a, b) = (folder.gguf().unwrap(), twin.gguf().unwrap());
    let (a, b) = (Tokenizer::from_gguf(&a).unwrap(), Tokenizer::from_gguf(&b).unwrap());
    let texts = std::fs::read_to_string(reference().join("../tokenizer/texts.inp")).unwrap();
    for text in texts.split("\n__ggml_vocab_test__\n").chain([
        "Once upon a time, there was a little girl.",
        " a  b",
        "é🦙",
    ]) {
        for special in [false, true] {
            assert_eq!(a.encode(text, special, special), b.encode(text, special, special), "{text:?}");
        }
    }
    assert_eq!((a.bos(), a.eos(), a.unk(), a.eog_ids()), (b.bos(), b.eos(), b.unk(), b.eog_ids()));
    for id in 0..512 {
        assert_eq!((a.token_text(id), a.kind(id)), (b.token_text(id), b.kind(id)), "token {id}");
    }
}

/// Shards with an index, in any order, beside shards of an older saving.
#[test]
fn shards_give_the_bits_of_one_file() {
    let twin = twin();
    let tensors = hf_tensors(&Gguf::parse(&twin).unwrap());
    let mut files = stories();
    let whole = logits(import(&files), 512);
    files.remove("model.safetensors");
    let mut map = serde_json::Map::new();
    for (i, part) in tensors.chunks(7).enumerate() {
        let name = format!("model-{i:05}-of-00008.safetensors");
        part.iter().for_each(|t| assert!(map.insert(t.0.clone(), json!(name)).is_none()));
        // A tensor of another shard, which the index does not look for here, and wrong.
        let mut old = tensors[(7 * i + 9) % tensors.len()].clone();
        old.3.fill(0);
        let part: Vec<_> = part.iter().cloned().chain([old]).collect();
        files.insert(name, safetensors(&part));
    }
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    files.insert("model.safetensors.index.json".into(), index.to_string().into_bytes());
    assert!(logits(import(&files), 512) == whole, "logits differ");
}

/// Half floats, grouped queries, an untied head; and data that starts at an odd byte.
#[test]
fn an_outline_has_the_weights_of_the_model() {
    let gguf = twin();
    let gguf = Gguf::parse(&gguf).unwrap();
    let files = stories();
    let outline = hf::Outline::read(&mut opener(&files)).unwrap();
    assert_eq!(outline.listed_in, "model.safetensors");
    let mut count = 0;
    for weight in outline.weights() {
        let t = gguf.require(&format!("{}.weight", weight.gguf)).unwrap();
        let stored = &outline.tensors[&format!("{}.weight", weight.module)];
        assert!(weight.shape.iter().rev().eq(t.shape()) && stored.shape == weight.shape, "{}", weight.gguf);
        assert_eq!((stored.dtype.as_str(), &*stored.file), ("F32", "model.safetensors"));
        let row = stored.data.len() / weight.shape[0] as usize;
        let rows = (0..weight.shape[0] as usize).map(|r| &stored.data[weight.order.place(r) * row..][..row]);
        assert!(rows.eq(t.data.chunks_exact(row)), "{}", weight.gguf);
        count += 1;
    }
    assert_eq!(count, outline.tensors.len());
}

#[test]
fn half_floats_anywhere_in_a_file() {
    let bytes = std::fs::read(reference().join("llama.gguf")).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let want = logits(&Bytes::new(bytes.clone()), 512);
    let mut files = folder_of(&gguf);
    assert!(logits(import(&files), 512) == want, "logits differ");
    let mut tensors = hf_tensors(&gguf);
    tensors.insert(0, ("model.rotary_emb.inv_freq".into(), "U8", vec![1], vec![0]));
    files.insert("model.safetensors".into(), safetensors(&tensors));
    assert!(logits(import(&files), 512) == want, "logits differ");
}

/// Biases go the way of their rows; a tied head that is saved all the same is passed over.
#[test]
fn biases_and_a_tied_copy() {
    let twin = twin();
    let gguf = Gguf::parse(&twin).unwrap();
    let mut files = stories();
    let tensors = hf_tensors(&gguf);
    let rows = |name: &str| tensors.iter().find(|t| t.0 == name).unwrap().2[0];
    let biased = |stored: fn(u64) -> u64| -> Vec<folder::HfTensor> {
        let mut all = tensors.clone();
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            let name = format!("model.layers.0.self_attn.{part}");
            let n = rows(&format!("{name}.weight"));
            // BF16: the upper half of an f32.
            let row = |r: u64| if matches!(part, "q_proj" | "k_proj") { stored(r) } else { r };
            let data = (0..n).flat_map(|r| ((((row(r) as f32) / 64.0).to_bits() >> 16) as u16).to_le_bytes());
            all.push((format!("{name}.bias"), "BF16", vec![n], data.collect()));
        }
        all
    };
    let before = logits(import(&files), 512);
    // Row r of a head of 8 is stored at r / 2 and the odd ones 4 further: its bias has to follow.
    let follows = biased(|at| at / 8 * 8 + if at % 8 < 4 { 2 * (at % 8) } else { 2 * (at % 8 - 4) + 1 });
    let mut with_head = follows.clone();
    with_head.push(("lm_head.weight".into(), "F32", vec![512, 64], vec![0; 512 * 64 * 4]));
    files.insert("model.safetensors".into(), safetensors(&with_head));
    let got = import(&files);
    assert!(logits(&got, 512) != before, "the biases do nothing");
    let q = got.gguf().unwrap();
    let q = q.require("blk.0.attn_q.bias").unwrap();
    let values: Vec<f32> = q.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert!(values.iter().enumerate().all(|(r, &x)| x == r as f32 / 64.0), "{values:?}");
}

/// A stretched model: what config.json says is what GGUF's keys and `rope_freqs` say.
#[test]
fn rotary_scaling_is_that_of_the_gguf_file() {
    let twin = twin();
    let with = |rope: &serde_json::Value| {
        let mut files = stories();
        let mut config: serde_json::Value = serde_json::from_slice(&files["config.json"]).unwrap();
        config["rope_scaling"] = rope.clone();
        files.insert("config.json".into(), config.to_string().into_bytes());
        import(&files)
    };
    let plain = logits(&twin, 512);
    let text = |kind| ("llama.rope.scaling.type", Some(Value::Str(kind)));
    let factor = |x| ("llama.rope.scaling.factor", Some(Value::F32(x)));
    let linear = edit(&twin, &[text("linear"), factor(4.0)], |_| {});
    let folder = logits(with(&json!({ "type": "linear", "factor": 4.0 })), 512);
    assert!(folder == logits(&Bytes::new(linear), 512) && folder != plain, "linear");

    let original = ("llama.rope.scaling.original_context_length", Some(Value::U32(64)));
    let yarn = edit(&twin, &[text("yarn"), factor(8.0), original], |_| {});
    let config = json!({ "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64 });
    let folder = logits(with(&config), 512);
    assert!(folder == logits(&Bytes::new(yarn), 512) && folder != plain, "yarn");

    // Heads of 8 dimensions turn 1, 0.1, 0.01 and 0.001 radians a position: of 16 positions the first two are kept.
    let config = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.1, "high_freq_factor": 0.2,
        "original_max_position_embeddings": 16 });
    let factors: Vec<u8> = [1.0f32, 1.0, 8.0, 8.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let llama3 =
        edit(&twin, &[], |all| all.push(("rope_freqs.weight".into(), GgmlType::F32, vec![4], factors)));
    let folder = logits(with(&config), 512);
    assert!(folder == logits(&Bytes::new(llama3), 512) && folder != plain, "llama3");
}

#[test]
fn templates_ends_and_sampling_are_taken_over() {
    let mut files = stories();
    let mut set =
        |name: &str, value: serde_json::Value| files.insert(name.into(), value.to_string().into_bytes());
    set(
        "generation_config.json",
        json!({ "eos_token_id": [2, 300], "temperature": 0.6, "top_k": 0, "top_p": 0.9,
        "repetition_penalty": 1.05, "max_length": 4096 }),
    );
    set(
        "tokenizer_config.json",
        json!({ "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": false,
        "chat_template": [{ "name": "tool_use", "template": "no" }, { "name": "default", "template": "A{{ messages[0].content }}" }] }),
    );
    let template = |files: &Files| {
        let file = import(files);
        let gguf = file.gguf().unwrap();
        let t = Tokenizer::from_gguf(&gguf).unwrap();
        ChatTemplate::for_model(&gguf, &t).unwrap().source().to_owned()
    };
    assert_eq!(template(&files), "A{{ messages[0].content }}");
    let file = import(&files);
    let gguf = file.gguf().unwrap();
    let t = Tokenizer::from_gguf(&gguf).unwrap();
    assert_eq!((t.eog_ids(), t.adds_bos(), t.bos()), (&[2, 300][..], false, Some(1)));
    let sampling = SamplingDefaults {
        temperature: Some(0.6),
        top_k: Some(0),
        top_p: Some(0.9),
        min_p: None,
        repeat_penalty: Some(1.05),
        repeat_last_n: Some(-1),
    };
    assert_eq!(SamplingDefaults::read(&gguf).unwrap(), sampling);
    files.insert("chat_template.json".into(), br#"{"chat_template": "B"}"#.to_vec());
    assert_eq!(template(&files), "B");
    files.insert("chat_template.jinja".into(), b"C".to_vec());
    assert_eq!(template(&files), "C");
    // Greedy by its authors' wish.
    files.insert("generation_config.json".into(), br#"{"do_sample": false, "temperature": 0.6}"#.to_vec());
    let file = import(&files);
    assert_eq!(SamplingDefaults::read(&file.gguf().unwrap()).unwrap().temperature, Some(0.0));
}

/// Vocabularies of `tools/fetch-test-data.sh`, and the names of their vectors.
const VOCABULARIES: [(&str, &str); 5] = [
    ("ggml-vocab-gpt-2.gguf", "gpt-2"),
    ("ggml-vocab-llama-bpe.gguf", "llama-bpe"),
    ("ggml-vocab-llama-spm.gguf", "llama-spm"),
    ("ggml-vocab-qwen2.gguf", "qwen2"),
    ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2"),
];

/// Each vocabulary written as `tokenizer.json` and read again: llama.cpp's ids.
#[test]
fn tokenizer_json_gives_the_ids_of_llama_cpp() {
    let Some(dir) = std::env::var_os("LUTITE_TEST_DATA").map(PathBuf::from) else {
        let what = "LUTITE_TEST_DATA is not set: run tools/fetch-test-data.sh DIR and set it to DIR";
        assert!(std::env::var_os("CI").is_none(), "{what}");
        eprintln!("SKIPPED, no vocabularies: {what}");
        return;
    };
    let vectors = |name: &str| std::fs::read_to_string(reference().join("../tokenizer").join(name)).unwrap();
    let texts = vectors("texts.inp");
    let texts: Vec<&str> = texts
        .strip_suffix("\n__ggml_vocab_test__\n")
        .unwrap_or(&texts)
        .split("\n__ggml_vocab_test__\n")
        .collect();
    for (file, name) in VOCABULARIES {
        let bytes = std::fs::read(dir.join(file)).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let (json, config) = (tokenizer(&gguf).to_string(), tokenizer_config(&gguf).to_string());
        let spec = TokenizerSpec::from_gguf(&gguf).unwrap();
        let ends: Vec<u32> = spec.eos.into_iter().collect();
        let files = TokenizerFiles { tokenizer: &json, config: Some(&config), special_tokens_map: None };
        let ids = ModelIds { vocab: spec.tokens.len() as u64, bos: None, ends: &ends };
        let start = std::time::Instant::now();
        let read = HfTokenizer::read(&files, &ids).unwrap_or_else(|e| panic!("{name}: {e}"));
        let took = start.elapsed();
        assert!(read.warnings.is_empty(), "{name}: {:?}", read.warnings);
        let t = Tokenizer::new(&read.spec()).unwrap();
        let plain = vectors(&format!("{name}.out"));
        let special = vectors(&format!("{name}.special.out"));
        let ids = |line: &str| line.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<u32>>();
        for (outs, special) in
            [(plain.lines().collect::<Vec<_>>(), false), (special.lines().skip(1).collect(), true)]
        {
            assert_eq!(outs.len(), texts.len(), "{name}");
            for (text, out) in texts.iter().zip(outs) {
                assert_eq!(t.encode(text, special, special), ids(out), "{name}: {text:?}");
            }
        }
        println!(
            "{name}: {} vectors; tokenizer.json of {} KiB read in {took:?}",
            2 * texts.len(),
            json.len() >> 10
        );
    }
}
