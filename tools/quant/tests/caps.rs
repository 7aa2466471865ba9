//! Small importance matrices that say they are large: what is allocated follows from the bytes that are there.

#[path = "../../../runtime/tests/common/peak.rs"]
mod peak;

use lutite_kernels::ggml::GgmlType;
use lutite_quant::imatrix::Imatrix;
use lutite_runtime::store::GgufWriter;
use peak::peak_of;

/// The message for `file`, whose reading must stay below a small cap.
fn refused(what: &str, file: &[u8]) -> String {
    assert!(file.len() <= 1000, "{what}: {} bytes are no small file", file.len());
    let (result, peak) = peak_of(|| Imatrix::read(file));
    assert!(peak <= (64 << 10) + 8 * file.len(), "{what}: {peak} bytes held for a file of {}", file.len());
    result.expect_err(what).to_string()
}

/// A legacy file: numbers and texts, one after another.
fn legacy(numbers: &[i32], tail: &[u8]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).chain(tail.iter().copied()).collect()
}

#[test]
fn legacy_counts_and_lengths() {
    for n in [3, 1000, 1 << 20, i32::MAX, -1, i32::MIN] {
        assert!(refused("entries", &legacy(&[n], &[0; 12])).contains("number of entries"));
        assert!(refused("name", &legacy(&[1, n], &[b'a'; 20])).starts_with("importance matrix, "));
        // One entry called "a": calls, and a number of values that are not there.
        let one = [&1i32.to_le_bytes()[..], &1i32.to_le_bytes(), b"a", &1i32.to_le_bytes(), &n.to_le_bytes()];
        let message = refused("values", &[&one.concat()[..], &[0; 4]].concat());
        assert!(message.contains("number of values"), "{n}: {message}");
    }
    // As many entries as the bytes could just hold, none of which is one.
    refused("many entries", &legacy(&[50], &[0xff; 50 * 17]));
    refused("empty names", &legacy(&[50], &[0; 50 * 17]));
}

#[test]
fn gguf_shapes() {
    let file = |sums: u64, counts: u64| {
        let mut w = GgufWriter::new();
        // Shapes to be found again: the writer would take the memory for the true ones.
        w.add_tensor("a.in_sum2", GgmlType::F32, &[1001]).unwrap();
        w.add_tensor("a.counts", GgmlType::F32, &[1003]).unwrap();
        let mut head = w.begin_in_memory().unwrap().head().to_vec();
        for (said, lie) in [(1001u64, sums), (1003, counts)] {
            let at = head.windows(8).position(|b| b == said.to_le_bytes()).unwrap();
            head[at..at + 8].copy_from_slice(&lie.to_le_bytes());
        }
        head
    };
    for (sums, counts) in [(1 << 40, 1), (1, 1 << 40), (1 << 28, 1 << 28)] {
        let message = refused("shape", &file(sums, counts));
        assert!(message.contains("cut off") || message.contains("overlaps"), "{message}");
    }
}
