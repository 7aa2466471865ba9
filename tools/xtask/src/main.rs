//! Chores of the repository: `cargo run -p xtask -- arrow` holds the sources to the rules of `CONTRIBUTING.md`
//! that the compiler does not know.
#![forbid(unsafe_code)]

mod arrow;
mod rooms;
mod tree;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args != ["arrow"] {
        eprintln!("usage: cargo run -p xtask -- arrow");
        return ExitCode::from(2);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let files = match tree::read(&root) {
        Ok(files) => files,
        Err(e) => {
            eprintln!("error: cannot read the sources: {e}");
            return ExitCode::FAILURE;
        }
    };
    let faults = [arrow::check(&files), rooms::check(&files)].concat();
    for fault in &faults {
        eprintln!("{fault}");
    }
    let crates = files.iter().filter(|f| f.path.ends_with("Cargo.toml")).count();
    println!("{} files, {crates} manifests, {} faults", files.len(), faults.len());
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
