//! What the operating system gives. The only module of this crate that may use `unsafe`.

pub mod map;
