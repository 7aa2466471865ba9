//! Which known way of cutting text a `tokenizer.json` asks for.
//!
//! `normalizer` and `pre_tokenizer` are small programs: a step, or a `Sequence` of them. Their steps are written out in
//! words (`split \p{N}`, `digits`, `bytes with words`) and looked up in a table of those that our scanners
//! (`crate::tokenizer`) follow. llama.cpp's converter recognises the same ones by a hash of what they do to a sample.

use super::{FILE, Kind, fault, json_fault};
use crate::error::{Error, Result};
use lutite_runtime::json::{self, JsonError, Object, Text};
use serde_json::value::RawValue;

/// Steps within steps, at most; real files have two levels.
const MAX_DEPTH: usize = 8;
/// Steps in all, at most; real files have up to five.
const MAX_STEPS: usize = 32;

/// What the model's own fields say of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModelFlags {
    pub(super) byte_fallback: bool,
    pub(super) ignore_merges: bool,
}

/// GPT-2's words.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's words, with digits in threes.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same without a flag, as some files have it.
const LLAMA3_SPELT: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's words, with digits alone.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 3.5's, where marks count as letters.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A step of a pre-tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// `Split` at a regular expression, whose matches become words.
    Split(String),
    /// `Digits`, each by itself or in runs.
    Digits { alone: bool },
    /// `Punctuation`, in runs.
    Punctuation,
    /// `ByteLevel`: bytes to GPT-2's alphabet, and with `words` GPT-2's expression before that.
    Bytes { words: bool },
    /// `Metaspace`, and whether it puts a space in front.
    Metaspace { space: bool },
}

/// The kind of tokenizer, or an error that names what is not known.
pub(super) fn recognise(
    normalizer: Option<&RawValue>,
    pre_tokenizer: Option<&RawValue>,
    flags: ModelFlags,
) -> Result<Kind> {
    let mut steps = Vec::new();
    if let Some(pre) = pre_tokenizer {
        flatten(pre, ("pre_tokenizer", "pretokenizers"), 0, &mut |kind, o| {
            steps.push(step(kind, o)?);
            Ok(())
        })?;
    }
    let normal = Normal::read(normalizer)?;
    let space = match (steps.as_slice(), &normal) {
        ([], Normal { escapes: true, prepends, .. }) => Some(*prepends),
        ([Step::Metaspace { space }], Normal { escapes: false, prepends: false, .. }) => Some(*space),
        _ => None,
    };
    if let Some(space) = space {
        if !flags.byte_fallback {
            let why = "model.byte_fallback: is false: SentencePiece without byte tokens is not supported; use a GGUF file of \
                       the model";
            return Err(fault(FILE, why));
        }
        return Ok(Kind::Pieces { space });
    }
    if normal.escapes || normal.prepends {
        return Err(unknown("normalizer", &normal.said, "it does not go with this pre_tokenizer"));
    }
    match (words(&steps), flags.ignore_merges) {
        (Some(("llama-bpe", _)), false) => Ok(Kind::Bytes { pre: "dbrx" }),
        (Some((pre, ignores)), ignore_merges) if ignores == ignore_merges => Ok(Kind::Bytes { pre }),
        (Some(_), _) => {
            Err(fault(FILE, "model.ignore_merges: is true, which is not supported with this pre_tokenizer"))
        }
        (None, _) => {
            Err(unknown("pre_tokenizer", &format!("{steps:?}"), "it cuts text in a way that is not known"))
        }
    }
}

fn unknown(field: &str, found: &str, why: &str) -> Error {
    let found: String = found.chars().take(300).collect();
    fault(
        FILE,
        format!(
            "{field}: {found}: {why} (GPT-2's, SmolLM's, Falcon's, Llama 3's, Qwen 2's and SentencePiece's are), and other \
             tokens than in training would be wrong answers; use a GGUF file of the model"
        ),
    )
}

/// llama.cpp's name for these steps, and whether whole words that are tokens become them whatever the merges say.
fn words(steps: &[Step]) -> Option<(&'static str, bool)> {
    let split = |pattern: &str| match pattern {
        GPT2 => Some(("gpt-2", false)),
        LLAMA3 | LLAMA3_SPELT => Some(("llama-bpe", true)),
        QWEN2 => Some(("qwen2", false)),
        QWEN35 => Some(("qwen35", false)),
        _ => None,
    };
    match steps {
        [Step::Bytes { words: true }] => Some(("gpt-2", false)),
        [Step::Digits { alone: true }, Step::Bytes { words: true }] => Some(("smollm", false)),
        [Step::Split(pattern), Step::Bytes { words: false }] => split(pattern),
        [
            Step::Punctuation,
            Step::Bytes { words: true },
            Step::Digits { alone: false },
            Step::Split(threes),
        ] if threes == "[0-9][0-9][0-9]" => Some(("falcon", false)),
        _ => None,
    }
}

