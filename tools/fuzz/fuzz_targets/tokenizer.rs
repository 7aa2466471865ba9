//! See `lutite_fuzz::tokenizer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    lutite_fuzz::tokenizer(input);
});
