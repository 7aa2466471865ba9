//! Texts to tokens and back, from what a GGUF file carries.
//!
//! **Why our own.** The yardstick is llama.cpp: GGUF files are made for it, and a model asked with other ids than it was
//! tested with answers worse, silently. The `tokenizers` crate is the yardstick for `tokenizer.json` instead: from a GGUF
//! it would have to be rebuilt by hand (it does not read one, and has no SentencePiece scores with llama.cpp's rules for
//! special tokens), it brings some seventy crates, and it allocates a string per token and per merge while loading. What
//! is left to write is small: two merge loops, four scanners in place of regular expressions, and a string table. This
//! loads a 128k vocabulary in tens of milliseconds, depends on three small crates without C, so builds for iOS and
//! Android like anything else, and its worst case is O(n log n) whatever the text. A folder's `tokenizer.json` is put
//! into the same terms ([`crate::hf::tokenizer`]).

mod bpe;
mod gguf;
mod pre;
mod spec;
mod special;
mod spm;
mod strings;
mod words;

pub use spec::{TokenKind, TokenizerError, TokenizerSpec, TokenizerWarning};

use bpe::Bpe;
use pre::PreRule;
use special::{Fragment, Specials};
use spm::Spm;
use strings::Strings;
use words::WordCache;

/// Texts are found by 32-bit offsets.
const MAX_TEXT_BYTES: usize = u32::MAX as usize;

/// A vocabulary and the rules to use it. Cheap to share (`Sync`), not to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    strings: Strings,
    kinds: Vec<TokenKind>,
    method: Method,
    specials: Specials,
    /// Sorted.
    ends: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
    warnings: Vec<TokenizerWarning>,
}

#[derive(Debug, Clone)]
enum Method {
    Bpe(Box<Bpe>),
    Spm(Spm),
}

impl Tokenizer {
    /// Builds the tokenizer.
    ///
    /// # Errors
    /// Any [`TokenizerError`]: what is missing or contradicts itself in `spec`. What is only odd is in [`Self::warnings`].
    pub fn new(spec: &TokenizerSpec<'_>) -> Result<Tokenizer, TokenizerError> {
        let spm = match spec.model {
            "gpt2" => false,
            "llama" => true,
            other => return Err(TokenizerError::UnknownModel(other.chars().take(80).collect())),
        };
        let count = spec.tokens.len();
        check_lengths(spec)?;
        let bytes: usize = spec.tokens.iter().map(|t| t.len()).sum();
        let mut strings = Strings::with_capacity(count + 256, bytes);
        for (id, text) in (0u32..).zip(&spec.tokens) {
            // Some files have holes; llama.cpp gives them a name that no text contains.
            let hole = text.is_empty().then(|| format!("[EMPTY_{id}]"));
            let text = hole.as_deref().unwrap_or(text);
            strings.insert(text).map_err(|first| TokenizerError::DuplicateToken {
                text: text.chars().take(80).collect(),
                first,
                second: id,
            })?;
        }

        let mut kinds: Vec<TokenKind> =
            spec.token_types.iter().take(count).map(|&t| TokenKind::from_ggml(t)).collect();
        kinds.resize(count, TokenKind::Normal);
        let mut warnings = Vec::new();
        let mut checked = |key: &'static str, id: Option<u32>, default: Option<u32>| {
            let inside = |&id: &u32| (id as usize) < count;
            if let Some(id) = id.filter(|id| !inside(id)) {
                warnings.push(TokenizerWarning::IdOutOfRange { key, id, vocab_size: count });
            }
            id.filter(inside).or(default.filter(|_| spm).filter(inside))
        };
        let bos = checked("tokenizer.ggml.bos_token_id", spec.bos, Some(1));
        let eos = checked("tokenizer.ggml.eos_token_id", spec.eos, Some(2));
        let eot = checked("tokenizer.ggml.eot_token_id", spec.eot, None);
        let eom = checked("tokenizer.ggml.eom_token_id", spec.eom, None);
        let unk = checked("tokenizer.ggml.unknown_token_id", spec.unk, Some(0));
        let pad = checked("tokenizer.ggml.padding_token_id", spec.pad, None);
        // Before the merges add texts that are no tokens.
        let eog = spec.eog.iter().map(|&id| checked("tokenizer.eog_token_ids", Some(id), None));
        let named: Vec<Option<u32>> = [eos, eot, eom].into_iter().chain(eog).collect();
        let ends = special::find_ends(&strings, &mut kinds, &named);
        let specials = Specials::new(&strings, &kinds);
        if let Some((id, bytes)) = special::too_long(&strings, &kinds) {
            warnings.push(TokenizerWarning::LongSpecial { id, bytes, limit: special::MAX_SPECIAL_BYTES });
        }

