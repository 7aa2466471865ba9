//! Model folders that lie: each must give an error that names the file and what to do, without a panic and without
//! taking more memory than a small multiple of the files' lengths.

#[path = "common/edit.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod edit;
#[path = "common/folder.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod folder;
#[path = "../../runtime/tests/common/peak.rs"]
mod peak;

use edit::{mutate, mutations, reference};
use folder::{Files, HfTensor, hf_tensors, opener, safetensors};
use lutite_models::{Error, Tokenizer, hf, open};
use lutite_runtime::store::{Gguf, ModelFile};
use peak::peak_of;
use serde_json::{Value, json};

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const INDEX: &str = "model.safetensors.index.json";

/// Bytes held for each byte of the files at most, and for none.
const PER_BYTE: usize = 16;
const AT_LEAST: usize = 64 << 10;

/// Reads the folder and checks it as far as `open` does before it allocates; counted.
fn read(files: &Files) -> Result<ModelFile, Error> {
    let mut open_file = opener(files);
    let (result, held) = peak_of(|| {
        let file = hf::import("test", &mut open_file)?.file;
        open::check(&file)?;
        let config = |why: String| Error::Config { key: "tokenizer".into(), why };
        Tokenizer::from_gguf(&file.gguf()?).map_err(|e| config(e.to_string()))?;
        Ok(file)
    });
    // Opening copies the files here; a program maps them.
    let size: usize = files.values().map(Vec::len).sum();
    assert!(held <= AT_LEAST + (PER_BYTE + 1) * size, "{held} bytes held for files of {size}");
    result
}

fn message(files: &Files) -> String {
    read(files).expect_err("accepted").to_string()
}

/// A sound folder of two shards, with everything in it.
fn sound() -> Files {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/reference/stories260K");
    let file = |name: &str| (name.to_owned(), std::fs::read(format!("{path}/{name}")).unwrap());
    let mut files = Files::from(["config.json", "tokenizer.json"].map(file));
    set_tensors(&mut files, &tensors());
    set(&mut files, "generation_config.json", &json!({ "eos_token_id": 2, "temperature": 0.5 }));
    set(
        &mut files,
        "tokenizer_config.json",
        &json!({ "bos_token": "<s>", "eos_token": { "content": "</s>" } }),
    );
    set(&mut files, "special_tokens_map.json", &json!({ "unk_token": "<unk>" }));
    files
}

fn tensors() -> Vec<HfTensor> {
    hf_tensors(&Gguf::parse(&reference("stories260K-f32.gguf")).unwrap())
}

fn set(files: &mut Files, name: &str, value: &Value) {
    files.insert(name.to_owned(), value.to_string().into_bytes());
}

fn set_tensors(files: &mut Files, tensors: &[HfTensor]) {
    let mut map = serde_json::Map::new();
    let (first, second) = tensors.split_at(tensors.len() / 2);
    for (name, part) in SHARDS.iter().zip([first, second]) {
        part.iter().for_each(|t| assert!(map.insert(t.0.clone(), json!(name)).is_none()));
        files.insert((*name).to_owned(), safetensors(part));
    }
    set(files, INDEX, &json!({ "weight_map": map }));
}

/// The folder with one field of a JSON file replaced, or removed by null.
fn with_field(file: &str, field: &str, value: Value) -> Files {
    let mut files = sound();
    let mut o: serde_json::Map<String, Value> = serde_json::from_slice(&files[file]).unwrap();
    o.insert(field.to_owned(), value);
    set(&mut files, file, &Value::Object(o));
    files
}

/// The folder with its tensors changed.
fn with_tensors(change: impl FnOnce(&mut Vec<HfTensor>)) -> Files {
    let (mut files, mut all) = (sound(), tensors());
    change(&mut all);
    set_tensors(&mut files, &all);
    files
}

#[test]
fn the_folder_is_fine_as_it_is() {
    read(&sound()).unwrap();
    // A mark of byte order before the text is no fault.
    let mut files = sound();
    let config = files["config.json"].clone();
    files.insert("config.json".into(), [&b"\xef\xbb\xbf"[..], &config].concat());
    read(&files).unwrap();
}

