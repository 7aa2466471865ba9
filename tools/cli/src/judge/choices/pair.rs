//! A context and its continuation as tokens, as lm-evaluation-harness makes them.

use lutite_models::Tokenizer;

/// How pairs are made for one model.
#[derive(Clone, Copy, Debug)]
pub struct Pairing<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Positions that the model has.
    pub positions: usize,
}

/// A context and its continuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// At least one token.
    pub context: Vec<u32>,
    /// At least one token.
    pub continuation: Vec<u32>,
    /// Whether the start of the context was cut off, BOS and all.
    pub cut: bool,
}

impl Pairing<'_> {
    /// The pair of two texts. White space at the end of the context is the continuation's, since that is where
    /// tokenizers have it; the continuation's tokens are what the whole text has more than the context alone; and what does
    /// not fit in the model is cut off on the left. The last token has to fit nowhere: what follows it is not asked for.
    ///
    /// # Errors
    /// What is wrong with the texts.
    pub fn pair(&self, context: &str, continuation: &str) -> Result<Pair, String> {
        let own_context = context.trim_end();
        // Special tokens that are written out in a text are text.
        let encode = |text: &str| self.tokenizer.encode(text, false, false);
        let mut whole = encode(&[context, continuation].concat());
        let mut tokens = if own_context.is_empty() { Vec::new() } else { encode(own_context) };
        if whole.len() <= tokens.len() {
            return Err("the continuation adds no token to its context".into());
        }
        let continuation = whole.split_off(tokens.len());
        if continuation.len() > self.positions {
            let (n, positions) = (continuation.len(), self.positions);
            return Err(format!("the continuation has {n} tokens, the model {positions} positions"));
        }
        let bos = self.tokenizer.bos();
        let start = if tokens.is_empty() {
            // Something has to predict the first token.
            let start = bos.or(self.tokenizer.eos());
            Some(start.ok_or("the context is empty, and the model has no token to begin with")?)
        } else {
            bos.filter(|_| self.tokenizer.adds_bos())
        };
        tokens.splice(0..0, start);
        let too_many = (tokens.len() + continuation.len() - 1).saturating_sub(self.positions);
        tokens.drain(..too_many);
        Ok(Pair { context: tokens, continuation, cut: too_many > 0 })
    }
}