/// Calls `visit` with each step's type and fields.
fn flatten<'a>(
    raw: &'a RawValue,
    (field, list): (&str, &str),
    depth: usize,
    visit: &mut dyn FnMut(&str, &Object<'a>) -> Result<()>,
) -> Result<()> {
    let at = |e: JsonError| json_fault(FILE)(e.within(field));
    let o: Object<'a> = json::parse(raw.get()).map_err(at)?;
    let kind = o.get::<Text<'a>>("type").map_err(at)?.unwrap_or_default();
    if &*kind != "Sequence" {
        return visit(&kind, &o);
    }
    let inner = o.get::<Vec<&'a RawValue>>(list).map_err(at)?.unwrap_or_default();
    if depth == MAX_DEPTH || inner.len() > MAX_STEPS {
        return Err(fault(FILE, format!("{field}: has more steps than any real one; fetch the file again")));
    }
    inner.into_iter().try_for_each(|raw| flatten(raw, (field, list), depth + 1, visit))
}

fn step(kind: &str, o: &Object<'_>) -> Result<Step> {
    const FIELD: &str = "pre_tokenizer";
    let at = |e: JsonError| json_fault(FILE)(e.within(FIELD));
    let flag = |key: &str, unsaid: bool| o.get::<bool>(key).map(|x| x.unwrap_or(unsaid)).map_err(at);
    let text = |key: &str| o.get::<Text<'_>>(key).map(Option::unwrap_or_default).map_err(at);
    match kind {
        "ByteLevel" => {
            if flag("add_prefix_space", true)? {
                return Err(unknown(
                    FIELD,
                    "ByteLevel with add_prefix_space",
                    "a space before each text is not supported",
                ));
            }
            Ok(Step::Bytes { words: flag("use_regex", true)? })
        }
        "Digits" => Ok(Step::Digits { alone: flag("individual_digits", false)? }),
        "Punctuation" if &*text("behavior")? == "Contiguous" => Ok(Step::Punctuation),
        "Split" => {
            let pattern = o.get::<Object<'_>>("pattern").map_err(at)?.unwrap_or_default();
            let regex = pattern.get::<Text<'_>>("Regex").map_err(at)?;
            // Two ways to say that the matches are the words.
            let isolated = matches!(
                (&*text("behavior")?, flag("invert", false)?),
                ("Isolated", false) | ("Removed", true)
            );
            match regex {
                Some(regex) if isolated => Ok(Step::Split(regex.0.into_owned())),
                _ => {
                    Err(unknown(FIELD, "Split", "of its kinds only words by a regular expression are known"))
                }
            }
        }
        "Metaspace" => {
            let space = match o.get::<Text<'_>>("prepend_scheme").map_err(at)? {
                Some(scheme) => matches!(&*scheme, "always" | "first"),
                None => flag("add_prefix_space", true)?,
            };
            let replacement = o.get::<Text<'_>>("replacement").map_err(at)?;
            // Cutting at spaces is what SentencePiece does where no token spans them, and else is not.
            if replacement.is_some_and(|r| &*r != "\u{2581}") || flag("split", true)? {
                return Err(unknown(FIELD, "Metaspace", "only U+2581 without `split` is known"));
            }
            Ok(Step::Metaspace { space })
        }
        other => Err(unknown(FIELD, other, "it cuts text in a way that is not known")),
    }
}

/// What a normalizer does.
#[derive(Debug, Default)]
struct Normal {
    /// Spaces become U+2581.
    escapes: bool,
    /// U+2581 goes in front.
    prepends: bool,
    /// Its steps, for messages.
    said: String,
}

impl Normal {
    fn read(raw: Option<&RawValue>) -> Result<Normal> {
        let mut normal = Normal::default();
        let Some(raw) = raw else { return Ok(normal) };
        flatten(raw, ("normalizer", "normalizers"), 0, &mut |kind, o| {
            let at = |e: JsonError| json_fault(FILE)(e.within("normalizer"));
            let text = |key: &str| o.get::<Text<'_>>(key).map(Option::unwrap_or_default).map_err(at);
            normal.said.push_str(kind);
            normal.said.push(' ');
            match kind {
                // llama.cpp leaves text as it is; see the head of this module's parent.
                "NFC" => {}
                "Prepend" if &*text("prepend")? == "\u{2581}" => normal.prepends = true,
                "Replace" => {
                    let pattern = o.get::<Object<'_>>("pattern").map_err(at)?.unwrap_or_default();
                    let from = pattern.get::<Text<'_>>("String").map_err(at)?.unwrap_or_default();
                    if (&*from, &*text("content")?) != (" ", "\u{2581}") {
                        return Err(unknown("normalizer", "Replace", "only spaces by U+2581 is known"));
                    }
                    normal.escapes = true;
                }
                other => {
                    return Err(unknown("normalizer", other, "it changes text in a way that is not known"));
                }
            }
            Ok(())
        })?;
        Ok(normal)
    }
}
