//! From logits to a token.
//!
//! The chain is llama.cpp's default one, less the steps that are off there by default, in its order:
//!
//! 1. **repeat penalty** over the last `repeat_last_n` accepted tokens,
//! 2. **top-k**: the `top_k` highest logits,
//! 3. **top-p**: the fewest best tokens that have probability `top_p` among those left,
//! 4. **min-p**: those at least `min_p` times as probable as the best,
//! 5. **temperature**: the logits over `temperature`,
//! 6. **draw** by a number that depends on the seed and the position alone ([`rng`]).
//!
//! Ties are broken by the lower token id everywhere. Temperature 0 takes the best token after step 1 and draws nothing.
//! A step's arithmetic is f64 with `libm`'s exponential, so the same logits give the same token on every machine.
//!
//! A logit of -inf is a forbidden token (a grammar forbids that way). NaN, +inf, or nothing allowed is an error: it
//! means a broken model or kernel, and drawing from it would hide that.

mod candidates;
mod chain;
pub mod rng;
#[cfg(test)]
mod tests;

use candidates::Candidates;
use chain::Recent;

/// What a [`Sampler`] is made from. The default is llama.cpp's, with seed 0.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerConfig {
    /// 0 is greedy; 1 is the model's own distribution; finite and not negative.
    pub temperature: f32,
    /// How many of the best tokens stay; 0 is all.
    pub top_k: usize,
    /// Probability to keep, in (0, 1]; 1 is off.
    pub top_p: f32,
    /// Least probability relative to the best token, in [0, 1]; 0 is off.
    pub min_p: f32,
    /// Divisor for tokens seen lately; above 0; 1 is off.
    pub repeat_penalty: f32,
    /// How many accepted tokens the penalty looks back on; 0 is off.
    pub repeat_last_n: usize,
    /// Key of the random numbers.
    pub seed: u64,
}

impl SamplerConfig {
    /// The model's own distribution, with nothing cut off and nothing punished.
    pub fn untouched(seed: u64) -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_last_n: 0,
            seed,
        }
    }
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplerConfig {
    /// Always the best token, with no penalty.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    fn check(&self) -> Result<(), SampleError> {
        let bad = |field, value, allowed| Err(SampleError::Config { field, value, allowed });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad("temperature", self.temperature, "0 (greedy) or more, and finite");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top-p", self.top_p, "above 0 and at most 1 (1 is off)");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return bad("min-p", self.min_p, "from 0 (off) to 1");
        }
        if !(self.repeat_penalty.is_finite() && self.repeat_penalty > 0.0) {
            return bad("repeat-penalty", self.repeat_penalty, "above 0 and finite (1 is off)");
        }
        Ok(())
    }
}

/// Why no token came out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// A setting is outside its range.
    #[error("sampling: {field} is {value}; it must be {allowed}")]
    Config {
        /// The setting, by its flag's name.
        field: &'static str,
        /// What it was.
        value: f32,
        /// What it may be.
        allowed: &'static str,
    },
    /// The model gave a logit that is no number.
    #[error(
        "sampling at position {position}: the logit of token {token} is {value}; \
         the model file is damaged or a kernel is wrong (verify the file, or try LUTITE_ISA=scalar)"
    )]
    NotANumber {
        /// Position in the text.
        position: u64,
        /// The first such token.
        token: u32,
        /// NaN or +inf.
        value: f32,
    },
    /// There are no logits, or every one is -inf.
    #[error(
        "sampling at position {position}: none of {vocabulary} tokens is allowed; \
         loosen the grammar or the token bans"
    )]
    NothingAllowed {
        /// Position in the text.
        position: u64,
        /// How many logits there were.
        vocabulary: usize,
    },
}

/// Chooses tokens. Holds the scratch memory: a step allocates nothing once the first is done, and accepting nothing once
/// the penalty's window is full.
#[derive(Debug)]
pub struct Sampler {
    config: SamplerConfig,
    recent: Recent,
    /// The logits after the penalty; unused while there is none. `[vocabulary]`
    penalised: Vec<f32>,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler that has accepted no token yet.
    ///
    /// # Errors
    /// [`SampleError::Config`] if a setting is outside its range.
    pub fn new(config: SamplerConfig) -> Result<Self, SampleError> {
        config.check()?;
        let recent = Recent::new(config.repeat_last_n);
        Ok(Self { config, recent, penalised: Vec::new(), candidates: Candidates::default() })
    }

    /// What it was made from.
    #[must_use]
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Tells the penalty that this token is in the text: of the prompt, or drawn.
    pub fn accept(&mut self, token: u32) {
        // With the penalty off nobody reads the window.
        if self.penalises() {
            self.recent.push(token);
        }
    }

    /// Forgets the accepted tokens.
    pub fn reset(&mut self) {
        self.recent.clear();
    }

    /// The token for `position`, from `logits` of shape `[vocabulary]`. Does not accept it.
    ///
    /// The result depends on the settings, the accepted tokens, the logits and the position, on nothing else.
    ///
    /// # Errors
    /// [`SampleError::NotANumber`] or [`SampleError::NothingAllowed`].
    pub fn sample(&mut self, logits: &[f32], position: u64) -> Result<u32, SampleError> {
        check_logits(logits, position)?;
        let logits = if self.penalises() && !self.recent.is_empty() {
            self.penalised.clear();
            self.penalised.extend_from_slice(logits);
            self.recent.penalise(&mut self.penalised, self.config.repeat_penalty);
            &self.penalised
        } else {
            logits
        };
        let chosen = if self.config.temperature == 0.0 {
            argmax(logits)
        } else {
            self.candidates.read(logits, self.config.top_k);
            chain::top_p(&mut self.candidates, self.config.top_p);
            chain::min_p(&mut self.candidates, self.config.min_p);
            let u = rng::uniform(self.config.seed, position);
            chain::draw(&mut self.candidates, self.config.temperature, u)
        };
        chosen.ok_or(SampleError::NothingAllowed { position, vocabulary: logits.len() })
    }

    fn penalises(&self) -> bool {
        self.config.repeat_penalty != 1.0 && self.config.repeat_last_n > 0
    }
}

/// The lowest id of those with the highest logit; none if nothing is above -inf.
#[must_use]
pub fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best = (None, f32::NEG_INFINITY);
    for (id, &logit) in (0_u32..).zip(logits) {
        if logit > best.1 {
            best = (Some(id), logit);
        }
    }
    best.0
}

fn check_logits(logits: &[f32], position: u64) -> Result<(), SampleError> {
    let good = |x: f32| x < f32::INFINITY;
    // No early exit in the first pass: it becomes a vector loop, and nearly always it is the only one.
    if logits.iter().fold(true, |all, &x| all & good(x)) {
        return Ok(());
    }
    let bad = (0_u32..).zip(logits).find(|&(_, &x)| !good(x));
    bad.map_or(Ok(()), |(token, &value)| Err(SampleError::NotANumber { position, token, value }))
}
