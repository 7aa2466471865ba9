//! How a text is cut into chunks, and which of their tokens are scored.
//!
//! `llama` is llama-perplexity's way: chunks of equal length side by side, the first token of each replaced by
//! BOS where the model wants one, and only the second half scored, so that every scored token has a context.
//! `papers` is that of GPTQ and its followers: windows side by side, nothing replaced, all tokens but the first
//! of each window scored. In both a rest that fills no chunk is left out.

use crate::args::Protocol;
use std::ops::Range;

/// Why a text cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// The text does not fill one chunk.
    #[error(
        "the text has {tokens} tokens, one chunk needs {context}; give a longer text, or ask for shorter chunks with -c"
    )]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a chunk.
        context: usize,
    },
    /// A chunk too short to have a scored token.
    #[error("chunks of {context} tokens leave none to be scored; ask for at least {least} with -c")]
    ChunkTooShort {
        /// Tokens of a chunk.
        context: usize,
        /// Fewest that leave one.
        least: usize,
    },
    /// A limit of 0.
    #[error(
        "no chunk or no position is asked for; give --chunks and --positions at least 1, or leave them out"
    )]
    Nothing,
}

/// A text, cut.
#[derive(Clone, Debug)]
pub struct Cut {
    tokens: Vec<u32>,
    context: usize,
    first: usize,
    bos: Option<u32>,
    chunks: usize,
}

impl Cut {
    /// Cuts `tokens` into chunks of `context`, `limit` at most. `bos` is the token that the model wants at the
    /// beginning of a text, if it wants one.
    ///
    /// # Errors
    /// [`CutError`] where not one token would be scored.
    pub fn new(
        mut tokens: Vec<u32>,
        protocol: Protocol,
        context: usize,
        bos: Option<u32>,
        limit: usize,
    ) -> Result<Cut, CutError> {
        let first = first_scored(protocol, context);
        let least = if protocol == Protocol::Llama { 3 } else { 2 };
        if context < least {
            return Err(CutError::ChunkTooShort { context, least });
        }
        if tokens.len() < context {
            return Err(CutError::TextTooShort { tokens: tokens.len(), context });
        }
        if limit == 0 {
            return Err(CutError::Nothing);
        }
        let chunks = (tokens.len() / context).min(limit);
        tokens.truncate(chunks * context);
        let bos = bos.filter(|_| protocol == Protocol::Llama);
        Ok(Cut { tokens, context, first, bos, chunks })
    }

    /// Number of chunks.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Tokens of a chunk.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }

    /// The tokens of all chunks, as in the text: no BOS put in.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Scored positions of all chunks.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.chunks * (self.context - 1 - self.first)
    }

    /// Chunk `i`, which must be one of [`Cut::chunks`].
    #[must_use]
    pub fn chunk(&self, i: usize) -> Chunk {
        Chunk::new(&self.tokens[i * self.context..(i + 1) * self.context], self.first, self.bos)
    }
}

/// The first position of a chunk whose prediction is scored.
#[must_use]
pub fn first_scored(protocol: Protocol, context: usize) -> usize {
    match protocol {
        Protocol::Llama => context / 2,
        Protocol::Papers => 0,
    }
}

/// A piece of text that is fed from an empty context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    input: Vec<u32>,
    targets: Vec<u32>,
}

impl Chunk {
    /// A chunk of `tokens` whose predictions from position `first` on are scored, behind `bos` in the first
    /// token's place if there is one.
    #[must_use]
    pub fn new(tokens: &[u32], first: usize, bos: Option<u32>) -> Chunk {
        // What the last token predicts is in another chunk: it need not be fed.
        let mut input = tokens[..tokens.len().saturating_sub(1)].to_vec();
        let targets = tokens.get(first + 1..).unwrap_or_default().to_vec();
        if let (Some(start), Some(bos)) = (input.first_mut(), bos) {
            *start = bos;
        }
        Chunk { input, targets }
    }

    /// Scores no more than the first `positions`.
    pub fn limit(&mut self, positions: usize) {
        let cut = self.targets.len().saturating_sub(positions);
        self.input.truncate(self.input.len() - cut);
        self.targets.truncate(positions);
    }

    /// The tokens that are to be predicted; the last so many positions of the input predict one each.
    #[must_use]
    pub fn targets(&self) -> &[u32] {
        &self.targets
    }

    /// The steps in which to feed the chunk, of `batch` tokens at most: none has both scored and other positions.
    pub fn steps(&self, batch: usize) -> impl Iterator<Item = Step<'_>> {
        let first = self.input.len() - self.targets.len();
        let parts = |all: Range<usize>| {
            let end = all.end;
            all.step_by(batch.max(1)).map(move |at| at..end.min(at + batch.max(1)))
        };
        let unscored = parts(0..first).map(|r| Step { tokens: &self.input[r], targets: &[] });
        let scored = parts(first..self.input.len()).map(move |r| Step {
            targets: &self.targets[r.start - first..r.end - first],
            tokens: &self.input[r],
        });
        unscored.chain(scored)
    }
}

/// Tokens that are fed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// The tokens.
    pub tokens: &'a [u32],
    /// What each of them is to predict; none where that is not scored.
    pub targets: &'a [u32],
}
