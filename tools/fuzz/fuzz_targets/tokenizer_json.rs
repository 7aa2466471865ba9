//! See `lutite_fuzz::tokenizer_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    lutite_fuzz::tokenizer_json(input);
});
