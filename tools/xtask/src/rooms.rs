//! What may stand in which room: `unsafe`, files and threads, other languages, long files.

use crate::tree::File;

/// The rooms of `unsafe`. In test targets a counting allocator is allowed besides.
const UNSAFE_ROOMS: [&str; 5] =
    ["kernels/src/arch/", "kernels/src/mem.rs", "runtime/src/os/", "targets/capi/", "tools/fuzz/"];
/// What a room does not know, by the words that would show it.
const STRANGERS: [(&str, &[&str]); 3] = [
    ("kernels/src/", &["std::fs", "std::thread", "std::net", "std::process"]),
    ("models/src/", &["std::net", "std::process"]),
    ("runtime/src/", &["std::process::Command"]),
];
/// Where everything but tests is Rust: what runs when a model runs.
const RUST_ONLY: [&str; 6] =
    ["kernels/", "runtime/", "models/", "tools/cli/", "tools/quant/", "tools/serve/"];
const OTHER_LANGUAGES: [&str; 9] = ["py", "c", "cc", "cpp", "cxx", "h", "hpp", "cu", "s"];
const MAX_LINES: usize = 600;
/// Lines at a file's head among which the reason for its length has to stand.
const HEAD_LINES: usize = 10;
const MAX_README_LINES: usize = 149;

/// One line for each fault.
pub(crate) fn check(files: &[File]) -> Vec<String> {
    let mut faults = Vec::new();
    for File { path, text } in files {
        let ending = path.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
        let rust_only = RUST_ONLY.iter().any(|room| path.starts_with(room)) && !path.contains("/tests/");
        if rust_only && OTHER_LANGUAGES.contains(&ending.as_str()) {
            faults.push(format!("{path}: what runs a model is Rust only"));
        }
        let lines = text.lines().count();
        if path == "README.md" && lines > MAX_README_LINES {
            faults.push(format!("{path}: {lines} lines; at most {MAX_README_LINES}"));
        }
        if ending != "rs" {
            continue;
        }
        if lines > MAX_LINES && !text.lines().take(HEAD_LINES).any(|l| l.starts_with("// LONG:")) {
            faults.push(format!(
                "{path}: {lines} lines, more than {MAX_LINES}; split it, or say why with `// LONG:` at its head"
            ));
        }
        for (number, line) in text.lines().enumerate() {
            let code = code(line);
            if has_word(&code, "unsafe") && !may_be_unsafe(path, text) {
                let rooms = UNSAFE_ROOMS.join(", ");
                faults.push(format!("{path}:{}: unsafe outside of its rooms ({rooms})", number + 1));
            }
            for (room, words) in STRANGERS {
                for word in words.iter().filter(|w| path.starts_with(room) && code.contains(**w)) {
                    faults.push(format!("{path}:{}: {word} does not belong into {room}", number + 1));
                }
            }
        }
    }
    faults
}

fn may_be_unsafe(path: &str, text: &str) -> bool {
    let test = path.split('/').rev().skip(1).any(|folder| folder == "tests" || folder == "benches");
    UNSAFE_ROOMS.iter().any(|room| path.starts_with(room)) || (test && text.contains("impl GlobalAlloc for"))
}

/// A line without its comment and the insides of its strings. Strings of several lines are taken for code, so that a
/// fault may be seen where there is none, not the other way round.
fn code(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars().peekable();
    let mut in_string = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => {
                chars.next();
            }
            // A quote as a character literal opens nothing.
            '\'' if !in_string && chars.peek() == Some(&'"') => {
                chars.next();
            }
            '"' => in_string = !in_string,
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            c if !in_string => out.push(c),
            _ => {}
        }
    }
    // An odd number of quotes: part of a string of several lines, whose inside cannot be told from code.
    if in_string { line.to_owned() } else { out }
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(path: &str, text: &str) -> Vec<String> {
        check(&[File { path: path.to_owned(), text: text.to_owned() }])
    }

    #[test]
    fn unsafe_stays_in_its_rooms() {
        let block = "fn f() {\n    unsafe { g() }\n}\n";
        for path in ["kernels/src/arch/x86_64/avx2.rs", "kernels/src/mem.rs", "runtime/src/os/map.rs"] {
            assert_eq!(faults(path, block), [""; 0]);
        }
        for path in ["kernels/src/lut/gemv.rs", "runtime/src/pool.rs", "runtime/tests/pool.rs"] {
            assert_eq!(faults(path, block).len(), 1, "{path}");
            assert!(faults(path, block)[0].starts_with(&format!("{path}:2:")));
        }
        assert_eq!(faults("models/src/lib.rs", "#[unsafe(no_mangle)] extern fn f() {}").len(), 1);
        let counting = "unsafe impl GlobalAlloc for Counting {}";
        assert_eq!(faults("runtime/tests/pool_alloc.rs", counting), [""; 0]);
        assert_eq!(faults("runtime/src/pool.rs", counting).len(), 1);
    }

    #[test]
    fn words_that_are_no_code() {
        for text in [
            "// unsafe { }",
            "#![forbid(unsafe_code)]",
            "let x = \"unsafe { }\";",
            "let quote = '\"'; // unsafe",
            "let x = \"a \\\" unsafe\";",
            "/// see `std::fs`",
        ] {
            assert_eq!(faults("kernels/src/a.rs", text), [""; 0], "{text}");
        }
        // Behind a string there is code again.
        assert_eq!(faults("kernels/src/a.rs", "f(\"// \"); unsafe { g() }").len(), 1);
        assert_eq!(faults("kernels/src/a.rs", "let q = '\"'; unsafe { g() }").len(), 1);
    }

    #[test]
    fn strangers() {
        assert_eq!(faults("kernels/src/a.rs", "use std::fs::File;").len(), 1);
        assert_eq!(faults("kernels/tests/a.rs", "use std::fs::File;"), [""; 0]);
        assert_eq!(faults("models/src/a.rs", "std::net::TcpStream::connect(a)").len(), 1);
    }

    #[test]
    fn length_and_language() {
        let long = "fn f() {}\n".repeat(MAX_LINES + 1);
        assert_eq!(faults("tools/a.rs", &long).len(), 1);
        assert_eq!(faults("tools/a.rs", &format!("// LONG: one table.\n{long}")), [""; 0]);
        assert_eq!(faults("tools/a.rs", &long[10..]), [""; 0]);
        assert_eq!(faults("README.md", &"a\n".repeat(150)).len(), 1);
        assert_eq!(faults("README.md", &"a\n".repeat(149)), [""; 0]);
        assert_eq!(faults("runtime/src/fast.cpp", "").len(), 1);
        assert_eq!(faults("tools/make-vectors.py", ""), [""; 0]);
    }
}
