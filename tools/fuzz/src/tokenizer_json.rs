//! Tokenizers from `tokenizer.json`.

use crate::within;
use lutite_models::Tokenizer;
use lutite_models::hf::tokenizer::{Files, HfTokenizer, ModelIds};

const TEXTS: [&str; 4] = [
    "",
    "Hello, world! 123 <s> </s>\r\n\n  x",
    "\u{2581}a  b\u{2581} é\u{301}🦙 \u{0}",
    "<0x0A><|im_start|>aaaaaaaabababa",
];

/// Any text as a `tokenizer.json`: refused with a reason, or it makes a tokenizer whose ids are within its vocabulary.
/// What comes behind a NUL, which JSON cannot have, is tokenizer_config.json.
///
/// # Panics
/// Where that does not hold.
pub fn tokenizer_json(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let (tokenizer, config) = match text.split_once('\0') {
        Some((tokenizer, config)) => (tokenizer, Some(config)),
        None => (text, None),
    };
    let files = Files { tokenizer, config, special_tokens_map: config };
    let ids = ModelIds { vocab: 1 << 20, bos: Some(1), ends: &[2, u32::MAX] };

    let cap = 64 * input.len() + (8 << 20);
    let made = within("build", cap, 5.0, || match HfTokenizer::read(&files, &ids) {
        Ok(read) => Tokenizer::new(&read.spec()).ok(),
        Err(e) => {
            let message = e.to_string();
            assert!(!message.is_empty() && message.len() < 2000, "{message}");
            None
        }
    });
    let Some(t) = made else { return false };
    for text in TEXTS {
        for special in [false, true] {
            let ids = within("encode", 16 << 20, 2.0, || t.encode(text, special, special));
            assert!(ids.iter().all(|&id| (id as usize) < t.vocab_size()));
            t.decode(&ids, special);
        }
    }
    true
}
