//! The verbs: each takes its parsed flags and does the work.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod doctor;
pub(crate) mod eval;
mod evaluate;
pub(crate) mod export;
pub(crate) mod inspect;
pub(crate) mod kl;
pub(crate) mod list;
pub(crate) mod perplexity;
pub(crate) mod plan;
pub(crate) mod pull;
pub(crate) mod quantize;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod trim;
pub(crate) mod verify;
