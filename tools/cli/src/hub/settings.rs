//! Where the hub is and where its files go: the variables of the official client, `huggingface_hub`, with its meaning.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `HF_ENDPOINT` | address of the hub | `https://huggingface.co` |
//! | `HF_TOKEN` | who asks, for private and gated repositories | the file `HF_TOKEN_PATH` |
//! | `HF_TOKEN_PATH` | a file with the token | `$HF_HOME/token` |
//! | `HF_HOME` | folder of cache and token | `$XDG_CACHE_HOME/huggingface`, `~/.cache/huggingface` |
//! | `HF_HUB_CACHE` | folder of the files | `$HF_HOME/hub` |
//! | `HF_HUB_OFFLINE` | 1: ask nobody | |
//! | `HF_HUB_DISABLE_SYMLINKS` | 1: files in the snapshots, no links | |
//! | `HF_HUB_DOWNLOAD_TIMEOUT` | seconds without a byte until a connection is given up | 30 |
//! | `SSL_CERT_FILE` | certificates to trust, in PEM, in place of those built in | |

use anyhow::{Context, bail};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The settings of one process.
pub(crate) struct Settings {
    /// Without a slash at its end.
    pub(crate) endpoint: String,
    pub(crate) token: Option<Token>,
    pub(crate) cache: PathBuf,
    pub(crate) offline: bool,
    pub(crate) symlinks: bool,
    /// Without a byte for so long, a connection is given up.
    pub(crate) stall: Duration,
    /// The first wait before trying again; each further one is twice as long.
    pub(crate) backoff: Duration,
    pub(crate) certificates: Option<PathBuf>,
}

/// A secret that does not print.
pub(crate) struct Token(String);

impl Token {
    /// The value of the header `Authorization`.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

const STALL: Duration = Duration::from_secs(30);
const BACKOFF: Duration = Duration::from_secs(1);

impl Settings {
    /// Of this process's variables.
    ///
    /// # Errors
    /// If there is no folder for the cache, or a variable's value makes no sense.
    pub(crate) fn read() -> anyhow::Result<Self> {
        Self::by(&|name| std::env::var_os(name))
    }

    fn by(lookup: &dyn Fn(&str) -> Option<OsString>) -> anyhow::Result<Self> {
        // An empty variable is as good as none.
        let var = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let text = |name: &str| -> anyhow::Result<Option<String>> {
            var(name)
                .map(|v| v.into_string().ok().with_context(|| format!("{name} is not UTF-8")))
                .transpose()
        };
        let path = |name: &str| var(name).map(PathBuf::from).map(|p| expand(p, lookup));
        let truth = |name: &str| {
            var(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].iter().any(|t| v.eq_ignore_ascii_case(t)))
        };
        let user = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|p| p.join("huggingface")))
            .or_else(|| path(user).map(|p| p.join(".cache/huggingface")));
        let in_home = |name: &str| home.as_ref().map(|home| home.join(name));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| in_home("hub"))
            .with_context(|| {
                format!("no folder for the hub's files: neither HF_HOME nor {user} is set; set HF_HOME")
            })?;
        let endpoint = text("HF_ENDPOINT")?.unwrap_or_else(|| "https://huggingface.co".to_owned());
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            bail!(
                "HF_ENDPOINT is `{endpoint}`; it must start with https:// (or http:// on a network of your own)"
            );
        }
        let seconds = text("HF_HUB_DOWNLOAD_TIMEOUT")?;
        let stall = match seconds.as_deref().map(str::parse::<f64>) {
            None => STALL,
            Some(Ok(s)) if (0.001..=86_400.0).contains(&s) => Duration::from_secs_f64(s),
            Some(_) => bail!("HF_HUB_DOWNLOAD_TIMEOUT must be seconds, such as 30, and not more than a day"),
        };
        // For tests: not to wait for seconds.
        let backoff =
            text("LUTITE_HUB_BACKOFF_MS")?.and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: match text("HF_TOKEN")?.or(text("HUGGING_FACE_HUB_TOKEN")?) {
                Some(token) => clean(&token)?,
                None => match path("HF_TOKEN_PATH").or_else(|| in_home("token")) {
                    Some(file) => token_of(&file)?,
                    None => None,
                },
            },
            cache,
            offline: truth("HF_HUB_OFFLINE") || truth("TRANSFORMERS_OFFLINE"),
            symlinks: !truth("HF_HUB_DISABLE_SYMLINKS"),
            stall,
            backoff: backoff.unwrap_or(BACKOFF),
            certificates: path("SSL_CERT_FILE"),
        })
    }
}

/// `~/x` as shells have it: in a variable that was set without one.
fn expand(path: PathBuf, lookup: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    match (path.strip_prefix("~"), lookup("HOME")) {
        (Ok(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => path,
    }
}

fn token_of(file: &PathBuf) -> anyhow::Result<Option<Token>> {
    match fs::read_to_string(file) {
        Ok(text) => clean(&text).with_context(|| format!("in {}", file.display())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read the token in {}", file.display())),
    }
}

fn clean(text: &str) -> anyhow::Result<Option<Token>> {
    let text = text.trim();
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        bail!("the hub's token has a space or a character that no token has; copy it again");
    }
    Ok((!text.is_empty()).then(|| Token(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(vars: &[(&str, &str)]) -> anyhow::Result<Settings> {
        Settings::by(&|name| vars.iter().find(|v| v.0 == name).map(|v| v.1.into()))
    }

    #[test]
    #[cfg(unix)]
    fn the_order_of_folders() {
        let cache = |vars: &[(&str, &str)]| settings(vars).unwrap().cache.display().to_string();
        assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/f"), ("XDG_CACHE_HOME", "/x")]), "/f/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "~/f")]), "/h/f/hub");
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), "/c");
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/c")]), "/c");
        assert!(settings(&[]).err().unwrap().to_string().contains("set HF_HOME"));
    }

    #[test]
    fn values_are_checked() {
        let home = ("HF_HOME", "/nowhere");
        let ok = settings(&[home, ("HF_ENDPOINT", "https://x.org/"), ("HF_HUB_OFFLINE", "yes")]).unwrap();
        assert_eq!((ok.endpoint.as_str(), ok.offline, ok.symlinks), ("https://x.org", true, true));
        for bad in [("HF_ENDPOINT", "ftp://x"), ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"), ("HF_TOKEN", "a\nb")] {
            assert!(settings(&[home, bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_token_comes_from_the_variable_or_a_file_and_does_not_print() {
        let dir = tempfile::tempdir().unwrap();
        let home = ("HF_HOME", dir.path().to_str().unwrap());
        assert!(settings(&[home]).unwrap().token.is_none());
        fs::write(dir.path().join("token"), " hf_file\n").unwrap();
        let token = settings(&[home]).unwrap().token.unwrap();
        assert_eq!((token.header().as_str(), format!("{token:?}").as_str()), ("Bearer hf_file", "Token"));
        let token = settings(&[home, ("HF_TOKEN", "hf_var")]).unwrap().token.unwrap();
        assert_eq!(token.header(), "Bearer hf_var");
    }
}
