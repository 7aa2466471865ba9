//! A Hugging Face folder on the command line: the same answers as its GGUF file, from wherever it is named.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The model of the tests of `models/`.
fn reference() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tests/data/reference")
}

/// A home with a copy of the folder, called `stories`.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("stories");
    fs::create_dir(&folder).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(reference().join("stories260K").join(name), folder.join(name)).unwrap();
    }
    home
}

/// Runs the binary in `home`; its standard output and error.
fn lutite(home: &Path, args: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lutite"));
    command.args(args).current_dir(home).env_clear().env("HOME", home).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.success(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// What a model answers, and what it says of itself.
fn answer(home: &Path, model: &str, more: &[&str]) -> (String, String) {
    let fixed = [
        "run",
        "-m",
        model,
        "-p",
        "Once upon a time",
        "-n",
        "24",
        "--chat-template",
        "none",
        "-s",
        "1",
        "-t",
        "2",
    ];
    let args: Vec<&str> = fixed.iter().chain(more).copied().collect();
    let (success, stdout, stderr) = lutite(home, &args);
    assert!(success && !stdout.is_empty(), "{stderr}");
    (stdout, stderr)
}

fn packed(home: &Path) -> usize {
    let files = fs::read_dir(home.join(".cache/lutite/packed")).unwrap();
    files.filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "gguf")).count()
}

#[test]
fn a_folder_answers_as_its_gguf_file() {
    let home = home();
    let gguf = reference().join("stories260K-f32.gguf");
    let (want, _) = answer(home.path(), gguf.to_str().unwrap(), &[]);
    let named = ["stories", "stories/", "stories/config.json", "stories/model.safetensors", "./stories"];
    for (i, name) in named.iter().enumerate() {
        let (got, said) = answer(home.path(), name, &[]);
        assert_eq!(got, want, "{name}");
        // Packed once, and found again under every name.
        assert_eq!(said.contains("packing stories"), i == 0, "{name}: {said}");
    }
    assert_eq!(packed(home.path()), 2);
    let (got, _) = answer(&home.path().join("stories"), ".", &["--no-cache"]);
    assert_eq!(got, want);
}

#[test]
fn what_is_changed_is_packed_again() {
    let home = home();
    let path = home.path().join("stories");
    answer(home.path(), "stories", &[]);
    // A word of the configuration, and a weight, with the file's size as it was.
    let config = fs::read_to_string(path.join("config.json")).unwrap();
    fs::write(
        path.join("config.json"),
        config.replace("\"max_position_embeddings\": 512", "\"max_position_embeddings\": 256"),
    )
    .unwrap();
    assert!(answer(home.path(), "stories", &[]).1.contains("packing stories"));
    let mut weights = fs::read(path.join("model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    fs::write(path.join("model.safetensors"), weights).unwrap();
    assert!(answer(home.path(), "stories", &[]).1.contains("packing stories"));
    assert!(!answer(home.path(), "stories", &[]).1.contains("packing stories"));
    assert_eq!(packed(home.path()), 3);
}

#[test]
fn the_authors_sampling_is_the_default() {
    let home = home();
    let generation = home.path().join("stories/generation_config.json");
    let (greedy, said) = answer(home.path(), "stories", &["--temp", "0"]);
    assert!(!said.contains("recommend"), "{said}");
    fs::write(&generation, r#"{"do_sample": false, "temperature": 0.9, "top_p": 0.5}"#).unwrap();
    let (got, said) = answer(home.path(), "stories", &[]);
    assert_eq!(got, greedy);
    assert!(said.contains("sampling as the model's authors recommend: --temp 0 --top-p 0.5"), "{said}");
    let (_, said) = answer(home.path(), "stories", &["--temp", "0.5"]);
    assert!(said.contains("recommend: --top-p 0.5"), "{said}");
    fs::write(&generation, r#"{"temperature": -1}"#).unwrap();
    let (success, _, said) = lutite(home.path(), &["run", "-m", "stories", "-p", "x"]);
    assert!(!success && said.contains("give flags of your own, such as --temp 0.8"), "{said}");
    answer(home.path(), "stories", &["--temp", "1"]);
}

#[test]
fn the_other_verbs_take_folders_too() {
    let home = home();
    fs::write(home.path().join("t.txt"), "Once upon a time there was a dog. ".repeat(20)).unwrap();
    let (success, stdout, _) = lutite(home.path(), &["inspect", "stories", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(success);
    assert_eq!(
        (&report["name"], &report["model"]["layers"], &report["parameters"]),
        (&"stories".into(), &5.into(), &260_032.into())
    );
    let (success, _, said) = lutite(home.path(), &["quantize", "stories", "-o", "small.gguf", "--bits", "3"]);
    assert!(success, "{said}");
    answer(home.path(), "small.gguf", &[]);
    // By planes' own kernels and plainly, where q and k are put in order in memory.
    let perplexity = |path: &str| {
        lutite(home.path(), &["perplexity", "stories", "-f", "t.txt", "-c", "64", "--path", path]).1
    };
    let plain = perplexity("plain");
    assert!(plain.starts_with("PPL = "), "{plain}");
    assert_eq!(perplexity("lut"), plain);
    let (success, stdout, said) = lutite(home.path(), &["kl", "stories", "-f", "t.txt", "-c", "64"]);
    assert!(success && stdout.contains("same top token, %    100.0"), "{stdout}{said}");
    let (success, stdout, said) =
        lutite(home.path(), &["bench", "stories", "-p", "8", "-n", "4", "-r", "1", "-o", "json"]);
    assert!(success && stdout.contains("\"stories\""), "{stdout}{said}");
}

#[test]
fn what_is_wrong_with_a_folder_is_said_with_its_place() {
    let home = home();
    let fails = |model: &str| {
        let (success, _, said) = lutite(home.path(), &["run", "-m", model, "-p", "x"]);
        assert!(!success);
        said
    };
    fs::create_dir(home.path().join("empty")).unwrap();
    assert!(
        fails("empty")
            .contains("empty has no config.json, so it is no folder of a model; name one with config.json")
    );
    fs::remove_file(home.path().join("stories/tokenizer.json")).unwrap();
    let said = fails("stories");
    assert!(
        said.contains("cannot read the model folder stories")
            && said.contains("tokenizer.json: is missing; save it"),
        "{said}"
    );
    fs::write(home.path().join("stories/tokenizer.json"), "").unwrap();
    assert!(fails("stories").contains("tokenizer.json: EOF while parsing"));
    let weights = home.path().join("stories/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    fs::copy(reference().join("stories260K/tokenizer.json"), home.path().join("stories/tokenizer.json"))
        .unwrap();
    assert!(fails("stories/model.safetensors").contains("is cut off or damaged, fetch it again"));
    assert!(!home.path().join(".cache/lutite/packed").exists());
}
