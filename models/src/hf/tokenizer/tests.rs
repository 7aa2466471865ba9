use super::*;
use crate::tokenizer::{TokenKind, Tokenizer};
use serde_json::{Value, json};

/// `tokenizer.json` of a small byte-level vocabulary with the fields of `more` on top.
fn file(more: &Value) -> Value {
    let mut o = json!({
        "added_tokens": [
            { "id": 0, "content": "<|end|>", "special": true },
            { "id": 9, "content": "<tool>", "special": false },
        ],
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false },
        "model": { "type": "BPE", "vocab": { "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ġa": 5 }, "merges": ["a b", "Ġ a"] },
    });
    for (key, value) in more.as_object().unwrap() {
        o[key] = value.clone();
    }
    o
}

fn read_with<T>(file: &Value, config: Option<&str>, then: impl FnOnce(HfTokenizer<'_>) -> T) -> Result<T> {
    let text = file.to_string();
    let files = Files { tokenizer: &text, config, special_tokens_map: None };
    HfTokenizer::read(&files, &ModelIds { vocab: 10, bos: None, ends: &[0] }).map(then)
}

fn message(more: &Value) -> String {
    match read_with(&file(more), None, |_| ()) {
        Ok(()) => panic!("accepted: {more}"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn added_tokens_and_holes() {
    let (t, warnings) =
        read_with(&file(&json!({})), None, |t| (Tokenizer::new(&t.spec()).unwrap(), t.warnings.clone()))
            .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(t.encode("ab<tool>a<|end|>", false, true), [3, 9, 1, 0]);
    assert_eq!(t.encode("ab a", false, false), [3, 5]);
    assert_eq!(
        (t.kind(0), t.kind(9), t.kind(7)),
        (Some(TokenKind::Control), Some(TokenKind::UserDefined), Some(TokenKind::Unused))
    );
    assert_eq!((t.eog_ids(), t.bos(), t.adds_bos(), t.vocab_size()), (&[0][..], None, false, 10));
    // Outside of the embedding: left out, and said. White space beside a token: not done, and said.
    let added = json!({ "added_tokens": [{ "id": 10, "content": "<x>" }, { "id": 8, "content": "<y>", "rstrip": true }] });
    let warnings = read_with(&file(&added), None, |t| t.warnings.clone()).unwrap();
    assert!(
        warnings[0].contains("1 added tokens (\"<x>\") have ids that the embedding has no row for"),
        "{warnings:?}"
    );
    assert!(warnings[1].contains("(\"<y>\") ask for white space"), "{warnings:?}");
}

#[test]
fn what_goes_around_a_text() {
    let template = |before: &[&str], after: &[&str]| {
        let special = |text: &&str| json!({ "SpecialToken": { "id": text, "type_id": 0 } });
        let text = json!({ "Sequence": { "id": "A" } });
        let single: Vec<Value> =
            before.iter().map(special).chain([text]).chain(after.iter().map(special)).collect();
        json!({ "post_processor": { "type": "TemplateProcessing", "single": single } })
    };
    let encode = |file: &Value, config: Option<&str>| {
        read_with(file, config, |t| Tokenizer::new(&t.spec()).unwrap().encode("a", true, false)).unwrap()
    };
    assert_eq!(encode(&file(&template(&["<|end|>"], &[])), None), [0, 1]);
    assert_eq!(encode(&file(&template(&[], &["<|end|>"])), None), [1, 0]);
    // The configuration's word goes before the template's.
    assert_eq!(encode(&file(&template(&["<|end|>"], &[])), Some(r#"{"add_bos_token": false}"#)), [1]);
    let named = r#"{"bos_token": {"content": "<|end|>"}, "add_bos_token": true}"#;
    assert_eq!(encode(&file(&json!({})), Some(named)), [0, 1]);
    let sequence = json!({ "post_processor": { "type": "Sequence",
        "processors": [{ "type": "ByteLevel" }, template(&["<|end|>"], &[])["post_processor"]] } });
    assert_eq!(encode(&file(&sequence), None), [0, 1]);
    assert!(message(&template(&["<|end|>", "<tool>"], &[])).contains("more than one token before or after"));
    assert!(message(&template(&["<none>"], &[])).contains("\"<none>\" is no token"));
    assert!(
        message(&json!({ "post_processor": { "type": "BertProcessing" } }))
            .contains("\"BertProcessing\" is not known")
    );
}

#[test]
fn ways_to_cut_text_that_are_not_known_are_refused() {
    let split = |regex: &str, behavior: &str| {
        let split = json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": behavior, "invert": behavior == "Removed" });
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": false });
        json!({ "pre_tokenizer": { "type": "Sequence", "pretokenizers": [split, bytes] } })
    };
    let gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    for behavior in ["Isolated", "Removed"] {
        assert_eq!(
            read_with(&file(&split(gpt2, behavior)), None, |t| t.kind).unwrap(),
            Kind::Bytes { pre: "gpt-2" }
        );
    }
    assert!(message(&split(gpt2, "MergedWithNext")).contains("Split: of its kinds only"));
    assert!(
        message(&split(r"\p{L}+", "Isolated")).contains("it cuts text in a way that is not known (GPT-2's")
    );
    for (more, why) in [
        (json!({ "pre_tokenizer": null }), "it cuts text in a way that is not known"),
        (json!({ "pre_tokenizer": { "type": "ByteLevel" } }), "a space before each text is not supported"),
        (json!({ "pre_tokenizer": { "type": "Whitespace" } }), "pre_tokenizer: Whitespace:"),
        (json!({ "pre_tokenizer": { "type": 3 } }), "pre_tokenizer.type: invalid type"),
        (json!({ "normalizer": { "type": "Lowercase" } }), "normalizer: Lowercase:"),
        (
            json!({ "normalizer": { "type": "Prepend", "prepend": "▁" } }),
            "it does not go with this pre_tokenizer",
        ),
        (
            json!({ "pre_tokenizer": { "type": "Metaspace", "split": false } }),
            "model.byte_fallback: is false",
        ),
        (json!({ "pre_tokenizer": { "type": "Metaspace" } }), "only U+2581 without `split`"),
        (json!({ "model": { "type": "Unigram" } }), "model.type: \"Unigram\" is not supported (BPE is)"),
        (json!({ "model": { "end_of_word_suffix": "</w>" } }), "model.end_of_word_suffix: is not supported"),
        (json!({ "model": { "ignore_merges": true } }), "model.ignore_merges: is true"),
        (json!({ "model": null }), "model: is missing"),
    ] {
        let found = message(&more);
        assert!(found.starts_with("tokenizer.json: ") && found.contains(why), "{found}");
    }
    let nested = (0..20).fold(
        json!({ "type": "ByteLevel" }),
        |inner, _| json!({ "type": "Sequence", "pretokenizers": [inner] }),
    );
    assert!(message(&json!({ "pre_tokenizer": nested })).contains("more steps than any real one"));
}

#[test]
fn scores_from_merges() {
    let pieces = |merges: Value| {
        let vocab = json!({ "<unk>": 0, "<0x41>": 1, "▁": 2, "a": 3, "b": 4, "ab": 5, "▁a": 6, "▁ab": 7 });
        json!({ "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": "▁" },
                { "type": "Replace", "pattern": { "String": " " }, "content": "▁" } ] },
            "pre_tokenizer": null, "added_tokens": [],
            "model": { "type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "vocab": vocab, "merges": merges } })
    };
    let all = json!([["▁", "a"], ["a", "b"], ["▁a", "b"], ["▁", "ab"]]);
    let (t, scores) =
        read_with(&pieces(all), None, |t| (Tokenizer::new(&t.spec()).unwrap(), t.scores.clone())).unwrap();
    assert_eq!(scores, [-4.0, -4.0, -4.0, -4.0, -4.0, -1.0, -0.0, -2.0]);
    assert_eq!(t.encode("ab A", false, false), [7, 2, 1]);
    assert_eq!((t.kind(0), t.kind(1)), (Some(TokenKind::Unknown), Some(TokenKind::Byte)));
    // One way to make ▁ab that SentencePiece has and these merges have not.
    let found = message(&pieces(json!([["▁", "a"], ["a", "b"], ["▁a", "b"]])));
    assert!(found.contains("1 of 8 tokens (\"▁ab\") lack a merge that SentencePiece would do"), "{found}");
    assert!(message(&pieces(json!(["a x"]))).contains("\"a x\" joins or makes what is no token"));
}
