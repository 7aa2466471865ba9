//! One thin file per instruction set: the operations of [`crate::simd::Simd`] and nothing else.
//! With `mem`, the only room of this crate that holds `unsafe`.
#![allow(unsafe_code)]

mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub(crate) use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::avx2::Avx2;
