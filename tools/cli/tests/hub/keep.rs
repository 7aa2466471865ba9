//! `list`, `rm`, `verify`, and running what was pulled.

use super::*;
use serde_json::Value;

/// A hub with a model of real words, in two quantizations by name.
fn models() -> (Hub, Home) {
    let tiny = edit::edit(&edit::reference("stories260K-f32.gguf"), &[], |t| edit::quantize(t));
    let other = edit::reference("stories260K-f32.gguf");
    let hub = Hub::good(&[("a-F32.gguf", &other), ("a-Q8_0.gguf", &tiny), ("config.json", b"{}")]);
    let home = Home::at(&hub);
    (hub, home)
}

fn list(home: &Home) -> Value {
    serde_json::from_str(&works(&mut home.lutite(&["list", "-o", "json"])).0).unwrap()
}

fn names(home: &Home) -> Vec<String> {
    let list = list(home);
    let all = list["models"].as_array().unwrap();
    all.iter().map(|m| format!("{} {}", m["kind"].as_str().unwrap(), m["name"].as_str().unwrap())).collect()
}

fn run(home: &Home, model: &[&str]) -> String {
    let mut command = home.lutite(&["run", "-p", "Once", "-n", "4", "--temp", "0", "-t", "1"]);
    works(command.args(model)).0
}

