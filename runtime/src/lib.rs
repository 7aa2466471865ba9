//! The mechanism under every model family: containers, memory maps, topology, the worker pool, the KV
//! cache, sampling and text streams. See `docs/design.md`.
#![deny(unsafe_code)]

pub mod decode;
mod error;
pub mod json;
pub mod kv;
#[allow(unsafe_code)]
pub mod os;
pub mod pool;
pub mod residency;
pub mod sample;
pub mod split;
pub mod store;
pub mod stream;

pub use error::{Error, Result};
