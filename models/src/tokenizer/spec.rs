//! What a tokenizer is made from, what can be wrong with it, and what is only odd.

use lutite_runtime::store::GgufError;

/// Everything the tokenizer needs, as GGUF's `tokenizer.ggml.*` keys give it. Borrowed: the texts are copied once, into
/// the tokenizer's own table, so the file may be unmapped afterwards.
#[derive(Debug, Clone, Default)]
pub struct TokenizerSpec<'a> {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: &'a str,
    /// `tokenizer.ggml.pre`: how byte-level BPE cuts text into words.
    pub pre: Option<&'a str>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<&'a str>,
    /// `tokenizer.ggml.scores`, by id; empty when absent (all scores are then 0).
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`, by id; empty when absent (all tokens are then normal). See [`TokenKind`].
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`, best first, each `left right`.
    pub merges: Vec<&'a str>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`.
    pub eom: Option<u32>,
    /// `tokenizer.eog_token_ids`: further tokens that end an answer. Ours; llama.cpp knows three by their keys and
    /// others by their text.
    pub eog: Vec<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`; when absent, the model kind decides.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`; when absent, no.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`; when absent, yes for SentencePiece.
    pub add_space_prefix: Option<bool>,
}

/// The kind of a token, numbered as in `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// 1: text.
    Normal,
    /// 2: stands for what the vocabulary cannot say.
    Unknown,
    /// 3: steers the model; never made from plain text, not shown.
    Control,
    /// 4: added text, cut out before anything else.
    UserDefined,
    /// 5 or any other number: takes no part.
    Unused,
    /// 6: one raw byte, `<0xNN>`.
    Byte,
}

impl TokenKind {
    pub(super) fn from_ggml(number: i32) -> TokenKind {
        match number {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            6 => TokenKind::Byte,
            _ => TokenKind::Unused,
        }
    }
}

/// Why no tokenizer could be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.ggml.model` names a kind this build does not have.
    #[error(
        "tokenizer.ggml.model is '{0}': only 'gpt2' (byte-level BPE) and 'llama' (SentencePiece) are supported; use a file of another model family"
    )]
    UnknownModel(String),
    /// There are no tokens.
    #[error(
        "tokenizer.ggml.tokens is empty: the file carries no vocabulary; convert the model again with its tokenizer"
    )]
    EmptyVocabulary,
    /// The texts do not fit the table.
    #[error(
        "tokenizer.ggml.tokens and merges hold {bytes} bytes of text, more than the {limit} a vocabulary may have"
    )]
    TooLarge {
        /// Bytes found.
        bytes: usize,
        /// The most there may be.
        limit: usize,
    },
    /// An array that goes along with the tokens has another length.
    #[error("{key} has {found} entries but there are {expected} tokens; convert the model again")]
    LengthMismatch {
        /// The array's GGUF key.
        key: &'static str,
        /// Its length.
        found: usize,
        /// The number of tokens.
        expected: usize,
    },
    /// Two ids with the same text: which one would a text become?
    #[error("tokenizer.ggml.tokens: ids {first} and {second} are both '{text}'; convert the model again")]
    DuplicateToken {
        /// The text.
        text: String,
        /// The smaller id.
        first: u32,
        /// The larger id.
        second: u32,
    },
    /// A score that cannot be compared.
    #[error("tokenizer.ggml.scores: the score of token {id} is not a number")]
    BadScore {
        /// The token.
        id: u32,
    },
    /// A byte-level BPE vocabulary without merges cannot join anything.
    #[error(
        "tokenizer.ggml.merges is missing or empty, but byte-level BPE ('gpt2') needs it; convert the model again"
    )]
    NoMerges,
    /// A merge that is not two parts with a space between.
    #[error("tokenizer.ggml.merges: entry {index} is '{text}', not two parts with a space between")]
    BadMerge {
        /// Which one.
        index: usize,
        /// What it says.
        text: String,
    },
    /// The file lacks what every tokenizer needs.
    #[error("{key} is missing: the file carries no tokenizer; convert the model again with its tokenizer")]
    MissingKey {
        /// The GGUF key.
        key: &'static str,
    },
    /// A metadata key has another type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}

/// Something odd in the file that does not stop the tokenizer, but a person should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenizerWarning {
    /// The pre-tokenizer is not known: `default` is used, and some texts are cut in a way the model was not trained on.
    UnknownPre(String),
    /// The file is too old to name its pre-tokenizer: `default` is used.
    MissingPre,
    /// A special token's id is outside the vocabulary: it is ignored.
    IdOutOfRange {
        /// The GGUF key.
        key: &'static str,
        /// What it says.
        id: u32,
        /// The number of tokens.
        vocab_size: usize,
    },
    /// A special token is longer than any real one: it is read as plain text.
    LongSpecial {
        /// The token; there may be more.
        id: u32,
        /// Its length.
        bytes: usize,
        /// The most that is searched for.
        limit: usize,
    },
    /// The file asks for a token at the start or end of each text that it does not define.
    NothingToAdd {
        /// The GGUF key.
        key: &'static str,
    },
}

impl std::fmt::Display for TokenizerWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TokenizerWarning::UnknownPre(pre) => {
                write!(
                    f,
                    "tokenizer.ggml.pre is '{pre}', which this version does not know: using 'default', so some texts get other tokens than in training; expect worse answers"
                )
            }
            TokenizerWarning::MissingPre => {
                write!(
                    f,
                    "tokenizer.ggml.pre is missing (an old file): using 'default', so some texts get other tokens than in training; convert the model again"
                )
            }
            TokenizerWarning::IdOutOfRange { key, id, vocab_size } => {
                write!(f, "{key} is {id}, outside the vocabulary of {vocab_size} tokens: ignored")
            }
            TokenizerWarning::LongSpecial { id, bytes, limit } => {
                write!(
                    f,
                    "tokenizer.ggml.tokens: token {id} is a special one of {bytes} bytes; those above {limit} are not looked for in texts"
                )
            }
            TokenizerWarning::NothingToAdd { key } => {
                write!(f, "{key} is set, but the file does not say which token that is: none is added")
            }
        }
    }
}
