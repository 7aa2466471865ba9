//! The verbs that look and measure, on the real binary and the small models of the repository.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn model(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/tests/data/reference").join(name);
    path.to_str().unwrap().to_owned()
}

/// Runs the binary with `home` as its home; gives its exit code, stdout and stderr.
fn lutite(home: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lutite"));
    let command = command.args(args).env_clear().env("HOME", home).stdin(Stdio::null());
    let out = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

fn json(home: &Path, args: &[&str]) -> Value {
    let (code, stdout, stderr) = lutite(home, args);
    assert_eq!(code, Some(0), "{args:?}: {stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {stdout}"))
}

/// The keys that `docs` and scripts rely on, all with numbers above zero.
fn check_row(row: &Value, test: &str, threads: u64, samples: usize) {
    assert_eq!((row["test"].as_str(), row["threads"].as_u64()), (Some(test), Some(threads)), "{row}");
    assert_eq!(row["samples"].as_array().unwrap().len(), samples, "{row}");
    assert!(row["samples"].as_array().unwrap().iter().all(|s| s.as_f64().unwrap() > 0.0), "{row}");
    let mut numbers = vec![
        "tokens_per_second",
        "bytes_per_token",
        "read_bandwidth_gb_s",
        "bandwidth_fraction",
        "bits_per_weight",
    ];
    if cfg!(target_os = "linux") {
        numbers.push("peak_rss_bytes");
    }
    for key in numbers {
        assert!(row[key].as_f64().unwrap_or(0.0) > 0.0, "{key}: {row}");
    }
    assert!(row["kernel"].as_str().unwrap().contains("head"), "{row}");
}

#[test]
fn bench_in_json_has_every_repetition() {
    let home = tempfile::tempdir().unwrap();
    let model = model("llama.gguf");
    let args = ["bench", &model, "--no-cache", "-p", "16,40", "-n", "4", "-r", "3", "-t", "1,2", "-b", "16"];
    let rows = json(home.path(), &[&args[..], &["-o", "json"]].concat());
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 6);
    for (i, row) in rows.iter().enumerate() {
        check_row(row, ["pp16", "pp40", "tg4"][i % 3], 1 + i as u64 / 3, 3);
    }
    // 40 tokens in batches of 16 are three readings of the weights, 16 are one.
    let bytes = |i: usize| rows[i]["bytes_per_token"].as_f64().unwrap();
    assert!(bytes(2) > bytes(1) && bytes(1) > bytes(0), "{rows:?}");
}

/// What is measured is behind the tokens of `-d`, and reads their keys and values.
#[test]
fn bench_fills_the_cache_before_a_test() {
    let home = tempfile::tempdir().unwrap();
    let model = model("llama.gguf");
    let args = ["bench", &model, "--no-cache", "-p", "8", "-n", "4", "-d", "0,32", "-r", "2", "-t", "1"];
    let rows = json(home.path(), &[&args[..], &["-o", "json"]].concat());
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 4);
    for (row, test) in rows.iter().zip(["pp8", "tg4", "pp8 @ d32", "tg4 @ d32"]) {
        check_row(row, test, 1, 2);
    }
    // Steps of an answer read 1, 2, 3 and 4 positions, or 33 to 36.
    let kv = |i: usize| rows[i]["kv_bytes_per_token"].as_f64().unwrap();
    assert!((kv(3) / kv(1) - 34.5 / 2.5).abs() < 1e-9, "{rows:?}");
    let all = |i: usize| rows[i]["bytes_per_token"].as_f64().unwrap();
    assert!((all(3) - kv(3) - all(1) + kv(1)).abs() < 1e-6, "the weights are the same: {rows:?}");
    let args = ["bench", &model, "--no-cache", "-p", "0", "-n", "1", "-d", "4000000000"];
    let (code, _, stderr) = lutite(home.path(), &args);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("not enough memory: a context of 4000000001"), "{stderr}");
}

#[test]
fn bench_prints_tables() {
    let home = tempfile::tempdir().unwrap();
    let model = model("stories260K-f32.gguf");
    let args = ["bench", &model, "--no-cache", "-p", "0", "-n", "2", "-r", "1", "-t", "1"];
    let (code, stdout, stderr) = lutite(home.path(), &args);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stdout.lines().count() == 3 && stdout.starts_with("| model") && stdout.contains("tg2"),
        "{stdout}"
    );
    let (_, stdout, _) = lutite(home.path(), &[&args[..], &["-o", "csv"]].concat());
    assert!(stdout.lines().count() == 2 && stdout.starts_with("model,"), "{stdout}");
    let (code, stdout, stderr) = lutite(home.path(), &["bench", &model, "-p", "0", "-n", "0"]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("nothing to measure"), "{stderr}");
}

