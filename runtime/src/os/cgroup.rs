//! The control groups of this process, on Linux.
//!
//! A limit may sit on the process's own group or on any group above it, under version 1 (a tree per
//! controller), version 2 (one tree) or both at once (hybrid). `/proc/self/cgroup` names the groups and
//! `/proc/self/mountinfo` says where the trees are mounted, and from which group on: inside a container the
//! tree's top is often the container's own group, whatever the path in `/proc/self/cgroup` says.

use std::fs;
use std::path::{Component, Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// One group: its folder, and its name within its tree as far as it is visible from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) version: Version,
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
}

impl Group {
    /// The trimmed text of one of the group's files.
    pub(crate) fn text(&self, file: &str) -> Option<String> {
        text(&self.dir.join(file))
    }

    /// A file that holds one number.
    pub(crate) fn number<N: std::str::FromStr>(&self, file: &str) -> Option<N> {
        self.text(file)?.parse().ok()
    }

    /// What a person would call one of the group's files.
    pub(crate) fn describe(&self, file: &str) -> String {
        let version = match self.version {
            Version::V1 => "v1",
            Version::V2 => "v2",
        };
        format!("{file} of cgroup {version} {}", self.name)
    }
}

/// The trimmed text of a small system file; `None` if there is no such file or it may not be read.
pub(crate) fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The groups that may bound `controller` for this process, each tree from the own group upwards.
pub(crate) fn groups(root: &Path, controller: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    let mounts = text(&root.join("proc/self/mountinfo")).unwrap_or_default();
    // Lines are `id:controllers:path`; version 2 has the id 0 and no controllers.
    for line in text(&root.join("proc/self/cgroup")).unwrap_or_default().lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let version = match id {
            "0" if controllers.is_empty() => Version::V2,
            _ if controllers.split(',').any(|c| c == controller) => Version::V1,
            _ => continue,
        };
        let mount = mounts.lines().find_map(|line| mount(line, version, controller));
        let (top, at) = mount.unwrap_or_else(|| match version {
            Version::V1 => ("/", format!("/sys/fs/cgroup/{controller}")),
            Version::V2 => ("/", "/sys/fs/cgroup".to_owned()),
        });
        let at = root.join(at.trim_start_matches('/'));
        // A path with `..` is outside of what is mounted here: only the visible top can be read then.
        let below = Path::new(path).strip_prefix(top).unwrap_or(Path::new(""));
        let inside = below.components().all(|c| matches!(c, Component::Normal(_) | Component::RootDir));
        let below = if inside { below.strip_prefix("/").unwrap_or(below) } else { Path::new("") };
        for group in below.ancestors() {
            let name = format!("/{}", group.display());
            groups.push(Group { version, name, dir: at.join(group) });
        }
    }
    groups
}

/// The top group and the mount point of a line of mountinfo, if it is the tree looked for. The fields are `id
/// parent device top point options [tags] - type source superoptions`.
fn mount<'a>(line: &'a str, version: Version, controller: &str) -> Option<(&'a str, String)> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split_ascii_whitespace();
    let wanted = match (right.next()?, version) {
        ("cgroup", Version::V1) => right.nth(1)?.split(',').any(|option| option == controller),
        ("cgroup2", Version::V2) => true,
        _ => false,
    };
    let mut left = left.split_ascii_whitespace().skip(3);
    let (top, point) = (left.next()?, left.next()?);
    wanted.then(|| (top, point.to_owned()))
}