#[test]
fn every_file_that_is_missing_or_garbage_is_named() {
    let needed = ["config.json", "tokenizer.json", INDEX, SHARDS[0], SHARDS[1]];
    for name in sound().keys() {
        let mut files = sound();
        files.remove(name);
        match read(&files) {
            Ok(_) => assert!(!needed.contains(&name.as_str()), "{name} is not needed?"),
            Err(e) => {
                let e = e.to_string();
                assert!(
                    e.starts_with(&format!("{name}: is missing")) && e.contains("fetch")
                        || e.contains("incomplete"),
                    "{e}"
                );
            }
        }
        let garbage: [&[u8]; 6] =
            [b"", b"{", b"[]", b"\xff\xfe{}", b"{\"a\": 1, \"a\": 2}", b"Entry not found"];
        for bytes in garbage {
            files.insert(name.clone(), bytes.to_vec());
            let e = message(&files);
            let named = e.starts_with(&format!("{name}: "));
            assert!(named && (e.contains("fetch") || e.contains("damaged")), "{name}: {e}");
        }
        // Deep nesting, in a field that is read and in one that is not.
        for deep in ["[", "{\"a\":"] {
            for field in ["model", "weight_map", "chat_template", "rope_scaling", "eos_token_id", "x"] {
                let text = format!("{{\"{field}\": {}", deep.repeat(20_000));
                files.insert(name.clone(), text.into_bytes());
                assert!(message(&files).starts_with(&format!("{name}: ")), "{name}");
            }
        }
    }
}

#[test]
fn shards_that_lie() {
    for name in SHARDS {
        let whole = sound()[name].clone();
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        for cut in [0, 7, 8, 100, header, header + 4, whole.len() - 1] {
            let mut files = sound();
            files.get_mut(name).unwrap().truncate(cut);
            let e = message(&files);
            assert!(
                e.starts_with(&format!("{name}: safetensors")) && e.contains("fetch it again"),
                "{cut}: {e}"
            );
        }
        let mut files = sound();
        files.get_mut(name).unwrap().push(0);
        assert!(message(&files).contains("1 bytes behind the last tensor"));
        // 200 bytes that claim gigabytes, in each way there is.
        let lies = [
            [&(90_000_000u64).to_le_bytes()[..], &[b'{'; 192]].concat(),
            [&u64::MAX.to_le_bytes()[..], &[b'{'; 192]].concat(),
            lie(
                r#"{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 9223372036854775807]}}"#,
            ),
            lie(
                r#"{"a": {"dtype": "F32", "shape": [4294967296, 4294967296, 4294967296], "data_offsets": [0, 0]}}"#,
            ),
            lie(
                r#"{"a": {"dtype": "X", "shape": [18446744073709551615], "data_offsets": [8589934592, 8589934592]}}"#,
            ),
        ];
        for lie in lies {
            files.insert(name.to_owned(), lie);
            assert!(message(&files).starts_with(&format!("{name}: safetensors ")));
        }
    }
}

/// A safetensors file of this header and no data.
fn lie(header: &str) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
}

#[test]
fn an_index_that_leads_astray() {
    for path in [
        "../model.safetensors",
        "/etc/passwd.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        ".safetensors",
        "model.bin",
        "",
        "a\u{0}.safetensors",
        "a\n.safetensors",
    ] {
        let mut files = sound();
        set(&mut files, INDEX, &json!({ "weight_map": { "model.norm.weight": path } }));
        let e = message(&files);
        assert!(
            e.starts_with(INDEX) && e.contains("not the name of a .safetensors file in the same folder"),
            "{path:?}: {e}"
        );
    }
    let mut files = sound();
    set(&mut files, INDEX, &json!({ "weight_map": { "model.norm.weight": "other.safetensors" } }));
    assert!(message(&files).starts_with(&format!("other.safetensors: is missing; but {INDEX} names it")));
    set(&mut files, INDEX, &json!({ "weight_map": { "model.norm.weight": 7 } }));
    assert!(message(&files).contains("weight_map.model.norm.weight: invalid type: integer"));
    set(&mut files, INDEX, &json!({ "metadata": {} }));
    assert!(message(&files).contains("weight_map: is missing"));
    set(&mut files, INDEX, &json!({ "weight_map": { "model.nothing": SHARDS[0] } }));
    assert!(
        message(&files)
            .contains("has no tensor model.nothing, which model.safetensors.index.json says it has")
    );
}

