//! Weight compression to bit planes. See `docs/design.md`.

#![deny(missing_docs)]

pub mod als;
pub mod error;
pub mod imatrix;

pub use error::{Error, Result};
