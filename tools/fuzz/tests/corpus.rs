//! Every file of the corpora, through its target, without libFuzzer.

use lutite_fuzz::TARGETS;
use std::fs;
use std::path::{Path, PathBuf};

fn files(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_file_of_every_corpus() {
    for (name, target) in TARGETS {
        let files = files(name);
        let mut accepted = 0;
        for file in &files {
            println!("{}", file.display());
            let ok = target(&fs::read(file).unwrap());
            accepted += usize::from(ok);
            // What a seed is for is behind the reader's door.
            let seed = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seed-"));
            assert!(ok || !seed, "{} is refused now", file.display());
        }
        println!("{name}: {accepted} of {} accepted", files.len());
        assert!(accepted > 0 && accepted < files.len(), "{name}: {accepted} of {} accepted", files.len());
    }
}

/// A folder without a target would never be run.
#[test]
fn every_corpus_has_a_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut found: Vec<String> =
        fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(found, TARGETS.map(|(name, _)| name));
}
