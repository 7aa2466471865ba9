//! The verbs: each takes its parsed flags and does the work.

pub(crate) mod pull;
pub(crate) mod run;