#[test]
fn bench_makes_a_model_where_there_is_none() {
    let home = tempfile::tempdir().unwrap();
    let args = ["bench", "--synthetic", "smollm2", "-p", "0", "-n", "3", "-r", "2", "-t", "2", "-o", "json"];
    let rows = json(home.path(), &args);
    check_row(&rows[0], "tg3", 2, 2);
    // Q4_1 for the body and Q8_0 for the head, as in the file that is pulled.
    let bits = rows[0]["bits_per_weight"].as_f64().unwrap();
    assert!((5.73..5.74).contains(&bits), "{bits}");
    let rows = json(home.path(), &[&args[..], &["--bits", "2", "--group", "64"]].concat());
    assert_eq!(rows[0]["bits_per_weight"].as_f64(), Some(2.0 + 3.0 * 16.0 / 64.0));
    assert!(std::fs::read_dir(home.path()).unwrap().next().is_none(), "it leaves nothing behind");
}

#[test]
fn inspect_says_the_same_of_a_source_and_its_packed_form() {
    let home = tempfile::tempdir().unwrap();
    let source = model("stories260K-f32.gguf");
    let (code, _, stderr) = lutite(home.path(), &["bench", &source, "-p", "0", "-n", "1", "-r", "1"]);
    assert_eq!(code, Some(0), "{stderr}");
    let packed = std::fs::read_dir(home.path().join(".cache/lutite/packed")).unwrap();
    let mut packed = packed.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "gguf"));
    let packed = packed.next().unwrap().to_str().unwrap().to_owned();

    let of_source = json(home.path(), &["inspect", &source, "--tensors", "--json"]);
    let of_packed = json(home.path(), &["inspect", &packed, "--tensors", "--json"]);
    assert!(of_source["packed"].is_null());
    assert_eq!(of_packed["packed"]["checksums"], true);
    assert!(of_packed["packed"]["layout"].as_str().unwrap().starts_with("p32-1 "), "{of_packed}");
    assert_eq!(of_packed["packed"]["source_xxh3"].as_str().unwrap().len(), 16);
    for key in ["architecture", "parameters", "model", "tokenizer", "chat_template"] {
        assert_eq!(of_source[key], of_packed[key], "{key}");
    }
    assert_eq!(of_source["model"]["layers"], 5);
    let tensors = |v: &Value| v["tensors"].as_array().unwrap().len();
    assert_eq!(tensors(&of_source), tensors(&of_packed));

    let (code, screen, _) = lutite(home.path(), &["inspect", &packed]);
    assert_eq!(code, Some(0));
    assert!(screen.lines().count() <= 24 && screen.contains("attention"), "{screen}");
}

#[test]
fn doctor_in_json_parses() {
    let home = tempfile::tempdir().unwrap();
    let report = json(home.path(), &["doctor", &model("llama.gguf"), "--json"]);
    let tiers = report["tier"]["tiers"].as_array().unwrap();
    let chosen = tiers.iter().find(|t| t["name"] == report["tier"]["name"]).unwrap();
    assert!(tiers[0]["name"] == "scalar" && chosen["lacks"].as_array().unwrap().is_empty(), "{report}");
    assert!(report["cores"]["default_workers"].as_u64().unwrap() > 0);
    assert!(report["read_bandwidth_gb_s"]["one_thread"].as_f64().unwrap() > 0.0);
    let reach = report["could_reach"].as_array().unwrap();
    assert!(reach[0]["model"].as_str().unwrap().ends_with("llama.gguf") && reach.len() == 3, "{report}");
    assert!(reach.iter().all(|r| r["tokens_per_second"].as_f64().unwrap() > 0.0), "{report}");
    let ahead = &report["asks_ahead_bytes"];
    let kept = std::fs::read(ahead["file"].as_str().unwrap()).unwrap();
    let kept: Value = serde_json::from_slice(&kept).unwrap();
    let of_machine = kept.as_object().unwrap().values().next().unwrap();
    assert!(ahead["planes"].as_u64().unwrap() >= 1024 && ahead["planes"] == of_machine["planes"], "{kept}");
    assert!(ahead["codes"].as_u64().unwrap() >= 1024 && ahead["codes"] == of_machine["codes"], "{kept}");
    assert!(report["slow"].is_array() && report["cache"]["folder"].is_string(), "{report}");
}

#[cfg(unix)]
#[test]
fn control_c_ends_a_benchmark() {
    use std::io::Read;
    let home = tempfile::tempdir().unwrap();
    let mut bench = Command::new(env!("CARGO_BIN_EXE_lutite"))
        .args(["bench", &model("llama.gguf"), "--no-cache", "-p", "0", "-n", "128", "-r", "1000000"])
        .env_clear()
        .env("HOME", home.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = bench.stderr.take().unwrap();
    let mut said = String::new();
    while !said.contains("tg128") {
        let mut buffer = [0; 256];
        let n = stderr.read(&mut buffer).unwrap();
        assert_ne!(n, 0, "{said}");
        said.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    let kill = format!("kill -INT {}", bench.id());
    assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
    assert_eq!(bench.wait().unwrap().code(), Some(130));
}
