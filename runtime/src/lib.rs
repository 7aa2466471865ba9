//! See `docs/design.md`.

pub mod sample;
