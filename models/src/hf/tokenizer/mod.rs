//! `tokenizer.json` and the files beside it, as a [`TokenizerSpec`].
//!
//! Two kinds are understood. **Byte-level BPE** (GPT-2, Llama 3, Qwen 2, SmolLM): merges go over as they are, and how
//! text is cut into words is recognised by its regular expressions (`pre.rs`). **BPE over characters with byte fallback**
//! (Llama 2, Mistral, TinyLlama), which is a SentencePiece vocabulary written down as merges: the merge that makes a
//! token gives it its score (`pieces.rs`). Anything else is refused by name, for other ids than in training would be
//! wrong answers without a word.
//!
//! Special tokens are treated as llama.cpp treats those of a GGUF file. That differs from transformers in two ways that
//! most prompts never meet: Unicode is not normalised first (Qwen asks for NFC, in which nearly all text is), and
//! SentencePiece's leading space comes after each special token, also where newer files ask for it at the start only.

mod pieces;
mod pre;
mod special;

use super::{fault, json_fault};
use crate::error::Result;
use crate::tokenizer::TokenizerSpec;
use lutite_runtime::json::{self, Object, Text};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use special::Added;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

const FILE: &str = "tokenizer.json";

/// The texts of a folder's tokenizer files.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a str,
    /// `tokenizer_config.json`.
    pub config: Option<&'a str>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<&'a str>,
}

/// What the rest of the folder says of token ids.
#[derive(Clone, Copy, Debug)]
pub struct ModelIds<'a> {
    /// Rows of the embedding: ids are below.
    pub vocab: u64,
    /// The token that begins a text, where the tokenizer's files name none.
    pub bos: Option<u32>,
    /// Tokens that end an answer.
    pub ends: &'a [u32],
}

/// A tokenizer's files, read. Texts are borrowed from them where they are written there without escapes.
#[derive(Debug)]
pub struct HfTokenizer<'a> {
    kind: Kind,
    /// By id; empty where there is none.
    tokens: Vec<Cow<'a, str>>,
    /// By id, as in `tokenizer.ggml.token_type`.
    types: Vec<i32>,
    /// By id, for SentencePiece; else empty.
    scores: Vec<f32>,
    /// Best first, for byte-level BPE; else empty.
    merges: Vec<Merge<'a>>,
    special: special::Ids,
    ends: Vec<u32>,
    /// What is odd, to be shown once.
    pub warnings: Vec<String>,
}

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Byte-level BPE, and llama.cpp's name for how it cuts text.
    Bytes { pre: &'static str },
    /// SentencePiece, and whether a text gets a space in front.
    Pieces { space: bool },
}

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// A merge, as `left right`.
#[derive(Clone, Debug)]
struct Merge<'a>(Cow<'a, str>);

impl Merge<'_> {
    fn parts(&self) -> (&str, &str) {
        // There is one space in it: reading has seen to that.
        self.0.split_once(' ').unwrap_or((&self.0, ""))
    }
}

/// `model.vocab`: texts and ids in the order of the file.
struct Vocab<'a>(Vec<(Cow<'a, str>, u32)>);

impl<'a> HfTokenizer<'a> {
    /// Reads the files.
    ///
    /// # Errors
    /// [`crate::Error::Folder`] with the file and the field that is damaged or asks for what is not supported.
    pub fn read(files: &Files<'a>, ids: &ModelIds<'_>) -> Result<HfTokenizer<'a>> {
        let o = Object::parse(files.tokenizer).map_err(json_fault(FILE))?;
        let raw = |key: &str| o.get::<&RawValue>(key).map_err(json_fault(FILE));
        let model = o.get::<Object<'a>>("model").map_err(json_fault(FILE))?;
        let model = model.ok_or_else(|| fault(FILE, "model: is missing; fetch the file again"))?;
        let get = |e| json_fault(FILE)(json::JsonError::within(e, "model"));
        plain_bpe(&model)?;
        let vocab = model.get::<Vocab<'a>>("vocab").map_err(get)?.map(|v| v.0).unwrap_or_default();
        let merges = model.get::<Vec<Merge<'a>>>("merges").map_err(get)?.unwrap_or_default();
        let added = o.get::<Vec<Added<'a>>>("added_tokens").map_err(json_fault(FILE))?.unwrap_or_default();
        let flags = pre::ModelFlags {
            byte_fallback: model.get("byte_fallback").map_err(get)?.unwrap_or(false),
            ignore_merges: model.get("ignore_merges").map_err(get)?.unwrap_or(false),
        };
        let kind = pre::recognise(raw("normalizer")?, raw("pre_tokenizer")?, flags)?;

