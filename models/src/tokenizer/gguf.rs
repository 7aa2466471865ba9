//! A tokenizer from a GGUF file's metadata.

use super::{Tokenizer, TokenizerError, TokenizerSpec};
use lutite_runtime::store::{Gguf, GgufError};

impl<'a> TokenizerSpec<'a> {
    /// Reads the `tokenizer.ggml.*` keys.
    ///
    /// # Errors
    /// [`TokenizerError::MissingKey`] when the file has no tokenizer, [`TokenizerError::Gguf`] for a key of another type.
    pub fn from_gguf(gguf: &Gguf<'a>) -> Result<TokenizerSpec<'a>, TokenizerError> {
        let missing = |key| TokenizerError::MissingKey { key };
        let texts = |key| -> Result<Option<Vec<&'a str>>, GgufError> {
            Ok(gguf.str_array(key)?.map(Iterator::collect))
        };
        let model = gguf.str(MODEL)?.ok_or(missing(MODEL))?;
        Ok(TokenizerSpec {
            model,
            pre: gguf.str("tokenizer.ggml.pre")?,
            tokens: texts(TOKENS)?.ok_or(missing(TOKENS))?,
            scores: gguf.f32_array("tokenizer.ggml.scores")?.map(Iterator::collect).unwrap_or_default(),
            token_types: gguf
                .i32_array("tokenizer.ggml.token_type")?
                .map(Iterator::collect)
                .unwrap_or_default(),
            merges: texts("tokenizer.ggml.merges")?.unwrap_or_default(),
            bos: gguf.u32("tokenizer.ggml.bos_token_id")?,
            eos: gguf.u32("tokenizer.ggml.eos_token_id")?,
            eot: gguf.u32("tokenizer.ggml.eot_token_id")?,
            eom: gguf.u32("tokenizer.ggml.eom_token_id")?,
            unk: gguf.u32("tokenizer.ggml.unknown_token_id")?,
            pad: gguf.u32("tokenizer.ggml.padding_token_id")?,
            add_bos: gguf.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: gguf.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix")?,
        })
    }
}

impl Tokenizer {
    /// The tokenizer of a GGUF file.
    ///
    /// # Errors
    /// As [`TokenizerSpec::from_gguf`] and [`Tokenizer::new`].
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::new(&TokenizerSpec::from_gguf(gguf)?)
    }
}

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";
