//! Property tests of the kernels, one module per subject.

mod bits;
mod common;
mod gemv;
mod int8;
mod ops;
