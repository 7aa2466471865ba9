//! What can be wrong with the shapes handed to a kernel.

use core::fmt;

/// A kernel was handed buffers that do not fit together. Always a caller's mistake or a damaged file,
/// never a matter of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// A buffer has the wrong length.
    Length {
        /// Which buffer, e.g. `"plane 2"`.
        what: String,
        /// Length that the shape asks for, in elements of the buffer.
        expected: usize,
        /// Length found.
        found: usize,
    },
    /// A property is outside of what the packed formats can hold.
    Shape {
        /// Which property, e.g. `"group"`.
        what: &'static str,
        /// The value found.
        found: usize,
        /// What is allowed, in words.
        allowed: &'static str,
    },
    /// `LUTITE_ISA` (or an argument) names a tier that this machine cannot run, or none at all.
    Isa {
        /// The name asked for.
        asked: String,
        /// The names that would work here, separated by commas.
        available: String,
    },
}

/// Shorthand for this crate's results.
pub type Result<T> = core::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Length { what, expected, found } => {
                write!(f, "{what} has length {found}, its shape needs {expected}")
            }
            Error::Shape { what, found, allowed } => {
                write!(f, "{what} is {found}, but must be {allowed}")
            }
            Error::Isa { asked, available } => write!(
                f,
                "instruction set tier {asked:?} cannot run here; available: {available} (LUTITE_ISA lowers the tier, it never raises it)"
            ),
        }
    }
}

impl std::error::Error for Error {}
