//! Models of a hub: `owner/repo[:file-or-quant][@revision]`.
//!
//! A hub is Hugging Face's, or one that has its addresses (`HF_ENDPOINT`). Its files lie in the cache that its official
//! client uses, so that nothing is fetched twice. A revision is first resolved to a commit, and everything else is asked
//! of that commit: what is listed is what is fetched, whatever is pushed meanwhile. Files come one after another; one
//! connection is as fast as the networks that small machines are on.

#[cfg(feature = "hub")]
mod api;
#[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "what only downloads need"))]
mod arriving;
mod choose;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
mod http;
mod name;
#[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "what only downloads need"))]
mod settings;
#[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "what only downloads need"))]
mod store;

pub(crate) use arriving::{Arriving, Begun, Part, begin};
pub(crate) use name::MAIN;
pub use name::{Name, PREFIX};
pub(crate) use settings::Settings;
pub(crate) use store::{Local, Oid, Repo};

use crate::pull::Pulled;
use crate::ui;
use anyhow::bail;
use arriving::Early;
use choose::{Candidate, Choice, choose};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

impl Candidate for Local {
    fn path(&self) -> &str {
        &self.path
    }
    fn size(&self) -> u64 {
        self.size
    }
}

/// What a name means in the cache: the files, and the path that the model is loaded from.
pub(crate) struct Here {
    pub(crate) files: Vec<Local>,
    pub(crate) path: PathBuf,
}

/// The model of this name as far as it is in the cache. Nobody is asked.
pub(crate) fn here(settings: &Settings, name: &Name) -> Option<Here> {
    let repo = Repo::new(&settings.cache, &name.repo);
    let commit = repo.commit(name.revision())?;
    let files = repo.files(&commit);
    Some(match choose(name, &files).ok()? {
        Choice::Gguf(file) => Here { path: file.pointer.clone(), files: vec![file.clone()] },
        Choice::Safetensors(all) => {
            Here { path: repo.snapshot(&commit), files: all.into_iter().cloned().collect() }
        }
    })
}

/// Makes sure that a model is in the cache. With `ask` the hub is asked for the newest of the revision; else only if
/// nothing is here. A model that can be run before all of it is here is handed out by `early`.
///
/// # Errors
/// [`ui::Quit::Interrupted`]; [`arriving::Mismatch`]; else what failed, where, and what to do.
pub(crate) fn ensure(
    name: &Name,
    ask: bool,
    stop: &AtomicBool,
    early: Option<&Early>,
) -> anyhow::Result<Pulled> {
    let settings = Settings::read()?;
    let known = here(&settings, name).map(|here| Pulled { path: here.path, fetched: false });
    match known {
        Some(pulled) if settings.offline || !ask => Ok(pulled),
        None if settings.offline => {
            bail!("{name} is not in {}, and HF_HUB_OFFLINE forbids to fetch it", settings.cache.display())
        }
        known => remote(&settings, name, known, stop, early),
    }
}

#[cfg(not(feature = "hub"))]
fn remote(
    _: &Settings,
    name: &Name,
    known: Option<Pulled>,
    _: &AtomicBool,
    _: Option<&Early>,
) -> anyhow::Result<Pulled> {
    let why = "this build of lutite cannot download from hubs (cargo feature `hub`)";
    match known {
        Some(pulled) => {
            ui::warn(format_args!("{why}; taking the copy that is here"));
            Ok(pulled)
        }
        None => bail!("{name} is not here, and {why}; get the file by other means and pass it with -m FILE"),
    }
}

#[cfg(feature = "hub")]
fn remote(
    settings: &Settings,
    name: &Name,
    known: Option<Pulled>,
    stop: &AtomicBool,
    early: Option<&Early>,
) -> anyhow::Result<Pulled> {
    http::Client::with(settings, stop, early, |client| {
        let listing = match api::listing(client, name) {
            Ok(listing) => listing,
            Err(failure) if known.is_some() && failure.is_outage() => {
                ui::warn(format_args!("{failure}; taking the copy that is here"));
                return known.ok_or_else(|| failure.into_error());
            }
            Err(failure) => return Err(api::explain(client, name, failure)),
        };
        fetch_all(client, name, &listing)
    })
}

#[cfg(feature = "hub")]
impl Candidate for api::Remote {
    fn path(&self) -> &str {
        &self.path
    }
    fn size(&self) -> u64 {
        self.size
    }
}

#[cfg(feature = "hub")]
fn fetch_all(client: &http::Client<'_>, name: &Name, listing: &api::Listing) -> anyhow::Result<Pulled> {
    use anyhow::Context;
    use lutite_runtime::os::disk;
    use std::fs;

    let repo = Repo::new(&client.settings.cache, &name.repo);
    let paths = || listing.files.iter().map(|f| f.path.clone()).collect();
    let choice = choose(name, &listing.files).map_err(|error| match &name.choice {
        Some(choice) => anyhow::anyhow!("{error}{}", api::near("\n", choice, paths())),
        None => error,
    })?;
    let snapshot = repo.snapshot(&listing.commit);
    let (files, path) = match choice {
        Choice::Gguf(file) => (vec![file], snapshot.join(&file.path)),
        Choice::Safetensors(files) => (files, snapshot),
    };
    // What is here of a file counts, whether it is finished or not.
    let size = |path: PathBuf| fs::metadata(path).map_or(0, |m| m.len());
    let here = |f: &api::Remote| size(repo.blob(&f.oid)).max(size(repo.incomplete(&f.oid))).min(f.size);
    let need: u64 = files.iter().map(|f| f.size - here(f)).sum();
    let free = disk::free_bytes(&repo.folder);
    if let Some(free) = free.filter(|free| *free < need) {
        let (need, free) = (ui::megabytes(need), ui::megabytes(free));
        let cache = client.settings.cache.display();
        bail!(
            "{name} needs {need}, and {free} are free in {cache}; make room, or set HF_HUB_CACHE to another disk"
        );
    }
    let total: u64 = files.iter().map(|f| f.size).sum();
    ui::note(match &files[..] {
        [one] => format!("{}: {}, {}", name.repo, one.path, ui::megabytes(total)),
        all => format!("{}: safetensors, {} files, {}", name.repo, all.len(), ui::megabytes(total)),
    });
    let mut fetched = false;
    for (i, file) in files.iter().enumerate() {
        let of = if files.len() > 1 { format!(" ({} of {})", i + 1, files.len()) } else { String::new() };
        let done =
            fetch::fetch(client, &repo, &listing.commit, file, &format!("downloading {}{of}", file.path));
        if client.stop.load(std::sync::atomic::Ordering::Relaxed)
            && let Ok(part) = fs::metadata(repo.incomplete(&file.oid))
        {
            let (here, all) = (ui::megabytes(part.len()), ui::megabytes(file.size));
            ui::note(format_args!(
                "{here} of the {all} of {} are here and are kept; the same command goes on from there",
                file.path
            ));
        }
        fetched |= done?;
    }
    let known = repo.set_ref(name.revision(), &listing.commit);
    if fetched {
        known.with_context(|| format!("cannot note the revision of {name}"))?;
    }
    Ok(Pulled { path, fetched })
}
