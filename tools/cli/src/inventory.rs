//! Which models are on this machine: those of the catalog, of the hub's cache (whoever pulled them), and packed ones.

use crate::catalog::{CATALOG, Entry};
use crate::hub::{self, Local, MAIN, Repo, Settings};
use crate::{cache, places};
use anyhow::{Context, bail};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// One model, or what is left of one.
pub(crate) struct Item {
    /// As the verbs take it.
    pub(crate) name: String,
    /// Quantization, or what else it is.
    pub(crate) format: String,
    pub(crate) bytes: u64,
    /// As far as the file system tells.
    pub(crate) used: Option<SystemTime>,
    /// The file, or the folder of several.
    pub(crate) path: PathBuf,
    pub(crate) what: What,
}

/// Where an item is from.
pub(crate) enum What {
    /// A file of the catalog.
    Catalog(&'static Entry),
    /// Files of a snapshot.
    Hub { repo: Repo, files: Vec<Local> },
    /// Downloads of a repository that have not ended.
    Unfinished(Repo),
    /// A file of the packed cache.
    Packed {
        /// What it is made of, as the verbs take it: the same bytes may be here several times, or no more.
        sources: Vec<String>,
    },
}

impl What {
    /// In a word.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Catalog(_) => "catalog",
            Self::Hub { .. } => "hub",
            Self::Unfinished(_) => "unfinished",
            Self::Packed { .. } => "packed",
        }
    }

    fn repo(&self) -> Option<&Repo> {
        match self {
            Self::Hub { repo, .. } | Self::Unfinished(repo) => Some(repo),
            Self::Catalog(_) | Self::Packed { .. } => None,
        }
    }
}

/// All of them.
pub(crate) struct Inventory {
    pub(crate) items: Vec<Item>,
    pub(crate) settings: Settings,
    /// The folders of the catalog's models and of packed files.
    pub(crate) models: PathBuf,
    pub(crate) packed: PathBuf,
}

impl Inventory {
    /// Looks.
    ///
    /// # Errors
    /// If no variable tells where to look.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let (models, packed) = (places::models()?, places::home()?.join(cache::FOLDER));
        let mut all = Self { items: Vec::new(), settings: Settings::read()?, models, packed };
        for entry in CATALOG {
            let path = all.models.join(entry.file);
            if let Ok(metadata) = fs::metadata(&path) {
                let format = quantization(entry.file);
                let (name, bytes, used) = (entry.name.to_owned(), metadata.len(), used([&path]));
                all.items.push(Item { name, format, bytes, used, path, what: What::Catalog(entry) });
            }
        }
        for repo in Repo::all(&all.settings.cache) {
            all.items.extend(of_repo(&repo));
        }
        all.add_packed();
        Ok(all)
    }

    fn add_packed(&mut self) {
        let sources = cache::sources(&self.packed);
        let entries = fs::read_dir(&self.packed).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|e| e == "gguf"));
        paths.sort();
        for path in paths {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            // hash-size-options, as `cache` names them.
            let mut parts = name.splitn(3, '-');
            let hash = parts.next().and_then(|hash| u64::from_str_radix(hash, 16).ok());
            let format = parts.nth(1).unwrap_or("?").to_owned();
            let of_it = sources.iter().filter(|(of, path, _)| Some(*of) == hash && path.exists());
            let sources = of_it.map(|(_, path, _)| self.name_of(path)).collect();
            let bytes = fs::metadata(&path).map_or(0, |m| m.len());
            let used = used([&path]);
            self.items.push(Item { name, format, bytes, used, path, what: What::Packed { sources } });
        }
    }

    /// The name of the item that a source's path belongs to, or else the path.
    fn name_of(&self, source: &Path) -> String {
        let is = |item: &&Item| match &item.what {
            What::Hub { files, .. } if files.iter().any(|f| same(&f.blob, source)) => true,
            _ => same(&item.path, source),
        };
        self.items.iter().find(is).map_or_else(|| source.display().to_string(), |item| item.name.clone())
    }

    /// Bytes of all items; what several snapshots share counts once.
    pub(crate) fn bytes(&self) -> u64 {
        let mut seen = HashSet::new();
        let mut of = |item: &Item| match &item.what {
            What::Hub { files, .. } => {
                files.iter().filter(|f| seen.insert(f.blob.clone())).map(|f| f.size).sum::<u64>()
            }
            _ => item.bytes,
        };
        self.items.iter().map(&mut of).sum()
    }

    /// The items that a name stands for: of a repository without a file, all.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn select(&self, name: &str) -> anyhow::Result<Vec<&Item>> {
        if let Ok(hub) = name.parse::<hub::Name>() {
            let of_repo = |item: &&Item| item.what.repo().is_some_and(|repo| repo.id == hub.repo);
            if hub.choice.is_none() && hub.revision.is_none() {
                let all: Vec<&Item> = self.items.iter().filter(of_repo).collect();
                if !all.is_empty() {
                    return Ok(all);
                }
            } else if let Some(here) = hub::here(&self.settings, &hub) {
                let chosen = |local: &Local| here.files.iter().any(|f| f.pointer == local.pointer);
                let has =
                    |item: &&Item| matches!(&item.what, What::Hub { files, .. } if files.iter().any(chosen));
                return Ok(self.items.iter().filter(has).collect());
            }
        }
        // A packed file may be named by its path.
        let file = Path::new(name);
        let here = |item: &&Item| {
            item.name == name || matches!(item.what, What::Packed { .. }) && same(&item.path, file)
        };
        let found: Vec<&Item> = self.items.iter().filter(here).collect();
        if found.is_empty() {
            bail!("{name} is not on this machine; `lutite list` says what is");
        }
        Ok(found)
    }
}

