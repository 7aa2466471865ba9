//! A tokenizer from a GGUF file's metadata, and to it.

use super::{Tokenizer, TokenizerError, TokenizerSpec};
use lutite_runtime::store::{Gguf, GgufError, GgufWriter};

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
            eog: gguf.u32_array(EOG)?.map(Iterator::collect).unwrap_or_default(),
            unk: gguf.u32("tokenizer.ggml.unknown_token_id")?,
            pad: gguf.u32("tokenizer.ggml.padding_token_id")?,
            add_bos: gguf.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: gguf.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix")?,
        })
    }

    /// Writes the keys that [`TokenizerSpec::from_gguf`] reads.
    ///
    /// # Errors
    /// As [`GgufWriter::set`].
    pub fn write(&self, w: &mut GgufWriter) -> lutite_runtime::Result<()> {
        w.set(MODEL, self.model)?;
        if let Some(pre) = self.pre {
            w.set("tokenizer.ggml.pre", pre)?;
        }
        w.set(TOKENS, &self.tokens[..])?;
        if !self.scores.is_empty() {
            w.set("tokenizer.ggml.scores", &self.scores[..])?;
        }
        if !self.token_types.is_empty() {
            w.set("tokenizer.ggml.token_type", &self.token_types[..])?;
        }
        if !self.merges.is_empty() {
            w.set("tokenizer.ggml.merges", &self.merges[..])?;
        }
        let ids = [
            ("bos", self.bos),
            ("eos", self.eos),
            ("eot", self.eot),
            ("eom", self.eom),
            ("unknown", self.unk),
            ("padding", self.pad),
        ];
        for (name, id) in ids {
            if let Some(id) = id {
                w.set(&format!("tokenizer.ggml.{name}_token_id"), id)?;
            }
        }
        if !self.eog.is_empty() {
            w.set(EOG, &self.eog[..])?;
        }
        let flags = [
            ("bos_token", self.add_bos),
            ("eos_token", self.add_eos),
            ("space_prefix", self.add_space_prefix),
        ];
        for (name, flag) in flags {
            if let Some(flag) = flag {
                w.set(&format!("tokenizer.ggml.add_{name}"), flag)?;
            }
        }
        Ok(())
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
const EOG: &str = "tokenizer.eog_token_ids";
