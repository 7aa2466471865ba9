//! See `lutite_fuzz::gguf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    lutite_fuzz::gguf(input);
});
