//! A model's first layers here, the others elsewhere.

mod bytes;
pub mod client;
pub mod codec;
pub mod frame;
pub mod message;
pub mod server;
mod session;
