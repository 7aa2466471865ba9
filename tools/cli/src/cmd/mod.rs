//! The verbs: each takes its parsed flags and does the work.

pub(crate) mod chat;
pub(crate) mod pull;
pub(crate) mod quantize;
pub(crate) mod run;
