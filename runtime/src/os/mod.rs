//! What the operating system gives: threads, shared memory, maps, cores, limits. The only module of this
//! crate that may use `unsafe`.

pub(crate) mod crew;
pub mod map;
pub mod shared;
