//! See `lutite_fuzz::safetensors`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    lutite_fuzz::safetensors(input);
});
