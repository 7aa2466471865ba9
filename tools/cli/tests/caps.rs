//! Small files of reference logits that say they are large: what is allocated follows from the bytes that are there.

#[path = "../../../runtime/tests/common/peak.rs"]
mod peak;

use lutite_cli::judge::base::BaseReader;
use peak::peak_of;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// A folder with this file in it, of at most 1000 bytes, and its path.
fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    assert!(bytes.len() <= 1000, "{} bytes are no small file", bytes.len());
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// Files of reference logits: context, vocabulary, chunks, and too few bytes.
#[test]
fn reference_logits() {
    let big = i32::MAX as u32;
    for [context, vocab, chunks] in [
        [big, big, big],
        [big, 1, 1],
        [3, big, 1],
        [3, 1, big],
        [512, 49152, 100],
        [u32::MAX, 1, 1],
        [0, 1, 1],
        [1 << 16, 1 << 16, 0],
    ] {
        let numbers = [context, vocab, chunks].map(u32::to_le_bytes).concat();
        let (_folder, path) = file(&[&b"_logits_"[..], &numbers, &[0; 100]].concat());
        let (result, peak) = peak_of(|| BaseReader::open(&path));
        // 8 KiB of it are the buffer of the file.
        assert!(peak <= 64 << 10, "{context} x {vocab} x {chunks}: {peak} bytes held");
        result.expect_err("accepted");
    }
}