/// Whether two paths are of the same file.
fn same(one: &Path, other: &Path) -> bool {
    one == other
        || fs::canonicalize(one).is_ok_and(|one| fs::canonicalize(other).is_ok_and(|other| one == other))
}

/// The models of a repository: every GGUF file, what else makes one, and what has not come whole.
fn of_repo(repo: &Repo) -> Vec<Item> {
    let mut items = Vec::new();
    let refs = repo.refs();
    for commit in repo.commits() {
        let known: Vec<&str> = refs.iter().filter(|r| r.1 == commit).map(|r| r.0.as_str()).collect();
        let at = match known[..] {
            [] => format!("@{commit}"),
            ref known if known.contains(&MAIN) => String::new(),
            [first, ..] => format!("@{first}"),
        };
        let snapshot = repo.snapshot(&commit);
        let (models, others): (Vec<Local>, Vec<Local>) =
            repo.files(&commit).into_iter().partition(|f| f.path.ends_with(".gguf"));
        let is_safetensors = others.iter().any(|f| f.path.ends_with(".safetensors"));
        let alone = models.is_empty();
        for file in models {
            let (name, format) = (format!("{}:{}{at}", repo.id, file.path), quantization(&file.path));
            items.push(of_files(repo, name, format, file.pointer.clone(), vec![file]));
        }
        if is_safetensors || (alone && !others.is_empty()) {
            let choice = if alone { "" } else { ":safetensors" };
            let format = if is_safetensors { "safetensors" } else { "other files" };
            let name = format!("{}{choice}{at}", repo.id);
            items.push(of_files(repo, name, format.to_owned(), snapshot, others));
        }
    }
    let unfinished = repo.unfinished();
    if !unfinished.is_empty() {
        items.push(Item {
            name: repo.id.clone(),
            format: "unfinished".to_owned(),
            bytes: unfinished.iter().filter_map(|path| fs::metadata(path).ok()).map(|m| m.len()).sum(),
            used: used(&unfinished),
            path: repo.folder.join("blobs"),
            what: What::Unfinished(repo.clone()),
        });
    }
    items
}

fn of_files(repo: &Repo, name: String, format: String, path: PathBuf, files: Vec<Local>) -> Item {
    let bytes = files.iter().map(|f| f.size).sum();
    let used = used(files.iter().map(|f| &f.blob));
    Item { name, format, bytes, used, path, what: What::Hub { repo: repo.clone(), files } }
}

/// When one of the files was last read, where the system keeps that, or else written.
fn used<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Option<SystemTime> {
    let of = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        metadata.accessed().ok().max(metadata.modified().ok())
    };
    files.into_iter().filter_map(of).max()
}

/// The quantization in a file's name, as publishers write it; `GGUF` if there is none.
fn quantization(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let is = |word: &&str| {
        let word = word.to_ascii_uppercase();
        let digit = |prefix: &str| {
            word.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        ["Q", "IQ", "TQ"].into_iter().any(digit) || ["F32", "F16", "BF16", "MXFP4"].contains(&word.as_str())
    };
    file.split(['-', '.']).rfind(is).map_or_else(|| "GGUF".to_owned(), str::to_ascii_uppercase)
}

/// Removes a file of a cache folder and returns its bytes. One that is gone already is fine.
///
/// # Errors
/// If it does not lie in one of `within`, or cannot be removed.
pub(crate) fn remove(path: &Path, within: &[&Path]) -> anyhow::Result<u64> {
    let inside = |folder: &&Path| {
        let to = fs::canonicalize(path.parent().unwrap_or(path));
        fs::canonicalize(folder).is_ok_and(|folder| to.is_ok_and(|to| to.starts_with(folder)))
    };
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(0) };
    if !within.iter().any(inside) {
        bail!("{} is in none of the cache's folders; it was left alone", path.display());
    }
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    Ok(if metadata.is_file() { metadata.len() } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantizations_of_names() {
        for (path, is) in [
            ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
            ("a/Qwen2.5-7B-Instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
            ("m-UD-IQ2_XXS.gguf", "IQ2_XXS"),
            ("m-bf16.gguf", "BF16"),
            ("Qwen3.gguf", "GGUF"),
            ("model.gguf", "GGUF"),
        ] {
            assert_eq!(quantization(path), is, "{path}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn nothing_outside_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("cache"), dir.path().join("precious"));
        fs::create_dir(&inside).unwrap();
        fs::write(&outside, b"abc").unwrap();
        assert!(
            remove(&inside.join("../precious"), &[&inside]).unwrap_err().to_string().contains("left alone")
        );
        // A link goes, what it leads to stays.
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        assert_eq!(remove(&inside.join("link"), &[&inside]).unwrap(), 0);
        fs::write(inside.join("file"), b"abcd").unwrap();
        assert_eq!(remove(&inside.join("file"), &[&inside]).unwrap(), 4);
        assert_eq!(remove(&inside.join("file"), &[&inside]).unwrap(), 0);
        assert!(outside.exists() && !inside.join("link").exists());
    }
}
