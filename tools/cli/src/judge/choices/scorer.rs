//! The likelihood of a continuation, computed once for what several requests share.

use super::pair::Pair;
use crate::interrupt;
use crate::judge::score;
use lutite_runtime::decode::{Decoder, Logits, Phase};

/// A decoder that remembers which context it holds. How tokens are split into steps changes no bit, so what is shared and
/// what comes first changes nothing but the time.
#[derive(Debug)]
pub struct Scorer<D> {
    decoder: D,
    /// Threads for what the decoder does not do.
    threads: usize,
    /// What the decoder holds at its first positions.
    context: Vec<u32>,
    /// What comes behind the context: `[vocab]`.
    logits: Vec<f32>,
}

impl<D: Decoder> Scorer<D> {
    /// A scorer that uses this decoder.
    pub fn new(decoder: D, threads: usize) -> Scorer<D> {
        Scorer { decoder, threads, context: Vec::new(), logits: Vec::new() }
    }

    /// The decoder.
    pub fn decoder(&self) -> &D {
        &self.decoder
    }

    /// The logarithm of the probability of the continuation behind its context; `None` where a logit is not finite.
    ///
    /// # Errors
    /// The decoder's, for a pair that does not fit above all; Ctrl-C.
    pub fn log_prob(&mut self, pair: &Pair) -> anyhow::Result<Option<f64>> {
        let Some((first, targets)) = pair.continuation.split_first() else { return Ok(Some(0.0)) };
        self.read(&pair.context)?;
        self.decoder.rewind(pair.context.len());
        let mut nlls = vec![score::nll(&self.logits, *first)];
        let (batch, vocab) = (self.decoder.batch(), self.decoder.vocab());
        for (tokens, targets) in pair.continuation.chunks(batch).zip(targets.chunks(batch)) {
            interrupt::check(interrupt::flag())?;
            // What the last token predicts is not asked for.
            let tokens = &tokens[..targets.len()];
            let logits = self.decoder.step(tokens, Phase::Prompt, Logits::All)?;
            nlls.extend(score::each(self.threads, targets.len(), |t| {
                score::nll(&logits[t * vocab..(t + 1) * vocab], targets[t])
            }));
        }
        Ok(nlls.into_iter().sum::<Option<f64>>().map(|nll| -nll))
    }

    /// Makes the decoder hold `context`, from the first token on that it does not hold already.
    fn read(&mut self, context: &[u32]) -> anyhow::Result<()> {
        if self.context == context {
            return Ok(());
        }
        let same = self.context.iter().zip(context).take_while(|(a, b)| a == b).count();
        // One at least is fed, for its logits.
        let same = same.min(context.len().saturating_sub(1));
        self.context.truncate(same);
        self.decoder.rewind(same);
        for tokens in context[same..].chunks(self.decoder.batch()) {
            interrupt::check(interrupt::flag())?;
            let logits = self.decoder.step(tokens, Phase::Prompt, Logits::Last)?;
            logits.clone_into(&mut self.logits);
            self.context.extend(tokens);
        }
        Ok(())
    }
}
