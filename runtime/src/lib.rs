//! See `docs/design.md`.

pub mod sample;
pub mod stream;
