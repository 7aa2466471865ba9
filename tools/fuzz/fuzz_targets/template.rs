//! See `lutite_fuzz::template`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    lutite_fuzz::template(input);
});
