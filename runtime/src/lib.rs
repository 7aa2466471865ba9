//! See `docs/design.md`.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod os;
pub mod pool;
