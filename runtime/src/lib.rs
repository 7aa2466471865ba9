//! See `docs/design.md`.
#![deny(unsafe_code)]

mod error;
#[allow(unsafe_code)]
pub mod os;
pub mod store;

pub use error::{Error, Result};
