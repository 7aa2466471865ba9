//! The `lutite` binary.
fn main() {}
