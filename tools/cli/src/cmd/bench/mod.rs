//! `lutite bench`: llama-bench's tests, and how near to the memory's speed they come.
//!
//! As in llama-bench, `ppN` feeds N random tokens in batches into an empty cache, `tgN` N random tokens one
//! by one; what is timed is the steps alone, and a warm-up goes first. With `-d` the cache holds so many random tokens before
//! each test.

mod report;

use crate::args::{BenchArgs, Bits, EngineArgs};
use crate::bandwidth::ReadBandwidth;
use crate::interrupt;
use crate::load::{self, Source};
use crate::synthetic::{Random, Recipe};
use crate::ui::{self, Answer};
use lutite_models::{Model, Path};
use lutite_quant::PackOptions;
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::os::memory;
use lutite_runtime::store::ModelFile;
use report::Row;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Instant;

/// Columns per group of a plain model that is packed with `--bits` but no `--group`: as `lutite quantize`.
const DEFAULT_GROUP: usize = 32;

/// Steps of a `tg` warm-up: caches, page tables and clocks are up by then.
const WARM_STEPS: usize = 4;

/// What is run again and again.
#[derive(Clone, Copy, Debug)]
struct Test {
    /// Whether a prompt is read, or an answer written.
    what: Phase,
    /// Tokens of it.
    tokens: usize,
    /// Tokens that the cache holds before.
    depth: usize,
}

impl Test {
    /// As llama-bench calls it.
    fn name(self) -> String {
        let what = match self.what {
            Phase::Prompt => "pp",
            Phase::Answer => "tg",
        };
        match self.depth {
            0 => format!("{what}{}", self.tokens),
            depth => format!("{what}{} @ d{depth}", self.tokens),
        }
    }
    /// Tokens of a step.
    fn step(self, model: &Model) -> usize {
        match self.what {
            Phase::Prompt => model.batch(),
            Phase::Answer => 1,
        }
    }
}

/// The tests of a command line: those of one depth after those of another.
fn tests(args: &BenchArgs) -> Vec<Test> {
    let tests = |depth: u32| {
        let test = move |what, tokens: u32| Test { what, tokens: tokens as usize, depth: depth as usize };
        (args.n_prompt.iter().map(move |n| test(Phase::Prompt, *n)))
            .chain(args.n_gen.iter().map(move |n| test(Phase::Answer, *n)))
            .filter(|test| test.tokens > 0)
    };
    args.n_depth.iter().flat_map(|depth| tests(*depth)).collect()
}

pub(crate) fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    let tests = tests(args);
    if tests.is_empty() {
        anyhow::bail!("nothing to measure: -p and -n are both 0; give one a length");
    }
    let mut threads: Vec<usize> = args.threads.iter().map(|n| n.get() as usize).collect();
    if threads.is_empty() {
        threads.push(load::threads(None));
    }
    let (name, source) = source(args, threads.iter().copied().max().unwrap_or(1))?;
    let mut rows = Vec::new();
    for n in &threads {
        rows.extend(run(args, &name, &source, *n, &tests)?);
    }
    // Only now, with the model given back, so that the buffer does not count as the model's memory.
    drop(source);
    let memory = ReadBandwidth::new()?;
    for n in threads {
        let bandwidth = memory.measure(n)?;
        rows.iter_mut().filter(|row| row.threads == n).for_each(|row| row.read_bandwidth = bandwidth);
    }
    Answer::stdout().print(&report::print(&rows, args.output)?)
}

/// The model to measure, packed, and what to call it.
fn source(args: &BenchArgs, threads: usize) -> anyhow::Result<(String, Source)> {
    if let Some(which) = args.synthetic {
        let recipe = Recipe::new(which, args.bits, args.group)?;
        let (path, file) = (PathBuf::from(recipe.name()), ModelFile::from(&recipe.build(threads)?));
        return Ok((recipe.name(), Source { path, files: Vec::new(), file, data: None, verified: true }));
    }
    let named = args.model.named();
    // Nothing is measured but speed, even where weights lose something.
    let how = load::Packing::exact(threads, args.no_cache);
    let source = match (args.bits, args.group) {
        (None, None) => load::find_packed(named, &how)?,
        (None, Some(_)) => {
            anyhow::bail!("--group needs --bits: without, a model keeps the groups that it has")
        }
        (Some(bits), group) => {
            let group = group.map_or(DEFAULT_GROUP, |g| g as usize);
            let options = PackOptions { bits: load::bits(bits), group, ..how.options };
            load::pack(load::find(named)?, &load::Packing { options, ..how })?
        }
    };
    let name = if source.path.is_dir() { source.path.file_name() } else { source.path.file_stem() };
    let name = name.unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, source))
}

