//! What `perplexity`, `kl` and `eval` share: the text, the session, the form of the answer.

use crate::args::{EngineArgs, KernelPath, Protocol, TextArgs};
use crate::judge::protocol::Cut;
use crate::load::{self, Source};
use crate::ui::{self, Answer};
use anyhow::Context;
use lutite_models::config::Config;
use lutite_models::{Model, OpenOptions, Path, Tokenizer};
use lutite_runtime::decode::{Decoder, Logits};
use lutite_runtime::kv::{KvType, KvTypes};
use serde_json::{Value, json};
use std::fmt::Display;
use std::time::Instant;

/// Reads the text and cuts it for a model with this tokenizer.
pub(super) fn cut(args: &TextArgs, tokenizer: &Tokenizer) -> anyhow::Result<Cut> {
    let file = args.file.as_deref().context("no text; give one with -f FILE")?;
    let mut text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read the text {}", file.display()))?;
    if args.protocol == Protocol::Llama && text.ends_with('\n') {
        // As llama.cpp does for -f: it is a prompt there.
        text.pop();
    }
    // Special tokens that are written out in a text are text.
    let tokens = tokenizer.encode(&text, true, false);
    let limit = if args.positions.0 == Some(0) { 0 } else { args.chunks.or(usize::MAX) };
    let cut = Cut::new(tokens, args.protocol, args.context() as usize, bos(tokenizer), limit);
    cut.with_context(|| format!("cannot score {}", file.display()))
}

/// The token that the model wants at the beginning of a text, if it wants one.
pub(super) fn bos(tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.bos().filter(|_| tokenizer.adds_bos())
}

/// Finds the named model in the form that the path multiplies.
pub(super) fn find(named: &str, path: Path, engine: &EngineArgs) -> anyhow::Result<Source> {
    match path {
        Path::Lut => load::find_packed(named, &load::Packing::of(engine)),
        Path::Plain => load::find(named),
    }
}

/// The model's hyperparameters.
pub(super) fn config(source: &Source) -> anyhow::Result<Config> {
    Config::read(&load::gguf(source)?).with_context(|| format!("cannot load {}", source.path.display()))
}

/// Makes a decoder for chunks of `context` tokens.
pub(super) fn open(
    source: &Source,
    path: Path,
    kv: Option<KvType>,
    engine: &EngineArgs,
    context: usize,
) -> anyhow::Result<Model> {
    let config = config(source)?;
    if context > config.context {
        ui::warn(format_args!(
            "{} was trained for {} positions, not {context}",
            source.path.display(),
            config.context
        ));
    }
    let options = load::options(engine, Some(context), path)?;
    let options = OpenOptions { kv: kv.map_or(options.kv, KvTypes::from), ..options };
    load::model(source, &options)
}

/// The kernels that a flag stands for.
pub(super) fn path(path: KernelPath) -> Path {
    match path {
        KernelPath::Lut => Path::Lut,
        KernelPath::Plain => Path::Plain,
    }
}

/// Which logits a step needs: all where they are scored.
pub(super) fn wanted(scored: bool) -> Logits {
    if scored { Logits::All } else { Logits::Last }
}

/// What the judged model is, for JSON.
pub(super) fn describe(source: &Source, model: &Model, path: Path) -> Value {
    let layout = model.kv_shape().layout;
    json!({
        "file": source.path.display().to_string(),
        "path": match path { Path::Lut => "lut", Path::Plain => "plain" },
        "formats": model.formats(),
        "kernel": model.isa().name(),
        "type_k": layout.keys().name(),
        "type_v": layout.values().name(),
        "threads": model.workers(),
        "batch": model.batch(),
    })
}

/// The protocol's name as it is typed.
pub(super) fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Llama => "llama",
        Protocol::Papers => "papers",
    }
}

/// The error for logits that no score can be made of.
pub(super) fn not_finite(source: &Source, place: impl Display) -> anyhow::Error {
    let file = source.path.display();
    anyhow::anyhow!(
        "{file} computed a number that is not finite in {place}; the file is damaged, or its weights are \
         too large for -ctk f16 (try -ctk f32 -ctv f32)"
    )
}

/// Says how long it took.
pub(super) fn took(start: Instant, chunks: usize, context: usize) -> f64 {
    let seconds = start.elapsed().as_secs_f64();
    let rate = (chunks * context) as f64 / seconds.max(1e-9);
    ui::note(format_args!("{chunks} chunks of {context} tokens in {seconds:.1} s, {rate:.1} tokens/s"));
    seconds
}

/// Prints JSON, on lines of its own.
pub(super) fn print_json(value: &Value) -> anyhow::Result<()> {
    Answer::stdout().print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}
