//! The `lutite` binary; see the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    lutite_cli::main(std::env::args_os())
}
