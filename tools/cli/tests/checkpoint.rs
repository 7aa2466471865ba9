//! BitStack's checkpoint on the command line: from a folder to answers in any memory.

#[path = "../../quant/tests/common/checkpoint.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod checkpoint;
#[path = "../../../models/tests/common/edit.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod edit;
#[path = "../../../models/tests/common/folder.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod folder;

use checkpoint::Made;
use edit::reference;
use lutite_runtime::store::Gguf;
use serde_json::Value;
use std::fs;
use std::process::{Command, Output, Stdio};

const LEVELS: usize = 16;

struct Home(tempfile::TempDir);

impl Home {
    /// With the folder `stories`, a checkpoint.
    fn new() -> Home {
        let home = Home(tempfile::tempdir().unwrap());
        let made = Made::of(&Gguf::parse(&reference("stories260K-f32.gguf")).unwrap(), LEVELS);
        fs::create_dir(home.0.path().join("stories")).unwrap();
        for (name, bytes) in &made.files {
            fs::write(home.0.path().join("stories").join(name), bytes).unwrap();
        }
        fs::write(home.0.path().join("plain.gguf"), reference("stories260K-f32.gguf")).unwrap();
        home
    }

    /// Exit code, stdout and stderr.
    fn run(&self, line: &str) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lutite"));
        command.args(line.split(' ')).current_dir(self.0.path()).env_clear().env("HOME", self.0.path());
        let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    fn fine(&self, line: &str) -> (String, String) {
        let (code, out, said) = self.run(line);
        assert_eq!(code, Some(0), "{line}: {said}");
        (out, said)
    }

    fn refused(&self, line: &str) -> String {
        let (code, _, said) = self.run(line);
        assert_eq!(code, Some(1), "{line}: {said}");
        said
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.fine(line).0).unwrap()
    }

    /// What it answers at temperature 0.
    fn answer(&self, file: &str, more: &str) -> String {
        self.fine(&format!("run -m {file} -p Once --chat-template none --temp 0 -n 16{more}")).0
    }
}

#[test]
fn a_checkpoint_becomes_a_stack_that_runs_in_any_memory() {
    let home = Home::new();
    let (_, said) = home.fine("quantize stories -o stack.gguf --bitstack all");
    let all = 35 * (LEVELS - 1) - 1;
    assert!(said.contains(&format!("with {all} blocks")) && said.contains("lost is not known"), "{said}");
    // So many levels are the model that they were taken off.
    let whole = home.answer("stack.gguf", "");
    assert_eq!(whole, home.answer("plain.gguf", ""));
    assert_eq!(whole, home.answer("stack.gguf", " --mem 500M"));
    home.fine("verify stack.gguf");

    // Nothing is said of a loss that nobody knows.
    let (_, said) = home.fine("run -m stack.gguf -p Once --chat-template none -n 4 --mem 500M");
    assert!(said.contains(&format!("{all} of {all} blocks")) && !said.contains("KL"), "{said}");
    let (about, _) = home.fine("inspect stack.gguf");
    assert!(about.contains("by blocks, not measured") && !about.contains("KL"), "{about}");
    let about = home.json("inspect stack.gguf --json");
    assert_eq!((&about["stack"]["blocks"], &about["name"]), (&all.into(), &"stories".into()));
    assert!(home.refused("inspect stack.gguf --svg no.svg").contains("was not measured"));
    let rows = home.json("plan stack.gguf --json --no-speed -c 64");
    assert!(rows.as_array().unwrap().iter().all(|row| row["kl"].is_null()), "{rows}");
    let table = home.fine("plan stack.gguf --no-speed -c 64").0;
    assert!(table.lines().nth(1).unwrap().contains(&format!("0 of {all}")), "{table}");

    // The first part of the file is a model.
    let least = rows[0]["weights"].as_u64().unwrap();
    let half = (least + fs::metadata(home.0.path().join("stack.gguf")).unwrap().len()) / 2;
    home.fine(&format!("trim stack.gguf --size {half} -o half.gguf"));
    let blocks = home.json("inspect half.gguf --json")["stack"]["blocks"].as_u64().unwrap();
    assert!((10..all as u64).contains(&blocks), "{blocks}");
    assert_eq!(home.answer("half.gguf", ""), home.answer("half.gguf", " --mem 500M"));

    // Fewer levels make a smaller file.
    home.fine("quantize stories/config.json -o four.gguf --bitstack 4");
    assert_eq!(home.json("inspect four.gguf --json")["stack"]["blocks"], 35 * 3 - 1);
    home.answer("four.gguf", "");
}

#[test]
fn a_checkpoint_that_is_named_otherwise_is_told_what_to_do() {
    let home = Home::new();
    for line in
        ["run -m stories -p x", "inspect stories", "quantize stories -o no.gguf", "export stories no.gguf"]
    {
        let said = home.refused(line);
        assert!(said.contains("`lutite quantize stories -o FILE.gguf --bitstack all`"), "{line}: {said}");
    }
    for (flags, part) in [
        ("--bitstack 1-4", "says itself what is least"),
        ("--bitstack 4:1", "has ranks of its own"),
        ("--bitstack all --calib text", "leave --calib out"),
        ("--bitstack 17", "has no tensor model.layers.0.self_attn.q_proj.qweight_16"),
    ] {
        let said = home.refused(&format!("quantize stories -o no.gguf {flags}"));
        assert!(said.contains(part), "{flags}: {said}");
    }
    let said = home.refused("quantize plain.gguf -o no.gguf --bitstack all");
    assert!(said.contains("plain.gguf is not BitStack's checkpoint; say how many levels"), "{said}");
    let names = fs::read_dir(home.0.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.starts_with("no.gguf")));
}