        let mut warnings = Vec::new();
        let (mut tokens, mut types) = table(vocab, ids.vocab)?;
        special::add(added, ids.vocab, &mut tokens, &mut types, &mut warnings)?;
        let by_text = index(&tokens)?;
        let unk = model.get::<Text<'_>>("unk_token").map_err(get)?;
        let unk = unk.and_then(|text| by_text.get(&*text).copied());
        let special = special::Ids::read(files, raw("post_processor")?, ids.bos, unk, &by_text)?;
        let mut scores = Vec::new();
        if let Kind::Pieces { .. } = kind {
            pieces::set_types(&tokens, &mut types, unk);
            scores = pieces::scores(&tokens, &types, &merges, &by_text, &mut warnings)?;
        }
        drop(by_text);
        Ok(HfTokenizer {
            kind,
            tokens,
            types,
            merges: if scores.is_empty() { merges } else { Vec::new() },
            scores,
            special,
            ends: ids.ends.to_vec(),
            warnings,
        })
    }

    /// What a [`crate::Tokenizer`] is made from.
    pub fn spec(&self) -> TokenizerSpec<'_> {
        let s = &self.special;
        let (model, pre, space) = match self.kind {
            Kind::Bytes { pre } => ("gpt2", Some(pre), None),
            Kind::Pieces { space } => ("llama", None, Some(space)),
        };
        TokenizerSpec {
            model,
            pre,
            tokens: self.tokens.iter().map(AsRef::as_ref).collect(),
            scores: self.scores.clone(),
            token_types: self.types.clone(),
            merges: self.merges.iter().map(|m| m.0.as_ref()).collect(),
            bos: s.bos,
            // Where the tokenizer names none, a model's own word on what ends it.
            eos: s.eos.or(self.ends.first().copied()),
            eot: None,
            eom: None,
            eog: self.ends.clone(),
            unk: s.unk,
            pad: s.pad,
            add_bos: Some(s.add_bos),
            add_eos: Some(s.add_eos),
            add_space_prefix: space,
        }
    }
}

/// Checks that the model is BPE without the variations that nothing here has.
fn plain_bpe(model: &Object<'_>) -> Result<()> {
    let text = |key: &str| model.get::<Text<'_>>(key).map_err(|e| json_fault(FILE)(e.within("model")));
    match text("type")?.as_deref() {
        None | Some("BPE") => {}
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            let why =
                format!("model.type: {other:?} is not supported (BPE is); use a GGUF file of the model");
            return Err(fault(FILE, why));
        }
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if text(key)?.is_some_and(|affix| !affix.is_empty()) {
            return Err(fault(FILE, format!("model.{key}: is not supported; use a GGUF file of the model")));
        }
    }
    Ok(())
}

/// Texts and kinds by id.
fn table<'a>(vocab: Vec<(Cow<'a, str>, u32)>, rows: u64) -> Result<(Vec<Cow<'a, str>>, Vec<i32>)> {
    let count = vocab.len();
    let mut tokens: Vec<Cow<'a, str>> = Vec::new();
    for (text, id) in vocab {
        place(&mut tokens, id, text, rows, count)?;
    }
    let types = tokens.iter().map(|text| if text.is_empty() { UNUSED } else { NORMAL }).collect();
    Ok((tokens, types))
}

