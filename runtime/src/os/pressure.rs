//! Whether processes wait for memory: pressure stall information of Linux, of this process's control groups and of the machine.
//!
//! A line of it is `some avg10=0.12 avg60=0.05 avg300=0.01 total=12345`: the share of time, in percent, in which at least one
//! task waited for memory, over the last 10 seconds.

use super::cgroup::{Version, groups, text};
use std::path::Path;

/// Waiting for more of the time than this is pressure, in percent.
const PRESSURE: f64 = 10.0;

/// Whether tasks wait for memory much of the time; `None` where the system does not tell.
pub fn is_pressed() -> Option<bool> {
    is_pressed_at(Path::new("/"))
}

/// As [`is_pressed`], from the `proc` and `sys` folders under `root`.
pub fn is_pressed_at(root: &Path) -> Option<bool> {
    let machine = text(&root.join("proc/pressure/memory"));
    let groups = groups(root, "memory").into_iter().filter(|g| g.version == Version::V2);
    let groups = groups.filter_map(|g| g.text("memory.pressure"));
    let shares: Vec<f64> = machine.into_iter().chain(groups).filter_map(|text| share(&text)).collect();
    (!shares.is_empty()).then(|| shares.iter().any(|share| *share > PRESSURE))
}

/// `avg10` of the line `some`.
fn share(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split(' ').find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_machine_counts_and_so_does_what_cannot_be_read() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(is_pressed_at(root.path()), None);
        let folder = root.path().join("proc/pressure");
        fs::create_dir_all(&folder).unwrap();
        for (text, expected) in [
            ("some avg10=0.00 avg60=99.00 avg300=0.00 total=1\nfull avg10=50.00\n", Some(false)),
            ("some avg10=10.50 avg60=0.00 avg300=0.00 total=1\n", Some(true)),
            ("full avg10=50.00\n", None),
            ("some avg10=x\n", None),
            ("", None),
        ] {
            fs::write(folder.join("memory"), text).unwrap();
            assert_eq!(is_pressed_at(root.path()), expected, "{text}");
        }
    }
}
