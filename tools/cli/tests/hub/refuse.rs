//! What a hub answers to names, and what is believed of it.

use super::*;

/// A hub whose answers to requests that contain `part` are these.
fn instead(part: &'static str, act: Act) -> (Hub, Home) {
    let plan = move |r: &Request, _: usize| if r.path.contains(part) { act.clone() } else { Act::Right };
    let hub = Hub::start(&[(FILE, &payload())], plan);
    let home = Home::at(&hub);
    (hub, home)
}

fn status(status: u16, code: &str) -> Act {
    Act::Answer(
        status,
        vec![("X-Error-Code", code.to_owned()), ("X-Error-Message", "no entry".to_owned())],
        vec![],
    )
}

#[test]
fn what_is_not_there() {
    let (_, home) = instead("/nowhere", Act::Right);
    holds(
        &fails(&mut home.pull("o/another-GUFF")),
        &["no repository o/another-GUFF", "did you mean o/another-GGUF?"],
    );
    holds(&fails(&mut home.pull("x/y")), &["no repository x/y at http://127.0.0.1"]);
    holds(&fails(&mut home.pull("o/r@mian")), &["no branch, tag or commit `mian`; did you mean main?"]);
    let message = fails(&mut home.pull("o/r:tiny-Q4_1.gguf"));
    holds(
        &message,
        &["no file and no quantization `tiny-Q4_1.gguf`", "o/r:tiny-Q4_0.gguf  0.2 MB", "did you mean"],
    );
    let (_, home) = instead("/cdn/", status(404, "EntryNotFound"));
    holds(&fails(&mut home.pull("o/r")), &["is in the listing, but is not there"]);
    // A path that was mistyped is looked for nowhere else.
    let (hub, home) = instead("/nowhere", Act::Right);
    holds(
        &fails(&mut home.lutite(&["run", "-m", "models/x.gguf", "-p", "x"])),
        &["no model file models/x.gguf"],
    );
    assert!(hub.requests().is_empty());
}

#[test]
fn what_is_not_allowed() {
    let (_, home) = instead("/api/", status(401, "RepoNotFound"));
    holds(&fails(&mut home.pull("o/r")), &["spelled right", "private or gated", "set HF_TOKEN"]);
    let message = fails(home.pull("o/r").env("HF_TOKEN", "hf_x"));
    assert!(message.contains("check that it is valid") && !message.contains("hf_x"), "{message}");
    let (hub, home) = instead("/api/", status(403, "GatedRepo"));
    holds(
        &fails(&mut home.pull("o/r")),
        &["o/r is gated: accept its licence on", &format!("{}/o/r", hub.address)],
    );
    let (_, home) = instead("/resolve/", status(403, "GatedRepo"));
    let message = fails(&mut home.pull("o/r"));
    holds(&message, &["answered 403 (no entry): tiny-Q4_0.gguf is private or gated", "set HF_TOKEN"]);
}

#[test]
fn listings_that_are_none() {
    let text = |text: &str| Act::Answer(200, vec![], text.as_bytes().to_vec());
    for (part, act, says) in [
        ("/revision/", text("<html>login</html>"), "is not what a hub gives"),
        ("/revision/", text("{\"sha\":\"../../..\"}"), "as the commit of o/r, which is none"),
        ("/tree/", text("{}"), "is not what a hub gives"),
        (
            "/tree/",
            text("[{\"type\":\"file\",\"path\":\"x.gguf\",\"size\":9,\"oid\":\"../x\"}]"),
            "as the hash of x.gguf",
        ),
        ("/tree/", text("[{\"type\":\"file\",\"path\":\"x.gguf\",\"size\":-9}]"), "is not what a hub gives"),
        ("/tree/", text("[]"), "no model that can be run"),
        ("/tree/", Act::Answer(200, vec![], vec![b'['; 17 << 20]), "more than 16777216 bytes"),
        ("/tree/", Act::Header("Link", "<http://127.0.0.1:1/x>; rel=\"next\"".into()), "at another place"),
    ] {
        let (_, home) = instead(part, act);
        holds(&fails(&mut home.pull("o/r")), &[says]);
        assert!(!home.repo().exists());
    }
    // Pages without an end.
    let (hub, home) = {
        let hub = Hub::start(&[("a", b"a"), ("b", b"b"), (FILE, &payload())], |r, _| {
            match r.path.contains("/tree/") {
                true => {
                    Act::Header("Link", format!("<http://{}{}>; rel=\"next\"", r.headers["host"], r.path))
                }
                false => Act::Right,
            }
        });
        let home = Home::at(&hub);
        (hub, home)
    };
    holds(&fails(&mut home.pull("o/r")), &["has no end"]);
    assert!(hub.requests().len() < 300);
}

