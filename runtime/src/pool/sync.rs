//! What threads meet in: the standard library's, or `loom`'s twins, which try every order of events that the memory
//! model allows (`--cfg loom`; the model itself is `os/crew/model.rs`).

#[cfg(loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic},
    thread::{Builder, JoinHandle},
};
#[cfg(not(loom))]
pub(crate) use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic},
    thread::{Builder, JoinHandle},
};

/// The standard library's cell, with loom's way to reach its inside.
#[cfg(not(loom))]
#[derive(Debug, Default)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    /// For `inside` to read through.
    pub(crate) fn with<R>(&self, inside: impl FnOnce(*const T) -> R) -> R {
        inside(self.0.get())
    }

    /// For `inside` to write through.
    pub(crate) fn with_mut<R>(&self, inside: impl FnOnce(*mut T) -> R) -> R {
        inside(self.0.get())
    }
}
