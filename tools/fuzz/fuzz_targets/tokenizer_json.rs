//! Any text, read as a `tokenizer.json`: no panic; and a tokenizer made from it gives ids that it can turn back, in a
//! time that grows with the text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lutite_models::Tokenizer;
use lutite_models::hf::tokenizer::{Files, HfTokenizer, ModelIds};

const TEXTS: [&str; 4] = [
    "",
    "Hello, world! 123 <s> </s>\r\n\n  x",
    "\u{2581}a  b\u{2581} é\u{301}🦙 \u{0}",
    "<0x0A><|im_start|>aaaaaaaabababa",
];

fuzz_target!(|bytes: &[u8]| {
    // Two files in one: what comes behind a NUL, which JSON cannot have, is tokenizer_config.json.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (tokenizer, config) = match text.split_once('\0') {
        Some((tokenizer, config)) => (tokenizer, Some(config)),
        None => (text, None),
    };
    let files = Files { tokenizer, config, special_tokens_map: config };
    let read =
        match HfTokenizer::read(&files, &ModelIds { vocab: 1 << 20, bos: Some(1), ends: &[2, u32::MAX] }) {
            Ok(read) => read,
            Err(e) => {
                let message = e.to_string();
                assert!(message.len() < 2000, "{message}");
                return;
            }
        };
    let Ok(t) = Tokenizer::new(&read.spec()) else { return };
    for text in TEXTS {
        for special in [false, true] {
            let ids = t.encode(text, special, special);
            assert!(ids.iter().all(|&id| (id as usize) < t.vocab_size()));
            t.decode(&ids, special);
        }
    }
});
