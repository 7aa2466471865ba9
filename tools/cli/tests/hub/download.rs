//! Bytes on their way.

use super::*;
use std::os::unix::fs::symlink;
use std::process::Child;
use std::time::{Duration, Instant};

#[test]
fn pulls_once_into_the_official_layout() {
    let (hub, home) = hub_that(|_| Act::Right);
    let stderr = home.pulls();
    holds(&stderr, &["o/r: tiny-Q4_0.gguf, 0.2 MB", "checksums right"]);
    let sha = sha256(&payload());
    assert_eq!(fs::read_link(home.pointer(FILE)).unwrap(), Path::new("../../blobs").join(&sha));
    assert_eq!(fs::read_to_string(home.repo().join("refs/main")).unwrap(), COMMIT);
    assert!(home.path(".cache/huggingface/hub/.locks/models--o--r").join(format!("{sha}.lock")).exists());

    holds(&home.pulls(), &["already here"]);
    assert_eq!(hub.downloads().len(), 1);
    // Offline nobody is asked.
    let asked = hub.requests().len();
    let (path, _) = works(home.pull("o/r:q4_0@main").env("HF_HUB_OFFLINE", "1"));
    assert_eq!((Path::new(path.trim()), hub.requests().len()), (home.pointer(FILE).as_path(), asked));
    // Another revision of the same commit is another name for it.
    works(&mut home.pull("hf.co/o/r@v1"));
    assert_eq!(hub.downloads().len(), 1);
    assert_eq!(fs::read_to_string(home.repo().join("refs/v1")).unwrap(), COMMIT);
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let (hub, home) = hub_that(|n| if n == 0 { Act::Cut(1000) } else { Act::Right });
    let (_, stderr) = works(home.pull("o/r").env("HF_TOKEN", "hf_secret"));
    assert!(!stderr.contains("hf_secret"));
    let (cdn, own): (Vec<_>, Vec<_>) = hub.requests().into_iter().partition(|r| r.elsewhere);
    assert!(cdn.len() == 2 && cdn.iter().all(|r| !r.headers.contains_key("authorization")), "{cdn:?}");
    let sent = |r: &Request| r.headers.get("authorization").map(String::as_str) == Some("Bearer hf_secret");
    assert!(own.len() >= 3 && own.iter().all(sent), "{own:?}");
    // From the file of the official client.
    let other = Home::at(&hub);
    fs::create_dir_all(other.path(".cache/huggingface")).unwrap();
    fs::write(other.path(".cache/huggingface/token"), "hf_file\n").unwrap();
    works(&mut other.pull("o/r"));
    assert!(
        hub.requests().iter().any(|r| r.headers.get("authorization").is_some_and(|a| a == "Bearer hf_file"))
    );
}

#[test]
fn dropped_connections_go_on_where_they_ended() {
    let cuts = [1, 70_000, 0, 33_333, 0, 0];
    let (hub, home) = hub_that(move |n| cuts.get(n).map_or(Act::Right, |cut| Act::Cut(*cut)));
    holds(&home.pulls(), &["closed too early; trying again in"]);
    let ranges: Vec<String> =
        hub.downloads().iter().map(|r| r.headers.get("range").cloned().unwrap_or_default()).collect();
    let at = |n: usize| format!("bytes={n}-");
    assert_eq!(ranges, ["".into(), at(1), at(70_001), at(70_001), at(103_334), at(103_334), at(103_334)]);
    // Only if it is still the same file.
    assert!(
        hub.downloads()[1..].iter().all(|r| r.headers["if-range"] == format!("\"{}\"", sha256(&payload())))
    );
    assert!(hub.downloads().iter().all(|r| r.headers["accept-encoding"] == "identity"));
}

#[test]
fn wherever_it_drops_the_bytes_are_right() {
    for seed in 1..=4_usize {
        let cut = move |n: usize| 1 + (seed * 7919 + n * 104_729) % 30_011;
        let (hub, home) = hub_that(move |n| if n < 9 { Act::Cut(cut(n)) } else { Act::Right });
        home.pulls();
        assert!(hub.downloads().len() > 5, "{:?}", hub.downloads());
    }
}

