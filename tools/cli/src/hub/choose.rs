//! Which files of a repository make the model that is meant.
//!
//! The rules are llama.cpp's (`common/download.cpp`): a quantization is a word of the file's name in any case, without
//! one it is `Q4_K_M`, then `Q8_0`; projectors, drafts and importance matrices are no models. Where llama.cpp takes the
//! first of several, this asks.

use super::name::{MAIN, Name};
use crate::ui::megabytes;
use anyhow::{anyhow, bail};
use std::fmt::Write;

/// What is taken where no quantization is named, in this order.
const DEFAULTS: [&str; 3] = ["Q4_K_M", "Q8_0", "Q4_0"];

/// The word that chooses the other format in a repository that has both.
const SAFETENSORS: &str = "safetensors";

/// What makes a model in safetensors, beside the weights.
const BESIDE: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
    "compression_config.json",
];

/// A file of a repository, here or there.
pub(super) trait Candidate {
    fn path(&self) -> &str;
    fn size(&self) -> u64;
}

/// The chosen files.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice<'a, F> {
    /// One GGUF file.
    Gguf(&'a F),
    /// A folder of safetensors: all its files, the weights last.
    Safetensors(Vec<&'a F>),
}

/// Chooses.
///
/// # Errors
/// If there is nothing, or not one thing, to choose: says what there is.
pub(super) fn choose<'a, F: Candidate>(name: &Name, files: &'a [F]) -> anyhow::Result<Choice<'a, F>> {
    let models: Vec<&F> = files.iter().filter(|f| is_model(f.path())).collect();
    let whole: Vec<&F> = models.iter().copied().filter(|f| split(f.path()).is_none()).collect();
    let repo = &name.repo;
    let Some(wanted) = &name.choice else {
        for quant in DEFAULTS {
            match has_word(&whole, quant)[..] {
                [] => {}
                [one] => return Ok(Choice::Gguf(one)),
                _ => bail!("{repo} has several files with {quant}; name one: {}", list(name, &models)),
            }
        }
        return match (&whole[..], &models[..]) {
            ([one], _) => Ok(Choice::Gguf(one)),
            ([], []) => safetensors(name, files),
            ([], _) => Err(in_parts(name, models[0].path(), &models)),
            _ => {
                bail!("{repo} has several GGUF files; name one, or its quantization: {}", list(name, &models))
            }
        };
    };
    if wanted == SAFETENSORS {
        return safetensors(name, files);
    }
    let exact = models.iter().copied().find(|f| f.path() == wanted);
    let found = exact.map_or_else(|| has_word(&models, wanted), |one| vec![one]);
    let (parts, found): (Vec<&F>, Vec<&F>) = found.into_iter().partition(|f| split(f.path()).is_some());
    match (&found[..], &parts[..]) {
        ([one], _) => Ok(Choice::Gguf(one)),
        ([], []) if models.is_empty() => bail!("{repo} has no GGUF file; {}", without_choice(name, files)),
        ([], []) => {
            bail!("{repo} has no file and no quantization `{wanted}`; there is: {}", list(name, &models))
        }
        ([], [part, ..]) => Err(in_parts(name, part.path(), &models)),
        _ => bail!("several files of {repo} have `{wanted}`; name one: {}", list(name, &found)),
    }
}

fn without_choice<F: Candidate>(name: &Name, files: &[F]) -> String {
    match safetensors(name, files) {
        Ok(_) => format!("it has safetensors: leave `:{}` out", name.choice.as_deref().unwrap_or_default()),
        Err(_) => "and no safetensors".to_owned(),
    }
}

/// Whether a file is a GGUF model and nothing that goes with one.
fn is_model(path: &str) -> bool {
    const OTHERS: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];
    let file = path.rsplit('/').next().unwrap_or(path);
    path.ends_with(".gguf") && !OTHERS.iter().any(|other| file.contains(other))
}