/// Puts a text at its id, making room. `count` texts are to come in all: ids with wide gaps between them are a damaged
/// file's, and would take memory that it does not stand for.
fn place<'a>(
    tokens: &mut Vec<Cow<'a, str>>,
    id: u32,
    text: Cow<'a, str>,
    rows: u64,
    count: usize,
) -> Result<()> {
    let at = id as usize;
    let short = |text: &str| text.chars().take(40).collect::<String>();
    let shown = || short(&text);
    if u64::from(id) >= rows {
        let why = format!(
            "token {:?} has the id {id}, but config.json's vocab_size is {rows}; they are of different models",
            shown()
        );
        return Err(fault(FILE, why));
    }
    if at >= tokens.len() {
        if at > tokens.len().max(count).saturating_mul(2) + 1024 {
            return Err(fault(
                FILE,
                format!("token {:?} has the id {id}, far beyond the others; fetch it again", shown()),
            ));
        }
        tokens.resize(at + 1, Cow::Borrowed(""));
    }
    if !tokens[at].is_empty() && tokens[at] != text {
        let first = short(&tokens[at]);
        let why = format!("tokens {first:?} and {:?} have the same id, {id}; fetch it again", shown());
        return Err(fault(FILE, why));
    }
    tokens[at] = text;
    Ok(())
}

/// Ids by text.
fn index<'t>(tokens: &'t [Cow<'_, str>]) -> Result<HashMap<&'t str, u32>> {
    let mut by_text = HashMap::with_capacity(tokens.len());
    for (id, text) in (0u32..).zip(tokens).filter(|(_, text)| !text.is_empty()) {
        if let Some(first) = by_text.insert(text.as_ref(), id) {
            let text: String = text.chars().take(40).collect();
            return Err(fault(FILE, format!("ids {first} and {id} are both {text:?}; fetch it again")));
        }
    }
    Ok(by_text)
}

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocab<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts and ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Vocab<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some((text, id)) = map.next_entry::<Text<'de>, u32>()? {
                    entries.push((text.0, id));
                }
                Ok(Vocab(entries))
            }
        }
        d.deserialize_map(Entries)
    }
}

/// Either `"left right"` or `["left", "right"]`, as newer files write it.
impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Either;
        impl Either {
            fn checked<'a, E: serde::de::Error>(text: Cow<'a, str>) -> std::result::Result<Merge<'a>, E> {
                match text.split_once(' ') {
                    Some((l, r)) if !l.is_empty() && !r.is_empty() && !r.contains(' ') => Ok(Merge(text)),
                    _ => {
                        let shown: String = text.chars().take(80).collect();
                        Err(E::custom(format_args!(
                            "the merge {shown:?} is not two parts with a space between"
                        )))
                    }
                }
            }
        }
        impl<'de> Visitor<'de> for Either {
            type Value = Merge<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: two texts, or one with a space between")
            }
            fn visit_borrowed_str<E: serde::de::Error>(
                self,
                s: &'de str,
            ) -> std::result::Result<Merge<'de>, E> {
                Either::checked(Cow::Borrowed(s))
            }
            fn visit_str<E: serde::de::Error>(self, s: &str) -> std::result::Result<Merge<'de>, E> {
                Either::checked(Cow::Owned(s.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Merge<'de>, A::Error> {
                let pair = (seq.next_element::<Text<'de>>()?, seq.next_element::<Text<'de>>()?);
                match (pair, seq.next_element::<serde::de::IgnoredAny>()?) {
                    ((Some(l), Some(r)), None) => Either::checked(Cow::Owned(format!("{} {}", l.0, r.0))),
                    _ => Err(serde::de::Error::custom("a merge that is not two texts")),
                }
            }
        }
        d.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests;
