//! Added tokens, and which token plays which part.

use super::{CONTROL, FILE, Files, USER_DEFINED, fault, json_fault, place};
use crate::error::Result;
use lutite_runtime::json::{self, JsonError, Object, Text};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;

/// An entry of `added_tokens`.
#[derive(Deserialize)]
pub(super) struct Added<'a> {
    id: u32,
    #[serde(borrow)]
    content: Text<'a>,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
}

/// Puts the added tokens into the table.
pub(super) fn add<'a>(
    added: Vec<Added<'a>>,
    rows: u64,
    tokens: &mut Vec<Cow<'a, str>>,
    types: &mut Vec<i32>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let count = tokens.len() + added.len();
    let (mut outside, mut stripping) = (Vec::new(), Vec::new());
    for token in added {
        let shown = || token.content.chars().take(40).collect::<String>();
        if u64::from(token.id) >= rows {
            outside.push(shown());
            continue;
        }
        if token.lstrip || token.rstrip || token.single_word {
            stripping.push(shown());
        }
        let ty = if token.special || looks_special(&token.content) { CONTROL } else { USER_DEFINED };
        let mut text = token.content.0;
        // As llama.cpp's converter: these are cut out of the text while its spaces are still spaces.
        if ty == USER_DEFINED && text.contains('\u{2581}') {
            let at = token.id as usize;
            text = Cow::Owned(text.replace('\u{2581}', " "));
            if let Some(old) = tokens.get_mut(at) {
                *old = Cow::Borrowed("");
            }
        }
        if text.is_empty() {
            continue;
        }
        place(tokens, token.id, text, rows, count)?;
        types.resize(tokens.len(), super::UNUSED);
        types[token.id as usize] = ty;
    }
    let mut warn = |names: &[String], what: &str| {
        if let Some(first) = names.first() {
            warnings.push(format!("{FILE}: {} added tokens ({first:?}) {what}", names.len()));
        }
    };
    warn(&outside, "have ids that the embedding has no row for: they are left out");
    warn(
        &stripping,
        "ask for white space beside them to be dropped, or to be whole words, which is not done",
    );
    Ok(())
}

/// Marks that are control tokens even where a file forgets to say so (`does_token_look_special` of llama.cpp's
/// converter).
fn looks_special(text: &str) -> bool {
    let within = |start, end| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || within("<|", "|>")
        || within("<\u{ff5c}", "\u{ff5c}>")
        || within("<unused", ">")
}

/// Which token plays which part.
#[derive(Debug, Default)]
pub(super) struct Ids {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
}

impl Ids {
    /// Reads what the files say; `bos` is config.json's word, `unk` the BPE model's.
    pub(super) fn read(
        files: &Files<'_>,
        post_processor: Option<&RawValue>,
        bos: Option<u32>,
        unk: Option<u32>,
        by_text: &HashMap<&str, u32>,
    ) -> Result<Ids> {
        const CONFIG: &str = "tokenizer_config.json";
        const MAP: &str = "special_tokens_map.json";
        let (config, map) = (object(CONFIG, files.config)?, object(MAP, files.special_tokens_map)?);
        let named = |key: &str| -> Result<Option<u32>> {
            let text = match named_token(&config, key).map_err(json_fault(CONFIG))? {
                Some(text) => Some(text),
                None => named_token(&map, key).map_err(json_fault(MAP))?,
            };
            Ok(text.and_then(|text| by_text.get(&*text).copied()))
        };
        let frame = match post_processor {
            None => Frame::default(),
            Some(raw) => Frame::read(raw, by_text)?,
        };
        let flag = |key: &str| config.get::<bool>(key).map_err(json_fault(CONFIG));
        let inside = |id: &u32| by_text.values().any(|known| known == id);
        // What is put before a text is the token that begins one, whatever is called so elsewhere.
        let bos = frame.before.or(named("bos_token")?).or(bos.filter(inside));
        let eos = frame.after.or(named("eos_token")?);
        Ok(Ids {
            add_bos: flag("add_bos_token")?.unwrap_or(frame.before.is_some()) && bos.is_some(),
            add_eos: flag("add_eos_token")?.unwrap_or(frame.after.is_some()) && eos.is_some(),
            bos,
            eos,
            unk: named("unk_token")?.or(unk),
            pad: named("pad_token")?,
        })
    }
}

