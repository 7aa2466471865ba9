//! Token ids against llama.cpp's, for real vocabularies.
//!
//! The vocabularies are too large to keep in the repository: `tools/fetch-test-data.sh DIR` brings them, and
//! `LUTITE_TEST_DATA=DIR` names the place. Without it these tests are skipped, saying so; in CI they fail instead.

use lutite_models::{ChatTemplate, Message, Tokenizer, TokenizerSpec};
use lutite_runtime::store::Gguf;
use std::path::{Path, PathBuf};

/// Vocabulary file, name of its vectors, and whether llama.cpp has vectors of its own.
const VOCABULARIES: [(&str, &str, bool); 5] = [
    ("ggml-vocab-gpt-2.gguf", "gpt-2", true),
    ("ggml-vocab-llama-bpe.gguf", "llama-bpe", true),
    ("ggml-vocab-llama-spm.gguf", "llama-spm", true),
    ("ggml-vocab-qwen2.gguf", "qwen2", true),
    ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2", false),
];

/// Between two texts in an `.inp` file.
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

/// The folder with the vocabularies, or `None` after saying that the test is skipped.
fn data() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("LUTITE_TEST_DATA") {
        return Some(dir.into());
    }
    let what = "LUTITE_TEST_DATA is not set: run tools/fetch-test-data.sh DIR and set it to DIR";
    assert!(std::env::var_os("CI").is_none(), "{what}");
    eprintln!("SKIPPED, no vocabularies: {what}");
    None
}

fn vectors(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn ids(line: &str) -> Vec<u32> {
    line.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// Checks each text of `inp` against the line of `out`; `skip` lines come first. Returns how many there were.
fn check(t: &Tokenizer, what: &str, inp: &str, out: &str, skip: usize, special: bool) -> usize {
    // llama.cpp's files end with the separator, ours do not.
    let texts: Vec<&str> = inp.strip_suffix(SEPARATOR).unwrap_or(inp).split(SEPARATOR).collect();
    let lines: Vec<&str> = out.lines().skip(skip).collect();
    assert_eq!(texts.len(), lines.len(), "{what}");
    for (text, line) in texts.iter().zip(&lines) {
        let found = t.encode(text, special, special);
        assert_eq!(found, ids(line), "{what}: {text:?}");
        if !special {
            // SentencePiece cannot tell a written U+2581 from a space.
            let back = if what == "llama-spm" { text.replace('\u{2581}', " ") } else { (*text).to_owned() };
            assert_eq!(t.decode(&found, true), back.as_bytes(), "{what}: decoding {text:?}");
        }
    }
    texts.len()
}

#[test]
fn ids_are_those_of_llama_cpp() {
    let Some(dir) = data() else { return };
    for (file, name, upstream) in VOCABULARIES {
        let bytes = std::fs::read(dir.join(file))
            .unwrap_or_else(|e| panic!("{file}: {e}; run tools/fetch-test-data.sh"));
        let start = std::time::Instant::now();
        let spec = TokenizerSpec::from_gguf(&Gguf::parse(&bytes).unwrap()).unwrap();
        let parsed = start.elapsed();
        let t = Tokenizer::new(&spec).unwrap();
        let loaded = start.elapsed() - parsed;
        assert!(t.warnings().is_empty(), "{name}: {:?}", t.warnings());
        let special = vectors(&format!("{name}.special.out"));
        assert_eq!(t.eog_ids(), ids(special.lines().next().unwrap()), "{name}");
        let texts = vectors("texts.inp");
        let mut passed = check(&t, name, &texts, &vectors(&format!("{name}.out")), 0, false);
        passed += check(&t, name, &texts, &special, 1, true);
        if upstream {
            passed +=
                check(&t, name, &vectors(&format!("{file}.inp")), &vectors(&format!("{file}.out")), 0, false);
        }
        println!("{name}: {passed} vectors; metadata {parsed:?}, tokenizer {loaded:?}");
    }
}

#[test]
fn the_files_own_chat_template_is_used() {
    let Some(dir) = data() else { return };
    let bytes = std::fs::read(dir.join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let t = Tokenizer::from_gguf(&gguf).unwrap();
    let template = ChatTemplate::for_model(&gguf, &t).unwrap();
    let prompt = template.render(&[Message::new("user", "Hi")], &t, true).unwrap();
    assert_eq!(
        prompt,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let ids = t.encode_prompt(&prompt);
    let (start, end) = (t.token_id("<|im_start|>").unwrap(), t.token_id("<|im_end|>").unwrap());
    assert_eq!(ids.iter().filter(|&&id| id == start).count(), 3);
    assert_eq!(ids.iter().filter(|&&id| id == end).count(), 2);
    assert_eq!(ids[0], start);
    assert!(t.is_eog(end) && !t.is_eog(start));
    // Without the file's template, its tokens tell which one.
    assert_eq!(
        ChatTemplate::by_vocabulary(&t).unwrap().source(),
        ChatTemplate::builtin("chatml").unwrap().source()
    );
}
