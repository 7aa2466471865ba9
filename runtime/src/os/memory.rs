//! How much memory this process may still take, and how much it has taken.
//!
//! Several parties set limits, and the smallest counts: the machine (`MemAvailable`), the process's control
//! group and every group above it, and its resource limits. [`available`] gives the smallest and the whole
//! chain, so that a person can see who said no. Read on Linux and Android; elsewhere nothing is known yet.
//!
//! Page cache is not use: files that were read stay cached until somebody needs the memory, and a mapped model
//! is such a file. A group's room is therefore `limit - current + inactive_file`. Pages of the *active* list
//! are left out although they could be reclaimed as well: they are read again soon, and for a model's weights
//! that means at the next token.

use super::cgroup::{Group, Version, groups, text};
use std::fmt;
use std::path::Path;

/// Version 1 writes "no limit" as the largest multiple of the page size below 2^63; no machine has 2^60.
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// One of the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Who sets it, such as `memory.max of cgroup v2 /app.slice`.
    pub what: String,
    /// What it leaves to take, in bytes.
    pub bytes: u64,
}

/// What [`available`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryReport {
    /// What this process can still take, in bytes.
    pub bytes: u64,
    /// Which limit that is.
    pub bound_by: String,
    /// Every limit there is, with what each leaves, smallest first; never empty.
    pub chain: Vec<Bound>,
    /// The machine's memory, in bytes.
    pub total_bytes: u64,
}

/// One line per limit.
impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Bound { what, bytes }) in self.chain.iter().enumerate() {
            let line_end = if i > 0 { "\n" } else { "" };
            write!(f, "{line_end}{:9.1} MiB left by {what}", *bytes as f64 / (1 << 20) as f64)?;
        }
        Ok(())
    }
}

/// What this process can still take; `None` where the system does not tell.
pub fn available() -> Option<MemoryReport> {
    available_at(Path::new("/"))
}

/// As [`available`], from the `proc` and `sys` folders under `root`.
pub fn available_at(root: &Path) -> Option<MemoryReport> {
    let meminfo = text(&root.join("proc/meminfo"))?;
    let total_bytes = kib_field(&meminfo, "MemTotal")?;
    let mut chain = vec![Bound {
        what: "MemAvailable of this machine".into(),
        bytes: kib_field(&meminfo, "MemAvailable")?,
    }];
    chain.extend(groups(root, "memory").iter().flat_map(group_bounds));
    chain.extend(rlimit_bounds(root));
    chain.sort_by_key(|bound| bound.bytes);
    let Bound { what, bytes } = chain[0].clone();
    Some(MemoryReport { bytes, bound_by: what, chain, total_bytes })
}

/// What the limits of one group leave.
fn group_bounds(group: &Group) -> Vec<Bound> {
    let stat = group.text("memory.stat").unwrap_or_default();
    let (current, cache, files): (_, _, &[&str]) = match group.version {
        Version::V1 => ("memory.usage_in_bytes", "total_inactive_file", &["memory.limit_in_bytes"]),
        // Above `memory.high` the kernel stalls the process until it has shrunk: as good as a limit.
        Version::V2 => ("memory.current", "inactive_file", &["memory.max", "memory.high"]),
    };
    let limits = files.iter().filter_map(|&file| Some((file, group.number::<u64>(file)?)));
    // Version 1's own view of the limits above, which counts also for groups not visible from here.
    let above = field(&stat, "hierarchical_memory_limit").and_then(|text| text.parse().ok());
    let above = above.filter(|above| limits.clone().all(|(_, limit)| *above < limit));
    let limits = limits.chain(above.map(|above| ("hierarchical_memory_limit", above)));
    let Some(current) = group.number::<u64>(current) else { return Vec::new() };
    let cache = field(&stat, cache).and_then(|text| text.parse().ok()).unwrap_or(0).min(current);
    limits
        // `max` does not parse and did not get here.
        .filter(|(_, limit)| *limit < NO_LIMIT_BYTES)
        .map(|(file, limit)| Bound {
            what: group.describe(file),
            bytes: limit.saturating_sub(current - cache),
        })
        .collect()
}

/// What the limits on address space and data leave.
fn rlimit_bounds(root: &Path) -> Vec<Bound> {
    let limits = text(&root.join("proc/self/limits")).unwrap_or_default();
    let status = text(&root.join("proc/self/status")).unwrap_or_default();
    let bound = |name: &str, used: &str| {
        // `Max data size   unlimited   unlimited   bytes`: the first column is the one in force.
        let limit = limits.lines().find_map(|line| line.strip_prefix(name))?;
        let limit = limit.split_ascii_whitespace().next()?.parse::<u64>().ok()?;
        let bytes = limit.saturating_sub(kib_field(&status, used)?);
        Some(Bound { what: format!("resource limit \"{name}\""), bytes })
    };
    [bound("Max address space", "VmSize"), bound("Max data size", "VmData")].into_iter().flatten().collect()
}

/// This process's memory in RAM, mapped files included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Now, in bytes.
    pub now_bytes: u64,
    /// At its highest so far, in bytes.
    pub peak_bytes: u64,
}

/// Reads how much memory this process takes; `None` where the system does not tell.
pub fn resident() -> Option<Resident> {
    resident_at(Path::new("/"))
}

/// As [`resident`], from the `proc` folder under `root`.
pub fn resident_at(root: &Path) -> Option<Resident> {
    let status = text(&root.join("proc/self/status"))?;
    Some(Resident { now_bytes: kib_field(&status, "VmRSS")?, peak_bytes: kib_field(&status, "VmHWM")? })
}

/// What follows `key` and an optional colon at the start of a line, up to the next blank.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(key)?;
        let value = rest.strip_prefix(':').unwrap_or(rest);
        // Else `key` is only the beginning of a longer name.
        if !value.starts_with([' ', '\t']) {
            return None;
        }
        value.split_ascii_whitespace().next()
    })
}

/// A field in KiB, in bytes.
fn kib_field(text: &str, key: &str) -> Option<u64> {
    field(text, key)?.parse::<u64>().ok()?.checked_mul(1024)
}
