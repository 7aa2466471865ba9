//! Compute on slices for low-bit language models: packed weights, multiplication by look-up tables and by integer
//! products, attention, norms and activations. No files, no threads, no allocation in hot paths.
//!
//! Read in this order: [`isa`] (which instruction set runs), `simd` (the small set of vector
//! operations every algorithm is written over), [`pack`] (layouts), [`lut`] and [`dot`] (the kernels), then [`ops`] and [`attention`]. [`mod@reference`] is the slow, obvious twin that tests hold everything to.
//!
//! # Bit contract
//! Every function here gives the same bits on every [`isa::Isa`]. Integer sums do not depend on
//! order; every f32 reduction uses 8 virtual lanes, fused multiply-add and one fixed tree
//! (`simd::Simd::sum`); `exp` is our own; `sin`, `cos`, `pow` come from the software crate `libm`.

#![deny(unsafe_code)]

mod arch;
pub mod attention;
pub mod dot;
mod error;
pub mod ggml;
pub mod isa;
pub mod lut;
mod mem;
pub mod ops;
pub mod pack;
pub mod plain;
pub mod reference;
mod simd;

pub use error::{Error, Result};
