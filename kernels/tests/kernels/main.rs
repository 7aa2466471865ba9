//! Property tests of the kernels, one module per subject.

mod bits;
mod common;
mod dot;
mod gemv;
mod ops;
