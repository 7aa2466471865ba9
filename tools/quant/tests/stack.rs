//! Stacked files in use: a model whose weights change while it writes, on a model of 260 thousand weights.

mod common;

use common::pack;
use lutite_kernels::isa::Isa;
use lutite_models::open::open;
use lutite_models::{Budget, Model, OpenOptions};
use lutite_quant::rank::Rise;
use lutite_quant::stack::{StackJob, parts, stack_to_file};
use lutite_quant::{Bits, Opened, PackOptions, Trimmed, trim};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::os::file::DataFile;
use lutite_runtime::os::map::Map;
use lutite_runtime::store::{Bytes, Directory, Fault, Gguf, ModelFile, Stack};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const MODEL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/data/reference/stories260K-f32.gguf");

/// Planes of the levels, by their weights alone.
const LEVELS: [usize; 3] = [2, 4, 6];

const LONG: Duration = Duration::from_secs(20);

fn level(planes: usize) -> ModelFile {
    let bits = Bits::Planes(planes);
    let options = PackOptions { bits, head: Some(bits), group: 32, ..PackOptions::exact() };
    (&pack(&Bytes::new(Map::open(MODEL).unwrap()), &options)).into()
}

/// A stack of all levels, layer by layer.
fn stack(folder: &Path) -> PathBuf {
    let path = folder.join("stack.gguf");
    let files = LEVELS.map(level);
    let ggufs = files.each_ref().map(|f| f.gguf().unwrap());
    let opened: Vec<Opened<'_>> =
        ggufs.iter().zip(&files).map(|(gguf, file)| Opened { gguf, file }).collect();
    let parts = parts(opened[0]).unwrap();
    assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [1, 7, 7, 7, 7, 7]);
    let order: Vec<Rise> =
        (1..LEVELS.len()).flat_map(|level| (0..parts.len()).map(move |part| Rise { part, level })).collect();
    let job = StackJob {
        levels: &opened,
        parts: &parts,
        order: &order,
        tag: "test",
        source_hash: 7,
        measure: None,
        cancel: &AtomicBool::new(false),
    };
    let stacked = stack_to_file(&job, &path).unwrap();
    assert_eq!(stacked.blocks, 72);
    path
}

fn session(path: &Path, bytes: Option<u64>, workers: usize) -> Model {
    let file = ModelFile::from(&Bytes::new(Map::open(path).unwrap()));
    let data = || Arc::new(DataFile::open(path).unwrap());
    let budget = bytes.map(|bytes| Budget { bytes, bound: "a test".into(), file: data(), at_once: false });
    let isa = Isa::from_env().unwrap();
    open(&file, &OpenOptions { workers, context: Some(64), batch: 8, budget, ..OpenOptions::new(isa) })
        .unwrap()
}

fn logits(model: &mut Model) -> Vec<f32> {
    model.rewind(0);
    model.step(&[1, 5, 9, 70, 300], Phase::Prompt, Logits::Last).unwrap();
    model.step(&[42], Phase::Answer, Logits::Last).unwrap().to_vec()
}

#[test]
fn any_number_of_blocks_is_the_file_cut_off_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = stack(folder.path());
    let whole = std::fs::read(&path).unwrap();
    let directory = Directory::base(&Gguf::parse(&whole).unwrap()).unwrap();
    let (mut mapped, mut read) = (session(&path, None, 2), session(&path, Some(1 << 30), 1));
    for blocks in [72, 0, 1, 17, 40, 41, 3, 72] {
        let cut = folder.path().join("cut.gguf");
        std::fs::write(&cut, &whole[..directory.stack().file_bytes(blocks) as usize]).unwrap();
        let expected = logits(&mut session(&cut, None, 1));
        for model in [&mut mapped, &mut read] {
            let stack = model.residency().unwrap();
            stack.set_blocks(blocks);
            assert!(stack.wait(LONG));
            assert_eq!(stack.resident().blocks, blocks);
            assert_eq!(logits(model), expected, "{blocks}");
        }
        let trimmed = folder.path().join("trimmed.gguf");
        let done = trim(&Gguf::parse(&std::fs::read(&cut).unwrap()).unwrap(), u64::MAX, &trimmed).unwrap();
        assert_eq!(done.blocks, blocks);
        assert_eq!(logits(&mut session(&trimmed, None, 1)), expected);
    }
}

#[test]
fn a_trimmed_file_is_the_largest_that_fits() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(stack(folder.path())).unwrap();
    let gguf = Gguf::parse(&whole).unwrap();
    let directory = Directory::base(&gguf).unwrap();
    let out = folder.path().join("trimmed.gguf");
    // With each number of blocks: what is left of a file that was cut off there.
    let with = |blocks| {
        let cut = &whole[..directory.stack().file_bytes(blocks) as usize];
        let all = trim(&Gguf::parse(cut).unwrap(), u64::MAX, &out).unwrap();
        assert_eq!((all.blocks, all.bytes), (blocks, out.metadata().unwrap().len()));
        all.bytes
    };
    let sizes: Vec<u64> = (0..=72).map(with).collect();
    for size in sizes.iter().flat_map(|bytes| [bytes - 1, *bytes]) {
        match sizes.iter().rposition(|bytes| *bytes <= size) {
            Some(blocks) => {
                let found = trim(&gguf, size, &out).unwrap();
                assert_eq!(found, Trimmed { blocks, bytes: sizes[blocks] });
            }
            None => assert!(trim(&gguf, size, &out).is_err()),
        }
    }
}

