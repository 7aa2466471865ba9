//! What can be typed.
//!
//! Flags have llama.cpp's spellings where it has them. Each `--some-flag` is also the variable `LUTITE_SOME_FLAG`, and a
//! default for it can stand in the configuration file as `some-flag`; a flag beats the variable, the variable beats
//! the file, the file beats what is built in.

mod defaults;
mod numbers;
mod shared;
mod spelling;
#[cfg(test)]
mod tests;
mod verbs;

pub use numbers::{BitsPerWeight, Levels, Mem, SignLevels, Size};
pub use shared::{Bits, CacheType, EngineArgs, Limit, ModelArgs, SamplingArgs, Seed};
pub use verbs::{
    BenchArgs, BenchFormat, ChatArgs, DoctorArgs, EvalArgs, ExportArgs, FloatType, InspectArgs, KernelPath,
    KlArgs, ListArgs, ListFormat, Method, Params, PerplexityArgs, PlanArgs, Protocol, PullArgs, QuantizeArgs,
    RmArgs, RunArgs, Synthetic, TalkArgs, TextArgs, TrimArgs, VerifyArgs,
};

use crate::places;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use defaults::Defaults;
use std::ffi::OsString;

/// Runs large language models on small CPUs by table look-up over bit planes.
#[derive(Debug, Parser)]
#[command(name = "lutite", version, propagate_version = true, disable_help_subcommand = true)]
#[command(
    after_help = "Every --flag is also the variable LUTITE_FLAG (--top-k: LUTITE_TOP_K), and a key of the \
                        configuration file (top-k = 40) in ~/.config/lutite/config.toml or $LUTITE_CONFIG."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// What to do, with its flags.
#[derive(Clone, Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of it in a process")]
pub enum Verb {
    /// Answer one prompt (-p, -f, or standard input)
    Run(RunArgs),
    /// Talk
    Chat(ChatArgs),
    /// Fetch a model of the catalog or of a hub and print its path
    Pull(PullArgs),
    /// Say which models are on this machine
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Remove models from this machine
    Rm(RmArgs),
    /// Hold models against their checksums
    Verify(VerifyArgs),
    /// Write a packed model
    Quantize(QuantizeArgs),
    /// Write a model as an ordinary GGUF file, for other programs
    Export(ExportArgs),
    /// Say what is in a model file
    Inspect(InspectArgs),
    /// Say what of a model would be in memory, how good and how fast that is
    Plan(PlanArgs),
    /// Write the first part of a stacked file: a smaller model
    Trim(TrimArgs),
    /// Measure how well a model predicts a text
    Perplexity(PerplexityArgs),
    /// Measure how far a model's predictions are from a reference's
    Kl(KlArgs),
    /// Measure how many multiple-choice questions a model answers rightly
    Eval(EvalArgs),
    /// Measure speed, in llama-bench's tests and table
    Bench(BenchArgs),
    /// Say what this machine has and what would be slow, and why; measure and keep what is fastest on it
    Doctor(DoctorArgs),
}

impl Verb {
    /// As typed.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::Chat(_) => "chat",
            Self::Pull(_) => "pull",
            Self::List(_) => "list",
            Self::Rm(_) => "rm",
            Self::Verify(_) => "verify",
            Self::Quantize(_) => "quantize",
            Self::Export(_) => "export",
            Self::Inspect(_) => "inspect",
            Self::Plan(_) => "plan",
            Self::Trim(_) => "trim",
            Self::Perplexity(_) => "perplexity",
            Self::Kl(_) => "kl",
            Self::Eval(_) => "eval",
            Self::Bench(_) => "bench",
            Self::Doctor(_) => "doctor",
        }
    }

    fn model_mut(&mut self) -> Option<&mut ModelArgs> {
        match self {
            Self::Run(args) => Some(&mut args.model),
            Self::Chat(args) => Some(&mut args.model),
            Self::Inspect(args) => Some(&mut args.model),
            Self::Plan(args) => Some(&mut args.model),
            Self::Perplexity(args) => Some(&mut args.model),
            Self::Kl(args) => Some(&mut args.model),
            Self::Eval(args) => Some(&mut args.model),
            Self::Bench(args) => Some(&mut args.model),
            Self::Pull(_)
            | Self::List(_)
            | Self::Rm(_)
            | Self::Verify(_)
            | Self::Quantize(_)
            | Self::Export(_)
            | Self::Trim(_)
            | Self::Doctor(_) => None,
        }
    }

    fn sampling(&self) -> Option<&SamplingArgs> {
        match self {
            Self::Run(args) => Some(&args.sampling),
            Self::Chat(args) => Some(&args.sampling),
            _ => None,
        }
    }
}

