//! `lutite rm`: give disk space back.
//!
//! What a model was packed to goes with the last copy of the model: without one nothing finds it. Of a hub's snapshot the
//! links go, and those blobs that no other snapshot has.

use crate::args::RmArgs;
use crate::hub::Repo;
use crate::inventory::{Inventory, Item, What, remove};
use crate::ui::{self, megabytes};
use crate::{cache, pull};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn rm(args: &RmArgs) -> anyhow::Result<()> {
    let all = Inventory::read()?;
    let mut items: Vec<&Item> = Vec::new();
    for name in &args.names {
        items.extend(all.select(name)?);
    }
    let goes = |source: &String| items.iter().any(|item| item.name == *source);
    let of_items = |item: &&Item| match &item.what {
        What::Packed { sources } => args.packed || (!sources.is_empty() && sources.iter().all(goes)),
        _ => false,
    };
    let packed: Vec<&Item> = all.items.iter().filter(of_items).collect();
    items.extend(packed);
    let mut seen = HashSet::new();
    items.retain(|item| seen.insert(&item.path));
    let (files, repos) = files(&all, &items);
    let size =
        |path: &PathBuf| fs::symlink_metadata(path).map_or(0, |m| if m.is_file() { m.len() } else { 0 });
    let bytes: u64 = files.iter().map(size).sum();
    for item in &items {
        ui::note(format_args!("  {} ({}, {})", item.name, item.format, megabytes(item.bytes)));
    }
    if args.dry_run {
        ui::note(format_args!("would remove these and free {}", megabytes(bytes)));
        return Ok(());
    }
    if items.is_empty() {
        ui::note("nothing to remove");
        return Ok(());
    }
    if !args.yes {
        match ui::confirm(&format!("remove these and free {}?", megabytes(bytes))) {
            Some(true) => {}
            Some(false) => anyhow::bail!("nothing was removed"),
            None => {
                anyhow::bail!("nobody to ask whether to remove these; use --yes, or --dry-run to see only")
            }
        }
    }
    let mut freed = 0;
    for file in &files {
        freed += remove(file, &[&all.models, &all.packed, &all.settings.cache])?;
    }
    repos.iter().for_each(|repo| tidy(repo));
    ui::note(format_args!("removed; {} freed", megabytes(freed)));
    Ok(())
}

/// The files that the items are, with what goes with them, and the repositories that lose some.
fn files<'a>(all: &Inventory, items: &[&'a Item]) -> (Vec<PathBuf>, Vec<&'a Repo>) {
    let mut files = Vec::new();
    let mut repos: Vec<&Repo> = Vec::new();
    for item in items {
        match &item.what {
            What::Catalog(entry) => files.extend([item.path.clone(), pull::stamp_path(entry, &all.models)]),
            What::Packed { .. } => files.extend([item.path.clone(), cache::lock_path(&item.path)]),
            What::Unfinished(repo) => {
                files.extend(repo.unfinished());
                repos.push(repo);
            }
            What::Hub { repo, files: locals } => {
                files.extend(locals.iter().map(|f| f.pointer.clone()));
                repos.push(repo);
            }
        }
    }
    repos.sort_by(|a, b| a.id.cmp(&b.id));
    repos.dedup_by(|a, b| a.id == b.id);
    let going: HashSet<PathBuf> = files.iter().cloned().collect();
    for repo in &repos {
        let links: Vec<_> = repo.commits().iter().flat_map(|commit| repo.files(commit)).collect();
        let stay: HashSet<&Path> =
            links.iter().filter(|f| !going.contains(&f.pointer)).map(|f| f.blob.as_path()).collect();
        let blobs =
            links.iter().filter(|f| going.contains(&f.pointer) && f.blob != f.pointer).map(|f| &f.blob);
        // A link that leads out of the repository is removed, what it leads to is not.
        let own = blobs.filter(|blob| {
            blob.parent() == Some(&repo.folder.join("blobs")) && !stay.contains(blob.as_path())
        });
        files.extend(own.cloned().collect::<HashSet<_>>());
    }
    // The remembered hashes of sources that go, or went by other means.
    let gone: HashSet<PathBuf> = files.iter().filter_map(|f| fs::canonicalize(f).ok()).collect();
    let stale =
        cache::sources(&all.packed).into_iter().filter(|(_, path, _)| gone.contains(path) || !path.exists());
    files.extend(stale.map(|(_, _, stamp)| stamp));
    (files, repos)
}

/// Removes folders that are empty now, and branches whose snapshot is gone. What cannot be removed is only untidy.
fn tidy(repo: &Repo) {
    remove_empty(&repo.folder.join("snapshots"));
    for (name, commit) in repo.refs() {
        if !repo.snapshot(&commit).exists() {
            let _ = fs::remove_file(repo.folder.join("refs").join(name));
        }
    }
    if repo.commits().is_empty() && repo.unfinished().is_empty() {
        // Of a repository nothing but remarks of other programs is left (`.no_exist`).
        let _ = fs::remove_dir_all(&repo.folder);
        let _ = fs::remove_dir_all(repo.locks());
    }
}

/// Removes a folder and those in it, as far as they are empty.
fn remove_empty(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}