#[test]
fn the_first_bytes_tell_how_long_the_least_model_is() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(stack(folder.path())).unwrap();
    let gguf = Gguf::parse(&whole).unwrap();
    let least = Directory::base(&gguf).unwrap().stack().file_bytes(0);
    // The head ends before the padding of the data.
    let head = gguf.data_offset() as usize - gguf.alignment() as usize;
    for len in (0..=head).step_by(head / 100).chain([head]) {
        let fault = Stack::least_bytes(&whole[..len]).unwrap_err();
        assert!(matches!(fault.fault(), Fault::Truncated { .. } | Fault::Count { .. }), "{len}: {fault}");
    }
    for len in [gguf.data_offset() as usize, least as usize, whole.len()] {
        assert_eq!(Stack::least_bytes(&whole[..len]).unwrap(), Some(least));
    }
    assert!(Gguf::parse(&whole[..least as usize - 1]).is_err());
    assert!(Gguf::parse(&whole[..least as usize]).is_ok());
    assert_eq!(Stack::least_bytes(&std::fs::read(MODEL).unwrap()).unwrap(), None);
}

#[test]
fn budgets_that_change_while_it_writes_leave_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let path = stack(folder.path());
    let mut model = session(&path, Some(1 << 30), 2);
    let expected = logits(&mut model);
    let stack = model.residency().unwrap();
    let (least, most) = (stack.stack().resident_bytes(0), stack.stack().resident_bytes(72) + 100_000);
    let mut state = 3u64;
    for i in 0..2000 {
        if model.position() == model.context() {
            model.rewind(0);
        }
        if i % 3 == 0 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let bytes = model.rest_bytes() + least + (state >> 33) % (most - least);
            model.set_budget(bytes).unwrap();
        }
        let found = model.step(&[i % 512], Phase::Answer, Logits::Last).unwrap();
        assert!(found.iter().all(|x| x.is_finite()));
    }
    assert!(model.set_budget(model.rest_bytes() + least - 1).is_err());
    model.set_budget(1 << 30).unwrap();
    assert!(stack.wait(LONG));
    assert_eq!(logits(&mut model), expected);
    let account = stack.account().unwrap();
    // All but vectors, which the model has copies of.
    assert!(account.now() <= most && account.now() + 10_000 > stack.resident().bytes);
    drop(model);
    assert_eq!(account.now(), 0);
}

#[test]
fn layers_that_do_not_fit_are_read_for_every_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = stack(folder.path());
    let whole = std::fs::read(&path).unwrap();
    let least = Directory::base(&Gguf::parse(&whole).unwrap()).unwrap().stack().resident_bytes(0);
    let mut model = session(&path, Some(1 << 30), 1);
    let rest = model.rest_bytes();
    model.set_budget(rest + least).unwrap();
    assert!(model.residency().unwrap().wait(LONG));
    let expected = logits(&mut model);
    let mut last = 0;
    for missing in [1, 10_000, 20_000, 30_000] {
        let mut model = session(&path, Some(rest + least - missing), 1);
        let streamed = model.streamed_bytes();
        assert!(streamed >= last && streamed > 0 && streamed < least, "{missing} {streamed} {last}");
        last = streamed;
        assert!(model.residency().is_none());
        for _ in 0..3 {
            assert_eq!(logits(&mut model), expected, "{missing}");
        }
        assert!(model.weights_per_token() > 200_000);
    }
    // Damage in a layer that is read for each step is an error of the step, which names it.
    let gguf = Gguf::parse(&whole).unwrap();
    let at = gguf.tensor("blk.4.ffn_up.p1").unwrap().offset as usize;
    let mut damaged = whole.clone();
    damaged[at] ^= 1;
    let file = folder.path().join("damaged.gguf");
    std::fs::write(&file, &damaged).unwrap();
    let isa = Isa::from_env().unwrap();
    let open_damaged = || {
        let data = Arc::new(DataFile::open(&file).unwrap());
        let budget =
            Some(Budget { bytes: rest + least - 20_000, bound: "a test".into(), file: data, at_once: false });
        let options =
            OpenOptions { workers: 1, context: Some(64), batch: 8, budget, ..OpenOptions::new(isa) };
        open(ModelFile::from(&Bytes::new(Map::open(&file).unwrap())), &options)
    };
    let mut model = open_damaged().unwrap();
    for _ in 0..2 {
        let why = model.step(&[1], Phase::Answer, Logits::Last).unwrap_err().to_string();
        assert!(why.contains("blk.4.ffn_up") && why.contains("checksum"), "{why}");
        assert_eq!(model.position(), 0);
    }
}
