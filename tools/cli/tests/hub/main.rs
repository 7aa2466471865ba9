//! The real binary against a hub of our own, good and bad.
#![cfg(all(unix, feature = "hub"))]

mod arriving;
#[path = "../common/mod.rs"]
mod common;
mod download;
#[allow(dead_code, reason = "of what several tests share, each needs a part")]
#[path = "../../../../models/tests/common/edit.rs"]
mod edit;
mod keep;
mod refuse;
mod server;

use server::{Act, COMMIT, Hub, Request, git_sha1, sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Exit code, stdout, stderr.
type Said = (Option<i32>, String, String);

/// A person's home, and the hub that is asked from there.
struct Home {
    dir: tempfile::TempDir,
    endpoint: String,
}

impl Home {
    fn at(hub: &Hub) -> Home {
        Home { dir: tempfile::tempdir().unwrap(), endpoint: hub.address.clone() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The repository in the cache.
    fn repo(&self) -> PathBuf {
        self.path(".cache/huggingface/hub/models--o--r")
    }

    fn blob(&self, oid: &str) -> PathBuf {
        self.repo().join("blobs").join(oid)
    }

    fn pointer(&self, file: &str) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT).join(file)
    }

    /// `lutite` with none of the caller's settings, and short waits.
    fn lutite(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lutite"));
        command.args(args);
        self.set(&mut command);
        command
    }

    fn set(&self, command: &mut Command) {
        command.env_clear().env("HOME", self.dir.path()).env("HF_ENDPOINT", &self.endpoint);
        command.env("LUTITE_HUB_BACKOFF_MS", "5").env("HF_HUB_DOWNLOAD_TIMEOUT", "5");
        command.stdin(Stdio::null()).current_dir(self.dir.path());
    }

    fn pull(&self, name: &str) -> Command {
        self.lutite(&["pull", name])
    }

    /// Pulls the large file, which must work, and returns what was said.
    #[track_caller]
    fn pulls(&self) -> String {
        let (path, stderr) = works(&mut self.pull("o/r:Q4_0"));
        assert_eq!(Path::new(path.trim()), self.pointer(FILE), "{stderr}");
        assert_eq!(fs::read(path.trim()).unwrap(), payload(), "{stderr}");
        assert!(!self.incomplete().exists());
        stderr
    }

    /// Where what has come of the large file is kept.
    fn incomplete(&self) -> PathBuf {
        self.blob(&format!("{}.incomplete", sha256(&payload())))
    }
}

/// The large file.
const FILE: &str = "tiny-Q4_0.gguf";

fn payload() -> Vec<u8> {
    (0..60_000_u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()).collect()
}

/// A hub with the large file, and a plan for requests for its bytes: of which request, counted from 0.
fn hub_that(plan: impl Fn(usize) -> Act + Send + Sync + 'static) -> (Hub, Home) {
    let of = move |r: &Request, n: usize| if r.elsewhere { plan(n) } else { Act::Right };
    let hub = Hub::start(&[("README.md", b"hello"), (FILE, &payload())], of);
    let home = Home::at(&hub);
    (hub, home)
}

fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Stdout and stderr of what must work.
#[track_caller]
fn works(command: &mut Command) -> (String, String) {
    let (code, stdout, stderr) = said(command);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    (stdout, stderr)
}

/// Stderr of what must fail with 1, without a word on stdout.
#[track_caller]
fn fails(command: &mut Command) -> String {
    let (code, stdout, stderr) = said(command);
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
    assert!(stderr.contains("error: ") && !stderr.contains("panicked"), "{stderr}");
    println!("{}", stderr.trim_end());
    stderr
}

#[track_caller]
fn holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}
