//! x86-64 tiers.
pub(crate) mod avx2;
pub(crate) mod avx512;
