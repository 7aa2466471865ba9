//! Models whose matrices are levels of signs: products against those of plain numbers, and of any split against each other;
//! levels that come and go between tokens.

#[allow(dead_code)]
#[path = "common/edit.rs"]
mod edit;
#[path = "common/levels.rs"]
mod levels;

use edit::reference;
use levels::with_levels;
use lutite_kernels::isa::Isa;
use lutite_models::{Budget, Model, OpenOptions, Path, open};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::os::file::DataFile;
use lutite_runtime::store::Bytes;
use std::sync::Arc;
use std::time::Duration;

const MODELS: [&str; 2] = ["llama.gguf", "llama3-ropefreqs.gguf"];
const TOKENS: [u32; 11] = [1, 17, 300, 4, 4, 511, 80, 9, 222, 31, 2];

fn options(isa: Isa) -> OpenOptions {
    OpenOptions { context: Some(64), verify: false, ..OpenOptions::new(isa) }
}

/// Logits of all tokens, in steps of `batch`.
fn logits(m: &mut Model, phase: Phase, batch: usize) -> Vec<f32> {
    m.rewind(0);
    TOKENS.chunks(batch).flat_map(|t| m.step(t, phase, Logits::All).unwrap().to_vec()).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The squares of differences, of those of `b`.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    let squares = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>();
    squares(&mut a.iter().zip(b).map(|(a, b)| a - b)) / squares(&mut b.iter().copied())
}

#[test]
fn tables_and_codes_are_near_plain_numbers_and_all_splits_are_equal() {
    for model in MODELS {
        // Prompts of rank 4 are rebuilt, of rank 2 they are not.
        for (rank, count) in [(1, 1), (2, 3), (4, 2), (16, 1)] {
            let file = Bytes::new(with_levels(&reference(model), &[count], rank));
            let plain = OpenOptions { path: Path::Plain, ..options(Isa::detect()) };
            let plain = logits(&mut open::open(&file, &plain).unwrap(), Phase::Prompt, 64);
            let mut first: Option<[Vec<u32>; 2]> = None;
            for (workers, batch) in [(1, 64), (3, 4), (2, 1)] {
                for isa in Isa::available() {
                    let o = OpenOptions { workers, batch, ..options(isa) };
                    let mut m = open::open(&file, &o).unwrap();
                    let got = [Phase::Prompt, Phase::Answer].map(|p| logits(&mut m, p, batch));
                    for (got, phase) in got.iter().zip(["prompt", "answer"]) {
                        let apart = apart(got, &plain);
                        assert!(apart < 4e-3, "{model} k={rank} {phase}: {apart}");
                    }
                    let got = got.map(|x| bits(&x));
                    let first = first.get_or_insert_with(|| got.clone());
                    assert!(*first == got, "{model} k={rank}: {workers} workers, steps of {batch}, {isa:?}");
                }
            }
            let exact = OpenOptions { exact: true, workers: 2, ..options(Isa::detect()) };
            let exact = logits(&mut open::open(&file, &exact).unwrap(), Phase::Prompt, 64);
            assert_eq!(Some(bits(&exact)), first.map(|[_, answer]| answer));
        }
    }
}

#[test]
fn levels_come_and_go_and_leave_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let file = with_levels(&reference(MODELS[0]), &[1, 2, 4], 2);
    std::fs::write(&path, &file).unwrap();
    let fresh = |blocks: usize| {
        let o = OpenOptions { workers: 2, ..options(Isa::detect()) };
        let mut m = open::open(&Bytes::new(file.clone()), &o).unwrap();
        let handle = m.residency().unwrap();
        handle.set_blocks(blocks);
        assert!(handle.wait(Duration::from_secs(20)));
        bits(&logits(&mut m, Phase::Answer, 1))
    };
    let data = Arc::new(DataFile::open(&path).unwrap());
    let budget = Budget { bytes: 1 << 30, bound: "a test".into(), file: data, at_once: true };
    let o = OpenOptions { budget: Some(budget), ..options(Isa::detect()) };
    let mut m = open::open(&Bytes::new(file.clone()), &o).unwrap();
    let handle = m.residency().unwrap();
    let all = handle.stack().blocks().len();
    for blocks in [all, 0, 3, all - 1, all / 2, all] {
        let before = handle.account().unwrap().read();
        let was = handle.resident().blocks;
        handle.set_blocks(blocks);
        assert!(handle.wait(Duration::from_secs(20)));
        let read = handle.account().unwrap().read() - before;
        assert_eq!(handle.resident().blocks, blocks);
        if blocks < was {
            assert_eq!(read, 0);
        }
        assert_eq!(bits(&logits(&mut m, Phase::Answer, 1)), fresh(blocks), "{blocks}");
    }
}
