//! Where things lie on this machine.
//!
//! Models and packed models are a cache: large, and made again from their source. They lie in `$LUTITE_HOME`, or else in
//!
//! | system | folder |
//! |---|---|
//! | Linux and others | `$XDG_CACHE_HOME/lutite`, by default `~/.cache/lutite` |
//! | macOS | `~/Library/Caches/lutite` |
//! | Windows | `%LOCALAPPDATA%\lutite` |
//!
//! The configuration is `$LUTITE_CONFIG`, or else `lutite/config.toml` in `$XDG_CONFIG_HOME`, by default `~/.config`
//! (`%APPDATA%` on Windows).

use anyhow::Context;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// The folder of everything that is kept.
///
/// # Errors
/// If no variable names a home folder.
pub fn home() -> anyhow::Result<PathBuf> {
    home_by(&|name| std::env::var_os(name))
        .context("no folder to keep models in: neither LUTITE_HOME nor a home folder is set; set LUTITE_HOME")
}

/// The folder of pulled models.
///
/// # Errors
/// As [`home`].
pub fn models() -> anyhow::Result<PathBuf> {
    Ok(home()?.join("models"))
}

/// The configuration file, and whether it was named on purpose (then it has to exist).
#[must_use]
pub fn config_file() -> Option<(PathBuf, bool)> {
    config_file_by(&|name| std::env::var_os(name))
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn home_by(lookup: Lookup<'_>) -> Option<PathBuf> {
    if let Some(home) = folder(lookup, "LUTITE_HOME") {
        return Some(home);
    }
    let cache = if cfg!(windows) {
        folder(lookup, "LOCALAPPDATA")
    } else if cfg!(target_vendor = "apple") {
        folder(lookup, "HOME").map(|home| home.join("Library/Caches"))
    } else {
        xdg(lookup, "XDG_CACHE_HOME", ".cache")
    };
    Some(cache?.join("lutite"))
}

fn config_file_by(lookup: Lookup<'_>) -> Option<(PathBuf, bool)> {
    if let Some(file) = folder(lookup, "LUTITE_CONFIG") {
        return Some((file, true));
    }
    let config =
        if cfg!(windows) { folder(lookup, "APPDATA") } else { xdg(lookup, "XDG_CONFIG_HOME", ".config") };
    Some((config?.join("lutite").join("config.toml"), false))
}

/// The XDG base directory specification: a relative path in the variable is invalid and ignored.
fn xdg(lookup: Lookup<'_>, variable: &str, default: &str) -> Option<PathBuf> {
    let named = folder(lookup, variable).filter(|path| path.is_absolute());
    named.or_else(|| folder(lookup, "HOME").map(|home| home.join(default)))
}

/// An empty variable is as good as none.
fn folder(lookup: Lookup<'_>, variable: &str) -> Option<PathBuf> {
    lookup(variable).filter(|value| value != OsStr::new("")).map(PathBuf::from)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn lookup<'a>(vars: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        |name| vars.iter().find(|v| v.0 == name).map(|v| v.1.into())
    }

    #[test]
    fn the_order_of_folders() {
        let home = |vars: &[(&str, &str)]| home_by(&lookup(vars)).map(|p| p.display().to_string());
        assert_eq!(home(&[("HOME", "/h")]).as_deref(), Some("/h/.cache/lutite"));
        assert_eq!(home(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]).as_deref(), Some("/c/lutite"));
        assert_eq!(home(&[("HOME", "/h"), ("XDG_CACHE_HOME", "c")]).as_deref(), Some("/h/.cache/lutite"));
        assert_eq!(home(&[("HOME", "/h"), ("LUTITE_HOME", "/l")]).as_deref(), Some("/l"));
        assert_eq!(home(&[("HOME", "/h"), ("LUTITE_HOME", "")]).as_deref(), Some("/h/.cache/lutite"));
        assert_eq!(home(&[]), None);
    }

    #[test]
    fn the_configuration_file() {
        let file = |vars: &[(&str, &str)]| config_file_by(&lookup(vars));
        assert_eq!(file(&[("HOME", "/h")]), Some(("/h/.config/lutite/config.toml".into(), false)));
        assert_eq!(file(&[("LUTITE_CONFIG", "x.toml")]), Some(("x.toml".into(), true)));
        assert_eq!(file(&[]), None);
    }
}
