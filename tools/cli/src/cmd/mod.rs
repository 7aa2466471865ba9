//! The verbs: each takes its parsed flags and does the work.

mod evaluate;
pub(crate) mod kl;
pub(crate) mod perplexity;
pub(crate) mod pull;
pub(crate) mod run;
