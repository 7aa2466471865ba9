//! A model's first layers here, the others elsewhere.

mod bytes;
pub mod client;
pub mod codec;
pub mod frame;
pub mod message;
pub mod server;
mod session;

/// A time, since this side began: who simulates a clock has none to read.
pub type Time = std::time::Duration;
