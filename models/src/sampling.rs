//! The sampling that a model's authors recommend: `general.sampling.*`, as llama.cpp reads and writes it.

use crate::error::Result;
use lutite_runtime::store::Gguf;

/// The metadata keys.
pub(crate) mod keys {
    pub(crate) const TEMP: &str = "general.sampling.temp";
    pub(crate) const TOP_K: &str = "general.sampling.top_k";
    pub(crate) const TOP_P: &str = "general.sampling.top_p";
    pub(crate) const MIN_P: &str = "general.sampling.min_p";
    pub(crate) const PENALTY_REPEAT: &str = "general.sampling.penalty_repeat";
    pub(crate) const PENALTY_LAST_N: &str = "general.sampling.penalty_last_n";
}

/// What a model's file says of sampling; `None` where it says nothing. Not checked: [`Sampler::new`] does.
///
/// [`Sampler::new`]: lutite_runtime::sample::Sampler::new
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Best tokens that stay; 0 and below are all.
    pub top_k: Option<i32>,
    /// Probability to keep.
    pub top_p: Option<f32>,
    /// Least probability relative to the best token.
    pub min_p: Option<f32>,
    /// Divisor for tokens seen lately.
    pub repeat_penalty: Option<f32>,
    /// Tokens that the penalty looks back on; negative is the whole context.
    pub repeat_last_n: Option<i32>,
}

impl SamplingDefaults {
    /// Reads the keys.
    ///
    /// # Errors
    /// A key of another type.
    pub fn read(gguf: &Gguf<'_>) -> Result<SamplingDefaults> {
        Ok(SamplingDefaults {
            temperature: gguf.f32(keys::TEMP)?,
            top_k: gguf.i32(keys::TOP_K)?,
            top_p: gguf.f32(keys::TOP_P)?,
            min_p: gguf.f32(keys::MIN_P)?,
            repeat_penalty: gguf.f32(keys::PENALTY_REPEAT)?,
            repeat_last_n: gguf.i32(keys::PENALTY_LAST_N)?,
        })
    }
}
