//! Folders of Hugging Face models: from a path to mapped files. What is in the files is `lutite_models::hf`'s part.

use crate::load::Source;
use crate::ui;
use anyhow::Context;
use lutite_runtime::os::map::Map;
use lutite_runtime::store::Bytes;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folder that `path` stands for: itself, or the one that a `config.json`, a safetensors file or their index lies in.
pub(crate) fn of(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        return Some(path.to_owned());
    }
    let name = path.file_name().and_then(OsStr::to_str)?;
    let part =
        name == "config.json" || name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    let parent = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    part.then(|| parent.to_owned())
}

/// Maps the folder's files and reads them.
pub(crate) fn open(path: PathBuf) -> anyhow::Result<Source> {
    if !path.join("config.json").exists() {
        return Err(no_model(&path));
    }
    let mut files = Vec::new();
    let mut map = |name: &str| {
        let file = path.join(name);
        let bytes = match fs::metadata(&file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            // A map of nothing is an error; an empty file is for its reader to judge.
            Ok(about) if about.is_file() && about.len() == 0 => Bytes::empty(),
            _ => Bytes::new(Map::open(&file).map_err(io::Error::other)?),
        };
        files.push(file);
        Ok(Some(bytes))
    };
    // The full path has a name where "." has none.
    let full = fs::canonicalize(&path).with_context(|| format!("cannot find {}", path.display()))?;
    let name = full.file_name().unwrap_or_default().to_string_lossy();
    let imported = lutite_models::hf::import(&name, &mut map)
        .with_context(|| format!("cannot read the model folder {}", path.display()))?;
    imported.warnings.iter().for_each(ui::warn);
    Ok(Source { path, files, file: imported.file, data: None, verified: false })
}

/// What to name instead of a folder that is no model.
fn no_model(path: &Path) -> anyhow::Error {
    let folder = path.display();
    let entries = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut models: Vec<String> = entries
        .filter(|file| file.extension() == Some(OsStr::new("gguf")))
        .map(|file| file.display().to_string())
        .collect();
    models.sort();
    models.truncate(10);
    let instead = if models.is_empty() {
        "name one with config.json, tokenizer.json and model.safetensors, or a GGUF file".to_owned()
    } else {
        format!("name a file in it: {}", models.join(", "))
    };
    anyhow::anyhow!("{folder} has no config.json, so it is no folder of a model; {instead}")
}
