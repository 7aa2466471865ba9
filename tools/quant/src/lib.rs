//! Weight compression to bit planes: exact import of uniform formats (stage A) and alternating least
//! squares (stage B). See `docs/design.md` and `docs/format.md`.
#![forbid(unsafe_code)]

mod error;
mod exact;
mod pack;
mod plan;

pub use error::{Error, Result};
pub use pack::{PackJob, pack_in_memory, pack_to_file};
pub use plan::{Bits, PackOptions, Plan};
