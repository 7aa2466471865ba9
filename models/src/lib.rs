//! Model families, tokenizers and chat templates: bytes in, decoder out. See `docs/design.md`.
#![forbid(unsafe_code)]

pub mod arch;
mod attention;
pub mod chat;
pub mod config;
mod error;
pub mod halves;
pub mod hf;
mod input;
mod linear;
pub mod open;
pub mod sampling;
mod signs;
pub mod tokenizer;
mod verify;
mod weights;
pub mod worker;

pub use arch::llama::blocks::{self, Blocks};
pub use chat::{ChatError, ChatTemplate, Message};
pub use error::{Error, Result};
pub use linear::Ahead;
pub use open::{Budget, Model, OpenOptions};
pub use tokenizer::{Tokenizer, TokenizerError, TokenizerSpec, TokenizerWarning};
pub use verify::{verify, verify_head};
pub use weights::Path;
