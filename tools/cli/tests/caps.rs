//! Small files that say they are large: what is allocated follows from the bytes that are there.

#[path = "../../../runtime/tests/common/peak.rs"]
mod peak;

use flate2::Compression;
use flate2::write::GzEncoder;
use lutite_cli::judge::base::BaseReader;
use lutite_cli::judge::choices::journal::Journal;
use lutite_cli::judge::choices::lines::{Lines, Request};
use peak::peak_of;
use std::fs;
use std::io::Write;
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

/// Requests: compressed, a line may be a thousand times as long as the file, up to the longest that there may be.
#[test]
fn requests() {
    let gzip = |byte: u8, count: usize| {
        let mut gz = GzEncoder::new(Vec::new(), Compression::best());
        gz.write_all(&vec![byte; count]).unwrap();
        gz.finish().unwrap()
    };
    let deep = "[".repeat(900);
    for bytes in [gzip(b' ', 900_000), gzip(b'[', 900_000), gzip(b'\n', 900_000), deep.into_bytes()] {
        let (_folder, path) = file(&bytes);
        let (result, peak) = peak_of(|| Request::next(&mut Lines::open(&path).unwrap()));
        assert!(peak <= 3 << 20, "{peak} bytes held");
        assert!(!matches!(result, Ok(Some(_))), "accepted");
    }
}

/// Journals: what is in the file, and no more.
#[test]
fn journals() {
    let header = serde_json::json!({ "lutite_eval": 1 });
    let long = format!("{header}\n{{\"log_probs\":[{}", "0,".repeat(400));
    for bytes in [&b"[[[["[..], long.as_bytes(), &[b'x'; 1000]] {
        let (_folder, path) = file(bytes);
        let (_, peak) = peak_of(|| Journal::open(&path, &header, |_| Ok(())));
        assert!(peak <= 64 << 10, "{peak} bytes held");
    }
}
