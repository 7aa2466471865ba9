//! Multiple choice by log-likelihood: a model is given a question and takes the answer that it finds most probable.
//!
//! The rules are those of lm-evaluation-harness: where a question ends and an answer begins among the tokens
//! ([`pair`]), what is cut off from a question that is too long, and what accuracies are made of the sums ([`task`]).

pub mod journal;
pub mod lines;
pub mod pair;
pub mod scorer;
pub mod task;
#[cfg(test)]
mod tests;
