//! Property tests of the kernels, one module per subject.

mod attention;
mod bits;
mod common;
mod dot;
mod gemv;
mod ops;
mod sign;
