//! One file from a hub into the cache.
//!
//! Bytes are kept as they come, under `<oid>.incomplete`, and a later try or a later process goes on from there. The file
//! gets its name only when its hash is the listing's, so neither the place nor what lay there has to be trusted. A stacked
//! file may be used before ([`super::arriving`]); so bytes that have come are never changed or cut off: who has to start
//! again makes a new file.

use super::api::{Remote, resolve_url};
use super::arriving::{Look, Mismatch, look};
use super::http::{Client, Failure, Reply, Retry};
use super::store::{Hasher, Oid, Repo};
use crate::{interrupt, pull, ui};
use anyhow::{Context, anyhow, bail};
use lutite_runtime::os::priority::yield_to_others;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use ureq::http::header;

/// Makes sure that a file of a commit is in the cache; returns whether bytes were fetched for it.
///
/// # Errors
/// [`ui::Quit::Interrupted`]; [`Mismatch`]; else what failed and what to do. What has come is kept, unless it is wrong.
pub(super) fn fetch(
    client: &Client<'_>,
    repo: &Repo,
    commit: &str,
    remote: &Remote,
    label: &str,
) -> anyhow::Result<bool> {
    let pointer = repo.snapshot(commit).join(&remote.path);
    let is_there = |path: &Path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == remote.size);
    // First of all, so that a cache that cannot be written may be read.
    if is_there(&pointer) {
        return Ok(false);
    }
    let pointer = repo.prepare(commit, &remote.path)?;
    let _lock = pull::lock(&repo.lock(&remote.oid), &remote.path, client.stop)?;
    // Another process may have fetched it while this one waited.
    if is_there(&pointer) {
        return Ok(false);
    }
    let blob = repo.blob(&remote.oid);
    let fetched = !is_there(&blob);
    if fetched {
        let url = resolve_url(&client.settings.endpoint, &repo.id, commit, &remote.path);
        Download::new(client, url, remote, repo.incomplete(&remote.oid), &pointer, label)?.run()?;
        fs::rename(repo.incomplete(&remote.oid), &blob)
            .with_context(|| format!("cannot rename to {}", blob.display()))?;
    }
    repo.point(&pointer, &remote.oid, client.settings.symlinks)?;
    Ok(fetched)
}

/// A file on its way.
struct Download<'a> {
    client: &'a Client<'a>,
    url: String,
    remote: &'a Remote,
    path: PathBuf,
    /// The name that it will have.
    name: &'a Path,
    file: File,
    /// Bytes of the file that are there, and their hash.
    have: u64,
    hasher: Hasher,
    /// What the bytes that come now are a part of, as the server names it.
    etag: Option<String>,
    /// With so many bytes it may be of use.
    look_at: u64,
    progress: ui::Progress,
}

impl<'a> Download<'a> {
    fn new(
        client: &'a Client<'a>,
        url: String,
        remote: &'a Remote,
        path: PathBuf,
        name: &'a Path,
        label: &str,
    ) -> anyhow::Result<Self> {
        let file = open(&path).with_context(|| {
            format!("cannot write {}; set HF_HUB_CACHE to another folder", path.display())
        })?;
        let progress = ui::Progress::bytes(label, remote.size);
        let hasher = remote.oid.hasher(remote.size);
        let (have, etag, look_at) = (0, None, 0);
        Ok(Self { client, url, remote, path, name, file, have, hasher, etag, look_at, progress })
    }

