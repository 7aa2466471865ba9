//! Weight compression to bit planes: exact import of uniform formats (stage A) and alternating least
//! squares (stage B). See `docs/design.md` and `docs/format.md`.
#![forbid(unsafe_code)]

pub mod als;
pub mod cd;
mod error;
mod exact;
pub mod gram;
pub mod imatrix;
mod loss;
mod pack;
mod plan;

pub use error::{Error, Result};
pub use imatrix::Imatrix;
pub use loss::Loss;
pub use pack::{PackJob, pack_in_memory, pack_to_file};
pub use plan::{Bits, PackOptions, Plan};
