//! Packed files that are not as they were written.

use super::edit::{Rng, mutate, mutations};
use super::*;
use lutite_kernels::isa::Isa;
use lutite_models::{Budget, OpenOptions, open};
use lutite_quant::{PackJob, PackOptions, Plan, pack_in_memory};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::os::file::DataFile;
use lutite_runtime::store::{Bytes, Gguf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub(super) fn packed() -> Vec<u8> {
    let source = tiny();
    let gguf = Gguf::parse(&source).unwrap();
    let plan = Plan::new(&gguf, &PackOptions::exact()).unwrap();
    let cancel = AtomicBool::new(false);
    let job = PackJob {
        source: &gguf,
        source_hash: 1,
        imatrix: None,
        fits: None,
        measure: None,
        threads: 1,
        progress: &|_, _| {},
        cancel: &cancel,
    };
    pack_in_memory(&plan, &job).unwrap()
}

fn options(verify: bool) -> OpenOptions {
    let available = Some((8 << 20, "this test".to_owned()));
    OpenOptions { context: Some(32), batch: 4, verify, available, ..OpenOptions::new(Isa::detect()) }
}

/// Which bytes no checksum covers: the padding behind each tensor.
fn is_padding(gguf: &Gguf<'_>, at: usize) -> bool {
    let inside = |t: &lutite_runtime::store::TensorInfo<'_>| {
        (t.offset as usize..t.offset as usize + t.data.len()).contains(&at)
    };
    at as u64 >= gguf.data_offset() && !gguf.tensors().iter().any(inside)
}

/// One bit flipped in each of thousands of places: an error always, unless it lies in padding between tensors. There
/// is no metadata that does not count.
#[test]
fn any_bit_flipped() {
    let file = packed();
    let gguf = Gguf::parse(&file).unwrap();
    open::open(&Bytes::new(file.clone()), &options(true)).unwrap();
    let mut rng = Rng(7);
    let head = gguf.data_offset() as usize;
    // A third of them in the header, which is a tenth of the file.
    let places = (0..3000).map(|i| if i % 3 == 0 { rng.below(head) } else { rng.below(file.len()) });
    let mut bad = file.clone();
    let (mut padding, mut by_reader) = (0, 0);
    for (i, at) in places.collect::<Vec<_>>().into_iter().enumerate() {
        bad[at] ^= 1 << (i % 8);
        let result = lutite_models::verify(&bad, 1);
        if is_padding(&gguf, at) {
            padding += 1;
            result.unwrap_or_else(|e| panic!("padding at {at}: {e}"));
        } else {
            let message = result
                .err()
                .unwrap_or_else(|| panic!("bit {} of byte {at} does not count", i % 8))
                .to_string();
            // Except where the file no longer says that it is a packed one, or one at all.
            if message.starts_with("packed model file: it has ") {
                holds(&message, &["is damaged: delete it and pack its source again"]);
                let t = gguf
                    .tensors()
                    .iter()
                    .find(|t| (t.offset as usize..t.offset as usize + t.data.len()).contains(&at));
                match t {
                    Some(t) => holds(&message, &[&format!("a tensor `{}` (", t.name)]),
                    // Or the names or lengths of the sums themselves are damaged.
                    None => assert!(
                        message.contains("metadata that does not match") || message.contains("checksums"),
                        "{message}"
                    ),
                }
            } else {
                by_reader += 1;
                assert!(at < head, "byte {at}: {message}");
            }
        }
        bad[at] ^= 1 << (i % 8);
    }
    println!("{padding} of 3000 in padding, {by_reader} refused by the reader before the checksums");
}

/// What is read piece by piece is refused as well: each tensor with one bit flipped.
#[test]
fn any_tensor_flipped_within_a_budget() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("packed.gguf");
    let opened = |file: &[u8]| {
        std::fs::write(&path, file).unwrap();
        let data = Arc::new(DataFile::open(&path).unwrap());
        let budget = Budget { bytes: 64 << 20, bound: "this test".into(), file: data, at_once: false };
        let options = OpenOptions { budget: Some(budget), workers: 2, ..options(true) };
        open::open(&Bytes::new(file.to_vec()), &options).map(|_| ()).map_err(|e| e.to_string())
    };
    let file = packed();
    opened(&file).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    for t in gguf.tensors() {
        let mut bad = file.clone();
        bad[t.offset as usize + t.data.len() / 2] ^= 16;
        let message = opened(&bad).expect_err(t.name);
        let matrix = t.name.rsplit_once('.').map_or(t.name, |(name, _)| name);
        holds(&message, &[matrix, "does not match its checksum"]);
    }
}

