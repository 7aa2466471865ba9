//! What a model is to everything that generates text with it.

/// Which positions' logits a step shall give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// The last token's: `[vocab]`.
    Last,
    /// Every token's: `[tokens][vocab]`.
    All,
}

/// A decoder with its KV cache: a position that moves forward as tokens are fed.
pub trait Decoder {
    /// What can go wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Tokens in the vocabulary.
    fn vocab(&self) -> usize;
    /// Positions that fit.
    fn context(&self) -> usize;
    /// Tokens that one step takes at most.
    fn batch(&self) -> usize;
    /// Positions filled so far.
    fn position(&self) -> usize;
    /// Goes back to an earlier position; what comes after it is forgotten. A later one is taken as the
    /// current one.
    fn rewind(&mut self, position: usize);
    /// Feeds 1 to [`Decoder::batch`] tokens and returns logits. The results do not depend on how tokens
    /// are split into steps.
    ///
    /// # Errors
    /// When there are no tokens or too many, when one is outside of the vocabulary, or when the context is
    /// full; the position then stays.
    fn step(&mut self, tokens: &[u32], logits: Logits) -> Result<&[f32], Self::Error>;
}
