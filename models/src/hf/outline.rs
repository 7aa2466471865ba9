//! A folder's weights by name, unread: for readers of forms that this crate does not run.
//!
//! Such folders are Hugging Face's in all but some tensors: shapes follow from the same `config.json`, q's and k's rows have
//! the same order, shards the same index. What a weight should be and what lies in the files is said here; how one becomes
//! the other is the reader's matter.

use super::config::HfConfig;
use super::names::{ignored, wanted};
use super::tensors::{Shards, row_order};
use super::{Folder, OpenFile, text_of};
use crate::error::Result;
use lutite_runtime::store::{Bytes, RowOrder};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a folder says of its weights.
#[derive(Debug)]
pub struct Outline {
    config: HfConfig,
    /// The file that lists the tensors, for messages.
    pub listed_in: &'static str,
    /// Tensors that count by their names, without those that any reader passes over.
    pub tensors: BTreeMap<String, Stored>,
}

/// A tensor as it lies in a file.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The file's name.
    pub file: Arc<str>,
    /// Its numbers' type as the file calls it, such as `F16`.
    pub dtype: String,
    /// Values along each dimension, slowest first.
    pub shape: Vec<u64>,
    /// Its bytes: as many as shape and type ask for, where the type is one of safetensors'.
    pub data: Bytes,
}

/// A weight that the model is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// The module that holds it, such as `model.layers.3.mlp.up_proj`.
    pub module: String,
    /// Its name in GGUF without `.weight`, such as `blk.3.ffn_up`.
    pub gguf: String,
    /// `[rows, columns]`, or `[values]` for a norm.
    pub shape: Vec<u64>,
    /// Where each of GGUF's rows lies in a Hugging Face model.
    pub order: RowOrder,
}

impl Outline {
    /// Reads `config.json`, and the heads of the files with weights.
    ///
    /// # Errors
    /// [`crate::Error::Folder`] with the file that is missing or cannot be used, and what to do.
    pub fn read(open: OpenFile<'_>) -> Result<Outline> {
        let mut folder = Folder { open };
        let text = folder.config()?;
        // Warnings are of positions, which weights do not know.
        let config = HfConfig::read(text_of("config.json", &text)?, &mut Vec::new())?;
        let shards = Shards::open(&mut folder)?;
        let names: BTreeMap<&str, Arc<str>> =
            shards.files.iter().map(|(name, _)| (name.as_str(), name.as_str().into())).collect();
        let mut found = shards.tensors()?;
        found.retain(|name, _| !ignored(name, &config));
        let stored = |f: super::tensors::Found<'_>| Stored {
            file: names[f.shard].clone(),
            dtype: f.view.dtype.to_string(),
            data: f.view.bytes(f.file),
            shape: f.view.shape,
        };
        let tensors = found.into_iter().map(|(name, f)| (name, stored(f))).collect();
        Ok(Outline { listed_in: shards.place(), tensors, config })
    }

    /// All weights in the order of llama.cpp's files, without biases. One by one: the number of layers is the file's word.
    pub fn weights(&self) -> impl Iterator<Item = Weight> + '_ {
        wanted(&self.config).filter(|t| !t.optional).map(|t| {
            let short = |name: &str| name.strip_suffix(".weight").unwrap_or(name).to_owned();
            let order = row_order(&t, &self.config);
            Weight { module: short(&t.hf), gguf: short(&t.gguf), shape: t.shape, order }
        })
    }
}
