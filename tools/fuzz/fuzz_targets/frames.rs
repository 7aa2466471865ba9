//! See `lutite_fuzz::frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    lutite_fuzz::frames(input);
});
