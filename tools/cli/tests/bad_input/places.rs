//! Disks and folders that take no file.

use super::*;

/// A file system in memory, taken away in the end. `None`, loudly, where this user may not mount.
pub(super) struct Tmpfs(pub(super) PathBuf);

impl Tmpfs {
    pub(super) fn mount(at: PathBuf, options: &str) -> Option<Tmpfs> {
        std::fs::create_dir_all(&at).unwrap();
        let mut mount = Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "-o", options, "lutite-test"]).arg(&at).output();
        if done.is_ok_and(|o| o.status.success()) {
            return Some(Tmpfs(at));
        }
        eprintln!("SKIPPED: a file system of our own ({options}): mounting is not permitted here");
        None
    }

    fn remount(&self, options: &str) {
        let done = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0).status();
        assert!(done.unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk() {
    let here = Here::new();
    let Some(disk) = Tmpfs::mount(here.path("disk"), "size=64k") else { return };
    let run = |model: &str| {
        let mut command = here.run(model, &[]);
        command.env("LUTITE_HOME", &disk.0);
        command
    };
    let folder = disk.0.join("packed");
    let message = fails(&mut run("tiny.gguf"));
    holds(
        &message,
        &[
            "cannot keep the packed tiny.gguf; set LUTITE_HOME",
            "--no-cache",
            "no room for ",
            "-exact.gguf: it needs ",
            " bytes (No space left on device",
        ],
    );
    assert_eq!(listed(&folder), [""; 0], "left behind");
    answers(run("tiny.gguf").arg("--no-cache"));
    // With room, the next run works.
    disk.remount("size=4m");
    answers(&mut run("tiny.gguf"));
    assert_eq!(listed(&folder).len(), 2);
}

/// The limit on a file's size would kill the process by SIGXFSZ.
#[test]
fn a_limit_on_the_size_of_files() {
    let here = Here::new();
    // In blocks of 512 or 1024 bytes, by the shell.
    let message = failed(here.limited("-f 100", &[]));
    holds(&message, &["cannot keep the packed tiny.gguf", "no room for ", "it needs ", "File too large"]);
    assert_eq!(here.cached(), [""; 0], "left behind");
    answers(&mut here.run("tiny.gguf", &[]));
}

#[test]
fn a_cache_folder_that_cannot_be_written() {
    let here = Here::new();
    here.write("file", b"");
    let message = fails(here.run("tiny.gguf", &[]).env("LUTITE_HOME", here.path("file")));
    holds(
        &message,
        &["cannot make the cache folder", "set LUTITE_HOME to another folder, or use --no-cache"],
    );
    let Some(disk) = Tmpfs::mount(here.path("disk"), "size=4m") else { return };
    let run = |model: &str| {
        let mut command = here.run(model, &[]);
        command.env("LUTITE_HOME", &disk.0);
        command
    };
    std::fs::create_dir(disk.0.join("packed")).unwrap();
    disk.remount("ro");
    let message = fails(&mut run("tiny.gguf"));
    holds(&message, &["cannot make the lock", "--no-cache", "Read-only file system"]);
    answers(run("tiny.gguf").arg("--no-cache"));
    // What is packed already needs no writing.
    disk.remount("rw");
    answers(&mut run("tiny.gguf"));
    disk.remount("ro");
    answers(&mut run("tiny.gguf"));
}
