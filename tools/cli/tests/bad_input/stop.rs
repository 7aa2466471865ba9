//! Ctrl-C, killed processes, readers that go away, and two at once.

use super::*;
use std::io::Read;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A process with its streams piped.
pub(super) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// One that runs the large model.
    fn start(here: &Here, more: &[&str]) -> Running {
        Running::of(&mut here.run("large.gguf", more))
    }

    pub(super) fn of(command: &mut Command) -> Running {
        Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    pub(super) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.0.id());
        assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for a file whose name has `part` in it.
    pub(super) fn wait_for(&mut self, folder: &Path, part: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while !listed(folder).iter().any(|n| n.contains(part)) {
            assert!(
                Instant::now() < end && self.0.try_wait().unwrap().is_none(),
                "no {part} in time, {:?}",
                self.0.try_wait()
            );
            sleep(Duration::from_millis(1));
        }
    }

    /// Exit code and the rest of stdout and stderr.
    pub(super) fn end(&mut self) -> Said {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        self.0.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        self.0.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
        (self.0.wait().unwrap().code(), text(stdout), text(stderr))
    }
}

#[test]
fn while_packing() {
    let here = Here::new();
    here.write("large.gguf", &large());
    let cache = here.cache();
    let packing = || {
        let mut running = Running::start(&here, &["-t", "1"]);
        running.wait_for(&cache, ".part-");
        running
    };

    // Ctrl-C: nothing is left.
    let mut first = packing();
    first.signal("INT");
    let (code, stdout, stderr) = first.end();
    assert_eq!((code, stdout.as_str()), (Some(130), ""), "{stderr}");
    assert!(stderr.contains("stopping; Ctrl-C again quits at once") && !stderr.contains("error"), "{stderr}");
    assert_eq!(here.cached(), [""; 0]);

    // Killed: the temporary name is left, and the next one that packs removes it.
    let mut second = packing();
    second.signal("KILL");
    assert_eq!(second.end().0, None);
    let left = here.cached();
    assert!(left.len() == 1 && left[0].contains(".part-"), "{left:?}");

    // Two at once: one packs, the other waits and takes the result.
    let mut third = Running::start(&here, &["-t", "1"]);
    let mut fourth = Running::start(&here, &["-t", "1"]);
    let (third, fourth) = (third.end(), fourth.end());
    for (code, _, stderr) in [&third, &fourth] {
        assert_eq!(*code, Some(0), "{stderr}");
    }
    assert_eq!(third.1, fourth.1);
    // How often it is said depends on how long it takes.
    let packed = [third.2, fourth.2].map(|said| said.contains("packing large.gguf:"));
    assert!(packed[0] != packed[1], "{packed:?}");
    let left = here.cached();
    assert!(left.len() == 2 && left.iter().all(|n| !n.contains(".part-")), "{left:?}");
}

#[test]
fn while_reading_and_answering() {
    let here = Here::new();
    here.write("large.gguf", &large());
    answers(&mut here.run("large.gguf", &[]));
    let long = "the cat and the dog ".repeat(250);

    // The prompt: no answer yet.
    let mut reading = Running::start(&here, &["-c", "8192", "-p", &long]);
    sleep(Duration::from_millis(700));
    reading.signal("INT");
    let (code, stdout, stderr) = reading.end();
    assert_eq!((code, stdout.trim()), (Some(130), ""), "{stderr}");

    // Twice: at once, in the midst of a step that takes long.
    let mut step = Running::start(&here, &["-c", "8192", "-b", "8192", "-p", &long]);
    sleep(Duration::from_millis(700));
    step.signal("INT");
    sleep(Duration::from_millis(100));
    let second = Instant::now();
    if step.0.try_wait().unwrap().is_none() {
        step.signal("INT");
    }
    let (code, stdout, stderr) = step.end();
    assert_eq!((code, stdout.trim()), (Some(130), ""), "{stderr}");
    assert!(second.elapsed() < Duration::from_secs(1), "took {:?}", second.elapsed());

    // The answer: what there is of it has been printed.
    let mut answering = Running::start(&here, &["-n", "-1"]);
    let mut start = [0; 20];
    answering.0.stdout.as_mut().unwrap().read_exact(&mut start).unwrap();
    answering.signal("INT");
    let (code, rest, stderr) = answering.end();
    assert_eq!(code, Some(130), "{stderr}");
    assert!(rest.ends_with('\n') && stderr.contains("; stopped"), "{rest:?} {stderr}");

    // A reader that goes away.
    let mut unread = Running::start(&here, &["-n", "-1"]);
    unread.0.stdout.as_mut().unwrap().read_exact(&mut start).unwrap();
    drop(unread.0.stdout.take());
    let mut stderr = String::new();
    unread.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(unread.0.wait().unwrap().code(), Some(0), "{stderr}");
    assert!(!stderr.contains("error"), "{stderr}");
}
