//! Folders of Hugging Face models: from a path to mapped files. What is in the files is `lutite_models::hf`'s part.

use crate::load::Source;
use crate::ui;
use anyhow::Context;
use lutite_quant::bitstack::{Checkpoint, LIST};
use lutite_runtime::os::map::Map;
use lutite_runtime::store::{Bytes, ModelFile};
use std::collections::BTreeMap;
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

/// Whether it is BitStack's checkpoint, by the one file that only they have.
pub(crate) fn is_checkpoint(folder: &Path) -> bool {
    folder.join(LIST).exists()
}

/// Reads the folder as a model.
pub(crate) fn open(path: PathBuf) -> anyhow::Result<Source> {
    let mut folder = Folder::new(&path)?;
    let name = path.display();
    let imported = lutite_models::hf::import(&folder.name()?, &mut |file| folder.file(file));
    let imported = imported.with_context(|| match is_checkpoint(&path) {
        false => format!("cannot read the model folder {name}"),
        true => format!(
            "{name} has a {LIST}, as BitStack's checkpoints have: `lutite quantize {name} -o FILE.gguf --bitstack all` makes a \
             model of one; what it lacks as a plain one"
        ),
    })?;
    imported.warnings.iter().for_each(ui::warn);
    Ok(Source { files: folder.paths(), path, file: imported.file, data: None, verified: false })
}

/// A folder's files, each mapped once when it is asked for.
pub(crate) struct Folder {
    path: PathBuf,
    /// By name; `None` for those that are not there.
    files: BTreeMap<String, Option<Bytes>>,
}

impl Folder {
    /// A folder that may be a model's.
    pub(crate) fn new(path: &Path) -> anyhow::Result<Folder> {
        if !path.join("config.json").exists() {
            return Err(no_model(path));
        }
        Ok(Folder { path: path.to_owned(), files: BTreeMap::new() })
    }

    /// What the model is called. The full path has a name where "." has none.
    fn name(&self) -> anyhow::Result<String> {
        let full =
            fs::canonicalize(&self.path).with_context(|| format!("cannot find {}", self.path.display()))?;
        Ok(full.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    fn file(&mut self, name: &str) -> io::Result<Option<Bytes>> {
        if let Some(known) = self.files.get(name) {
            return Ok(known.clone());
        }
        let file = self.path.join(name);
        let bytes = match fs::metadata(&file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            // A map of nothing is an error; an empty file is for its reader to judge.
            Ok(about) if about.is_file() && about.len() == 0 => Some(Bytes::empty()),
            _ => Some(Bytes::new(Map::open(&file).map_err(io::Error::other)?)),
        };
        self.files.insert(name.to_owned(), bytes.clone());
        Ok(bytes)
    }

    /// BitStack's checkpoint: the model without its layers' matrices, and those, with so many levels of each or all.
    pub(crate) fn checkpoint(&mut self, levels: Option<usize>) -> anyhow::Result<(ModelFile, Checkpoint)> {
        let name = self.name()?;
        let mut open = |file: &str| self.file(file);
        let checkpoint = Checkpoint::read(&mut open, levels)?;
        let rest = lutite_models::hf::import_rest(&name, &mut open)?;
        rest.warnings.iter().for_each(ui::warn);
        Ok((rest.file, checkpoint))
    }

    /// The bytes of the files that were asked for, in the order of their names.
    pub(crate) fn bytes(&self) -> impl Iterator<Item = &[u8]> {
        self.files.values().flatten().map(|bytes| &bytes[..])
    }

    fn paths(&self) -> Vec<PathBuf> {
        let there = self.files.iter().filter(|(_, bytes)| bytes.is_some());
        there.map(|(name, _)| self.path.join(name)).collect()
    }
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
