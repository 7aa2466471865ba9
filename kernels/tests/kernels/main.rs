//! Property tests of the kernels, one module per subject.

mod common;
mod gemv;
mod int8;
mod ops;
