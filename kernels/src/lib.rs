//! See `docs/design.md`.

pub mod ggml;
