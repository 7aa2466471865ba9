//! Model families, tokenizers and chat templates: path in, decoder out. See `docs/design.md`.
#![forbid(unsafe_code)]

pub mod arch;
pub mod chat;
pub mod config;
mod error;
mod linear;
pub mod open;
pub mod tokenizer;
mod verify;
mod weights;

pub use chat::{ChatError, ChatTemplate, Message};
pub use error::{Error, Result};
pub use open::{Model, OpenOptions};
pub use tokenizer::{Tokenizer, TokenizerError, TokenizerSpec, TokenizerWarning};
pub use verify::verify;
pub use weights::Path;