/// The same without checksums, several changes at a time: words may be wrong, but nothing panics.
#[test]
fn mutated_without_checksums() {
    let file =
        edit(&packed(), &[("tokenizer.ggml.scores", None), ("tokenizer.ggml.token_type", None)], |_| {});
    let head = Gguf::parse(&file).unwrap().data_offset() as usize;
    mutations(|rng| {
        let mut bad = file.clone();
        for _ in 0..1 + rng.below(4) {
            mutate(rng, &mut bad, head);
        }
        let opened = open::open(&Bytes::new(bad), &options(false));
        opened.map(|mut m| m.step(&[1, 2], Phase::Prompt, Logits::All).map(|_| ()).is_ok()).is_ok()
    });
}

#[test]
fn directories_that_lie() {
    let file = packed();
    let damaged = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at =
            file.windows(from.len()).position(|w| w == from.as_bytes()).unwrap_or_else(|| panic!("{from}"));
        let mut bad = file.clone();
        bad[at..at + to.len()].copy_from_slice(to.as_bytes());
        open::open(&Bytes::new(bad), &options(false)).expect_err(to).to_string()
    };
    holds(
        &damaged("blk.0.attn_q kind=centered:128 rows=64", "blk.0.attn_q kind=centered:128 rows=63"),
        &["blk.0.attn_q", "has shape"],
    );
    holds(
        &damaged("blk.0.attn_q kind=centered:128 rows=64", "blk.0.attn_q kind=centered:128 rows=0x"),
        &["expected a number"],
    );
    holds(&damaged("blk.0.attn_q kind=centered:128", "blk.0.attn_q kind=centered:999"), &["unknown kind"]);
    holds(&damaged("planes=8 group=32", "planes=9 group=32"), &["planes must be 1 to 8"]);
    holds(&damaged("planes=8 group=32", "planes=4 group=32"), &["GGUF tensor `", "is missing"]);
    holds(&damaged("p32-1 ", "p32-9 "), &["layout p32-9 ", "pack the source file again"]);
}

#[test]
fn a_damaged_packed_file_that_was_named() {
    let here = Here::new();
    let mut file = packed();
    here.write("packed.gguf", &file);
    let (answer, _) = answers(&mut here.run("packed.gguf", &[]));
    assert_eq!(answers(&mut here.run("tiny.gguf", &[])).0, answer, "packed and unpacked differ");
    let gguf = Gguf::parse(&file).unwrap();
    let at = gguf.tensor("blk.2.ffn_up.c8").unwrap().offset as usize + 77;
    file[at] ^= 0x10;
    here.write("packed.gguf", &file);
    let message = fails(&mut here.run("packed.gguf", &[]));
    holds(
        &message,
        &[
            "cannot load packed.gguf",
            "a tensor `blk.2.ffn_up.c8` (bytes ",
            "delete it and pack its source again",
        ],
    );
    here.write("packed.gguf", &file[..file.len() / 2]);
    holds(&fails(&mut here.run("packed.gguf", &[])), &["cannot read packed.gguf", "is cut off or damaged"]);
    // It is the person's file: it stays.
    assert!(here.path("packed.gguf").exists());
}

#[test]
fn a_damaged_packed_file_of_the_cache_is_made_again() {
    let here = Here::new();
    let (answer, _) = answers(&mut here.run("tiny.gguf", &[]));
    let path = here.packed();
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() - 200] ^= 1;
    for (bad, why) in [
        (flipped, "does not match its checksum"),
        (whole[..whole.len() / 3].to_vec(), "is cut off or damaged"),
        (Vec::new(), "is empty"),
        (b"what?".to_vec(), "this is no GGUF file"),
    ] {
        std::fs::write(&path, bad).unwrap();
        let (again, notes) = answers(&mut here.run("tiny.gguf", &[]));
        assert_eq!(again, answer);
        holds(&notes, &["warning: ", why, "removing it from the cache and packing its source again"]);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        let (_, notes) = answers(&mut here.run("tiny.gguf", &[]));
        assert!(!notes.contains("packing"), "{notes}");
    }
}

/// What `--no-cache` and the cache give are the same words, and a changed source is another model.
#[test]
fn a_changed_source_is_packed_anew() {
    let here = Here::new();
    answers(&mut here.run("tiny.gguf", &["--no-cache"]));
    assert_eq!(here.cached(), [""; 0]);
    answers(&mut here.run("tiny.gguf", &[]));
    here.write("tiny.gguf", &edit(&tiny(), &[("general.name", Some(Value::Str("other")))], |_| {}));
    answers(&mut here.run("tiny.gguf", &[]));
    let packed = here.cached().iter().filter(|n| n.ends_with(".gguf")).count();
    assert_eq!(packed, 2);
}