    fn run(mut self) -> anyhow::Result<()> {
        self.take_up()?;
        let resumed = self.have > 0;
        if resumed {
            ui::note(format_args!("going on after {} that are here", ui::megabytes(self.have)));
        }
        self.complete()?;
        let mut is = self.hash()?;
        if is != self.remote.oid && resumed && !self.client.is_in_use() {
            // What lay there was another file's, or was damaged.
            ui::warn(format_args!(
                "{}: what was here before does not fit; fetching all of it",
                self.remote.path
            ));
            self.start_again()?;
            self.complete()?;
            is = self.hash()?;
        }
        if is != self.remote.oid {
            fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))?;
            let why = format!(
                "wrong checksum: {} as it came has {} {}, the listing says {}; what came was removed; try again, and if \
                 it stays so, tell the repository's owner",
                self.remote.path,
                is.kind(),
                is.as_str(),
                self.remote.oid.as_str(),
            );
            return Err(Mismatch(why).into());
        }
        self.file.sync_all().map_err(|error| self.disk(error))
    }

    /// Reads what an earlier process has left.
    fn take_up(&mut self) -> anyhow::Result<()> {
        let len = self.file.metadata()?.len();
        if len > self.remote.size {
            return self.start_again();
        }
        let mut left = (&self.file).take(len);
        let context = || format!("cannot read {}", self.path.display());
        self.have = pull::copy(&mut left, &mut self.hasher, len, self.client.stop, &mut self.progress)
            .with_context(context)?;
        Ok(())
    }

    fn start_again(&mut self) -> anyhow::Result<()> {
        if self.client.is_in_use() {
            bail!("all of it would have to be fetched again, and a part of it is in use");
        }
        (self.have, self.etag, self.look_at) = (0, None, 0);
        self.hasher = self.remote.oid.hasher(self.remote.size);
        let context = || format!("cannot write {}", self.path.display());
        fs::remove_file(&self.path).with_context(context)?;
        self.file = open(&self.path).with_context(context)?;
        Ok(())
    }

    /// Hands out what has come, if it can be used.
    fn offer(&mut self) {
        let Some(early) = self.client.early.filter(|early| !early.is_out() && self.have >= self.look_at)
        else {
            return;
        };
        match look(&self.path, self.name, self.have) {
            Look::Again(at) => self.look_at = at,
            Look::Ready(part) => {
                // What is said and computed here from now on would be in the way of answers.
                self.progress.hide();
                yield_to_others();
                early.hand_out(part);
            }
        }
    }

    /// The hash of what is there; the next one starts anew.
    fn hash(&mut self) -> anyhow::Result<Oid> {
        interrupt::check(self.client.stop)?;
        Ok(std::mem::replace(&mut self.hasher, self.remote.oid.hasher(self.remote.size)).oid())
    }

    /// Part after part until all bytes are there.
    fn complete(&mut self) -> anyhow::Result<()> {
        let mut retry = Retry::new(self.client);
        // Progress is to have more than ever: a server that makes us start again each time must not keep us for ever.
        let mut most = self.have;
        while self.have < self.remote.size {
            let Err(failure) = self.part() else { continue };
            if self.have > most {
                most = self.have;
                retry.reset();
            }
            retry.after(failure).map_err(|failure| self.explain(failure))?;
        }
        Ok(())
    }

    /// One request, and its bytes as far as they come.
    fn part(&mut self) -> Result<(), Failure> {
        let range = format!("bytes={}-", self.have);
        let etag = self.etag.clone();
        let mut headers = Vec::new();
        if self.have > 0 {
            headers.push((header::RANGE, range.as_str()));
            // The rest of that file, or else all of the new one.
            headers.extend(etag.as_deref().map(|etag| (header::IF_RANGE, etag)));
        }
        let mut reply = self.client.get(&self.url, &headers)?;
        match reply.status {
            206 if self.have > 0 => self.check_range(&reply)?,
            200 => {
                if self.have > 0 {
                    let why = "the server starts from the beginning";
                    self.start_again().context(why)?;
                    ui::note(why);
                }
                let len = reply.body.content_length().unwrap_or(self.remote.size);
                if len != self.remote.size {
                    let (path, size) = (&self.remote.path, self.remote.size);
                    return Err(anyhow!(
                        "{path} has {len} bytes, not the {size} of the listing; try again later"
                    )
                    .into());
                }
            }
            416 => return Err(self.distrust("the server has no such part")),
            status => return Err(anyhow!("{} was answered with status {status}", self.url).into()),
        }
        self.etag = reply.header(header::ETAG).filter(|etag| !etag.starts_with("W/")).map(str::to_owned);
        self.receive(&mut reply)
    }

    /// Whether a part is the one that was asked for.
    fn check_range(&mut self, reply: &Reply) -> Result<(), Failure> {
        let is = reply.header(header::CONTENT_RANGE).unwrap_or_default();
        let (from, to) = (self.have, self.remote.size.saturating_sub(1));
        let total = self.remote.size.to_string();
        let fits = is.strip_prefix("bytes ").and_then(|is| is.split_once('/')).is_some_and(|(part, of)| {
            let ends = part
                .split_once('-')
                .and_then(|(a, b)| Some((a.parse::<u64>().ok()?, b.parse::<u64>().ok()?)));
            ends.is_some_and(|(a, b)| a == from && (a..=to).contains(&b)) && (of == "*" || of == total)
        });
        if !fits {
            return Err(
                self.distrust(&format!("asked for the bytes from {from} of {total}, the server sent {is:?}"))
            );
        }
        if let (Some(was), Some(is)) = (&self.etag, reply.header(header::ETAG))
            && was != is
        {
            return Err(self.distrust("the file has changed on the server"));
        }
        Ok(())
    }

    /// Drops what has come, for the next try to fetch all.
    fn distrust(&mut self, why: &str) -> Failure {
        if let Err(error) = self.start_again() {
            return error.context(why.to_owned()).into();
        }
        Failure::Network {
            host: self.remote.path.clone(),
            why: format!("{why}; fetching all of it"),
            again: true,
        }
    }

    fn receive(&mut self, reply: &mut Reply) -> Result<(), Failure> {
        let mut body = reply.body.as_reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            interrupt::check(self.client.stop)?;
            let n = match body.read(&mut buffer) {
                Ok(0) if self.have == self.remote.size => return Ok(()),
                Ok(0) => return Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broken(error)),
            };
            if n as u64 > self.remote.size - self.have {
                // What came so far is worth nothing if its end is not where the listing says.
                let (path, size) = (&self.remote.path, self.remote.size);
                let why = format!("{path} has more than the {size} bytes of the listing; try again later");
                self.start_again().with_context(|| why.clone())?;
                return Err(anyhow!(why).into());
            }
            self.file.write_all(&buffer[..n]).map_err(|error| self.disk(error))?;
            // Into a hash, which does not fail.
            let _ = self.hasher.write_all(&buffer[..n]);
            self.have += n as u64;
            self.progress.set(self.have);
            self.offer();
        }
    }

    fn broken(&self, error: io::Error) -> Failure {
        match self.url.parse() {
            Ok(uri) => self.client.network(&uri, error.into()),
            Err(error) => anyhow!("{:?} is no address: {error}", self.url).into(),
        }
    }

    /// A file that cannot be written.
    fn disk(&self, error: io::Error) -> anyhow::Error {
        let folder = self.path.parent().unwrap_or(&self.path).display();
        let full = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        );
        let what = if full { "there is no room in" } else { "cannot write to" };
        let way_out =
            "make room, or set HF_HUB_CACHE to another disk; the next try goes on where this one ended";
        anyhow::Error::new(error).context(format!("{what} {folder} for {}; {way_out}", self.remote.path))
    }

    fn explain(&self, failure: Failure) -> anyhow::Error {
        let path = &self.remote.path;
        match &failure {
            Failure::Status { status: 401 | 403, .. } => {
                let token = "set HF_TOKEN to a token of somebody who has accepted its licence on the repository's page";
                anyhow!("{failure}: {path} is private or gated; {token}")
            }
            Failure::Status { status: 404, .. } => {
                anyhow!("{failure}: {path} is in the listing, but is not there; try again later")
            }
            _ => failure
                .into_error()
                .context(format!("cannot fetch {path}; the same command goes on where this ended")),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).read(true).write(true).open(path)
}