/// The files that have a quantization as a word in their path. A word ends where llama.cpp has it end, and does not start
/// amid letters: `Q4_0` is no word of `IQ4_0`.
fn has_word<'a, F: Candidate>(files: &[&'a F], word: &str) -> Vec<&'a F> {
    let word = word.to_ascii_lowercase();
    let is_in = |path: &str| {
        let path = path.to_ascii_lowercase();
        path.match_indices(&word).any(|(at, _)| {
            let before = path[..at].chars().next_back();
            let after = path[at + word.len()..].chars().next();
            before.is_none_or(|c| !c.is_alphanumeric()) && after.is_none_or(|c| matches!(c, '.' | '-' | '/'))
        })
    };
    files.iter().copied().filter(|f| is_in(f.path())).collect()
}

/// How many parts a file is split into, if its name says so (`-00001-of-00003`).
fn split(path: &str) -> Option<u32> {
    let stem = path.rsplit_once('.')?.0;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (_, index) = rest.rsplit_once('-')?;
    let number = |text: &str| text.parse::<u32>().ok().filter(|_| text.len() == 5);
    number(index).and(number(count))
}

fn in_parts<F: Candidate>(name: &Name, path: &str, models: &[&F]) -> anyhow::Error {
    let n = split(path).unwrap_or_default();
    anyhow!(
        "{path} of {} is split into {n} files, which are not read yet; take another, or join them with \
         `llama-gguf-split --merge` and name the result with -m: {}",
        name.repo,
        list(name, models)
    )
}

/// The files of a model in safetensors, the weights last.
fn safetensors<'a, F: Candidate>(name: &Name, files: &'a [F]) -> anyhow::Result<Choice<'a, F>> {
    // In folders are other forms of the same weights.
    let top = || files.iter().filter(|f| !f.path().contains('/'));
    let is_weights = |f: &&F| f.path().ends_with(".safetensors") && !f.path().starts_with("consolidated");
    let is_usual = |f: &&F| {
        f.path() == "model.safetensors" || (f.path().starts_with("model-") && split(f.path()).is_some())
    };
    let mut weights: Vec<&F> = top().filter(is_weights).collect();
    if weights.iter().any(is_usual) {
        weights.retain(is_usual);
    }
    if weights.is_empty() || !top().any(|f| f.path() == BESIDE[0]) {
        let has: Vec<&F> = files.iter().collect();
        bail!(
            "{} has no model that can be run: no GGUF file, and no safetensors with a config.json; it has: {}",
            name.repo,
            list(name, &has)
        );
    }
    let parts = |count| weights.iter().filter(|f| split(f.path()) == Some(count)).count();
    if let Some(count) =
        weights.iter().find_map(|f| split(f.path())).filter(|count| parts(*count) < *count as usize)
    {
        bail!("{} has only {} of {count} parts of its weights", name.repo, parts(count));
    }
    let beside = |f: &&F| BESIDE.contains(&f.path()) || f.path().starts_with("chat_template.");
    Ok(Choice::Safetensors(top().filter(beside).chain(weights).collect()))
}

