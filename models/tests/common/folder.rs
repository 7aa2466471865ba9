//! A GGUF model as the Hugging Face folder that it could have been made from: for tests that a folder and its GGUF file
//! are the same model. Also included by the tests of `tools/cli`.

use lutite_kernels::ggml::GgmlType;
use lutite_models::TokenizerSpec;
use lutite_runtime::store::{Bytes, Gguf};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;

/// Files by name.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Opens `files` as a folder.
pub(crate) fn opener(files: &Files) -> impl FnMut(&str) -> io::Result<Option<Bytes>> + '_ {
    |name| Ok(files.get(name).map(|bytes| Bytes::new(bytes.clone())))
}

/// A tensor of a safetensors file: name, type, shape (slowest dimension first), data.
pub(crate) type HfTensor = (String, &'static str, Vec<u64>, Vec<u8>);

/// The bytes of a safetensors file.
pub(crate) fn safetensors(tensors: &[HfTensor]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut at = 0;
    for (name, dtype, shape, data) in tensors {
        let offsets = [at, at + data.len()];
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
        at += data.len();
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    tensors.iter().for_each(|t| file.extend_from_slice(&t.3));
    file
}

/// All of a Llama in GGUF with plain weights as a folder in one file: names, order of q's and k's rows, configuration,
/// tokenizer.
pub(crate) fn folder_of(gguf: &Gguf<'_>) -> Files {
    let tensors = hf_tensors(gguf);
    Files::from([
        ("config.json".to_owned(), config(gguf).to_string().into_bytes()),
        ("tokenizer.json".to_owned(), tokenizer(gguf).to_string().into_bytes()),
        ("tokenizer_config.json".to_owned(), tokenizer_config(gguf).to_string().into_bytes()),
        ("model.safetensors".to_owned(), safetensors(&tensors)),
    ])
}

/// The weights by their names in Hugging Face's Llama.
pub(crate) fn hf_tensors(gguf: &Gguf<'_>) -> Vec<HfTensor> {
    let head = |rows: u64, key: &str| rows / gguf.u64(&format!("llama.attention.{key}")).unwrap().unwrap();
    let tensors = gguf.tensors().iter().filter(|t| t.name != "rope_freqs.weight").map(|t| {
        let dtype = match t.ty {
            GgmlType::F32 => "F32",
            GgmlType::F16 => "F16",
            GgmlType::BF16 => "BF16",
            other => panic!("{other:?} is not plain"),
        };
        let name = hf_name(t.name);
        let rows = t.rows() as usize;
        let data = match name.rsplit('.').nth(1) {
            Some("q_proj") => halves(t.data, rows, head(t.rows(), "head_count") as usize),
            Some("k_proj") => halves(t.data, rows, head(t.rows(), "head_count_kv") as usize),
            _ => t.data.to_vec(),
        };
        (name, dtype, t.shape().iter().rev().copied().collect(), data)
    });
    tensors.collect()
}

fn hf_name(gguf: &str) -> String {
    match gguf {
        "token_embd.weight" => return "model.embed_tokens.weight".into(),
        "output_norm.weight" => return "model.norm.weight".into(),
        "output.weight" => return "lm_head.weight".into(),
        _ => {}
    }
    let (layer, part) = gguf.strip_prefix("blk.").unwrap().split_once('.').unwrap();
    let (part, suffix) = part.split_once('.').unwrap();
    let part = match part {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => panic!("{other}"),
    };
    format!("model.layers.{layer}.{part}.{suffix}")
}

/// Each head's even rows before its odd ones: what `permute` of llama.cpp's converter undoes.
fn halves(data: &[u8], rows: usize, head: usize) -> Vec<u8> {
    let row = data.len() / rows;
    let order = (0..rows).map(|r| {
        let (start, k) = (r / head * head, r % head);
        start + if k < head / 2 { 2 * k } else { 2 * (k - head / 2) + 1 }
    });
    order.flat_map(|r| data[r * row..(r + 1) * row].to_vec()).collect()
}

fn config(gguf: &Gguf<'_>) -> Value {
    let n = |key: &str| gguf.u64(&format!("llama.{key}")).unwrap().unwrap();
    let embedding = gguf.require("token_embd.weight").unwrap();
    let heads = n("attention.head_count");
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": n("embedding_length"),
        "num_hidden_layers": n("block_count"),
        "intermediate_size": n("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.u64("llama.attention.head_count_kv").unwrap().unwrap_or(heads),
        "max_position_embeddings": n("context_length"),
        "vocab_size": embedding.rows(),
        "rms_norm_eps": gguf.f32("llama.attention.layer_norm_rms_epsilon").unwrap().unwrap(),
        "rope_theta": gguf.f32("llama.rope.freq_base").unwrap().unwrap_or(10_000.0),
        "tie_word_embeddings": gguf.tensor("output.weight").is_none(),
        "hidden_act": "silu",
        "torch_dtype": "float32",
    })
}

/// `tokenizer.json` as transformers writes it for this vocabulary.
pub(crate) fn tokenizer(gguf: &Gguf<'_>) -> Value {
    let spec = TokenizerSpec::from_gguf(gguf).unwrap();
    let spm = spec.model == "llama";
    let kind = |id: usize| spec.token_types.get(id).copied().unwrap_or(1);
    let mut vocab = serde_json::Map::new();
    let mut added = Vec::new();
    // Added tokens have the highest ids, or else are in the vocabulary as well.
    let plain = (0..spec.tokens.len()).rev().find(|&id| !matches!(kind(id), 2..=4));
    for (id, text) in spec.tokens.iter().enumerate() {
        let special = matches!(kind(id), 2 | 3);
        if special || kind(id) == 4 {
            added.push(json!({ "id": id, "content": text, "special": special, "normalized": false,
                "lstrip": false, "rstrip": false, "single_word": false }));
        }
        if plain.is_some_and(|plain| id <= plain) {
            vocab.insert((*text).to_owned(), id.into());
        }
    }
    let merges: Value = if spm { spm_merges(&spec).into() } else { spec.merges.clone().into() };
    let bytes = |words: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": words });
    let split = |digits: &str| {
        let regex = format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        let split = json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
        json!({ "type": "Sequence", "pretokenizers": [split, bytes(false)] })
    };
    let (normalizer, pre) = match spec.pre {
        _ if spm => {
            let prepend = json!({ "type": "Prepend", "prepend": "▁" });
            let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
            (json!({ "type": "Sequence", "normalizers": [prepend, replace] }), Value::Null)
        }
        Some("gpt-2") => (Value::Null, bytes(true)),
        Some("llama-bpe") => (Value::Null, split(r"\p{N}{1,3}")),
        Some("qwen2") => (json!({ "type": "NFC" }), split(r"\p{N}")),
        Some("smollm") => {
            let digits = json!({ "type": "Digits", "individual_digits": true });
            (Value::Null, json!({ "type": "Sequence", "pretokenizers": [digits, bytes(true)] }))
        }
        other => panic!("{other:?}"),
    };
    let special = |id: Option<u32>| {
        let token = spec.tokens[id.unwrap() as usize];
        json!({ "SpecialToken": { "id": token, "type_id": 0 } })
    };
    // As GGUF has it where the file does not say.
    let add_bos = spec.add_bos.unwrap_or(spm || spec.pre == Some("llama-bpe"));
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let single: Vec<Value> = add_bos.then(|| special(spec.bos)).into_iter().chain([text]).collect();
    let frame = |id: u32| json!({ "id": spec.tokens[id as usize], "ids": [id], "tokens": [spec.tokens[id as usize]] });
    let framed: serde_json::Map<String, Value> =
        spec.bos.iter().map(|&id| (spec.tokens[id as usize].to_owned(), frame(id))).collect();
    let post =
        json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": framed });
    json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre,
        "post_processor": if add_bos { post } else { Value::Null },
        "decoder": null,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": spec.unk.map(|id| spec.tokens[id as usize]),
            "fuse_unk": spm,
            "byte_fallback": spm,
            "ignore_merges": spec.pre == Some("llama-bpe"),
            "vocab": vocab,
            "merges": merges,
        },
    })
}

/// `SentencePieceExtractor` of transformers: all ways to cut a token into two, by the scores of the tokens.
fn spm_merges(spec: &TokenizerSpec<'_>) -> Vec<Value> {
    let ids: BTreeMap<&str, usize> = spec.tokens.iter().enumerate().map(|(id, text)| (*text, id)).collect();
    let mut merges: Vec<(f32, usize, &str, &str)> = Vec::new();
    for (id, text) in spec.tokens.iter().enumerate() {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                merges.push((spec.scores[id], id, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    // Newer files have pairs; those of the other vocabularies are older and have a space between.
    merges.iter().map(|m| json!([m.2, m.3])).collect()
}

/// The special tokens by name.
pub(crate) fn tokenizer_config(gguf: &Gguf<'_>) -> Value {
    let spec = TokenizerSpec::from_gguf(gguf).unwrap();
    let text = |id: Option<u32>| id.map(|id| spec.tokens[id as usize]);
    json!({
        "bos_token": text(spec.bos),
        "eos_token": { "content": text(spec.eos), "special": true },
        "unk_token": text(spec.unk),
        "pad_token": text(spec.pad),
        "chat_template": gguf.str("tokenizer.chat_template").unwrap(),
    })
}
