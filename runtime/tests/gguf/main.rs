//! The GGUF reader and writer on good files and on bad ones.

mod bad;
mod common;
mod ok;
#[path = "../common/peak.rs"]
mod peak;
