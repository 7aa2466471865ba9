//! See `lutite_fuzz::codec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    lutite_fuzz::codec(input);
});
