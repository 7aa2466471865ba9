use super::*;

fn spm_spec() -> TokenizerSpec<'static> {
    TokenizerSpec {
        model: "llama",
        tokens: vec!["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "▁a", "ab", "▁ab", "<mark>"],
        scores: vec![0.0, 0.0, 0.0, 0.0, -9.0, -8.0, -8.0, -3.0, -2.0, -1.0, 0.0],
        token_types: vec![2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 4],
        ..TokenizerSpec::default()
    }
}

/// All 256 bytes, "ab", and two special tokens.
fn bpe_tokens() -> Vec<String> {
    let mut tokens: Vec<String> = (0..=255).map(|b| bpe::byte_to_char(b).to_string()).collect();
    tokens.extend(["ab", "<|im_start|>", "<|im_end|>"].map(String::from));
    tokens
}

fn bpe_spec(tokens: &[String]) -> TokenizerSpec<'_> {
    let mut token_types = vec![1; tokens.len()];
    token_types[257] = 3;
    token_types[258] = 3;
    TokenizerSpec {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: tokens.iter().map(String::as_str).collect(),
        token_types,
        merges: vec!["a b"],
        bos: Some(257),
        ..TokenizerSpec::default()
    }
}

#[test]
fn sentencepiece_adds_its_space_after_special_tokens_only() {
    let t = Tokenizer::new(&spm_spec()).unwrap();
    assert_eq!(t.encode("ab", true, false), [1, 9]);
    assert_eq!(t.encode("ab ab\n", false, false), [9, 9, 3]);
    assert_eq!(t.encode("ab<mark>ab", false, false), [9, 10, 9]);
    assert_eq!(t.encode("<s>ab", false, true), [1, 9]);
    assert_eq!(t.encode("", true, true), [1]);
    // "é" is two bytes that have no token: unk, twice.
    assert_eq!(t.encode("é", false, false), [4, 0, 0]);
    assert_eq!(t.decode(&[1, 9, 9, 3], false), b"ab ab\n");
    assert_eq!(t.decode(&[1, 9, 10], true), b"<s>ab<mark>");
    let plain = Tokenizer::new(&TokenizerSpec { add_space_prefix: Some(false), ..spm_spec() }).unwrap();
    assert_eq!(plain.encode("ab ab", false, false), [8, 9]);
    assert_eq!(plain.decode(&[9], false), b" ab");
}

#[test]
fn special_tokens_are_text_unless_asked_for() {
    let tokens = bpe_tokens();
    let t = Tokenizer::new(&bpe_spec(&tokens)).unwrap();
    assert_eq!(t.encode("ab<|im_end|>", false, true), [256, 258]);
    assert_eq!(t.encode("<|im_end|>", false, false).len(), 10);
    assert!(t.is_eog(258) && t.is_control(258) && !t.is_eog(257) && !t.is_eog(9999));
    let mut out = Vec::new();
    t.decode_bytes(258, &mut out, false);
    t.decode_bytes(9999, &mut out, true);
    assert!(out.is_empty());
    t.decode_bytes(258, &mut out, true);
    assert_eq!(out, b"<|im_end|>");
}

#[test]
fn bos_is_never_doubled_in_a_prompt() {
    let tokens = bpe_tokens();
    let t = Tokenizer::new(&TokenizerSpec { add_bos: Some(true), ..bpe_spec(&tokens) }).unwrap();
    assert_eq!(t.encode_prompt("ab"), [257, 256]);
    assert_eq!(t.encode_prompt("<|im_start|>ab"), [257, 256]);
    assert_eq!(t.encode_prompt(""), [257]);
    let without = Tokenizer::new(&bpe_spec(&tokens)).unwrap();
    assert_eq!(without.encode_prompt("ab"), [256]);
}

#[test]
fn every_text_comes_back() {
    let tokens = bpe_tokens();
    let t = Tokenizer::new(&bpe_spec(&tokens)).unwrap();
    for text in ["", " ", "abé🦙\u{0}\r\n\t", "<|im_end|>\u{2581}", "a\u{301}ab"] {
        for parse in [false, true] {
            assert_eq!(t.decode(&t.encode(text, false, parse), true), text.as_bytes());
        }
    }
}

