//! How a model of a hub is written: `owner/repo[:file-or-quant][@revision]`.

use std::fmt;
use std::str::FromStr;

/// The branch that is meant when no revision is named.
pub(crate) const MAIN: &str = "main";

/// What a name may start with, to be the hub's and nobody's file.
pub const PREFIX: &str = "hf.co/";

/// A model of a hub, as a person named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// `owner/repo`.
    pub repo: String,
    /// A file, a quantization such as `Q4_K_M`, or the word `safetensors`.
    pub choice: Option<String>,
    /// Branch, tag or commit.
    pub revision: Option<String>,
}

/// The longest part of a repository's name that the hub allows.
const PART_MAX: usize = 96;

impl Name {
    /// The revision, `main` if none was named.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = ["https://huggingface.co/", "https://hf.co/", "huggingface.co/", PREFIX]
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix))
            .unwrap_or(text);
        let wrong = |why: &str| format!("`{text}` is no owner/repo[:file-or-quant][@revision]: {why}");
        let (rest, revision) = match rest.split_once('@') {
            None => (rest, None),
            Some((rest, revision)) => (rest, Some(revision)),
        };
        let (repo, choice) = match rest.split_once(':') {
            None => (rest, None),
            Some((repo, choice)) => (repo, Some(choice)),
        };
        let mut parts = repo.split('/');
        let (Some(owner), Some(name), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("a repository has an owner, one slash and a name"));
        };
        for part in [owner, name] {
            let edge = |c: Option<char>| c.is_none_or(|c| c == '-' || c == '.');
            let chars = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if edge(part.chars().next()) || edge(part.chars().last()) || part.len() > PART_MAX {
                return Err(wrong(
                    "owner and name start and end with a letter or digit, and have at most 96",
                ));
            }
            if !part.chars().all(chars) || part.contains("--") || part.contains("..") {
                return Err(wrong(
                    "owner and name have letters, digits, `-`, `_` and `.`, no two `-` or `.`",
                ));
            }
        }
        if let Some(choice) = choice {
            check_path(choice).map_err(|why| wrong(&format!("after the colon it {why}")))?;
        }
        if let Some(revision) = revision {
            check_path(revision).map_err(|why| wrong(&format!("the revision {why}")))?;
        }
        let owned = |part: Option<&str>| part.map(str::to_owned);
        Ok(Self { repo: repo.to_owned(), choice: owned(choice), revision: owned(revision) })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        for (mark, part) in [(':', &self.choice), ('@', &self.revision)] {
            if let Some(part) = part {
                write!(f, "{mark}{part}")?;
            }
        }
        Ok(())
    }
}

/// Whether a relative path of a repository, or a revision, stays in the folder that it is joined to, on every system.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub(super) fn check_path(path: &str) -> Result<(), &'static str> {
    const PATH_MAX: usize = 1024;
    if path.is_empty() || path.len() > PATH_MAX {
        return Err("is empty or longer than 1024 bytes");
    }
    if path.chars().any(|c| c.is_control() || matches!(c, '\\' | ':')) {
        return Err("has a control character, a backslash or a colon");
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("is absolute or has an empty part, `.` or `..`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        let name = |text: &str| {
            let Name { repo, choice, revision } = text.parse().unwrap();
            (repo, choice.unwrap_or_default(), revision.unwrap_or_default())
        };
        let is = |repo: &str, choice: &str, revision: &str| (repo.into(), choice.into(), revision.into());
        assert_eq!(name("o/r"), is("o/r", "", ""));
        assert_eq!(name("o/r:Q4_K_M"), is("o/r", "Q4_K_M", ""));
        assert_eq!(name("o/r:sub/x.gguf@refs/pr/1"), is("o/r", "sub/x.gguf", "refs/pr/1"));
        assert_eq!(name("o-1/r_2.b@v1"), is("o-1/r_2.b", "", "v1"));
        assert_eq!(name("https://huggingface.co/o/r"), is("o/r", "", ""));
        assert_eq!(name("hf.co/o/r:Q8_0"), is("o/r", "Q8_0", ""));
        assert_eq!("o/r:a@b".parse::<Name>().unwrap().to_string(), "o/r:a@b");
    }

    #[test]
    fn what_is_no_name() {
        let long = format!("o/{}", "x".repeat(97));
        for text in [
            "",
            "o",
            "/",
            "o/",
            "/r",
            "o/r/f",
            "../r",
            "o/..",
            "o/.r",
            "o/r-",
            "o/a--b",
            "o/a..b",
            "o/r b",
            "o/r:",
            "o/r@",
            "o/r:../x",
            "o/r:/x",
            "o/r:a\\b",
            "o/r@a/../b",
            "o/r@a\n",
            "o/r:a:b",
            "./o/r",
            &long,
        ] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
