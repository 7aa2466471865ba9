//! Model families, tokenizers and chat templates: path in, decoder out.
//!
//! See `docs/design.md`.
#![forbid(unsafe_code)]

pub mod chat;
pub mod tokenizer;

pub use chat::{ChatError, ChatTemplate, Message};
pub use tokenizer::{Tokenizer, TokenizerError, TokenizerSpec, TokenizerWarning};
