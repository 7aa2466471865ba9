//! 64-bit Arm tiers.
pub(crate) mod neon;
