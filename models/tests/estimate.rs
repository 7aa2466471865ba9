//! What is said to be needed is what is taken: the memory check would mean nothing otherwise. One test, since buffers are
//! counted for the whole process.

#[path = "common/edit.rs"]
#[expect(dead_code, reason = "shared with other test targets")]
mod edit;
#[path = "common/levels.rs"]
mod levels;
#[path = "../../runtime/tests/common/peak.rs"]
mod peak;

use edit::reference;
use lutite_kernels::isa::Isa;
use lutite_models::arch::llama::session_bytes;
use lutite_models::{Model, OpenOptions, Path, open};
use lutite_runtime::os::shared;
use lutite_runtime::store::Bytes;
use peak::peak_of;

/// A model, and what it holds: of the allocator at the most, and of buffers.
fn opened(file: Vec<u8>, o: &OpenOptions) -> (Model, usize) {
    let (bytes, before) = (Bytes::new(file), shared::taken());
    let (m, peak) = peak_of(|| open::open(&bytes, o));
    let buffers = shared::taken() - before;
    assert!(buffers > 0);
    (m.unwrap(), peak + buffers)
}

#[test]
fn the_estimate_covers_what_is_taken() {
    let file = reference("llama3-ropefreqs.gguf");
    let options = OpenOptions { path: Path::Plain, ..OpenOptions::new(Isa::detect()) };
    for (context, batch) in [(64, 1), (256, 64), (4096, 16), (100_000, 64)] {
        let (m, held) =
            opened(file.clone(), &OpenOptions { context: Some(context), batch, ..options.clone() });
        let need = session_bytes(m.config(), m.kv_shape(), batch, 1);
        // Beside it: the parsed header, norms, and one flag for each row and chunk of a buffer.
        let cap = need.kv + need.activations + (128 << 10);
        assert!(held <= cap, "context {context}, batch {batch}: {held} bytes, estimated {cap}");
    }
    // The same of tables of levels, and of those to come.
    let options = OpenOptions { path: Path::Lut, context: Some(64), batch: 4, verify: false, ..options };
    for (counts, rank, exact) in [(&[1][..], 1, false), (&[2, 5], 16, true), (&[1, 32], 16, false)] {
        let file = levels::with_levels(&file, counts, rank);
        let (m, held) = opened(file, &OpenOptions { exact, ..options.clone() });
        // As above; also the directory and the stack, each several times.
        let cap = m.rest_bytes() as usize + (512 << 10);
        assert!(held <= cap, "{counts:?}, rank {rank}: {held} bytes, estimated {cap}");
    }
    assert_eq!(shared::taken(), 0);
}
