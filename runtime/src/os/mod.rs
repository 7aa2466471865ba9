//! What the operating system gives: threads, shared memory, maps, cores, limits. The only module of this
//! crate that may use `unsafe`.

pub mod affinity;
mod cgroup;
pub(crate) mod crew;
pub mod disk;
pub mod file;
pub mod map;
pub mod memory;
pub mod pressure;
pub mod priority;
pub mod shared;
pub mod topology;
mod usage;
