//! One thin file per instruction set: the operations of [`crate::simd::Simd`] and nothing else.
//! With `mem`, the only room of this crate that holds `unsafe`.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::neon::{Base, Dot, I8mm, Neon};
pub(crate) use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::avx2::Avx2;
