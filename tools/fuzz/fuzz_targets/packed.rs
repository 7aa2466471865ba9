//! See `lutite_fuzz::packed`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    lutite_fuzz::packed(input);
});
