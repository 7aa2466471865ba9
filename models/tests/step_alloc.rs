//! A step with levels must not allocate. Its own test target, because it replaces the allocator.

#[path = "../../runtime/tests/common/allocations.rs"]
mod allocations;
#[allow(dead_code)]
#[path = "common/edit.rs"]
mod edit;
#[path = "common/levels.rs"]
mod levels;

use allocations::allocations_of;
use lutite_kernels::isa::Isa;
use lutite_models::{OpenOptions, open};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::store::Bytes;

#[test]
fn steps_do_not_allocate() {
    for (counts, rank) in [(&[2][..], 2), (&[1, 3], 4)] {
        let file = Bytes::new(levels::with_levels(&edit::reference("llama.gguf"), counts, rank));
        let o =
            OpenOptions { workers: 2, context: Some(64), verify: false, ..OpenOptions::new(Isa::detect()) };
        let mut m = open::open(&file, &o).unwrap();
        // Until all threads have come.
        std::thread::sleep(std::time::Duration::from_millis(100));
        for (tokens, phase) in [(&[1, 2, 3][..], Phase::Prompt), (&[4], Phase::Answer)] {
            m.step(tokens, phase, Logits::Last).unwrap();
            let count = allocations_of(|| drop(m.step(tokens, phase, Logits::Last)));
            assert_eq!(count, 0, "{counts:?} {rank} {phase:?}");
        }
    }
}
