//! Text to calibrate with: a person's own, or what the model itself writes.
//!
//! A model's own samples are text as it expects it, in its languages and on its subjects: no corpus has to be shipped or
//! chosen, and no licence asked for (LLM-QAT, arXiv 2305.17888).

use crate::load::{self, Packing, Source};
use crate::ui::Progress;
use crate::{interrupt, ui};
use anyhow::Context;
use lutite_kernels::isa::Isa;
use lutite_models::OpenOptions;
use lutite_models::config::Config;
use lutite_quant::calibrate::{LENGTH, spread};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::sample::{Sampler, SamplerConfig};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// About `tokens` tokens in sequences.
pub(crate) fn sequences(
    source: &Source,
    text: Option<&Path>,
    tokens: usize,
    threads: usize,
) -> anyhow::Result<Vec<Vec<u32>>> {
    let length = LENGTH.min(Config::read(&load::gguf(source)?)?.context);
    match text {
        Some(file) => of_text(source, file, tokens, length),
        None => {
            let label = "writing text to calibrate with";
            written(&exact(source, threads)?, label, tokens.div_ceil(length), length, threads)
        }
    }
}

/// Parts of a text that are spread evenly over it.
fn of_text(source: &Source, file: &Path, tokens: usize, length: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read the text {}", file.display()))?;
    let tokenizer = load::tokenizer(source)?;
    let all = tokenizer.encode(&text, false, false);
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let sequences = spread(&all, bos, length, tokens);
    let (found, file) = (all.len(), file.display());
    anyhow::ensure!(
        !sequences.is_empty(),
        "{file} has {found} tokens only, less than a sequence of {length}; calibrate with more text"
    );
    if found < tokens {
        ui::warn(format_args!("{file} has {found} tokens only; {tokens} were asked for (--calib-tokens)"));
    }
    Ok(sequences)
}

/// The source with its weights as they are, from the cache.
pub(crate) fn exact(source: &Source, threads: usize) -> anyhow::Result<Source> {
    load::pack(source.clone(), &Packing::exact(threads, false))
}

/// `count` sequences that the model writes, from the token on that its texts begin with, or else from tokens spread over the
/// vocabulary. It writes on behind the ends of its texts. A sequence depends on its number only, so that threads may share
/// the work.
pub(crate) fn written(
    packed: &Source,
    label: &str,
    count: usize,
    length: usize,
    threads: usize,
) -> anyhow::Result<Vec<Vec<u32>>> {
    let tokenizer = load::tokenizer(packed)?;
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let bar = Mutex::new(Progress::share(label, (count * length) as u64));
    let (next, written) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || -> anyhow::Result<Vec<(usize, Vec<u32>)>> {
        let options =
            OpenOptions { workers: 1, context: Some(length), batch: 1, ..OpenOptions::new(Isa::from_env()?) };
        let mut model = load::model(packed, &options)?;
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return Ok(done);
            }
            let mut sampler = Sampler::new(SamplerConfig::untouched(i as u64))?;
            model.rewind(0);
            let mut sequence: Vec<u32> = bos.into_iter().collect();
            if sequence.is_empty() {
                sequence.push((i * 7919 % model.vocab()) as u32);
            }
            for position in 0..length - 1 {
                interrupt::check(interrupt::flag())?;
                let Some(token) = sequence.get(position).copied() else { break };
                let logits = model.step(&[token], Phase::Answer, Logits::Last)?;
                sequence.push(sampler.sample(logits, position as u64 + 1)?);
            }
            let written = written.fetch_add(length, Ordering::Relaxed) + length;
            if let Ok(mut bar) = bar.lock() {
                bar.set(written as u64);
            }
            done.push((i, sequence));
        }
    };
    let mut all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let ended = threads.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        ended.collect::<anyhow::Result<Vec<_>>>()
    })?
    .concat();
    all.sort_unstable_by_key(|(i, _)| *i);
    Ok(all.into_iter().map(|(_, sequence)| sequence).collect())
}