#[test]
fn a_connection_that_always_drops_is_given_up_and_what_came_is_kept() {
    let (hub, home) = hub_that(|n| Act::Cut(if n == 0 { 50_000 } else { 0 }));
    holds(
        &fails(&mut home.pull("o/r")),
        &["cannot fetch tiny-Q4_0.gguf", "goes on where this ended", "closed too early"],
    );
    assert_eq!((hub.downloads().len(), fs::metadata(home.incomplete()).unwrap().len()), (5, 50_000));
    // The next process takes it up.
    let again = Hub::good(&[(FILE, &payload())]);
    let home = Home { endpoint: again.address.clone(), ..home };
    holds(&home.pulls(), &["going on after 50000 bytes"]);
    assert_eq!(again.downloads()[0].headers["range"], "bytes=50000-");
}

#[test]
fn servers_without_parts_send_all_again() {
    let (_, home) = hub_that(|n| if n == 0 { Act::Cut(50_000) } else { Act::Whole });
    holds(&home.pulls(), &["starts from the beginning"]);
}

#[test]
fn a_part_that_is_another_is_dropped() {
    for range in ["bytes 0-239999/240000", "bytes 50001-239999/240000", "bytes 50000-239999/999", "bytes", ""]
    {
        let (hub, home) = hub_that(move |n| match n {
            0 => Act::Cut(50_000),
            1 => Act::Header("Content-Range", range.to_owned()),
            _ => Act::Right,
        });
        holds(&home.pulls(), &["asked for the bytes from 50000 of 240000"]);
        assert!(!hub.downloads()[2].headers.contains_key("range"));
    }
    let (_, home) = hub_that(|n| match n {
        0 => Act::Cut(50_000),
        1 => Act::Header("ETag", "\"other\"".to_owned()),
        _ => Act::Right,
    });
    holds(&home.pulls(), &["has changed on the server"]);
    let (_, home) = hub_that(|n| match n {
        0 => Act::Cut(50_000),
        1 => Act::Answer(416, vec![], vec![]),
        _ => Act::Right,
    });
    holds(&home.pulls(), &["no such part"]);
}

#[test]
fn a_file_that_changes_with_every_request_is_given_up() {
    let (hub, home) = hub_that(|n| match n {
        40.. => Act::Right,
        n if n % 2 == 0 => Act::Cut(1000),
        _ => Act::Header("ETag", "\"other\"".to_owned()),
    });
    holds(&fails(&mut home.pull("o/r")), &["cannot fetch tiny-Q4_0.gguf"]);
    assert!(hub.downloads().len() < 10, "{}", hub.downloads().len());
}

#[test]
fn lengths_that_are_not_so() {
    for len in ["239999", "240001", "99999999999999"] {
        let (hub, home) = hub_that(move |_| Act::Header("Content-Length", len.to_owned()));
        holds(&fails(&mut home.pull("o/r")), &[len, "not the 240000 of the listing"]);
        assert_eq!(hub.downloads().len(), 1);
    }
    // Without a length, more than the listing says.
    let (_, home) = hub_that(|_| {
        let mut bytes = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
        bytes.extend(payload());
        bytes.extend(payload());
        Act::Raw(bytes)
    });
    holds(&fails(&mut home.pull("o/r")), &["more than the 240000 bytes"]);
    assert!(fs::metadata(home.incomplete()).unwrap().len() == 0 && !home.pointer(FILE).exists());
}

#[test]
fn wrong_bytes_are_refused_and_removed() {
    let (hub, home) = hub_that(|_| {
        let mut bytes = payload();
        bytes[123_456] ^= 1;
        Act::Answer(200, vec![], bytes)
    });
    let message = fails(&mut home.pull("o/r"));
    holds(&message, &["wrong checksum: tiny-Q4_0.gguf", &sha256(&payload()), "what came was removed"]);
    assert!(
        !home.incomplete().exists()
            && !home.blob(&sha256(&payload())).exists()
            && !home.pointer(FILE).exists()
    );
    assert_eq!(hub.downloads().len(), 1);
}

#[test]
fn a_partial_file_that_does_not_fit_is_fetched_anew() {
    for left in [vec![7; 1000], vec![7; payload().len()], vec![7; payload().len() + 1]] {
        let (_, home) = hub_that(|_| Act::Right);
        fs::create_dir_all(home.repo().join("blobs")).unwrap();
        fs::write(home.incomplete(), &left).unwrap();
        let stderr = home.pulls();
        assert_eq!(
            stderr.contains("does not fit; fetching all of it"),
            left.len() <= payload().len(),
            "{stderr}"
        );
    }
}