/// What there is, a line for each file.
fn list<F: Candidate>(name: &Name, files: &[&F]) -> String {
    const SHOWN: usize = 40;
    let at = if name.revision() == MAIN { String::new() } else { format!("@{}", name.revision()) };
    let mut out = String::new();
    for f in files.iter().take(SHOWN) {
        // Writing to a string does not fail.
        let _ = write!(out, "\n  {}:{}{at}  {}", name.repo, f.path(), megabytes(f.size()));
    }
    if files.len() > SHOWN {
        let _ = write!(out, "\n  and {} more", files.len() - SHOWN);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct File(&'static str);

    impl Candidate for File {
        fn path(&self) -> &str {
            self.0
        }
        fn size(&self) -> u64 {
            1_000_000
        }
    }

    fn chosen(name: &str, files: &[&'static str]) -> Result<Vec<&'static str>, String> {
        let files: Vec<File> = files.iter().map(|f| File(f)).collect();
        match choose(&name.parse().unwrap(), &files) {
            Ok(Choice::Gguf(file)) => Ok(vec![file.0]),
            Ok(Choice::Safetensors(files)) => Ok(files.iter().map(|f| f.0).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    const MANY: &[&str] = &[
        "README.md",
        "m-BF16.gguf",
        "m-IQ4_XS.gguf",
        "m-Q4_0.gguf",
        "m-Q4_K_M.gguf",
        "m-Q4_K_S.gguf",
        "m-UD-Q6_K_XL.gguf",
        "mmproj-Q4_0.gguf",
        "m.imatrix.gguf",
        "m-Q8_0-00001-of-00002.gguf",
        "m-Q8_0-00002-of-00002.gguf",
    ];

    #[test]
    fn by_quantization() {
        for (choice, file) in [
            ("Q4_0", "m-Q4_0.gguf"),
            ("q4_k_m", "m-Q4_K_M.gguf"),
            ("bf16", "m-BF16.gguf"),
            ("UD-Q6_K_XL", "m-UD-Q6_K_XL.gguf"),
            ("m-Q4_K_S.gguf", "m-Q4_K_S.gguf"),
        ] {
            assert_eq!(chosen(&format!("o/r:{choice}"), MANY), Ok(vec![file]));
        }
        for choice in ["Q4_K", "F16", "Q4", "4_0", "Q2_K", "no.gguf"] {
            let error = chosen(&format!("o/r:{choice}"), MANY).unwrap_err();
            assert!(
                error.contains("no file and no quantization") && error.contains("m-Q4_K_S.gguf  1.0 MB"),
                "{error}"
            );
            assert!(!error.contains("mmproj"), "{error}");
        }
        let error = chosen("o/r:Q8_0", MANY).unwrap_err();
        assert!(error.contains("split into 2 files") && error.contains("llama-gguf-split"), "{error}");
        let error = chosen("o/r:Q4_0", &["a/x-Q4_0.gguf", "b/x-Q4_0.gguf"]).unwrap_err();
        assert!(error.contains("several") && error.contains("o/r:b/x-Q4_0.gguf"), "{error}");
        assert_eq!(chosen("o/r:Q4_0", &["Q4_0/x.gguf"]), Ok(vec!["Q4_0/x.gguf"]));
    }

    #[test]
    fn by_default() {
        assert_eq!(chosen("o/r", MANY), Ok(vec!["m-Q4_K_M.gguf"]));
        assert_eq!(chosen("o/r", &["m-Q4_0.gguf", "m-Q8_0.gguf"]), Ok(vec!["m-Q8_0.gguf"]));
        assert_eq!(chosen("o/r", &["odd.gguf", "config.json"]), Ok(vec!["odd.gguf"]));
        let error = chosen("o/r", &["a.gguf", "b.gguf"]).unwrap_err();
        assert!(error.contains("several GGUF files"), "{error}");
        let error = chosen("o/r", &["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]).unwrap_err();
        assert!(error.contains("split into 2"), "{error}");
        let error = chosen("o/r@v1", &["a.gguf", "b.gguf"]).unwrap_err();
        assert!(error.contains("o/r:a.gguf@v1"), "{error}");
    }

    #[test]
    fn a_folder_of_safetensors() {
        let files = &[
            "README.md",
            "chat_template.jinja",
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.fp16.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "original/model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        let expected = [
            "chat_template.jinja",
            "config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(chosen("o/r", files).unwrap(), expected);
        let both: Vec<&str> = files.iter().copied().chain(["m-Q8_0.gguf"]).collect();
        assert_eq!(chosen("o/r", &both), Ok(vec!["m-Q8_0.gguf"]));
        assert_eq!(chosen("o/r:safetensors", &both).unwrap(), expected);
        let error = chosen("o/r:Q4_0", files).unwrap_err();
        assert!(error.contains("leave `:Q4_0` out"), "{error}");
        let error = chosen("o/r", &files[..5]).unwrap_err();
        assert!(error.contains("1 of 2 parts"), "{error}");
        let error = chosen("o/r", &["pytorch_model.bin", "config.json"]).unwrap_err();
        assert!(error.contains("no model that can be run") && error.contains("pytorch_model.bin"), "{error}");
    }
}
