//! What is fuzzed: one function for each reader of untrusted input.
//!
//! A function takes any bytes, gives them to its reader, and panics where a promise is broken: a panic below it, more
//! memory or time than its input may cost, an answer that contradicts itself. It says whether the reader accepted the
//! input, so that a corpus that no longer reaches anything is noticed. `fuzz_targets/` has a program of libFuzzer's for
//! each; `tests/corpus.rs` runs every file of `corpus/` through its function in an ordinary test.

mod codec;
mod frames;
mod gguf;
mod packed;
#[path = "../../../runtime/tests/common/peak.rs"]
mod peak;
mod safetensors;
mod template;
mod tokenizer;
mod tokenizer_json;

pub use codec::codec;
pub use frames::frames;
pub use gguf::gguf;
pub use packed::packed;
pub use safetensors::safetensors;
pub use template::template;
pub use tokenizer::tokenizer;
pub use tokenizer_json::tokenizer_json;

use rustix::time::{ClockId, clock_gettime};

/// Any input to one reader; whether it was accepted.
pub type Target = fn(&[u8]) -> bool;

/// All targets by name: also that of the program, of the dictionary and of the folder of the corpus.
pub const TARGETS: [(&str, Target); 8] = [
    ("codec", codec),
    ("frames", frames),
    ("gguf", gguf),
    ("packed", packed),
    ("safetensors", safetensors),
    ("template", template),
    ("tokenizer", tokenizer),
    ("tokenizer_json", tokenizer_json),
];

/// Runs `work` and holds it to `cap` bytes and `seconds` of this thread's processor time, which unlike time on the wall
/// does not grow when the machine is busy.
///
/// # Panics
/// Where either is exceeded.
fn within<T>(what: &str, cap: usize, seconds: f64, work: impl FnOnce() -> T) -> T {
    let now = || {
        let t = clock_gettime(ClockId::ThreadCPUTime);
        t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
    };
    let start = now();
    let (result, peak) = peak::peak_of(work);
    let took = now() - start;
    assert!(peak <= cap, "{what}: {peak} bytes held, at most {cap} expected");
    assert!(took <= seconds, "{what}: {took:.1} s, at most {seconds} s expected");
    result
}
