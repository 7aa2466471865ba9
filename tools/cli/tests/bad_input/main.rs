//! The real binary on whatever can go wrong: each time one clear message on stderr, nothing on stdout, the right exit
//! code, and nothing half-written left behind.
#![cfg(unix)]

#[path = "../../../../models/tests/common/edit.rs"]
mod edit;
mod export;
mod files;
mod packed;
mod places;
mod stop;

use edit::{Tensor, edit, quantize, reference};
use lutite_kernels::ggml::GgmlType;
use lutite_runtime::store::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder with the tiny model in it, and the binary with none of the caller's settings at home there.
struct Here {
    dir: tempfile::TempDir,
}

/// Exit code, stdout, stderr.
type Said = (Option<i32>, String, String);

impl Here {
    fn new() -> Here {
        let here = Here { dir: tempfile::tempdir().unwrap() };
        here.write("tiny.gguf", &tiny());
        here
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// `lutite run MODEL -p Once -n 4 --temp 0`, with more flags.
    fn run(&self, model: &str, more: &[&str]) -> Command {
        let mut command = self.bare(&["run", model, "--temp", "0"]);
        if !more.contains(&"-t") {
            command.args(["-t", "2"]);
        }
        if !more.iter().any(|a| ["-p", "-f", "-"].contains(a)) {
            command.args(["-p", "Once"]);
        }
        if !more.contains(&"-n") {
            command.args(["-n", "4"]);
        }
        command.args(more.iter().filter(|a| **a != "-"));
        command
    }

    fn bare(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lutite"));
        command.args(args).env_clear().env("HOME", self.dir.path()).stdin(Stdio::null());
        command.current_dir(self.dir.path());
        command
    }

    /// Runs under a limit of the shell's `ulimit`.
    fn limited(&self, limit: &str, more: &[&str]) -> Said {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("ulimit {limit}; exec \"$0\" \"$@\"")]);
        command
            .arg(env!("CARGO_BIN_EXE_lutite"))
            .args(["run", "tiny.gguf", "-p", "Once", "-n", "4"])
            .args(more);
        command.env_clear().env("HOME", self.dir.path()).current_dir(self.dir.path()).stdin(Stdio::null());
        said(&mut command)
    }

    fn cache(&self) -> PathBuf {
        self.path(".cache/lutite/packed")
    }

    /// What is in the cache folder, but for locks.
    fn cached(&self) -> Vec<String> {
        listed(&self.cache())
    }

    /// The one packed file in the cache.
    fn packed(&self) -> PathBuf {
        let all = self.cached();
        let packed: Vec<_> = all.iter().filter(|n| n.ends_with(".gguf")).collect();
        assert_eq!(packed.len(), 1, "{all:?}");
        self.cache().join(packed[0])
    }
}

/// Names in a folder that do not start with a dot, in order; none if it is not there.
fn listed(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|n| !n.starts_with('.')).collect();
    names.sort();
    names
}

fn said(command: &mut Command) -> Said {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8_lossy(&stdout).into(), String::from_utf8_lossy(&stderr).into())
}

/// Runs what must fail with code 1, and returns the messages from `error:` on.
#[track_caller]
fn fails(command: &mut Command) -> String {
    failed(said(command))
}

#[track_caller]
fn failed((code, stdout, stderr): Said) -> String {
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
    let error = stderr.split_once("error: ").unwrap_or_else(|| panic!("no error in: {stderr}")).1;
    println!("1: {}", error.trim_end());
    assert!(!stderr.contains("panicked"), "{stderr}");
    error.to_owned()
}

/// Runs what must answer, and returns the answer and what was said beside it.
#[track_caller]
fn answers(command: &mut Command) -> (String, String) {
    let (code, stdout, stderr) = said(command);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(!stdout.trim().is_empty(), "no answer; {stderr}");
    (stdout, stderr)
}

#[track_caller]
fn holds(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// A model of real words, a tenth of a megabyte per token, with most of its matrices in Q8_0.
fn tiny() -> Vec<u8> {
    edit(&reference("stories260K-f32.gguf"), &[], |t| quantize(t))
}

/// A model of noise, large enough for a signal to come while it is packed or run: 60 million weights in Q4_0.
fn large() -> Vec<u8> {
    const DIM: u64 = 512;
    const KV: u64 = 128;
    const FFN: u64 = 2048;
    const LAYERS: u32 = 16;
    let numbers = [
        ("embedding_length", DIM as u32),
        ("block_count", LAYERS),
        ("feed_forward_length", FFN as u32),
        ("attention.head_count", 8),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", 64),
        ("context_length", 8192),
    ];
    let keys = numbers.map(|(name, _)| format!("llama.{name}"));
    let metadata: Vec<(&str, Option<Value<'_>>)> =
        keys.iter().zip(numbers).map(|(key, (_, n))| (key.as_str(), Some(Value::U32(n)))).collect();
    let mut rng = edit::Rng(1);
    // Blocks of a scale of 2^-7 and random codes.
    let mut matrix = |name: String, cols: u64, rows: u64| -> Tensor {
        let blocks = (cols * rows / 32) as usize;
        let mut data = Vec::with_capacity(blocks * 18);
        for _ in 0..blocks {
            data.extend([0x00, 0x20]);
            data.extend(rng.next().to_le_bytes());
            data.extend(rng.next().to_le_bytes());
        }
        (name, GgmlType::Q4_0, vec![cols, rows], data)
    };
    let ones = |name: String| -> Tensor {
        (name, GgmlType::F32, vec![DIM], 1.0f32.to_le_bytes().repeat(DIM as usize))
    };
    let mut all = vec![matrix("token_embd.weight".into(), DIM, 512), ones("output_norm.weight".into())];
    // The first tokens, among them the one that ends an answer, have logit 0: never the largest of 512.
    let end = 3 * DIM as usize / 32;
    all[0].3.chunks_exact_mut(18).take(end).for_each(|block| block[..2].fill(0));
    for i in 0..LAYERS {
        let name = |part: &str| format!("blk.{i}.{part}.weight");
        all.push(ones(name("attn_norm")));
        all.push(ones(name("ffn_norm")));
        for (part, cols, rows) in [
            ("attn_q", DIM, DIM),
            ("attn_k", DIM, KV),
            ("attn_v", DIM, KV),
            ("attn_output", DIM, DIM),
            ("ffn_gate", DIM, FFN),
            ("ffn_up", DIM, FFN),
            ("ffn_down", FFN, DIM),
        ] {
            all.push(matrix(name(part), cols, rows));
        }
    }
    edit(&reference("stories260K-f32.gguf"), &metadata, |t| *t = all)
}
