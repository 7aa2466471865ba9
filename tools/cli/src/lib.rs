//! The command line: what a person types, and what comes back.
//!
//! Standard output carries the answer and nothing else; progress, statistics and warnings go to standard error. Exit
//! codes: 0 fine, 1 failed, 2 usage, 130 interrupted. A reader that goes away (a broken pipe) ends the program quietly
//! with 0.

pub mod args;
mod bandwidth;
mod cache;
mod calib;
pub mod catalog;
mod cmd;
mod folder;
pub mod hub;
pub mod interrupt;
mod inventory;
pub mod judge;
mod load;
mod lock;
mod mem;
#[cfg(test)]
#[path = "../../../runtime/tests/common/peak.rs"]
mod peak;
pub mod places;
pub mod pull;
mod synthetic;
mod talk;
mod tuning;
pub mod ui;

use args::Verb;
use std::ffi::OsString;
use std::process::ExitCode;
use ui::Quit;

/// Exit code for a failure.
const FAILED: u8 = 1;
/// Exit code for a command line that means nothing.
const USAGE: u8 = 2;
/// Exit code after Ctrl-C, as the shell has it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Parses `argv` (the program's name first), does it, and says how it went.
pub fn main(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let verb = match args::parse(argv) {
        Ok(verb) => verb,
        Err(error) => {
            // Help and version print to stdout; if nobody reads them any more there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    match interrupt::install().and_then(|()| dispatch(&verb)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<Quit>() {
            Some(Quit::PipeClosed) => ExitCode::SUCCESS,
            Some(Quit::Interrupted) => INTERRUPTED.into(),
            None => {
                ui::error(&error);
                FAILED.into()
            }
        },
    }
}

fn dispatch(verb: &Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Run(args) => cmd::run::run(args),
        Verb::Chat(args) => cmd::chat::chat(args),
        Verb::Quantize(args) => cmd::quantize::quantize(args),
        Verb::Export(args) => cmd::export::export(args),
        Verb::Pull(args) => cmd::pull::pull(args),
        Verb::List(args) => cmd::list::list(args),
        Verb::Rm(args) => cmd::rm::rm(args),
        Verb::Verify(args) => cmd::verify::verify(args),
        Verb::Inspect(args) => cmd::inspect::inspect(args),
        Verb::Plan(args) => cmd::plan::plan(args),
        Verb::Trim(args) => cmd::trim::trim(args),
        Verb::Bench(args) => cmd::bench::bench(args),
        Verb::Doctor(args) => cmd::doctor::doctor(args),
        Verb::Perplexity(args) => cmd::perplexity::perplexity(args),
        Verb::Kl(args) => cmd::kl::kl(args),
        Verb::Eval(args) => cmd::eval::eval(args),
    }
}
