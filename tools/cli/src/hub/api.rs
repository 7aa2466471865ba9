//! What a repository has: its commit, its files with their sizes and hashes.

use super::http::{Client, Failure};
use super::name::{Name, check_path};
use super::store::Oid;
use crate::ui;
use anyhow::anyhow;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use strsim::normalized_damerau_levenshtein as likeness;
use ureq::http::{HeaderMap, header};

/// One answer of the hub at most; a page of a listing has some 300 KB.
const JSON_MAX_BYTES: u64 = 16 << 20;
/// Files of one repository at most, and pages of its listing.
const FILES_MAX: usize = 100_000;
const PAGES_MAX: usize = 200;

/// What has a meaning of its own in the path of an address. Slashes separate parts and stay.
const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b']')
    .add(b'`');

/// As [`PATH`], for one part.
const PART: &AsciiSet = &PATH.add(b'/');

/// A file of a repository.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) oid: Oid,
}

/// The files of one commit.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<Remote>,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

/// The address of a file at a commit.
pub(super) fn resolve_url(endpoint: &str, repo: &str, commit: &str, path: &str) -> String {
    format!("{endpoint}/{repo}/resolve/{commit}/{}", utf8_percent_encode(path, PATH))
}

/// The listing of a revision.
pub(super) fn listing(client: &Client<'_>, name: &Name) -> Result<Listing, Failure> {
    let base = format!("{}/api/models/{}", client.settings.endpoint, name.repo);
    let revision = utf8_percent_encode(name.revision(), PART);
    let (Revision { sha: commit }, _) = json(client, &format!("{base}/revision/{revision}"))?;
    if !Oid::is_commit(&commit) {
        return Err(anyhow!("the hub names {} as the commit of {name}, which is none", shown(&commit)).into());
    }
    let mut files = Vec::new();
    let mut left_out = Vec::new();
    let mut page = Some(format!("{base}/tree/{commit}?recursive=true"));
    for _ in 0..PAGES_MAX {
        let Some(url) = page else { break };
        let (entries, headers): (Vec<Entry>, _) = json(client, &url)?;
        for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
            if check_path(&entry.path).is_err() {
                left_out.push(entry.path);
                continue;
            }
            let (oid, size) = entry.lfs.map_or((entry.oid, entry.size), |lfs| (lfs.oid, lfs.size));
            let oid = Oid::parse(&oid)
                .ok_or_else(|| anyhow!("the hub gives {} as the hash of {}", shown(&oid), entry.path))?;
            files.push(Remote { path: entry.path, size, oid });
        }
        if files.len() + left_out.len() > FILES_MAX {
            return Err(anyhow!("{} has more than {FILES_MAX} files", name.repo).into());
        }
        page = next_page(&headers, &client.settings.endpoint)?;
    }
    if page.is_some() {
        return Err(anyhow!("the listing of {} has no end ({PAGES_MAX} pages)", name.repo).into());
    }
    if let Some(first) = left_out.first() {
        let n = left_out.len();
        ui::warn(format_args!(
            "left out: {n} files whose names lead elsewhere or do not fit every system ({})",
            shown(first)
        ));
    }
    Ok(Listing { commit, files })
}

fn json<T: DeserializeOwned>(client: &Client<'_>, url: &str) -> Result<(T, HeaderMap), Failure> {
    let (bytes, headers) = client.get_bytes(url, JSON_MAX_BYTES)?;
    let value = serde_json::from_slice(&bytes).map_err(|error| {
        anyhow!("the answer of {url} is not what a hub gives ({error}); is HF_ENDPOINT right, or a login page between?")
    })?;
    Ok((value, headers))
}

/// The address in `Link: <...>; rel="next"`. It has to be the hub's: the token goes there.
fn next_page(headers: &HeaderMap, endpoint: &str) -> Result<Option<String>, Failure> {
    let links = headers.get(header::LINK).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let next = links.split(',').find(|link| link.contains("rel=\"next\""));
    let Some(url) = next.and_then(|link| link.split_once('<')?.1.split_once('>')).map(|(url, _)| url) else {
        return Ok(None);
    };
    if !url.strip_prefix(endpoint).is_some_and(|rest| rest.starts_with('/')) {
        return Err(anyhow!("the hub's listing goes on at another place ({}); refused", shown(url)).into());
    }
    Ok(Some(url.to_owned()))
}

/// A failure to list a repository, in plain words, with what was perhaps meant.
pub(super) fn explain(client: &Client<'_>, name: &Name, failure: Failure) -> anyhow::Error {
    let Failure::Status { status, code, .. } = &failure else { return failure.into_error() };
    let (repo, endpoint) = (&name.repo, &client.settings.endpoint);
    let token = if client.settings.token.is_some() {
        "the token (HF_TOKEN or the file of `hf auth login`) was sent; check that it is valid and may read this"
    } else {
        "set HF_TOKEN to a token from the hub's settings"
    };
    let gated = || anyhow!("{repo} is gated: accept its licence on {endpoint}/{repo}; then {token}");
    match (*status, code.as_str()) {
        (_, "GatedRepo") => gated(),
        (404, "RevisionNotFound") => {
            let has = near("; ", name.revision(), revisions(client, repo));
            anyhow!("{repo} has no branch, tag or commit `{}`{has}", name.revision())
        }
        (403, _) => gated(),
        // What does not exist is 401 to somebody unknown.
        (401, _) => {
            let has = near("; ", repo, siblings(client, repo));
            anyhow!(
                "no repository {repo} that everyone may read: if it is spelled right, it is private or gated; {token}{has}"
            )
        }
        (404, _) => anyhow!("no repository {repo} at {endpoint}{}", near("; ", repo, siblings(client, repo))),
        _ => failure.into_error(),
    }
}

#[derive(Deserialize)]
struct Refs {
    #[serde(default)]
    branches: Vec<Ref>,
    #[serde(default)]
    tags: Vec<Ref>,
}

#[derive(Deserialize)]
struct Ref {
    name: String,
}

/// Only for a message: a failure is no names.
fn revisions(client: &Client<'_>, repo: &str) -> Vec<String> {
    let refs = json::<Refs>(client, &format!("{}/api/models/{repo}/refs", client.settings.endpoint));
    refs.map(|(refs, _)| refs.branches.into_iter().chain(refs.tags).map(|r| r.name).collect())
        .unwrap_or_default()
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

/// Repositories of the same owner; as [`revisions`].
fn siblings(client: &Client<'_>, repo: &str) -> Vec<String> {
    let owner = repo.split('/').next().unwrap_or_default();
    let models = json::<Vec<Model>>(
        client,
        &format!("{}/api/models?author={owner}&limit=1000", client.settings.endpoint),
    );
    models.map(|(models, _)| models.into_iter().map(|m| m.id).collect()).unwrap_or_default()
}

/// `did you mean ...?` after `lead`, with the most alike names; or nothing.
pub(super) fn near(lead: &str, wanted: &str, names: Vec<String>) -> String {
    const LIKE: f64 = 0.6;
    const LONGEST: usize = 200;
    let sound = names.into_iter().filter(|name| name.len() <= LONGEST && check_path(name).is_ok());
    let mut scored: Vec<(f64, String)> =
        sound.map(|name| (likeness(wanted, &name), name)).filter(|(score, _)| *score > LIKE).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let best: Vec<String> = scored.into_iter().take(3).map(|(_, name)| name).collect();
    if best.is_empty() { String::new() } else { format!("{lead}did you mean {}?", best.join(" or ")) }
}

/// Text of the hub in a message: quoted, and not all of it if it is long.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(100).collect::<String>())
}
