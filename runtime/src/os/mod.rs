//! What the operating system gives: threads, shared memory, cores, limits. The only module of this crate
//! that may use `unsafe`.

pub(crate) mod crew;
pub mod shared;
