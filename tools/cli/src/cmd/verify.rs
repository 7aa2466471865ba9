//! `lutite verify`: whether models are what they were when they came.
//!
//! Files of the catalog and of hubs are held against the hashes they were pulled by, packed files against the checksums
//! in them. Any other GGUF file has no checksum: there the structure is all that can be said.

use crate::args::VerifyArgs;
use crate::catalog::Entry;
use crate::hub::{Local, Oid, Settings};
use crate::interrupt;
use crate::inventory::{Inventory, Item, What};
use crate::load;
use crate::pull::{Named, copy};
use crate::ui::{Answer, Progress};
use anyhow::{Context, bail};
use std::fs::{self, File};
use std::path::Path;

pub(crate) fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let mut check =
        Check { out: Answer::stdout(), threads: load::threads(args.threads), checked: 0, damaged: 0 };
    let all = Inventory::read()?;
    if args.names.is_empty() {
        for item in &all.items {
            check.item(item)?;
        }
    }
    for name in &args.names {
        match Named::find(name) {
            Ok(Named::Path(path)) => check.path(name, &path, &all.settings)?,
            _ => all.select(name)?.into_iter().try_for_each(|item| check.item(item))?,
        }
    }
    match (check.damaged, check.checked) {
        (0, _) => Ok(()),
        (damaged, checked) => bail!("{damaged} of {checked} files damaged"),
    }
}

/// A check on its way.
struct Check {
    out: Answer,
    threads: usize,
    checked: usize,
    damaged: usize,
}

/// What was found: what it was held against, or what is wrong.
type Found = Result<String, String>;

impl Check {
    fn item(&mut self, item: &Item) -> anyhow::Result<()> {
        let again = format!("`lutite rm {0}`, then `lutite pull {0}`", item.name);
        match &item.what {
            What::Catalog(entry) => {
                let found = catalog(entry, &item.path)?;
                self.say(&item.name, found, &again)
            }
            What::Hub { files, .. } => {
                for file in files {
                    let name =
                        if files.len() > 1 { &format!("{} {}", item.name, file.path) } else { &item.name };
                    let found = self.local(file)?;
                    self.say(name, found, &again)?;
                }
                Ok(())
            }
            What::Packed { .. } => {
                let found = self.contents(&item.path)?;
                self.say(
                    &item.name,
                    found,
                    &format!("`lutite rm {}`; it is packed again when needed", item.name),
                )
            }
            // Checked when it is whole.
            What::Unfinished(_) => Ok(()),
        }
    }

    /// A file, or a folder of files, that was named by its path.
    fn path(&mut self, name: &str, path: &Path, settings: &Settings) -> anyhow::Result<()> {
        let again = "get the file again from where it is from";
        if !path.is_dir() {
            let local = Local::at(path, settings);
            let found = local.map_or_else(|| self.contents(path), |local| self.local(&local))?;
            return self.say(name, found, again);
        }
        let entries = fs::read_dir(path).with_context(|| format!("cannot read {name}"))?;
        let mut files: Vec<_> =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        files.sort();
        for file in files {
            if let Some(local) = Local::at(&file, settings) {
                let found = self.local(&local)?;
                self.say(&file.display().to_string(), found, again)?;
            } else if file.extension().is_some_and(|e| e == "gguf") {
                let found = self.contents(&file)?;
                self.say(&file.display().to_string(), found, again)?;
            }
        }
        if self.checked == 0 {
            let found = self.contents(path)?;
            self.say(name, found, again)?;
        }
        Ok(())
    }

    fn say(&mut self, name: &str, found: Found, again: &str) -> anyhow::Result<()> {
        self.checked += 1;
        self.damaged += usize::from(found.is_err());
        self.out.print(&match found {
            Ok(by) => format!("ok       {name}  ({by})\n"),
            Err(why) => format!("damaged  {name}: {why}; {again}\n"),
        })
    }

    /// A file of the hub's cache: its hash, where the name of a blob tells it.
    fn local(&self, file: &Local) -> anyhow::Result<Found> {
        match file.oid() {
            Some(oid) => Ok(hash(&file.path, &file.blob, &oid)?.map(|()| oid.kind().to_owned())),
            None if file.path.ends_with(".gguf") => self.contents(&file.pointer),
            None => Ok(Ok("there; its checksum is not known, as this cache has no links".to_owned())),
        }
    }

    /// A GGUF file or a folder of safetensors: its own checksums if it is packed, else its structure.
    fn contents(&self, path: &Path) -> anyhow::Result<Found> {
        let source = match load::at(path.to_owned()) {
            Ok(source) => source,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        Ok(match load::is_packed(&source) {
            Err(error) => Err(format!("{error:#}")),
            Ok(false) => Ok("structure only: the file has no checksums".to_owned()),
            Ok(true) => match lutite_models::verify(source.file.head(), self.threads) {
                Ok(()) => Ok("xxh3 of each tensor".to_owned()),
                Err(error) => Err(error.to_string()),
            },
        })
    }
}

/// A file of the catalog, by the catalog's hash.
fn catalog(entry: &Entry, path: &Path) -> anyhow::Result<Found> {
    // The catalog's test holds it to that form.
    let oid = Oid::parse(entry.sha256).context("the catalog's hash is none")?;
    Ok(hash(entry.name, path, &oid)?.map(|()| oid.kind().to_owned()))
}

/// Whether a file has this hash; `name` is for the progress bar.
fn hash(name: &str, path: &Path, oid: &Oid) -> anyhow::Result<Result<(), String>> {
    let context = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let size = file.metadata().with_context(context)?.len();
    let mut hasher = oid.hasher(size);
    let mut progress = Progress::bytes(&format!("checking {name}"), size);
    copy(&mut file, &mut hasher, size, interrupt::flag(), &mut progress).with_context(context)?;
    let is = hasher.oid();
    Ok(if is == *oid {
        Ok(())
    } else {
        Err(format!("{} has {} {}, not {}", path.display(), oid.kind(), is.as_str(), oid.as_str()))
    })
}