/// Flags that say the same thing in two ways: giving both is a mistake.
///
/// Not clap's `conflicts_with`, for which a variable counts as given: `LUTITE_MODEL` would forbid naming a model.
const EITHER: &[(&str, &str)] = &[
    ("name", "model"),
    ("name", "hf-repo"),
    ("model", "hf-repo"),
    ("prompt", "file"),
    ("base", "reference"),
    ("synthetic", "name"),
    ("synthetic", "model"),
    ("synthetic", "hf-repo"),
];

/// The definitions, with no variable and no configuration file looked at: for completions and manuals.
#[must_use]
pub fn command() -> Command {
    Cli::command()
}

/// Parses `argv` with this process's variables and configuration file.
///
/// # Errors
/// A usage error, or a request for help or the version, which clap's error type also carries.
pub fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Verb, clap::Error> {
    let defaults = Defaults::load(places::config_file())
        .map_err(|message| Cli::command().error(ErrorKind::Io, message))?;
    parse_with(argv, &defaults)
}

fn parse_with(argv: impl IntoIterator<Item = OsString>, defaults: &Defaults) -> Result<Verb, clap::Error> {
    let mut command = defaults
        .apply(Cli::command())
        .map_err(|message| Cli::command().error(ErrorKind::UnknownArgument, message))?;
    let argv = spelling::long_forms(argv);
    let matches = command.try_get_matches_from_mut(argv).map_err(|error| defaults.explain(error))?;
    let Some((verb_name, given)) = matches.subcommand() else {
        return Err(command.error(ErrorKind::MissingSubcommand, "no verb"));
    };
    let mut usage = |kind, message: String| {
        let found = command.find_subcommand_mut(verb_name);
        found.map_or_else(|| clap::Error::raw(kind, &message), |verb| verb.error(kind, &message))
    };
    for &(one, other) in EITHER {
        if typed(given, one) && typed(given, other) {
            let message = format!("{} cannot be used with {}", shown(one), shown(other));
            return Err(usage(ErrorKind::ArgumentConflict, message));
        }
    }
    let mut verb = Cli::from_arg_matches(&matches)?.verb;
    // Of two ways to say a thing the one on the command line counts.
    match &mut verb {
        Verb::Run(args) if typed(given, "prompt") => args.file = None,
        Verb::Run(args) if typed(given, "file") => args.prompt = None,
        Verb::Kl(args) if typed(given, "reference") => args.base = None,
        Verb::Bench(args) if ["name", "model", "hf-repo"].into_iter().any(|id| typed(given, id)) => {
            args.synthetic = None;
        }
        _ => {}
    }
    if let Some(model) = verb.model_mut() {
        match () {
            () if typed(given, "hf-repo") => model.model = None,
            () if typed(given, "name") || typed(given, "model") => model.hf_repo = None,
            () => {}
        }
    }
    let checked = match &verb {
        Verb::Perplexity(args) => args.check(),
        Verb::Kl(args) => args.check(),
        _ => Ok(()),
    };
    if let Err(message) = checked {
        return Err(usage(ErrorKind::ArgumentConflict, message.to_owned()));
    }
    if let Some(Err(error)) = verb.sampling().map(SamplingArgs::check) {
        return Err(usage(ErrorKind::ValueValidation, error.to_string()));
    }
    Ok(verb)
}

fn typed(given: &ArgMatches, id: &str) -> bool {
    // `try_contains_id` is an error for a flag that this verb lacks; `value_source` would panic.
    given.try_contains_id(id).is_ok() && given.value_source(id) == Some(ValueSource::CommandLine)
}

fn shown(id: &str) -> String {
    if id == "name" { "a model named without a flag".to_owned() } else { format!("--{id}") }
}
