//! The cache of hub files, in the layout of the official client: a file pulled by either is found by the other.
//!
//! ```text
//! hub/.locks/models--owner--repo/<oid>.lock
//! hub/models--owner--repo/blobs/<oid>                    the bytes, under their hash
//!                         blobs/<oid>.incomplete         what has come of them
//!                         refs/<revision>                a commit
//!                         snapshots/<commit>/<path>      a link to ../../blobs/<oid>
//! ```
//!
//! Where there are no links, the file itself lies in the snapshot, as the official client has it.

use super::Settings;
use super::name::{Name, check_path};
use anyhow::Context;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The hash of a file as the hub has it: SHA-256 for large ones, git's SHA-1 of a blob for the rest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Oid(String);

impl Oid {
    /// 40 or 64 lowercase hexadecimal digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        (matches!(text.len(), 40 | 64) && is_hex(text)).then(|| Self(text.to_owned()))
    }

    /// Whether this is the full name of a commit.
    pub(crate) fn is_commit(text: &str) -> bool {
        text.len() == 40 && is_hex(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The hash's name, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        if self.0.len() == 64 { "sha256" } else { "git sha1" }
    }

    /// Starts to hash a file of `size` bytes.
    pub(crate) fn hasher(&self, size: u64) -> Hasher {
        if self.0.len() == 64 {
            return Hasher::Sha256(Sha256::new());
        }
        let mut sha1 = Sha1::new();
        sha1.update(format!("blob {size}\0"));
        Hasher::Git(sha1)
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A hash on its way, as a writer.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    pub(crate) fn oid(self) -> Oid {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Oid(match self {
            Self::Sha256(hash) => hex(&hash.finalize()),
            Self::Git(hash) => hex(&hash.finalize()),
        })
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A repository in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Repo {
    /// `owner/repo`.
    pub(crate) id: String,
    /// `models--owner--repo`.
    pub(crate) folder: PathBuf,
    locks: PathBuf,
}

/// A file of a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    /// As in the repository.
    pub(crate) path: String,
    /// In the snapshot.
    pub(crate) pointer: PathBuf,
    /// Where its bytes are: the pointer itself where there are no links.
    pub(crate) blob: PathBuf,
    pub(crate) size: u64,
}

impl Local {
    /// The file of a path, if it leads to a blob of the cache.
    pub(crate) fn at(path: &Path, settings: &Settings) -> Option<Self> {
        let blob = fs::canonicalize(path).ok()?;
        let in_blobs = blob.parent().and_then(Path::file_name).is_some_and(|name| name == "blobs");
        let in_cache = fs::canonicalize(&settings.cache).is_ok_and(|cache| blob.starts_with(cache));
        let size = fs::metadata(&blob).ok()?.len();
        let path = path.to_string_lossy().into_owned();
        (in_blobs && in_cache).then(|| Self { pointer: PathBuf::from(&path), path, blob, size })
    }

    /// The hash that the bytes should have, which is the blob's name.
    pub(crate) fn oid(&self) -> Option<Oid> {
        let name = self.blob.file_name().and_then(|name| name.to_str());
        name.filter(|_| self.blob != self.pointer).and_then(Oid::parse)
    }
}

impl Repo {
    pub(crate) fn new(cache: &Path, id: &str) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        Self { id: id.to_owned(), folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// All of a cache, by name.
    pub(crate) fn all(cache: &Path) -> Vec<Self> {
        let entries = fs::read_dir(cache).into_iter().flatten().flatten();
        let id = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let id = name.strip_prefix("models--")?.replace("--", "/");
            (entry.path().join("snapshots").is_dir() && id.parse::<Name>().is_ok()).then_some(id)
        };
        let mut ids: Vec<String> = entries.filter_map(id).collect();
        ids.sort();
        ids.iter().map(|id| Self::new(cache, id)).collect()
    }

    pub(crate) fn blob(&self, oid: &Oid) -> PathBuf {
        self.folder.join("blobs").join(oid.as_str())
    }

    pub(crate) fn incomplete(&self, oid: &Oid) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", oid.as_str()))
    }

    pub(crate) fn lock(&self, oid: &Oid) -> PathBuf {
        self.locks.join(format!("{}.lock", oid.as_str()))
    }

    /// The folder of the repository's locks.
    pub(crate) fn locks(&self) -> &Path {
        &self.locks
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit of a revision, as far as it is known here.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if Oid::is_commit(revision) {
            return self.snapshot(revision).is_dir().then(|| revision.to_owned());
        }
        check_path(revision).ok()?;
        let mut text = String::new();
        let file = fs::File::open(self.folder.join("refs").join(revision)).ok()?;
        file.take(64).read_to_string(&mut text).ok()?;
        Oid::is_commit(text.trim()).then(|| text.trim().to_owned())
    }

    /// The commits whose files are here.
    pub(crate) fn commits(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join("snapshots")).into_iter().flatten().flatten();
        let mut all: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        all.retain(|commit| Oid::is_commit(commit));
        all.sort();
        all
    }

    /// The branches and tags that are known here, with their commits.
    pub(crate) fn refs(&self) -> Vec<(String, String)> {
        let mut names = Vec::new();
        walk(&self.folder.join("refs"), "", &mut |name, _| names.push(name.to_owned()));
        names.sort();
        names.into_iter().filter_map(|name| self.commit(&name).map(|commit| (name, commit))).collect()
    }

    /// The files of a snapshot, by path. Links that lead to nothing are left out.
    pub(crate) fn files(&self, commit: &str) -> Vec<Local> {
        let mut files = Vec::new();
        walk(&self.snapshot(commit), "", &mut |path, pointer| {
            let Ok(metadata) = fs::metadata(&pointer) else { return };
            // The first link only: what it leads to may be a link to a store that others share.
            let blob = match (fs::read_link(&pointer), pointer.parent()) {
                (Ok(to), Some(folder)) => normal(&folder.join(to)),
                _ => pointer.clone(),
            };
            files.push(Local { path: path.to_owned(), blob, size: metadata.len(), pointer });
        });
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// Downloads that have not ended.
    pub(crate) fn unfinished(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.join("blobs")).into_iter().flatten().flatten();
        let mut all: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        all.retain(|path| path.extension().is_some_and(|e| e == "incomplete"));
        all.sort();
        all
    }

    /// Makes the folders that a download of `path` at `commit` needs.
    ///
    /// # Errors
    /// If one cannot be made; says what to do.
    pub(crate) fn prepare(&self, commit: &str, path: &str) -> anyhow::Result<PathBuf> {
        let pointer = self.snapshot(commit).join(path);
        let folders =
            [Some(self.folder.join("blobs")), Some(self.locks.clone()), pointer.parent().map(Path::to_owned)];
        for folder in folders.into_iter().flatten() {
            fs::create_dir_all(&folder).with_context(|| {
                format!(
                    "cannot make the folder {}; set HF_HUB_CACHE to one that can be written",
                    folder.display()
                )
            })?;
        }
        if let Some(cache) = self.folder.parent() {
            // So that backups leave the cache out (https://bford.info/cachedir). Not worth a failure.
            let tag = cache.join("CACHEDIR.TAG");
            if !tag.exists() {
                let _ = fs::write(
                    tag,
                    "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of files of a hub.\n",
                );
            }
        }
        Ok(pointer)
    }

    /// Makes a blob appear in a snapshot: as a link, or else by moving it there.
    ///
    /// # Errors
    /// If the snapshot cannot be written.
    pub(crate) fn point(&self, pointer: &Path, oid: &Oid, symlinks: bool) -> anyhow::Result<()> {
        let context = || format!("cannot write {}", pointer.display());
        match fs::remove_file(pointer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(context),
            _ => {}
        }
        let depth = pointer.strip_prefix(&self.folder).map_or(0, |inside| inside.components().count());
        let mut target: PathBuf = std::iter::repeat_n("..", depth.saturating_sub(1)).collect();
        target.extend(["blobs", oid.as_str()]);
        if symlinks && symlink(&target, pointer).is_ok() {
            return Ok(());
        }
        fs::rename(self.blob(oid), pointer).with_context(context)
    }

    /// Remembers which commit a branch or tag is, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn set_ref(&self, revision: &str, commit: &str) -> anyhow::Result<()> {
        if revision == commit || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        let write = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(format!(".{}.tmp", std::process::id()));
            let part = path.with_file_name(name);
            fs::write(&part, commit)?;
            fs::rename(&part, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(unix)]
fn symlink(target: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, at)
}