        let (method, add_bos) = if spm {
            (Method::Spm(Spm::new(&spec.scores[..count.min(spec.scores.len())], unk, &strings)), true)
        } else {
            let known =
                spec.pre.filter(|name| !name.is_empty()).map(|name| PreRule::by_name(name).ok_or(name));
            let rule = match known {
                Some(Ok(rule)) => rule,
                Some(Err(name)) => {
                    warnings.push(TokenizerWarning::UnknownPre(name.chars().take(80).collect()));
                    PreRule::DEFAULT
                }
                None => {
                    warnings.push(TokenizerWarning::MissingPre);
                    PreRule::DEFAULT
                }
            };
            (Method::Bpe(Box::new(Bpe::new(rule, &spec.merges, &mut strings)?)), rule.add_bos)
        };
        let mut add = |key: &'static str, wanted: bool, id: Option<u32>| {
            if wanted && id.is_none() {
                warnings.push(TokenizerWarning::NothingToAdd { key });
            }
            wanted && id.is_some()
        };
        let add_bos = add("tokenizer.ggml.add_bos_token", spec.add_bos.unwrap_or(add_bos), bos);
        let add_eos = add("tokenizer.ggml.add_eos_token", spec.add_eos.unwrap_or(false), eos);
        Ok(Tokenizer {
            strings,
            kinds,
            method,
            specials,
            ends,
            bos,
            eos,
            pad,
            unk,
            add_bos,
            add_eos,
            add_space_prefix: spm && spec.add_space_prefix.unwrap_or(true),
            warnings,
        })
    }

    /// The tokens of `text`.
    ///
    /// With `add_special`, BOS and EOS are put around it where the model wants them. With `parse_special`, special tokens
    /// written out in `text` (`<|im_start|>`) become those tokens; without, they are text like any other, which is what
    /// a user's words should be. Takes O(n log n) for n bytes. A text of 4 GiB or more is cut there.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        // Positions are 32-bit, and U+2581 makes three bytes of a space.
        let text = &text[..text.floor_char_boundary((MAX_TEXT_BYTES - 8) / 3)];
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        if add_special && self.add_bos {
            out.extend(self.bos);
        }
        let mut work = bpe::Work::default();
        let mut words = WordCache::default();
        let mut escaped = String::new();
        let mut after_special = true;
        for fragment in self.specials.partition(text, parse_special, &self.strings, &self.kinds) {
            match (fragment, &self.method) {
                (Fragment::Token(id), _) => {
                    out.push(id);
                    after_special = true;
                }
                (Fragment::Text(range), Method::Bpe(bpe)) => {
                    bpe.encode(&text[range], &self.strings, &mut work, &mut words, &mut out);
                }
                (Fragment::Text(range), Method::Spm(spm)) => {
                    escaped.clear();
                    if self.add_space_prefix && after_special {
                        escaped.push_str(spm::SPACE);
                    }
                    for (i, part) in text[range].split(' ').enumerate() {
                        if i > 0 {
                            escaped.push_str(spm::SPACE);
                        }
                        escaped.push_str(part);
                    }
                    spm.encode(&escaped, &self.strings, &mut words, &mut out);
                    after_special = false;
                }
            }
        }
        if add_special && self.add_eos {
            out.extend(self.eos);
        }
        out
    }

    /// The tokens of a prompt made by a chat template: special tokens are parsed, and BOS is added if the model wants one
    /// and the template has not written it already, so it is never doubled. No EOS: the answer is still to come.
    pub fn encode_prompt(&self, text: &str) -> Vec<u32> {
        let mut out = self.encode(text, false, true);
        if let Some(bos) = self.bos.filter(|&bos| self.add_bos && out.first() != Some(&bos)) {
            out.insert(0, bos);
        }
        out
    }

    /// Appends the bytes that `id` stands for. They may end in the middle of a character. Control tokens show only with
    /// `render_special`; an id outside the vocabulary shows nothing.
    pub fn decode_bytes(&self, id: u32, out: &mut Vec<u8>, render_special: bool) {
        let Some(text) = self.token_text(id) else { return };
        match (self.kinds[id as usize], &self.method) {
            (TokenKind::Control | TokenKind::Unknown, _) if !render_special => {}
            (TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined, _) => {
                out.extend_from_slice(text.as_bytes());
            }
            (TokenKind::Unused, _) => {}
            (TokenKind::Byte, _) => out.extend(byte_token(text)),
            (TokenKind::Normal, Method::Spm(_)) => {
                for (i, part) in text.split(spm::SPACE).enumerate() {
                    if i > 0 {
                        out.push(b' ');
                    }
                    out.extend_from_slice(part.as_bytes());
                }
            }
            (TokenKind::Normal, Method::Bpe(_)) => {
                for c in text.chars() {
                    match bpe::char_to_byte(c) {
                        Some(byte) => out.push(byte),
                        None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
        }
    }

    /// The bytes of all of `ids`. The space that [`Self::encode`] puts before the first word of a SentencePiece text is
    /// taken off again, so that encoding and decoding return the text.
    pub fn decode(&self, ids: &[u32], render_special: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let mut text_before = false;
        for &id in ids {
            let start = out.len();
            self.decode_bytes(id, &mut out, render_special);
            let first_text = !text_before && !self.is_control(id);
            text_before |= !self.is_control(id);
            if first_text && self.add_space_prefix && out.get(start) == Some(&b' ') {
                out.remove(start);
            }
        }
        out
    }

    /// The text of `id` as the vocabulary writes it (`Ġthe`, `▁the`), or `None` outside the vocabulary.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.strings.get(id).filter(|_| (id as usize) < self.kinds.len())
    }

    /// The id of the token that the vocabulary writes exactly like `text`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.strings.find(text).filter(|&id| (id as usize) < self.kinds.len())
    }

    /// The kind of `id`, or `None` outside the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Whether `id` steers the model rather than being text.
    pub fn is_control(&self, id: u32) -> bool {
        self.kind(id) == Some(TokenKind::Control)
    }

    /// Whether the answer is over at `id`: EOS, end of turn and the like.
    pub fn is_eog(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// All tokens for which [`Self::is_eog`] holds, in order.
    pub fn eog_ids(&self) -> &[u32] {
        &self.ends
    }

    /// The number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.kinds.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that fills up batches.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The token for what the vocabulary cannot say.
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// Whether [`Self::encode`] puts BOS before a text.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether [`Self::encode`] puts EOS after a text.
    pub fn adds_eos(&self) -> bool {
        self.add_eos
    }

    /// What was odd in the file, to be shown once.
    pub fn warnings(&self) -> &[TokenizerWarning] {
        &self.warnings
    }
}

/// The byte of `<0xNN>`.
fn byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok()
}

