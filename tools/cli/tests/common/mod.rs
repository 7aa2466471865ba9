//! The program as a person runs it, on a model of 260 thousand weights.

#![allow(dead_code, reason = "not every target uses all of it")]

use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// A model of children's stories.
pub(crate) const MODEL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/data/reference/stories260K-f32.gguf");

/// A model of noise, whose heads are longer.
pub(crate) const OTHER: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/data/reference/llama.gguf");

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/story.txt");

/// A text of some thousand tokens.
pub(crate) fn stories() -> String {
    fs::read_to_string(TEXT).unwrap().repeat(8)
}

/// A stacked file of [`MODEL`] with 108 blocks, made once.
pub(crate) fn stack() -> &'static [u8] {
    static STACK: OnceLock<Vec<u8>> = OnceLock::new();
    STACK.get_or_init(|| {
        let home = Home::new();
        home.write("text", stories());
        let line =
            "quantize MODEL --stack=2,3,4,6 --group 32 --calib @text --calib-tokens 2048 -o @made.gguf";
        let (_, said) = home.fine(line);
        assert!(said.contains("108 blocks"), "{said}");
        assert!(!home.names().iter().any(|name| name.contains("work")), "{:?}", home.names());
        fs::read(home.path("made.gguf")).unwrap()
    })
}

/// A home folder, taken away in the end. In a line of arguments `MODEL` and `OTHER` are the models, `TEXT` is a story, and
/// `@name` is a file in the folder.
pub(crate) struct Home(tempfile::TempDir);

impl Home {
    pub(crate) fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Names of all that lies in it.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The program with none of the caller's settings, and with two threads where the line does not say how many.
    pub(crate) fn start(&self, line: &str) -> Child {
        let words = line.split_whitespace().map(|w| match w {
            "MODEL" => MODEL.into(),
            "OTHER" => OTHER.into(),
            "TEXT" => TEXT.into(),
            w if w.starts_with('@') => self.path(&w[1..]).into_os_string(),
            w => w.into(),
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_lutite"));
        command.args(words).env_clear().env("HOME", self.0.path()).env("LUTITE_THREADS", "2");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Exit code, stdout and stderr.
    pub(crate) fn run(&self, line: &str) -> (Option<i32>, String, String) {
        self.talk(line, "")
    }

    /// The same with this on stdin.
    pub(crate) fn talk(&self, line: &str, input: &str) -> (Option<i32>, String, String) {
        let mut child = self.start(line);
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    }

    /// Stdout and stderr of what has to work.
    #[track_caller]
    pub(crate) fn fine(&self, line: &str) -> (String, String) {
        let (code, stdout, stderr) = self.run(line);
        assert_eq!(code, Some(0), "{line}: {stderr}");
        (stdout, stderr)
    }

    /// The answer to programs of what has to work.
    #[track_caller]
    pub(crate) fn json(&self, line: &str) -> Value {
        let (stdout, _) = self.fine(&format!("{line} --json"));
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{line}: {e}: {stdout}"))
    }

    /// What has to end with this exit code, and to say why.
    #[track_caller]
    pub(crate) fn fails(&self, line: &str, code: i32, says: &str) {
        let (found, stdout, stderr) = self.run(line);
        assert_eq!((found, stdout.as_str()), (Some(code), ""), "{line}: {stderr}");
        assert!(stderr.contains(says), "{line}: {says}: {stderr}");
    }
}

#[track_caller]
pub(crate) fn number(v: &Value, key: &str) -> f64 {
    v[key].as_f64().unwrap_or_else(|| panic!("{key} of {v}"))
}