#[cfg(windows)]
fn symlink(target: &Path, at: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, at)
}

/// The path without `..`, by its words alone: as the official client takes links, the file system is not asked.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// Calls `each` for all files below a folder, with their paths in it. Folders that are links are not entered.
fn walk(folder: &Path, prefix: &str, each: &mut dyn FnMut(&str, PathBuf)) {
    const DEPTH_MAX: usize = 32;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && path.matches('/').count() < DEPTH_MAX => {
                walk(&entry.path(), &path, each);
            }
            Ok(kind) if !kind.is_dir() => each(&path, entry.path()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_of_lfs() {
        // `printf '' | git hash-object --stdin`, `printf 'abc\n' | git hash-object --stdin`, `printf abc | sha256sum`
        let git = Oid::parse("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391").unwrap();
        assert_eq!(git.hasher(0).oid(), git);
        let mut hasher = git.hasher(4);
        hasher.write_all(b"abc\n").unwrap();
        assert_eq!(hasher.oid().as_str(), "8baef1b4abc478178b004d62031cf7fe6db6f903");
        let lfs = Oid::parse("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad").unwrap();
        let mut hasher = lfs.hasher(3);
        hasher.write_all(b"abc").unwrap();
        assert_eq!(hasher.oid(), lfs);
        for bad in ["", "abc", &"g".repeat(40), &"A".repeat(64), "../../../../../../../../../../../../etc/pw"]
        {
            assert_eq!(Oid::parse(bad), None);
        }
    }

    #[test]
    fn a_link_leads_to_its_blob_from_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repo::new(dir.path(), "o/r");
        let oid = Oid::parse(&"a".repeat(40)).unwrap();
        let commit = "c".repeat(40);
        for path in ["x.gguf", "a/b/x.gguf"] {
            let pointer = repo.prepare(&commit, path).unwrap();
            fs::write(repo.blob(&oid), b"abc").unwrap();
            repo.point(&pointer, &oid, true).unwrap();
            assert_eq!(fs::read(&pointer).unwrap(), b"abc");
        }
        let files = repo.files(&commit);
        assert_eq!(files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["a/b/x.gguf", "x.gguf"]);
        assert!(
            files.iter().all(|f| f.size == 3 && f.blob == repo.blob(&oid) && f.oid().as_ref() == Some(&oid))
        );
        // Without links the file itself moves.
        let pointer = repo.prepare(&commit, "y.gguf").unwrap();
        repo.point(&pointer, &oid, false).unwrap();
        assert!(!repo.blob(&oid).exists() && fs::symlink_metadata(&pointer).unwrap().is_file());
        // The links lead to nothing now.
        let files = repo.files(&commit);
        assert!(files.len() == 1 && files[0].oid().is_none());
    }

    #[test]
    fn revisions() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repo::new(dir.path(), "o/r");
        let commit = "c".repeat(40);
        assert_eq!(repo.commit("main"), None);
        repo.prepare(&commit, "x").unwrap();
        repo.set_ref("main", &commit).unwrap();
        repo.set_ref("refs/pr/1", &commit).unwrap();
        repo.set_ref(&commit, &commit).unwrap();
        assert_eq!(repo.commit("main").as_ref(), Some(&commit));
        assert_eq!(repo.commit(&commit).as_ref(), Some(&commit));
        assert_eq!(
            repo.refs(),
            [("main".to_owned(), commit.clone()), ("refs/pr/1".to_owned(), commit.clone())]
        );
        assert_eq!((repo.commit(&"d".repeat(40)), repo.commit("../x")), (None, None));
        fs::write(repo.folder.join("refs/odd"), "../../..").unwrap();
        assert_eq!(repo.commit("odd"), None);
        assert_eq!(Repo::all(dir.path()).iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["o/r"]);
    }
}
