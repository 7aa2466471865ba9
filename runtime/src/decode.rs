//! What a model is to everything that generates text with it, and the loop that generates.

use crate::sample::{SampleError, Sampler};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Which positions' logits a step shall give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// The last token's: `[vocab]`.
    Last,
    /// Every token's: `[tokens][vocab]`.
    All,
}

/// What a step's tokens are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Tokens that were there before anything was generated. They may be multiplied in a way that is faster with many
    /// tokens, and so give other bits than the same tokens of an answer.
    Prompt,
    /// Tokens that were generated, one by one or several to be verified.
    Answer,
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
    /// Whether `tokens` more positions fit.
    ///
    /// # Errors
    /// When they do not, with what to do.
    fn check_room(&self, tokens: usize) -> Result<(), Self::Error>;
    /// Feeds 1 to [`Decoder::batch`] tokens and returns logits. The results depend on each token's phase, but not on how
    /// tokens are split into steps.
    ///
    /// # Errors
    /// When there are no tokens or too many, when one is outside of the vocabulary, or when the context is
    /// full; the position then stays.
    fn step(&mut self, tokens: &[u32], phase: Phase, logits: Logits) -> Result<&[f32], Self::Error>;
}

/// One answer to be generated.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Tokens to feed first, behind what the decoder already holds. Not empty.
    pub prompt: &'a [u32],
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Tokens that end the answer; they are not handed out.
    pub ends: &'a [u32],
    /// Set from elsewhere to stop after the token in hand.
    pub cancel: &'a AtomicBool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    End,
    /// `max_tokens` were generated.
    Length,
    /// The context is full.
    ContextFull,
    /// `cancel` was set.
    Cancelled,
    /// The receiver of tokens asked for no more.
    Stopped,
}

/// How an answer went.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt that were fed.
    pub prompt_tokens: usize,
    /// Time until the first token was chosen.
    pub prompt_time: Duration,
    /// Tokens generated, the last one included that nothing was fed after.
    pub tokens: usize,
    /// Time from the first token to the last.
    pub time: Duration,
}

/// Why an answer failed.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError<E: std::error::Error + 'static> {
    /// The decoder refused a step.
    #[error(transparent)]
    Decoder(E),
    /// No token could be chosen.
    #[error(transparent)]
    Sample(#[from] SampleError),
}

/// Feeds the prompt, then generates: `on_token` receives each token as it is chosen.
///
/// The sampler should know the tokens before this prompt (`Sampler::accept`); the prompt's are told to it
/// here. The decoder afterwards holds every token but the last one handed out.
///
/// # Errors
/// [`GenerateError`]; a prompt that does not fit is refused before any of it is fed.
pub fn generate<D: Decoder + ?Sized>(
    decoder: &mut D,
    sampler: &mut Sampler,
    request: Request<'_>,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Outcome, GenerateError<D::Error>> {
    decoder.check_room(request.prompt.len()).map_err(GenerateError::Decoder)?;
    let start = Instant::now();
    let mut out = Outcome {
        finish: Finish::Length,
        prompt_tokens: request.prompt.len(),
        prompt_time: Duration::ZERO,
        tokens: 0,
        time: Duration::ZERO,
    };
    let cancelled = || request.cancel.load(Ordering::Relaxed);
    request.prompt.iter().for_each(|t| sampler.accept(*t));
    let batch = decoder.batch();
    let mut fed = 0;
    let mut next = None;
    while fed < request.prompt.len() {
        let part = &request.prompt[fed..(fed + batch).min(request.prompt.len())];
        fed += part.len();
        let position = decoder.position() + part.len();
        let logits = decoder.step(part, Phase::Prompt, Logits::Last).map_err(GenerateError::Decoder)?;
        if fed == request.prompt.len() && request.max_tokens > 0 {
            next = Some(sampler.sample(logits, position as u64)?);
        }
        if cancelled() {
            out.finish = Finish::Cancelled;
            break;
        }
    }
    out.prompt_time = start.elapsed();
    let start = Instant::now();
    while let Some(token) = next.take() {
        if request.ends.contains(&token) {
            out.finish = Finish::End;
            break;
        }
        sampler.accept(token);
        out.tokens += 1;
        if on_token(token).is_break() {
            out.finish = Finish::Stopped;
            break;
        }
        if out.tokens == request.max_tokens {
            break;
        }
        if cancelled() {
            out.finish = Finish::Cancelled;
            break;
        }
        if decoder.position() == decoder.context() {
            out.finish = Finish::ContextFull;
            break;
        }
        let position = decoder.position() + 1;
        let logits = decoder.step(&[token], Phase::Answer, Logits::Last).map_err(GenerateError::Decoder)?;
        next = Some(sampler.sample(logits, position as u64)?);
    }
    out.time = start.elapsed();
    Ok(out)
}