#[test]
fn tensors_that_do_not_fit() {
    let q = "model.layers.2.self_attn.q_proj.weight";
    let at = |all: &mut Vec<HfTensor>| all.iter().position(|t| t.0 == q).unwrap();
    let e = message(&with_tensors(|all| {
        let at = at(all);
        all.remove(at);
    }));
    assert!(e.starts_with(&format!("{INDEX}: has no tensor {q}; the download is incomplete")), "{e}");
    let e = message(&with_tensors(|all| {
        let at = at(all);
        all[at].2 = vec![32, 128];
    }));
    assert!(e.contains(&format!("tensor {q}: has shape [32, 128], config.json asks for [64, 64]")), "{e}");
    for dtype in ["I32", "F8_E4M3", "NEW"] {
        let e = message(&with_tensors(|all| {
            let at = at(all);
            all[at].1 = dtype;
            let bytes = if dtype == "F8_E4M3" { 1 } else { 4 };
            all[at].3.truncate(64 * 64 * bytes);
        }));
        assert!(
            e.contains(&format!(
                "tensor {q}: its numbers are {dtype}, which cannot be read (F32, F16, BF16 can)"
            )),
            "{e}"
        );
    }
    let e = message(&with_tensors(|all| all.push(("base_model.lora_A".into(), "F32", vec![1], vec![0; 4]))));
    assert!(
        e.contains("has the tensor base_model.lora_A (0 more like it)")
            && e.contains("adapters have to be merged"),
        "{e}"
    );
    // A head of its own that is not there.
    let e = message(&with_field("config.json", "tie_word_embeddings", json!(false)));
    assert!(e.contains("has no tensor lm_head.weight"), "{e}");
}

#[test]
fn a_configuration_that_lies() {
    // As many layers as can be claimed cost nothing: the first that is missing is named.
    let e = message(&with_field("config.json", "num_hidden_layers", json!(16_777_215)));
    assert!(e.contains("has no tensor model.layers.5."), "{e}");
    let e = message(&with_field("config.json", "num_hidden_layers", json!(4)));
    assert!(e.contains("has the tensor model.layers.4."), "{e}");
    for field in [
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
    ] {
        for n in [0u64, 1, 2, 6, 8, 1 << 20, 16_777_215, 16_777_216, 1 << 40, u64::MAX] {
            let files = with_field("config.json", field, json!(n));
            if let Err(e) = read(&files) {
                let e = e.to_string();
                let about = ["config.json", "tokenizer.json", "llama."].iter().any(|what| e.contains(what));
                assert!(about, "{field} = {n}: {e}");
            } else {
                // What the file says anyway.
                let config: Value = serde_json::from_slice(&sound()["config.json"]).unwrap();
                assert_eq!(config[field], json!(n), "{field} = {n}");
            }
        }
    }
    let e = message(&with_field("config.json", "architectures", json!(["MambaForCausalLM"])));
    assert!(e.contains("\"MambaForCausalLM\" is not supported; this build reads: LlamaForCausalLM"), "{e}");
    for method in ["gptq", "awq", "bitnet", "fp8", "bitsandbytes", "compressed-tensors"] {
        let e = message(&with_field("config.json", "quantization_config", json!({ "quant_method": method })));
        assert!(
            e.contains(&format!(
                "quantized by {method}, which cannot be read; use the model it was made from"
            )),
            "{e}"
        );
    }
}

#[test]
fn vocabularies_that_lie() {
    let model = |vocab: Value, merges: Value| {
        let pre = json!({ "type": "ByteLevel", "add_prefix_space": false });
        let mut files = sound();
        let model = json!({ "type": "BPE", "vocab": vocab, "merges": merges });
        set(&mut files, "tokenizer.json", &json!({ "pre_tokenizer": pre, "model": model }));
        message(&files)
    };
    assert!(
        model(json!({ "a": 512 }), json!([]))
            .contains("token \"a\" has the id 512, but config.json's vocab_size is 512")
    );
    assert!(
        model(json!({ "a": 1, "b": 1 }), json!([])).contains("tokens \"a\" and \"b\" have the same id, 1")
    );
    assert!(model(json!({ "a": -1 }), json!([])).contains("model.vocab: invalid value"));
    assert!(
        model(json!({ "a": 1 }), json!(["a"])).contains("model.merges: the merge \"a\" is not two parts")
    );
    assert!(model(json!({ "a": 1 }), json!([["a", "b", "c"]])).contains("a merge that is not two texts"));
    assert!(model(json!({}), json!(["a b"])).contains("vocabulary"));
    // An id far away takes no memory.
    let mut files = with_field("config.json", "vocab_size", json!(16_000_000));
    set(
        &mut files,
        "tokenizer.json",
        &json!({ "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false },
        "model": { "vocab": { "a": 15_999_999 }, "merges": [] } }),
    );
    assert!(message(&files).contains("far beyond the others"));
}

#[test]
fn mutated_folders() {
    let seed = sound();
    let names: Vec<&String> = seed.keys().collect();
    mutations(|rng| {
        let mut files = seed.clone();
        for _ in 0..1 + rng.below(3) {
            let file = files.get_mut(names[rng.below(names.len())]).unwrap();
            let head = if file.len() > 20_000 { 3000 } else { file.len() };
            mutate(rng, file, head);
        }
        read(&files).is_ok()
    });
}