fn check_lengths(spec: &TokenizerSpec<'_>) -> Result<(), TokenizerError> {
    let expected = spec.tokens.len();
    if expected == 0 {
        return Err(TokenizerError::EmptyVocabulary);
    }
    // Joined texts and the names of empty tokens are added: twice the merges, and 18 bytes for each token, bound them.
    let tokens: usize = spec.tokens.iter().map(|t| t.len() + 18).sum();
    let bytes = tokens + 2 * spec.merges.iter().map(|m| m.len()).sum::<usize>() + 512;
    if bytes > MAX_TEXT_BYTES {
        return Err(TokenizerError::TooLarge { bytes, limit: MAX_TEXT_BYTES });
    }
    // Longer is tolerated, as llama.cpp does: files padded to a rounder number have it.
    let short = |len: usize| len != 0 && len < expected;
    if short(spec.scores.len()) {
        let found = spec.scores.len();
        return Err(TokenizerError::LengthMismatch { key: "tokenizer.ggml.scores", found, expected });
    }
    if short(spec.token_types.len()) {
        let found = spec.token_types.len();
        return Err(TokenizerError::LengthMismatch { key: "tokenizer.ggml.token_type", found, expected });
    }
    match (0u32..).zip(&spec.scores).find(|(_, s)| s.is_nan()) {
        Some((id, _)) => Err(TokenizerError::BadScore { id }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