#[test]
fn names_that_lead_elsewhere() {
    let evil: &[&str] = &[
        "../../../evil.gguf",
        "/tmp/evil.gguf",
        "a\\..\\evil.gguf",
        "a/../evil.gguf",
        "c:evil.gguf",
        "a\\u0000.gguf",
    ];
    let entries: Vec<String> = evil
        .iter()
        .map(|path| {
            let entry = server::entry("PATH", &payload());
            entry.replace(
                "PATH",
                &if path.contains("\\u") { (*path).to_owned() } else { path.replace('\\', "\\\\") },
            )
        })
        .collect();
    let (hub, home) =
        instead("/tree/", Act::Answer(200, vec![], format!("[{}]", entries.join(",")).into_bytes()));
    let message = fails(&mut home.pull("o/r"));
    holds(&message, &["left out: 6 files whose names lead elsewhere", "no model that can be run"]);
    assert!(hub.downloads().is_empty() && !home.repo().exists());
    let (code, _, stderr) = said(&mut home.pull("o/r:../../evil.gguf"));
    assert!(code == Some(1) && stderr.contains("no model file"), "{stderr}");
}

#[test]
fn no_network() {
    let (_, home) = hub_that(|_| Act::Right);
    let alone = Home { endpoint: "http://127.0.0.1:9".into(), dir: tempfile::tempdir().unwrap() };
    let start = std::time::Instant::now();
    holds(&fails(&mut alone.pull("o/r")), &["127.0.0.1:9: ", "check the network"]);
    assert!(start.elapsed() < std::time::Duration::from_secs(5));
    let offline = fails(alone.pull("o/r").env("HF_HUB_OFFLINE", "1"));
    holds(&offline, &["o/r is not in ", "HF_HUB_OFFLINE forbids"]);
    // With a copy, that is taken.
    home.pulls();
    let home = Home { endpoint: "http://127.0.0.1:9".into(), ..home };
    holds(&home.pulls(), &["taking the copy that is here"]);
    // A server that speaks no TLS.
    let (hub, _) = hub_that(|_| Act::Right);
    let https = hub.address.replace("http://", "https://");
    holds(&fails(alone.pull("o/r").env("HF_ENDPOINT", https)), &["127.0.0.1"]);
    // A name that nobody has (RFC 6761), and so no wait either.
    let message = fails(alone.pull("o/r").env("HF_ENDPOINT", "http://hub.invalid"));
    assert!(message.contains("hub.invalid: ") && !message.contains("trying again"), "{message}");
}

#[test]
fn what_cannot_be_chosen() {
    let hub = Hub::good(&[("a.gguf", &payload()), ("b.gguf", &payload()), ("mmproj-a.gguf", b"x")]);
    let message = fails(&mut Home::at(&hub).pull("o/r"));
    holds(&message, &["several GGUF files", "o/r:a.gguf  0.2 MB", "o/r:b.gguf"]);
    assert!(!message.contains("mmproj"));
    let hub =
        Hub::good(&[("m-Q8_0-00001-of-00002.gguf", &payload()), ("m-Q8_0-00002-of-00002.gguf", &payload())]);
    holds(&fails(&mut Home::at(&hub).pull("o/r:Q8_0")), &["split into 2 files, which are not read yet"]);
    assert!(hub.downloads().is_empty());
}

#[test]
fn a_folder_of_safetensors() {
    let files: &[(&str, &[u8])] = &[
        ("config.json", b"{}"),
        ("consolidated.safetensors", b"no"),
        ("model-00001-of-00002.safetensors", &payload()),
        ("model-00002-of-00002.safetensors", &payload()[1..]),
        ("model.safetensors.index.json", b"{\"weight_map\":{}}"),
        ("original/model.safetensors", b"no"),
        ("pytorch_model.bin", b"no"),
        ("special_tokens_map.json", b""),
        ("tokenizer.json", b"{\"a\":1}"),
    ];
    let plan = |r: &Request, n: usize| match r.is_for("00002.safetensors") && r.elsewhere && n == 0 {
        true => Act::Cut(100),
        false => Act::Right,
    };
    let hub = Hub::start(files, plan);
    let home = Home::at(&hub);
    let (path, stderr) = works(&mut home.pull("o/r"));
    assert_eq!(Path::new(path.trim()), home.repo().join("snapshots").join(COMMIT));
    holds(&stderr, &["safetensors, 6 files", "(6 of 6)"]);
    let mut names: Vec<String> =
        fs::read_dir(path.trim()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected: Vec<&str> = [0, 2, 3, 4, 7, 8].map(|i| files[i].0).to_vec();
    assert_eq!(names, expected);
    assert_eq!(fs::read(home.blob(&git_sha1(b""))).unwrap(), b"");
    works(home.pull("o/r").env("HF_HUB_OFFLINE", "1"));
    // A part that is missing makes it incomplete.
    fs::remove_file(home.pointer("model-00002-of-00002.safetensors")).unwrap();
    fails(home.pull("o/r").env("HF_HUB_OFFLINE", "1"));
    works(&mut home.pull("o/r"));
}
