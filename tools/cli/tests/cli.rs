//! The real binary: exit codes, what goes to which stream, variables.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The binary with none of the caller's settings, and `home` as its home.
fn lutite(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lutite"));
    command.args(args).env_clear().env("HOME", home).env("PATH", home).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn usage_errors_are_2_and_go_to_stderr() {
    let home = tempfile::tempdir().unwrap();
    for args in [&[][..], &["fly"], &["run", "--temp", "warm"], &["run", "--top-p", "0"], &["rm"]] {
        let (code, stdout, stderr) = run(&mut lutite(home.path(), args));
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(!stderr.is_empty());
    }
}

#[test]
fn help_is_an_answer() {
    let home = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["-V"], &["bench", "--help"]] {
        let (code, stdout, stderr) = run(&mut lutite(home.path(), args));
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(stdout.contains("lutite"));
    }
}

#[test]
fn a_missing_pip_is_1_with_a_way_out() {
    let home = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) = run(&mut lutite(home.path(), &["pull"]));
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(
        stderr.starts_with("error: ") && stderr.contains("no `pip`") && stderr.contains("-m FILE"),
        "{stderr}"
    );
}

#[test]
fn a_variable_counts_unless_a_flag_does() {
    let home = tempfile::tempdir().unwrap();
    let args = &["run", "--top-p", "0"];
    let (code, _, stderr) = run(lutite(home.path(), args).env("LUTITE_TEMP", "warm"));
    assert!(code == Some(2) && stderr.contains("'warm'"), "{stderr}");
    // With the flag the variable is not looked at: what is left to complain about is --top-p.
    let args = &["run", "--top-p", "0", "--temp", "1"];
    let (code, _, stderr) = run(lutite(home.path(), args).env("LUTITE_TEMP", "warm"));
    assert!(code == Some(2) && stderr.contains("top-p is 0"), "{stderr}");
}

#[test]
fn a_variable_beats_the_file_and_the_file_what_is_built_in() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join(".config/lutite");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(config.join("config.toml"), "min-p = 3.5\n").unwrap();
    let (code, _, stderr) = run(&mut lutite(home.path(), &["run"]));
    assert!(code == Some(2) && stderr.contains("min-p is 3.5"), "{stderr}");
    let (code, _, stderr) = run(lutite(home.path(), &["run"]).env("LUTITE_MIN_P", "4.5"));
    assert!(code == Some(2) && stderr.contains("min-p is 4.5"), "{stderr}");
    let (code, _, stderr) = run(lutite(home.path(), &["run", "--min-p", "5.5"]).env("LUTITE_MIN_P", "4.5"));
    assert!(code == Some(2) && stderr.contains("min-p is 5.5"), "{stderr}");
    let (code, _, stderr) =
        run(lutite(home.path(), &["run"]).env("LUTITE_CONFIG", home.path().join("none.toml")));
    assert!(code == Some(2) && stderr.contains("none.toml"), "{stderr}");
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn control_c_is_130() {
        let home = tempfile::tempdir().unwrap();
        let pip = home.path().join("pip");
        let script = "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nexec /bin/sleep 60\n";
        std::fs::write(&pip, script).unwrap();
        std::fs::set_permissions(&pip, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut pull = lutite(home.path(), &["pull"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = pull.stderr.take().unwrap();
        let mut said = String::new();
        while !said.contains("downloading") {
            let mut buffer = [0; 256];
            let n = stderr.read(&mut buffer).unwrap();
            assert_ne!(n, 0, "{said}");
            said.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
        let kill = format!("kill -INT {}", pull.id());
        assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
        assert_eq!(pull.wait().unwrap().code(), Some(130));
        let models = home.path().join(".cache/lutite/models");
        let left = std::fs::read_dir(models).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), [".smollm2.lock"]);
    }

    #[test]
    fn a_reader_that_goes_away_is_a_quiet_0() {
        let home = tempfile::tempdir().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, _, stderr) = run(lutite(home.path(), &["run", "--help"]).stdout(writer));
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
    }
}
