//! Judging a model by the probabilities that it gives to a text: the mathematics behind `perplexity`, `kl` and `eval`.

pub mod base;
pub mod choices;
pub(crate) mod curve;
pub(crate) mod loss;
pub mod protocol;
pub mod score;
pub(crate) mod sensitivity;
pub mod stats;
#[cfg(test)]
mod tests;
