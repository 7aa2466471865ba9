//! x86-64 tiers.
pub(crate) mod avx2;
