//! Model families, tokenizers and chat templates: path in, decoder out.
//!
//! See `docs/design.md`.

pub mod tokenizer;

pub use tokenizer::{Tokenizer, TokenizerError, TokenizerSpec, TokenizerWarning};