#[test]
fn encodings() {
    let (_, home) = hub_that(|_| Act::Chunked);
    home.pulls();
    let (_, home) = hub_that(|_| Act::Header("Content-Encoding", "gzip".to_owned()));
    holds(&fails(&mut home.pull("o/r")), &["sent the encoding \"gzip\", which was not asked for"]);
}

#[test]
fn stalls_and_slow_heads_are_not_waited_for() {
    let (_, home) = hub_that(|n| if n == 0 { Act::Stall(100_000) } else { Act::Right });
    let (_, stderr) = works(home.pull("o/r").env("HF_HUB_DOWNLOAD_TIMEOUT", "0.2"));
    holds(&stderr, &["no byte for 0.2 s; trying again"]);
    for act in [Act::Stall(0), Act::Loris] {
        let (_, home) = hub_that(move |_| act.clone());
        let start = Instant::now();
        holds(&fails(home.pull("o/r").env("HF_HUB_DOWNLOAD_TIMEOUT", "0.1")), &["no byte for 0.1 s"]);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
    // Slow is not stalled: all of it takes longer than the limit.
    let (_, home) = hub_that(|_| Act::Slow(40_000));
    works(home.pull("o/r").env("HF_HUB_DOWNLOAD_TIMEOUT", "0.4"));
}

#[test]
fn busy_and_broken_servers_are_asked_again() {
    let busy = |n| match n {
        0 => Act::Answer(429, vec![("Retry-After", "0".to_owned())], vec![]),
        1 => Act::Answer(503, vec![], vec![]),
        2 => Act::Raw(b"garbage\r\n\r\n".to_vec()),
        _ => Act::Right,
    };
    let (_, home) = hub_that(busy);
    holds(&home.pulls(), &["answered 429; trying again in 0.0 s", "answered 503", "not an answer in HTTP"]);
    for (status, says) in [(429, "too many requests"), (500, "answered 500")] {
        let (hub, home) = hub_that(move |_| Act::Answer(status, vec![], vec![]));
        holds(&fails(&mut home.pull("o/r")), &[says]);
        assert_eq!(hub.downloads().len(), 5);
    }
    let (hub, home) = hub_that(|_| Act::Answer(429, vec![("Retry-After", "86400".to_owned())], vec![]));
    holds(&fails(&mut home.pull("o/r")), &["asks to wait for 86400 s"]);
    assert_eq!(hub.downloads().len(), 1);
    // The listing as well.
    let hub = Hub::start(&[(FILE, &payload())], |r, n| match r.path.contains("/tree/") && n == 0 {
        true => Act::Answer(502, vec![], vec![]),
        false => Act::Right,
    });
    Home::at(&hub).pulls();
}

#[test]
fn redirects_that_lead_astray() {
    for (to, says) in [
        ("/o/r/resolve/x/loop", "more than 10 redirects"),
        ("file:///etc/passwd", "no address"),
        ("//evil/x", "no address"),
        ("x", "no address"),
    ] {
        let hub = Hub::start(&[(FILE, &payload())], move |r, _| match r.path.contains("/resolve/") {
            true => Act::Answer(302, vec![("Location", to.to_owned())], vec![]),
            false => Act::Right,
        });
        holds(&fails(&mut Home::at(&hub).pull("o/r")), &[says]);
        assert!(hub.requests().len() < 15);
    }
    // A repository that was renamed redirects within the hub, with the token.
    let hub = Hub::start(&[(FILE, &payload())], |r, _| match r.path.strip_prefix("/api/models/old/name/") {
        Some(rest) => Act::Answer(307, vec![("Location", format!("/api/models/o/r/{rest}"))], vec![]),
        None if r.path.starts_with("/old/name/") => {
            Act::Answer(307, vec![("Location", r.path.replace("/old/name/", "/o/r/"))], vec![])
        }
        None => Act::Right,
    });
    works(Home::at(&hub).pull("old/name").env("HF_TOKEN", "hf_x"));
    assert!(hub.requests().iter().all(|r| r.elsewhere != r.headers.contains_key("authorization")));
}

/// A pull that runs, and ends with its value.
struct Running(Child);

impl Running {
    fn start(home: &Home) -> Running {
        Running(home.pull("o/r").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    fn end(mut self) -> Said {
        use std::io::Read;
        let (mut out, mut err) = (String::new(), String::new());
        self.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (self.0.wait().unwrap().code(), out, err)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn control_c_keeps_what_came() {
    let (hub, home) = hub_that(|n| if n == 0 { Act::Stall(100_000) } else { Act::Right });
    let pull = Running::start(&home);
    let end = Instant::now() + Duration::from_secs(60);
    while fs::metadata(home.incomplete()).map_or(0, |m| m.len()) < 100_000 {
        assert!(Instant::now() < end, "{:?}", hub.requests());
        std::thread::sleep(Duration::from_millis(5));
    }
    let signal = Instant::now();
    let kill = format!("kill -INT {}", pull.0.id());
    assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
    let (code, stdout, stderr) = pull.end();
    assert_eq!((code, stdout.as_str()), (Some(130), ""), "{stderr}");
    holds(
        &stderr,
        &["0.1 MB of the 0.2 MB of tiny-Q4_0.gguf are here and are kept; the same command goes on"],
    );
    // Although the server was waited for.
    assert!(signal.elapsed() < Duration::from_secs(4), "{:?}", signal.elapsed());
    holds(&home.pulls(), &["going on after 0.1 MB"]);
    assert_eq!(hub.downloads()[1].headers["range"], "bytes=100000-");
}

#[test]
fn two_at_once_download_once() {
    let (hub, home) = hub_that(|_| Act::Slow(60_000));
    let both = [Running::start(&home), Running::start(&home)].map(Running::end);
    assert!(both.iter().all(|(code, path, _)| *code == Some(0) && path.trim().ends_with(FILE)), "{both:?}");
    assert_eq!(hub.downloads().len(), 1, "{both:?}");
    holds(&(both[0].2.clone() + &both[1].2), &["another pull of tiny-Q4_0.gguf is running; waiting"]);
}

#[test]
fn no_room() {
    let (_, home) = hub_that(|_| Act::Right);
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -f 100; exec \"$0\" pull o/r", env!("CARGO_BIN_EXE_lutite")]);
    home.set(&mut limited);
    holds(&fails(&mut limited), &["there is no room in", "HF_HUB_CACHE", "goes on where this one ended"]);
    assert!(fs::metadata(home.incomplete()).unwrap().len() > 0);
    home.pulls();
    // What cannot fit is not begun.
    let hub = Hub::start(&[(FILE, &payload())], |r, _| match r.path.contains("/tree/") {
        true => {
            let entry = server::entry(FILE, &payload()).replace("240000", "4000000000000000000");
            Act::Answer(200, vec![], format!("[{entry}]").into_bytes())
        }
        false => Act::Right,
    });
    holds(&fails(&mut Home::at(&hub).pull("o/r")), &["o/r needs 4000000000000.0 MB, and", "are free in"]);
    assert!(hub.downloads().is_empty());
}

#[test]
fn caches_of_other_kinds() {
    let (_, home) = hub_that(|_| Act::Right);
    // Elsewhere, by a link.
    fs::create_dir_all(home.path("big/disk")).unwrap();
    symlink(home.path("big/disk"), home.path("link")).unwrap();
    let (path, _) = works(home.pull("o/r").env("HF_HUB_CACHE", home.path("link")));
    assert!(path.starts_with(home.path("link").to_str().unwrap()), "{path}");
    assert_eq!(fs::read(path.trim()).unwrap(), payload());
    // Without links in it.
    let mut command = home.pull("o/r");
    command.env("HF_HOME", home.path("plain")).env("HF_HUB_DISABLE_SYMLINKS", "1");
    let (path, _) = works(&mut command);
    assert!(fs::symlink_metadata(path.trim()).unwrap().is_file());
    assert_eq!(works(&mut command).0, path);
    assert_eq!(fs::read_dir(home.path("plain/hub/models--o--r/blobs")).unwrap().count(), 0);
    // None at all.
    fs::write(home.path("file"), b"").unwrap();
    let message = fails(home.pull("o/r").env("HF_HUB_CACHE", home.path("file")));
    holds(&message, &["cannot make the folder", "set HF_HUB_CACHE to one that can be written"]);
}
