//! BitStack's checkpoints as stacked files: logits against those of the published formula in f32, for any number of blocks.

#[path = "common/checkpoint.rs"]
mod checkpoint;
#[path = "../../../models/tests/common/edit.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod edit;
#[path = "../../../models/tests/common/folder.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod folder;
#[path = "../../../runtime/tests/common/peak.rs"]
mod peak;

use checkpoint::{AHEAD, Made};
use edit::{mutate, mutations, reference};
use folder::{Files, opener};
use lutite_kernels::isa::Isa;
use lutite_models::{OpenOptions, Path as Kernels, Tokenizer, hf, open};
use lutite_quant::bitstack::{Checkpoint, ImportJob, import_to_file};
use lutite_quant::stack::Stacked;
use lutite_quant::{Error, Result};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::store::{Bytes, Directory, Gguf, ModelFile};
use peak::peak_of;
use std::path::Path;
use std::sync::atomic::AtomicBool;

fn made(levels: usize) -> Made {
    Made::of(&Gguf::parse(&reference("stories260K-f32.gguf")).unwrap(), levels)
}

/// Writes the stack, on `threads` threads.
fn import(files: &Files, levels: Option<usize>, threads: usize, path: &Path) -> Result<Stacked> {
    let checkpoint = Checkpoint::read(&mut opener(files), levels)?;
    let rest = hf::import_rest("test", &mut opener(files))?.file;
    let job = ImportJob {
        checkpoint: &checkpoint,
        rest: &rest.gguf()?,
        source_hash: 7,
        threads,
        progress: &|done, all| assert!(done <= all),
        cancel: &AtomicBool::new(false),
    };
    import_to_file(&job, path)
}

