//! Hugging Face model folders: `config.json`, safetensors, `tokenizer.json` and what goes with them, as one model in
//! GGUF's terms.
//!
//! Nothing behind this room knows where a model came from. A folder becomes a GGUF head in memory, and its tensors stay
//! in their mapped files ([`ModelFile`]); the one thing that differs in the weights themselves, the order of q's and k's
//! rows, is put right when the rows are read. What becomes of each field is what llama.cpp's `convert_hf_to_gguf.py`
//! makes of it, so that a folder and the GGUF file made from it give the same bits.
//!
//! | file | what is taken | needed |
//! |---|---|---|
//! | `config.json` | shapes, rotary embedding, ids | yes |
//! | `model.safetensors`, or `model.safetensors.index.json` and its shards | weights in F32, F16, BF16 | yes |
//! | `tokenizer.json` | vocabulary, merges, added tokens, how text is cut | yes |
//! | `tokenizer_config.json`, `special_tokens_map.json` | special tokens by name, whether BOS is added, chat template | |
//! | `chat_template.jinja`, `chat_template.json` | the chat template; goes before the one above | |
//! | `generation_config.json` | sampling defaults, tokens that end an answer | |
//!
//! A folder is a stranger's like any file: fields are read one by one with their type ([`lutite_runtime::json`]), numbers
//! are checked, file names in the index are names and no paths, and memory is bounded by the files' lengths.

mod chat;
mod config;
mod generation;
mod names;
mod outline;
mod tensors;
pub mod tokenizer;

use crate::error::{Error, Result};
use config::HfConfig;
use lutite_runtime::json::{JsonError, Object};
use lutite_runtime::store::{Bytes, GgufWriter, ModelFile};
use std::io;
use tensors::What;

pub use outline::{Outline, Stored, Weight};

/// Opens a file of the folder by its name; `None` if there is none.
pub type OpenFile<'a> = &'a mut dyn FnMut(&str) -> io::Result<Option<Bytes>>;

/// A folder, read.
#[derive(Debug)]
pub struct Imported {
    /// The model.
    pub file: ModelFile,
    /// What is odd about it, to be shown once.
    pub warnings: Vec<String>,
}

/// Longest JSON file: the largest `tokenizer.json` known has 35 MB.
const MAX_JSON_BYTES: usize = 256 << 20;

/// Reads the folder called `name`.
///
/// # Errors
/// [`Error::Folder`] with the file that is missing or cannot be used, and what to do.
pub fn import(name: &str, open: OpenFile<'_>) -> Result<Imported> {
    import_what(name, What::All, open)
}

/// As [`import`], of a model without the matrices of its layers: for readers that have them in another form ([`Outline`]), and
/// judge what else is in the files.
///
/// # Errors
/// As [`import`].
pub fn import_rest(name: &str, open: OpenFile<'_>) -> Result<Imported> {
    import_what(name, What::Rest, open)
}

fn import_what(name: &str, what: What, open: OpenFile<'_>) -> Result<Imported> {
    let mut folder = Folder { open };
    let mut warnings = Vec::new();
    let text = folder.config()?;
    let config = HfConfig::read(text_of("config.json", &text)?, &mut warnings)?;

    let mut w = GgufWriter::new();
    w.set("general.architecture", "llama")?;
    w.set("general.name", name)?;
    config.write(&mut w)?;
    let generation = folder.read("generation_config.json")?;
    let mut ends = config.eos.clone();
    if let Some(bytes) = &generation {
        let text = text_of("generation_config.json", bytes)?;
        generation::write(text, &mut w, &mut ends)?;
    }
    set_tokenizer(&mut folder, &config, &ends, &mut w, &mut warnings)?;
    if let Some(template) = chat::template(&mut folder)? {
        w.set("tokenizer.chat_template", template)?;
    }
    let parts = tensors::add(&mut folder, &config, what, &mut w)?;
    Ok(Imported { file: w.assemble(parts)?, warnings })
}

fn set_tokenizer(
    folder: &mut Folder<'_>,
    config: &HfConfig,
    ends: &[u32],
    w: &mut GgufWriter,
    warnings: &mut Vec<String>,
) -> Result<()> {
    const SAVED: &str = "save it with transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...), \
                         or fetch the whole model again";
    let json = folder.require("tokenizer.json", SAVED)?;
    let config_json = folder.read("tokenizer_config.json")?;
    let map_json = folder.read("special_tokens_map.json")?;
    let text = |name, bytes| -> Result<Option<&str>> {
        let bytes: Option<&Bytes> = bytes;
        bytes.map(|b| text_of(name, b)).transpose()
    };
    let files = tokenizer::Files {
        tokenizer: text_of("tokenizer.json", &json)?,
        config: text("tokenizer_config.json", config_json.as_ref())?,
        special_tokens_map: text("special_tokens_map.json", map_json.as_ref())?,
    };
    let ids = tokenizer::ModelIds { vocab: config.vocab, bos: config.bos, ends };
    let tokenizer = tokenizer::HfTokenizer::read(&files, &ids)?;
    tokenizer.spec().write(w)?;
    warnings.extend(tokenizer.warnings);
    Ok(())
}

/// The folder, by its files' names.
struct Folder<'a> {
    open: OpenFile<'a>,
}

impl Folder<'_> {
    /// A file that may be missing.
    fn read(&mut self, name: &str) -> Result<Option<Bytes>> {
        (self.open)(name).map_err(|e| fault(name, format!("cannot be read: {e}")))
    }

    /// `config.json`.
    fn config(&mut self) -> Result<Bytes> {
        self.require(
            "config.json",
            "this is no folder of a Hugging Face model, or its download is incomplete",
        )
    }

    /// A file that is needed; without it, `what_to_do`.
    fn require(&mut self, name: &str, what_to_do: &str) -> Result<Bytes> {
        self.read(name)?.ok_or_else(|| fault(name, format!("is missing; {what_to_do}")))
    }
}

/// A fault of one file.
fn fault(file: &str, why: impl Into<String>) -> Error {
    Error::Folder { file: file.chars().take(200).collect(), why: why.into() }
}

/// A fault in a file's JSON.
fn json_fault(file: &str) -> impl Fn(JsonError) -> Error + '_ {
    move |e| fault(file, format!("{e}; fetch it again or correct it"))
}

/// A file's text, without the mark that some editors put at its start.
fn text_of<'b>(name: &str, bytes: &'b [u8]) -> Result<&'b str> {
    if bytes.len() > MAX_JSON_BYTES {
        let (found, most) = (bytes.len() >> 20, MAX_JSON_BYTES >> 20);
        return Err(fault(name, format!("has {found} MiB, at most {most} are read; this is no such file")));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        fault(name, format!("is not UTF-8 from its byte {} on; fetch it again", e.valid_up_to()))
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Ids that are written as one number or as a list.
fn ids(o: &Object<'_>, key: &str) -> std::result::Result<Vec<u32>, JsonError> {
    match o.get::<u32>(key) {
        Ok(one) => Ok(one.into_iter().collect()),
        Err(_) => Ok(o.get::<Vec<u32>>(key)?.unwrap_or_default()),
    }
}