#[test]
fn a_model_of_the_hub_is_pulled_and_run_and_removed() {
    let (hub, home) = models();
    assert_eq!(names(&home), [""; 0]);
    let answer = run(&home, &["-hf", "o/r"]);
    assert!(!answer.trim().is_empty());
    let asked = hub.requests().len();
    // From now on nobody is asked, whatever it is called.
    for model in [&["-m", "o/r:q8_0"], &["-m", "hf.co/o/r:a-Q8_0.gguf"], &["--hf-repo", "o/r"]] {
        assert_eq!(run(&home, model), answer);
    }
    assert_eq!(hub.requests().len(), asked);
    let all = list(&home);
    let packed = &all["models"][1];
    assert_eq!(names(&home)[0], "hub o/r:a-Q8_0.gguf");
    assert_eq!(
        (&all["models"][0]["format"], &packed["format"]),
        (&Value::from("Q8_0"), &Value::from("exact"))
    );
    assert_eq!(packed["packed_from"], serde_json::json!(["o/r:a-Q8_0.gguf"]));
    let sizes: u64 = all["models"].as_array().unwrap().iter().map(|m| m["bytes"].as_u64().unwrap()).sum();
    assert_eq!(all["total_bytes"], sizes);
    let (table, _) = works(&mut home.lutite(&["ls"]));
    holds(&table, &["o/r:a-Q8_0.gguf", "packed from o/r:a-Q8_0.gguf", "2 models, ", "now"]);

    // The same bytes elsewhere keep what was packed of them.
    fs::copy(home.pointer("a-Q8_0.gguf"), home.path("copy.gguf")).unwrap();
    assert_eq!(run(&home, &["copy.gguf"]), answer);
    assert_eq!(list(&home)["models"][1]["packed_from"].as_array().unwrap().len(), 2);
    let (_, plan) = works(&mut home.lutite(&["rm", "o/r", "-n"]));
    assert!(!plan.contains("exact"), "{plan}");
    fs::remove_file(home.path("copy.gguf")).unwrap();

    // Nobody to ask, then a dry run, then in earnest.
    holds(&fails(&mut home.lutite(&["rm", "o/r"])), &["nobody to ask", "--yes"]);
    holds(&works(&mut home.lutite(&["rm", "o/r", "-n"])).1, &["would remove these and free"]);
    assert_eq!(names(&home).len(), 2);
    holds(&works(&mut home.lutite(&["rm", "--packed", "-y"])).1, &["exact", "freed"]);
    assert_eq!(names(&home), ["hub o/r:a-Q8_0.gguf"]);
    run(&home, &["-hf", "o/r"]);
    works(&mut home.lutite(&["rm", "o/r", "-y"]));
    assert_eq!(names(&home), [""; 0]);
    assert!(!home.repo().exists() && !home.path(".cache/huggingface/hub/.locks/models--o--r").exists());
    let left: Vec<_> = fs::read_dir(home.path(".cache/lutite/packed")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    holds(&fails(&mut home.lutite(&["rm", "o/r", "-y"])), &["o/r is not on this machine"]);
}

/// A repository of safetensors becomes a folder, which runs, packed under its sources' hash, and says what the same
/// weights say in GGUF.
#[test]
fn a_folder_of_the_hub_is_pulled_and_run_and_removed() {
    let files = ["config.json", "model.safetensors", "tokenizer.json"]
        .map(|name| (name, edit::reference(&format!("stories260K/{name}"))));
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
    let hub = Hub::good(&files);
    let home = Home::at(&hub);
    let answer = run(&home, &["-hf", "o/r"]);
    fs::write(home.path("twin.gguf"), edit::reference("stories260K-f32.gguf")).unwrap();
    assert_eq!(answer, run(&home, &["twin.gguf"]));
    assert_eq!(answer, run(&home, &["-m", "o/r"]));
    let all = list(&home);
    assert!(
        all["models"].as_array().unwrap().iter().any(|m| m["packed_from"] == serde_json::json!(["o/r"])),
        "{all}"
    );
    holds(&works(&mut home.lutite(&["verify"])).0, &["ok       o/r"]);
    works(&mut home.lutite(&["rm", "o/r", "-y"]));
    assert!(!names(&home).iter().any(|name| name.contains("o/r")), "{:?}", names(&home));
}

#[test]
fn blobs_stay_as_long_as_a_snapshot_has_them() {
    let (_, home) = models();
    works(&mut home.pull("o/r:Q8_0"));
    works(&mut home.pull("o/r:F32"));
    // Another commit, with one of the files and with a link that leads out.
    let other = "f".repeat(40);
    let snapshot = home.repo().join("snapshots").join(&other);
    fs::create_dir(&snapshot).unwrap();
    let blob = fs::read_link(home.pointer("a-Q8_0.gguf")).unwrap();
    std::os::unix::fs::symlink(&blob, snapshot.join("a-Q8_0.gguf")).unwrap();
    fs::write(home.path("precious"), b"abc").unwrap();
    std::os::unix::fs::symlink(home.path("precious"), snapshot.join("evil.gguf")).unwrap();
    assert_eq!(
        names(&home),
        [
            "hub o/r:a-F32.gguf".to_owned(),
            "hub o/r:a-Q8_0.gguf".to_owned(),
            format!("hub o/r:a-Q8_0.gguf@{other}"),
            format!("hub o/r:evil.gguf@{other}"),
        ]
    );
    let blobs = || fs::read_dir(home.repo().join("blobs")).unwrap().count();
    holds(&works(&mut home.lutite(&["rm", "-y", "o/r:q8_0"])).1, &["removed; 0 bytes freed"]);
    assert_eq!((blobs(), names(&home).len()), (2, 3));
    works(&mut home.lutite(&["rm", "-y", &format!("o/r:Q8_0@{other}")]));
    assert_eq!((blobs(), names(&home).len()), (1, 2));
    works(&mut home.lutite(&["rm", "-y", &format!("o/r:evil.gguf@{other}")]));
    assert_eq!(fs::read(home.path("precious")).unwrap(), b"abc");
    assert_eq!(names(&home), ["hub o/r:a-F32.gguf"]);
}

#[test]
fn an_unfinished_download_is_listed_and_removed() {
    let (_, home) = hub_that(|n| Act::Cut(if n == 0 { 100_000 } else { 0 }));
    fails(&mut home.pull("o/r"));
    let all = list(&home);
    assert_eq!(
        (&all["models"][0]["kind"], &all["total_bytes"]),
        (&Value::from("unfinished"), &Value::from(100_000))
    );
    works(&mut home.lutite(&["rm", "-y", "o/r"]));
    assert!(!home.repo().exists());
}

#[test]
fn damage_is_found_and_named() {
    let (_, home) = models();
    run(&home, &["-hf", "o/r"]);
    let (out, _) = works(&mut home.lutite(&["verify"]));
    holds(&out, &["ok       o/r:a-Q8_0.gguf  (sha256)", "(xxh3 of each tensor)"]);
    let plain = edit::reference("stories260K-f32.gguf");
    fs::write(home.path("plain.gguf"), &plain).unwrap();
    fs::write(home.path("cut.gguf"), &plain[..plain.len() / 2]).unwrap();
    holds(&works(&mut home.lutite(&["verify", "plain.gguf"])).0, &["structure only"]);
    let (code, out, stderr) = said(&mut home.lutite(&["verify", "plain.gguf", "cut.gguf"]));
    assert_eq!(code, Some(1));
    holds(&out, &["ok       plain.gguf", "damaged  cut.gguf: ", "get the file again"]);
    holds(&stderr, &["1 of 2 files damaged"]);

    // One bit in the blob, and one in the packed file.
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let at = bytes.len() - 100;
        bytes[at] ^= 4;
        fs::write(path, bytes).unwrap();
    };
    let pointer = home.pointer("a-Q8_0.gguf");
    flip(&fs::canonicalize(&pointer).unwrap());
    let packed = PathBuf::from(list(&home)["models"][1]["path"].as_str().unwrap());
    flip(&packed);
    for name in [
        "o/r",
        "o/r:Q8_0",
        pointer.to_str().unwrap(),
        home.repo().join("snapshots").join(COMMIT).to_str().unwrap(),
    ] {
        let (code, out, _) = said(&mut home.lutite(&["verify", name]));
        assert_eq!(code, Some(1), "{out}");
        holds(&out, &["damaged  ", " has sha256 "]);
    }
    let (code, out, stderr) = said(&mut home.lutite(&["verify"]));
    assert_eq!(code, Some(1));
    holds(
        &out,
        &["`lutite rm o/r:a-Q8_0.gguf`, then `lutite pull o/r:a-Q8_0.gguf`", "packed again when needed"],
    );
    holds(&stderr, &["2 of 2 files damaged"]);
    let (code, out, _) = said(&mut home.lutite(&["verify", packed.file_stem().unwrap().to_str().unwrap()]));
    assert_eq!(code, Some(1), "{out}");
    // As is said, so done.
    works(&mut home.lutite(&["rm", "-y", "o/r:a-Q8_0.gguf"]));
    works(&mut home.pull("o/r:a-Q8_0.gguf"));
    works(&mut home.lutite(&["verify"]));
}
