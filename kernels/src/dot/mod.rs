//! Multiplication of whole codes by activations as integers: dot products.
//!
//! The uniform kinds' weights are `d * code + m`, and a product over a step of up to 32 columns is
//!
//! ```text
//! y = y + d (delta sum code a + code_i x_i + c lost) + m X        x_i is the largest, a = round(x / delta) of the others,
//!                                                                 X = sum of x, lost = X - delta sum a - x_i, in f32
//! ```
//!
//! with `c` the code in the middle (or the one that stands for 0), so that rounding `x` touches only what a weight
//! differs from the middle by: on four bits that is an eighth of the error's energy that `code * a` would have.
//! [`activations`] rounds, [`product()`] multiplies, one token or many: equal bits either way. [`expand()`] makes such codes
//! of the HLQ kinds' planes, [`rebuild()`] of levels of signs.

pub mod activations;
pub mod expand;
pub mod product;
pub mod rebuild;

pub use activations::{Block, TOGETHER, Tokens, quantize};
pub use expand::{expand, expanded_bytes};
pub use product::{MAX_TOKENS, product};
pub use rebuild::{rebuild, rebuilt_bytes};
