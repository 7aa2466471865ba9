//! Model families, tokenizers and chat templates: path in, decoder out.
#![forbid(unsafe_code)]

pub mod arch;
pub mod config;
mod error;
mod linear;
pub mod open;
mod weights;

pub use error::{Error, Result};
pub use open::{Model, OpenOptions};
pub use weights::Path;
