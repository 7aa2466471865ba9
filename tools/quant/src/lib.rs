//! Weight compression to bit planes: exact import of uniform formats (stage A), alternating least squares (stage B), and
//! fitting to the inputs that matrices get (stage C); and the way back to an ordinary file. See `docs/design.md` and
//! `docs/format.md`.
#![forbid(unsafe_code)]

pub mod allocate;
pub mod als;
pub mod bitstack;
pub mod calibrate;
pub mod cd;
mod error;
mod exact;
mod export;
pub mod gram;
pub mod imatrix;
mod loss;
mod mix;
mod pack;
mod plan;
pub mod rank;
pub mod stack;
mod tile;
mod trim;

pub use calibrate::{CalibrateJob, Fits, HlqCd};
pub use error::{Error, Result};
pub use export::{Export, FloatType};
pub use imatrix::Imatrix;
pub use loss::Loss;
pub use mix::{Opened, first_levels, mix};
pub use pack::{PackJob, file_bytes, pack_in_memory, pack_to_file};
pub use plan::{Bits, LevelOptions, Matrix, PackOptions, Plan};
pub use trim::{Trimmed, trim};
