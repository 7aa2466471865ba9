//! `quantize` with text, as a person runs it and as a system kills it, on a model of 260 thousand weights.

mod common;

use common::{Home, stories};
use std::fs;
use std::time::Duration;

/// With a text of some thousand tokens, `@text`.
fn home() -> Home {
    let home = Home::new();
    home.write("text", stories());
    home
}

#[test]
fn killed_again_and_again_it_ends_with_the_same_bytes() {
    let home = home();
    let line = "quantize MODEL --bits 2 --group 32 --calib @text --calib-tokens 2048 --no-measure -t 2 -o";
    let (_, said) = home.fine(&format!("{line} @whole.gguf"));
    assert!(said.contains("q2-g32-hlq8-cd"), "{said}");
    assert!(!home.path("whole.gguf.work").exists());
    let whole = fs::read(home.path("whole.gguf")).unwrap();

    let (mut kills, mut resumed) = (0, false);
    for wait in (20..).step_by(15) {
        let mut child = home.start(&format!("{line} @killed.gguf"));
        std::thread::sleep(Duration::from_millis(wait));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        let out = child.wait_with_output().unwrap();
        resumed |= String::from_utf8_lossy(&out.stderr).contains("going on behind");
        if out.status.success() {
            break;
        }
        assert_eq!(out.status.code(), None, "{}", String::from_utf8_lossy(&out.stderr));
    }
    assert!(kills > 3 && resumed, "{kills} {resumed}");
    assert_eq!(fs::read(home.path("killed.gguf")).unwrap(), whole);
    assert!(!home.path("killed.gguf.work").exists());
}

#[test]
fn without_a_text_the_model_writes_one() {
    let home = home();
    let line = "quantize MODEL --bits 3 --group 32 --calib-tokens 1000 --no-measure";
    let (_, said) = home.fine(&format!("{line} -o @a.gguf -t 1"));
    assert!(said.contains("q3-g32-hlq8-cd"), "{said}");
    home.fine(&format!("{line} -o @b.gguf -t 3"));
    assert_eq!(fs::read(home.path("a.gguf")).unwrap(), fs::read(home.path("b.gguf")).unwrap());
    // It is a model like any other.
    let (_, said) = home.fine("run -m @a.gguf -p Once --chat-template none -n 8 -t 2");
    assert!(said.contains("q3-g32-hlq8-cd"), "{said}");
    // From 4 bits on, and where it is asked for, weights alone decide.
    for how in ["--bits 4", "--bits 3 --method als"] {
        let (_, said) = home.fine(&format!("quantize MODEL {how} --group 32 --no-measure -o @c.gguf"));
        assert!(said.contains("hlq8:") && !said.contains("-cd"), "{said}");
    }
}

#[test]
fn a_file_has_the_size_that_was_asked_for() {
    let home = home();
    let line = "quantize MODEL --group 32 --calib-tokens 4096 -t 1";
    let mut last = f64::INFINITY;
    for size in [180_000, 260_000] {
        let (_, said) = home.fine(&format!("{line} --target-size {size} -o @{size}.gguf"));
        let found = fs::metadata(home.path(&format!("{size}.gguf"))).unwrap().len();
        assert!(found <= size && found > size - 30_000, "{found} for {size}");
        let after = |words: &str| -> f64 {
            let at = said.find(words).unwrap_or_else(|| panic!("{words}: {said}")) + words.len();
            said[at..].split_whitespace().next().unwrap().trim_end_matches(',').parse().unwrap()
        };
        let (predicted, measured) = (after("predicted KL "), after("-cd: KL "));
        assert!(measured < 3.0 * predicted && predicted < last, "{size}: {measured} for {predicted}");
        last = predicted;
    }
    let (_, said) = home.fine(&format!("{line} --target-bpw 4.5 --calib @text -o @bits.gguf --no-measure"));
    assert!(said.contains(", 4.4") && said.contains(" bits per weight"), "{said}");
    for (flags, code, why) in [
        ("--target-size 20K", 1, "cannot become as small: the file would have"),
        ("--target-bpw 1", 1, "bits per weight are the least"),
        ("--target-size much", 2, "a number of bytes such as 60M"),
        ("--target-bpw 99", 2, "a number of bits such as 2.5"),
        ("--target-size 1M --bits 2", 2, "cannot be used with"),
        ("--target-size 1M --target-bpw 3", 2, "cannot be used with"),
        ("--target-size 1M --method als", 1, "leave --method als and --imatrix out"),
    ] {
        home.fails(&format!("{line} {flags} -o @x.gguf"), code, why);
        assert!(!home.path("x.gguf").exists(), "{flags}");
    }
}

#[test]
fn what_is_much_worse_than_predicted_is_refused() {
    let home = home();
    // One short story again and again: what it leaves open is lost.
    let line =
        "quantize MODEL --group 32 -t 2 --target-size 150K --calib @text --calib-tokens 2048 -o @x.gguf";
    home.fails(line, 1, "was predicted; --keep keeps it");
    assert!(!home.path("x.gguf").exists());
    // What is fitted is not fitted again.
    let (_, said) = home.fine(&format!("{line} --keep"));
    assert!(said.contains("going on behind 6 finished layers") && home.path("x.gguf").exists(), "{said}");
    assert!(!home.path("x.gguf.work").exists());
}

#[test]
fn what_cannot_be_calibrated_with_is_said() {
    let home = home();
    home.write("short", "Once upon a time");
    home.write("bytes", [0xff, 0xfe, 0x00]);
    fs::create_dir(home.path("taken.gguf.work")).unwrap();
    home.write("taken.gguf.work/letter", "dear");
    for (flags, why) in [
        ("--calib @none -o @x.gguf", "cannot read the text"),
        ("--calib @bytes -o @x.gguf", "cannot read the text"),
        ("--calib @short -o @x.gguf", "calibrate with more text"),
        ("--calib @text -o @taken.gguf", "nothing that a calibration left"),
        ("--calib @text -o @x.gguf --work @short", "work folder"),
        ("--calib @text -o @x.gguf --method als", "does not read a text"),
    ] {
        home.fails(&format!("quantize MODEL --bits 2 --group 32 --no-measure {flags}"), 1, why);
        assert!(!home.path("x.gguf").exists(), "{flags}");
    }
    let (_, said) = home.fine(
        "quantize MODEL --bits 2 --group 32 --calib @text --calib-tokens 99999 --no-measure -o @y.gguf",
    );
    assert!(said.contains("tokens only; 99999 were asked for"), "{said}");
}