/// Logits of a few tokens by plain arithmetic, as bits.
fn logits(file: impl Into<ModelFile>) -> Vec<u32> {
    let o = OpenOptions { path: Kernels::Plain, context: Some(64), ..OpenOptions::new(Isa::detect()) };
    let mut m = open::open(file, &o).unwrap();
    let tokens: Vec<u32> = (0..16).map(|i| (i * 37 + 1) % 512).collect();
    m.step(&tokens, Phase::Prompt, Logits::All).unwrap().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn any_number_of_blocks_has_the_logits_of_the_published_formula() {
    let (made, home) = (made(4), tempfile::tempdir().unwrap());
    let path = home.path().join("stack.gguf");
    let stacked = import(&made.files, None, 2, &path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let gguf = Gguf::parse(&whole).unwrap();
    let directory = Directory::base(&gguf).unwrap();
    let stack = directory.stack();
    let all = made.blocks();
    assert_eq!((stack.blocks().len(), stacked.blocks), (all, all));
    assert_eq!([stacked.least, stacked.all], [0, all].map(|blocks| stack.resident_bytes(blocks)));
    assert!(lutite_models::verify(&whole, 2).is_ok());
    for blocks in [0, 1, 20, all - 50, all - 1, all] {
        let expected = hf::import("test", &mut opener(&made.plain(&made.entries[blocks]))).unwrap().file;
        let found = Bytes::new(whole[..stack.file_bytes(blocks) as usize].to_vec());
        assert!(logits(&found) == logits(expected), "{blocks} blocks");
    }
    // The rest of the model is as in any folder.
    let plain = hf::import("test", &mut opener(&made.plain(&made.entries[0]))).unwrap().file;
    let plain = plain.gguf().unwrap();
    for (key, value) in plain.metadata().iter().filter(|(key, _)| *key != "general.architecture") {
        assert_eq!(format!("{:?}", gguf.get(key)), format!("{:?}", Some(value)), "{key}");
    }
    let [ours, theirs] =
        [&gguf, &plain].map(|g| Tokenizer::from_gguf(g).unwrap().encode("Once upon", true, true));
    assert_eq!(ours, theirs);
    // Nobody knows what it lost.
    assert!(stack.curve().is_empty() && stack.kl(0).is_none());
}

#[test]
fn fewer_levels_are_the_same_without_the_others() {
    let (made, home) = (made(4), tempfile::tempdir().unwrap());
    let paths = ["all", "two", "one"].map(|name| home.path().join(name));
    import(&made.files, None, 1, &paths[0]).unwrap();
    import(&made.files, None, 3, &paths[1]).unwrap();
    assert!(std::fs::read(&paths[0]).unwrap() == std::fs::read(&paths[1]).unwrap(), "threads change bytes");
    let two = import(&made.files, Some(2), 1, &paths[1]).unwrap();
    assert_eq!(two.blocks, made.matrices.len() - 1);
    let entry = &made.entries[two.blocks];
    assert!(entry.iter().all(|levels| *levels == 2));
    let plain = hf::import("test", &mut opener(&made.plain(entry))).unwrap().file;
    assert!(logits(&Bytes::new(std::fs::read(&paths[1]).unwrap())) == logits(plain));
    // What the first entry has more than is taken is left out, and no block is left.
    let one = import(&made.files, Some(1), 1, &paths[2]).unwrap();
    assert_eq!((one.blocks, one.least), (0, one.all));
    let mut least = made.entries[0].clone();
    least[AHEAD] = 1;
    let plain = hf::import("test", &mut opener(&made.plain(&least))).unwrap().file;
    assert!(logits(&Bytes::new(std::fs::read(&paths[2]).unwrap())) == logits(plain));
}

#[test]
fn what_goes_wrong_leaves_nothing_behind() {
    let (made, home) = (made(2), tempfile::tempdir().unwrap());
    let path = home.path().join("no.gguf");
    let checkpoint = Checkpoint::read(&mut opener(&made.files), None).unwrap();
    let rest = hf::import_rest("test", &mut opener(&made.files)).unwrap().file;
    let gguf = rest.gguf().unwrap();
    let cancel = AtomicBool::new(true);
    let job = ImportJob {
        checkpoint: &checkpoint,
        rest: &gguf,
        source_hash: 7,
        threads: 1,
        progress: &|_, _| {},
        cancel: &cancel,
    };
    assert!(matches!(import_to_file(&job, &path), Err(Error::Interrupted)));
    // An infinity in the last numbers of the file, those of a level.
    let mut files = made.files.clone();
    let file = files.get_mut("model.safetensors").unwrap();
    let at = file.windows(2).rposition(|x| x == [0, 0x3c]).unwrap();
    file[at + 1] = 0x7c;
    let said = import(&files, None, 1, &path).unwrap_err().to_string();
    assert!(said.contains("model.safetensors: tensor model.layers.") && said.contains("is inf"), "{said}");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    // A folder without a norm is one of no model, whatever its levels.
    let without = |name: &str| {
        let mut files = made.files.clone();
        let file = files.get_mut("model.safetensors").unwrap();
        let at = file.windows(name.len()).position(|x| x == name.as_bytes()).unwrap();
        file[at] = b'x';
        hf::import_rest("test", &mut opener(&files)).unwrap_err().to_string()
    };
    let name = "model.layers.2.input_layernorm.weight";
    assert!(without(name).contains(&format!("model.safetensors: has no tensor {name}")));
}

/// Whatever is changed, it ends, in little memory, and what is written can be opened or says why not.
#[test]
fn mutated_checkpoints() {
    let (seed, home) = (made(2).files, tempfile::tempdir().unwrap());
    let path = home.path().join("stack.gguf");
    mutations(|rng| {
        let mut files = seed.clone();
        let names: Vec<String> = files.keys().cloned().collect();
        for _ in 0..1 + rng.below(3) {
            let file = files.get_mut(&names[rng.below(names.len())]).unwrap();
            let head = file.len();
            mutate(rng, file, head);
        }
        let size: usize = files.values().map(Vec::len).sum();
        let (result, held) = peak_of(|| import(&files, None, 1, &path));
        // Opening copies the files here, twice; a program maps them. Files are written by way of a MiB.
        assert!(held <= (2 << 20) + 18 * size, "{held} bytes held for files of {size}");
        if result.is_err() {
            return false;
        }
        let _ = open::check(&Bytes::new(std::fs::read(&path).unwrap()));
        true
    });
}