/// All tests with so many threads; the read bandwidth is not known yet.
fn run(
    args: &BenchArgs,
    name: &str,
    source: &Source,
    threads: usize,
    tests: &[Test],
) -> anyhow::Result<Vec<Row>> {
    let engine = EngineArgs {
        threads: NonZeroU32::new(threads as u32),
        batch_size: args.batch_size,
        cache_type_k: args.cache_type_k,
        cache_type_v: args.cache_type_v,
        exact_prompts: args.exact_prompts,
        bits: Bits::Exact,
        no_measure: true,
        no_cache: args.no_cache,
        mem: None,
        at_once: false,
    };
    let context = tests.iter().map(|t| t.depth + t.tokens).max();
    let mut model = load::model(source, &load::options(&engine, context, Path::Lut)?)?;
    let size: usize = load::gguf(source)?.tensors().iter().map(|t| t.data.len()).sum();
    let mut rows = Vec::new();
    for test in tests {
        ui::note(format_args!("{name}: {}, threads: {threads}", test.name()));
        let samples = samples(&mut model, *test, args.repetitions.get())?;
        rows.push(Row {
            model: name.to_owned(),
            size,
            parameters: model.parameters(),
            kernel: format!("{} {}", model.isa().name(), model.formats()),
            bits_per_weight: model.bytes_per_token() as f64 * 8.0 / model.weights_per_token() as f64,
            threads,
            test: test.name(),
            samples,
            weight_bytes: weight_bytes_per_token(&model, *test),
            kv_bytes: kv_bytes_per_token(&model, *test),
            read_bandwidth: 0.0,
            peak_rss: memory::resident().map(|r| r.peak_bytes),
        });
    }
    Ok(rows)
}

/// Tokens per second of each repetition.
fn samples(model: &mut Model, test: Test, repetitions: u32) -> anyhow::Result<Vec<f64>> {
    let vocab = model.vocab() as u64;
    let mut random = Random::new(0);
    let tokens: Vec<u32> = (0..test.depth + test.tokens).map(|_| (random.next() % vocab) as u32).collect();
    let (before, tokens) = tokens.split_at(test.depth);
    feed(model, 0, before, Phase::Prompt, model.batch())?;
    let step = test.step(model);
    let warm = tokens.len().min(if step == 1 { WARM_STEPS } else { step });
    feed(model, test.depth, &tokens[..warm], test.what, step)?;
    (0..repetitions)
        .map(|_| {
            let start = Instant::now();
            feed(model, test.depth, tokens, test.what, step)?;
            Ok(tokens.len() as f64 / start.elapsed().as_secs_f64())
        })
        .collect()
}

/// Feeds tokens behind the first `position` ones of the cache.
fn feed(model: &mut Model, position: usize, tokens: &[u32], phase: Phase, step: usize) -> anyhow::Result<()> {
    model.rewind(position);
    for part in tokens.chunks(step) {
        model.step(part, phase, Logits::Last)?;
        interrupt::check(interrupt::flag())?;
    }
    Ok(())
}

/// Bytes of weights that have to come from memory per token: each step reads all of them once.
fn weight_bytes_per_token(model: &Model, test: Test) -> f64 {
    let steps = test.tokens.div_ceil(test.step(model));
    (steps * model.bytes_per_token()) as f64 / test.tokens as f64
}

/// Bytes of keys and values per token, on average over a test: each step reads those of all positions up to its
/// last.
fn kv_bytes_per_token(model: &Model, test: Test) -> f64 {
    let kv = model.kv_shape();
    let position = kv.bytes() as f64 / kv.context as f64;
    let (tokens, step) = (test.tokens, test.step(model));
    let ends = (step..tokens).step_by(step).chain([tokens]);
    let positions: usize = ends.map(|end| test.depth + end).sum();
    positions as f64 * position / tokens as f64
}
