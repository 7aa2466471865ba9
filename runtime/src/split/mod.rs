//! A model's first layers here, the others elsewhere.

pub mod codec;