/// The fields of a file that may be missing.
fn object<'a>(name: &str, text: Option<&'a str>) -> Result<Object<'a>> {
    text.map_or_else(|| Ok(Object::default()), |text| Object::parse(text).map_err(json_fault(name)))
}

/// A token's text: itself, or the `content` of an object.
fn named_token<'a>(o: &Object<'a>, key: &str) -> std::result::Result<Option<Text<'a>>, JsonError> {
    match o.get::<Text<'a>>(key) {
        Ok(text) => Ok(text),
        Err(_) => match o.get::<Object<'a>>(key)? {
            Some(token) => token.get("content").map_err(|e| e.within(key)),
            None => Ok(None),
        },
    }
}

/// What the post-processor puts around a text.
#[derive(Debug, Default)]
struct Frame {
    before: Option<u32>,
    after: Option<u32>,
}

impl Frame {
    fn read(raw: &RawValue, by_text: &HashMap<&str, u32>) -> Result<Frame> {
        const FIELD: &str = "post_processor";
        let at = |e: JsonError| json_fault(FILE)(e.within(FIELD));
        let o: Object<'_> = json::parse(raw.get()).map_err(at)?;
        match o.get::<Text<'_>>("type").map_err(at)?.as_deref() {
            // Only positions in the text, which nothing here needs.
            Some("ByteLevel") => Ok(Frame::default()),
            Some("Sequence") => {
                // Llama 3's: byte level, then a template. No real one nests.
                let mut frame = Frame::default();
                for raw in o.get::<Vec<&RawValue>>("processors").map_err(at)?.unwrap_or_default() {
                    let inner: Object<'_> = json::parse(raw.get()).map_err(at)?;
                    match inner.get::<Text<'_>>("type").map_err(at)?.as_deref() {
                        Some("ByteLevel") => {}
                        Some("TemplateProcessing") => frame = Frame::template(&inner, by_text)?,
                        other => return Err(unknown(other)),
                    }
                }
                Ok(frame)
            }
            Some("TemplateProcessing") => Frame::template(&o, by_text),
            other => Err(unknown(other)),
        }
    }

    /// `single`: special tokens before and after the text, at most one each.
    fn template(o: &Object<'_>, by_text: &HashMap<&str, u32>) -> Result<Frame> {
        let at = |e: JsonError| json_fault(FILE)(e.within("post_processor.single"));
        let pieces = o.get::<Vec<Object<'_>>>("single").map_err(at)?.unwrap_or_default();
        let mut frame = Frame::default();
        let mut text_seen = false;
        for piece in &pieces {
            let Some(token) = piece.get::<Object<'_>>("SpecialToken").map_err(at)? else {
                text_seen = true;
                continue;
            };
            let text = token.get::<Text<'_>>("id").map_err(at)?.unwrap_or_default();
            let Some(&id) = by_text.get(&*text) else {
                let text: String = text.chars().take(40).collect();
                return Err(fault(FILE, format!("post_processor: {text:?} is no token; fetch it again")));
            };
            let place = if text_seen { &mut frame.after } else { &mut frame.before };
            if place.replace(id).is_some() {
                return Err(fault(
                    FILE,
                    "post_processor: more than one token before or after a text is not supported",
                ));
            }
        }
        Ok(frame)
    }
}

fn unknown(kind: Option<&str>) -> crate::Error {
    let kind: String = kind.unwrap_or("(none)").chars().take(40).collect();
    fault(
        FILE,
        format!(
            "post_processor: {kind:?} is not known (ByteLevel, TemplateProcessing, Sequence are); use a GGUF file of the model"
        ),
    )
}
