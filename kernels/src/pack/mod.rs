//! Packed weights: bit planes in layout P32 ([`p32`]) or codes in layout C32 ([`c32`]), and their parameters
//! ([`params`]).
//!
//! A packed matrix of `rows x cols` weights with `q` planes and groups of `G` columns stands for
//!
//! ```text
//! w[r][c] = z[r][g] + sum over p < q of s_p[r][g] * bit(p, r, c)        g = c / G
//! ```
//!
//! (HLQ, arXiv 2510.19482), or in the uniform kinds for `d[r][g] * code(r, c) + m[r][g]`. Quantizer and runtime share this module, so that what is written and
//! what is read cannot drift apart.

pub mod c32;
pub mod p32;
pub mod params;
mod sign;
mod view;

pub use p32::PlaneShape;
pub use params::ParamKind;
pub(crate) use sign::RANKS_LIST;
pub use sign::{MAX_LEVELS, RANKS, SignLevel, SignLevels};
pub use view::Packed;

/// Planes that a packed matrix may have at most.
pub const MAX_PLANES: usize = 8;

/// Group sizes, in columns, that kernels know.
pub const GROUPS: [usize; 5] = [16, 32, 64, 128, 256];

/// [`GROUPS`], for messages.
pub const GROUPS_LIST: &str = "16, 32, 64, 128 or 256";
