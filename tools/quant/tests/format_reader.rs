//! `docs/format.md` is enough to write a reader: `read_packed.py` was written by somebody who had that page and nothing else
//! of this project, and finds SmolLM2's packed file to hold what its source holds. Needs `LUTITE_TEST_DATA`
//! (tools/fetch-test-data.sh) and python3.

mod common;

use common::smollm2;
use std::process::Command;

const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/read_packed.py");

/// Runs the reader; whether it was content, and what it said.
fn read(packed: &std::path::Path, source: &std::path::Path) -> (bool, String) {
    let out = Command::new("python3").arg(READER).args([packed, source]).output().unwrap();
    let said = [out.stdout, out.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    (out.status.success(), said)
}

#[test]
fn a_stranger_reads_smollm2() {
    let Some(m) = smollm2() else { return };
    if Command::new("python3").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "python3 must be there in CI");
        eprintln!("SKIPPED: there is no python3");
        return;
    }
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("format_reader.gguf");
    std::fs::write(&path, &m.packed[..]).unwrap();
    let (ok, said) = read(&path, &m.path);
    println!("{said}");
    assert!(ok && said.contains("211 matrices"), "{said}");

    // The lowest bits of a scale of row 0 of the head, in a tensor by its name.
    let gguf = lutite_runtime::store::Gguf::parse(&m.packed).unwrap();
    let scale = gguf.tensor("token_embd.s8").unwrap().data.as_ptr() as usize - m.packed.as_ptr() as usize;
    let mut damaged = m.packed.to_vec();
    damaged[scale] ^= 3;
    std::fs::write(&path, &damaged).unwrap();
    let (ok, said) = read(&path, &m.path);
    std::fs::remove_file(&path).unwrap();
    assert!(!ok && said.contains("token_embd") && said.contains("row 0"), "{said}");
}
