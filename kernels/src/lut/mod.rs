//! Bit-serial multiplication by table look-up.
//!
//! A row of weights is `w = z + sum s_p b_p` with bits `b`. For a vector `x` of activations
//!
//! ```text
//! y = sum over groups g of  z X_g + sum_p s_p (X_g / 2 + A_p / 2)
//!     X_g = sum of x in g           A_p = sum of +-x in g, + where plane p's bit is set
//! ```
//!
//! because `b = (1 + sign) / 2`. `A_p` comes from tables: [`table`] adds up the 16 sign patterns of
//! each 4 activations once, [`gemv()`] looks the patterns of every row up. Signs instead of bits make the
//! table's int8 rounding error 3.5 times smaller at the same cost (T-MAC's `lut_ctor.cc` does so too);
//! keeping `s_p` and `z` as stored and halving `X_g` and the table's scale instead rounds nothing twice. [`sign_lut()`]
//! multiplies planes that are signs by themselves, each with magnitudes of low rank.

pub mod gemv;
pub mod sign;
pub mod table;

pub use gemv::gemv;
pub use sign::{SignTableShape, SignTables, sign_lut};
pub use table::{TableShape, Tables};