#[test]
fn a_megabyte_in_one_word_takes_no_quadratic_time() {
    let tokens = bpe_tokens();
    let t = Tokenizer::new(&bpe_spec(&tokens)).unwrap();
    let start = std::time::Instant::now();
    assert_eq!(t.encode(&"a".repeat(1 << 20), false, true).len(), 1 << 20);
    assert_eq!(t.encode(&"ab".repeat(1 << 19), false, true).len(), 1 << 19);
    assert_eq!(t.encode(&"<|im_end|>".repeat(1 << 16), false, true).len(), 1 << 16);
    let s = Tokenizer::new(&spm_spec()).unwrap();
    assert_eq!(s.encode(&"a".repeat(1 << 20), false, true).len(), 1 << 20);
    assert_eq!(s.encode(&"<mark>\n".repeat(1 << 16), false, true).len(), 3 << 16);
    // Quadratic would be minutes; generous for slow and shared machines.
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn bad_specs_are_named() {
    let new = |spec: TokenizerSpec<'_>| Tokenizer::new(&spec).map(|_| ()).unwrap_err();
    let tokens = bpe_tokens();
    assert_eq!(
        new(TokenizerSpec { model: "bert", ..spm_spec() }),
        TokenizerError::UnknownModel("bert".into())
    );
    assert_eq!(new(TokenizerSpec { tokens: vec![], ..spm_spec() }), TokenizerError::EmptyVocabulary);
    let short = new(TokenizerSpec { scores: vec![0.0; 3], ..spm_spec() });
    assert_eq!(
        short,
        TokenizerError::LengthMismatch { key: "tokenizer.ggml.scores", found: 3, expected: 11 }
    );
    assert!(matches!(
        new(TokenizerSpec { token_types: vec![1], ..spm_spec() }),
        TokenizerError::LengthMismatch { key: "tokenizer.ggml.token_type", .. }
    ));
    assert_eq!(
        new(TokenizerSpec { scores: vec![f32::NAN; 11], ..spm_spec() }),
        TokenizerError::BadScore { id: 0 }
    );
    assert!(matches!(
        new(TokenizerSpec { model: "llama", tokens: vec!["x", "y", "x"], ..TokenizerSpec::default() }),
        TokenizerError::DuplicateToken { first: 0, second: 2, .. }
    ));
    assert_eq!(new(TokenizerSpec { merges: vec![], ..bpe_spec(&tokens) }), TokenizerError::NoMerges);
    for bad in ["ab", "", " ", "a ", "é"] {
        let error = new(TokenizerSpec { merges: vec!["a b", bad], ..bpe_spec(&tokens) });
        assert_eq!(error, TokenizerError::BadMerge { index: 1, text: bad.into() });
    }
}

#[test]
fn odd_specs_work_with_a_warning() {
    let tokens = bpe_tokens();
    let warn = |spec: TokenizerSpec<'_>| Tokenizer::new(&spec).unwrap().warnings().to_vec();
    assert!(warn(bpe_spec(&tokens)).is_empty());
    let odd = TokenizerSpec { pre: Some("martian"), ..bpe_spec(&tokens) };
    assert_eq!(warn(odd), [TokenizerWarning::UnknownPre("martian".into())]);
    assert_eq!(warn(TokenizerSpec { pre: None, ..bpe_spec(&tokens) }), [TokenizerWarning::MissingPre]);
    let key = "tokenizer.ggml.bos_token_id";
    assert_eq!(
        warn(TokenizerSpec { bos: Some(1 << 20), add_bos: Some(true), ..bpe_spec(&tokens) }),
        [
            TokenizerWarning::IdOutOfRange { key, id: 1 << 20, vocab_size: 259 },
            TokenizerWarning::NothingToAdd { key: "tokenizer.ggml.add_bos_token" },
        ]
    );
    // Holes in the vocabulary and merges of parts it lacks are tolerated.
    let holes = TokenizerSpec {
        tokens: vec!["", "", "a"],
        merges: vec!["x y"],
        token_types: vec![],
        bos: None,
        ..bpe_spec(&tokens)
    };
    let t = Tokenizer::new(&holes).unwrap();
    assert_eq!(t.encode("axy", false, true), [2]);
    assert_eq!((t.token_text(1), t.token_text(3), t.token_id("x")), (Some("[EMPTY_1]"), None, None));
}

/// Two thousand special tokens, no two of one length, each of which might start anywhere in the text.
#[test]
fn special_tokens_cannot_make_a_text_slow() {
    let mut tokens: Vec<String> = (1..=2000).map(|n| "a".repeat(n) + "b").collect();
    tokens.push("a".into());
    let spec = TokenizerSpec {
        model: "llama",
        tokens: tokens.iter().map(String::as_str).collect(),
        token_types: [vec![4; 2000], vec![1]].concat(),
        ..TokenizerSpec::default()
    };
    let t = Tokenizer::new(&spec).unwrap();
    let long = TokenizerWarning::LongSpecial { id: 255, bytes: 257, limit: 256 };
    assert!(t.warnings().contains(&long), "{:?}", t.warnings());
    assert!(t.encode(&("a".repeat(255) + "b"), false, false).contains(&254));
    // Some 0.3 s; without the limit 25 s.
    let start = std::time::Instant::now();
    t.encode(&"a".repeat(60_000), false, false);
    assert!(start.elapsed().as_secs() < 12, "{:?}", start.elapsed());
}
