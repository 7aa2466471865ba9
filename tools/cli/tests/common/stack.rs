//! A stacked file of 108 blocks, of a model of 260 thousand weights.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

/// What it is made of.
pub(crate) const MODEL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/data/reference/stories260K-f32.gguf");

/// A text to fit it to.
pub(crate) const STORY: &str = include_str!("../data/story.txt");

/// Its bytes, made once by `quantize --stack`.
pub(crate) fn stack() -> &'static [u8] {
    static STACK: OnceLock<Vec<u8>> = OnceLock::new();
    STACK.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("text"), STORY.repeat(8)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lutite"));
        command.args(["quantize", MODEL, "--stack=2,3,4,6", "--group", "32"]);
        command.args(["--calib", "text", "--calib-tokens", "2048", "-o", "made.gguf"]);
        command.env_clear().env("HOME", folder.path()).current_dir(folder.path());
        let out = command.output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.success() && said.contains("108 blocks"), "{said}");
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.retain(|name| name.contains("work"));
        assert!(left.is_empty(), "{left:?}");
        fs::read(folder.path().join("made.gguf")).unwrap()
    })
}
