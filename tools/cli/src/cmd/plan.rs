//! `lutite plan`: what of a model would be in memory, what it is worth and how fast it runs, for one budget or for several.

use crate::args::{Mem, PlanArgs};
use crate::ui::{Answer, Progress, megabytes};
use crate::{interrupt, load, mem};
use anyhow::Context;
use lutite_models::{Budget, Model, Path};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::os::file::DataFile;
use lutite_runtime::os::memory;
use lutite_runtime::store::Stack;
use serde_json::{Value, json};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Budgets that are shown where none is named.
const ROWS: usize = 8;

/// Tokens that are written to see how fast it is, after one that is not timed.
const TOKENS: u32 = 8;

/// Longer than any disk takes.
const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    let source = load::find_packed(
        args.model.named(),
        &load::Packing { by_piece: true, ..load::Packing::of(&args.engine) },
    )?;
    let config = lutite_models::config::Config::read(&load::gguf(&source)?)?;
    let context = match args.ctx_size {
        None => config.context.min(lutite_models::open::DEFAULT_CONTEXT),
        Some(0) => config.context,
        Some(n) => n as usize,
    };
    let mut options = load::options(&args.engine, Some(context), Path::Lut)?;
    let data = source.data.as_ref().context("a model of several files cannot be held to a budget")?;
    // As a program that answers has it by now.
    let tokenizer = load::tokenizer(&source)?;
    let taken = mem::taken();
    let budget = match args.engine.mem {
        Some(Mem::Auto) | None => u64::MAX >> 1,
        Some(mem) => mem::bytes(mem, taken)?.saturating_sub(taken),
    };
    let (bound, file) = ("--mem".into(), Arc::new(DataFile::open(data)?));
    options.budget = Some(Budget { bytes: budget, bound, file, at_once: true });
    let mut model = load::model(&source, &options)?;
    drop(tokenizer);
    let fixed = taken + model.rest_bytes();
    let stack = model.residency();
    let rows = match &stack {
        None => vec![row(&mut model, fixed, None, !args.no_speed)?],
        Some(handle) => {
            let blocks = match args.engine.mem {
                None => spread(handle.stack()),
                Some(Mem::Auto) => vec![auto(handle.stack(), fixed)?],
                Some(_) => vec![handle.resident().target],
            };
            let mut bar = Progress::share("trying", blocks.len() as u64);
            let mut rows = Vec::new();
            for (i, n) in blocks.into_iter().enumerate() {
                interrupt::check(interrupt::flag())?;
                handle.set_blocks(n);
                anyhow::ensure!(handle.wait(PATIENCE), "{}", handle.resident().failure.unwrap_or_default());
                rows.push(row(&mut model, fixed, Some(handle.stack()), !args.no_speed)?);
                bar.set(i as u64 + 1);
            }
            rows
        }
    };
    let text = match args.json {
        true => serde_json::to_string_pretty(&rows)? + "\n",
        false => table(&rows),
    };
    Answer::stdout().print(&text)
}

/// Numbers of blocks at even distances in memory, from none to all.
fn spread(stack: &Stack) -> Vec<usize> {
    let all = stack.blocks().len();
    let (least, most) = (stack.resident_bytes(0) as f64, stack.resident_bytes(all) as f64);
    let wanted = (0..ROWS).map(|k| least + (most - least) * k as f64 / (ROWS - 1) as f64);
    let mut blocks: Vec<usize> = wanted
        .map(|bytes| (0..=all).rev().find(|n| stack.resident_bytes(*n) as f64 <= bytes + 0.5).unwrap_or(0))
        .collect();
    blocks.dedup();
    blocks
}

/// What fits into what is free.
fn auto(stack: &Stack, fixed: u64) -> anyhow::Result<usize> {
    let all = mem::bytes(Mem::Auto, mem::taken())?;
    Ok(lutite_runtime::residency::within(stack, all.saturating_sub(fixed))?)
}

/// The model as it is now.
fn row(model: &mut Model, fixed: u64, stack: Option<&Stack>, speed: bool) -> anyhow::Result<Value> {
    let resident = model.residency().map(|handle| handle.resident());
    let per_token = model.bytes_per_token() as u64;
    let weights = resident.as_ref().map_or(per_token - model.streamed_bytes(), |r| r.bytes);
    // The last block needs room beside what it replaces.
    let room = stack.zip(resident.as_ref()).map_or(0, |(stack, r)| {
        let blocks = stack.blocks()[..r.blocks].iter().enumerate();
        let most = blocks.map(|(i, b)| stack.resident_bytes(i) + b.bytes).max().unwrap_or(0);
        most.saturating_sub(weights)
    });
    let needed = fixed + weights + room;
    let enough = memory::available().is_none_or(|m| m.bytes + mem::taken() >= needed);
    let rate = if speed && enough { Some(rate(model)?) } else { None };
    Ok(json!({
        "memory": needed,
        "blocks": resident.as_ref().map(|r| r.blocks),
        "of_blocks": resident.as_ref().map(|r| r.all),
        "weights": weights,
        "bits_per_weight": 8.0 * per_token as f64 / model.weights_per_token() as f64,
        "kl": resident.and_then(|r| r.kl),
        "bytes_per_token": per_token,
        "bytes_read_per_token": model.streamed_bytes(),
        "tokens_per_second": rate,
    }))
}

/// Tokens per second, of a short text.
fn rate(model: &mut Model) -> anyhow::Result<f64> {
    model.rewind(0);
    model.step(&[0], Phase::Answer, Logits::Last)?;
    let start = Instant::now();
    for token in 1..=TOKENS {
        model.step(&[token % model.vocab() as u32], Phase::Answer, Logits::Last)?;
    }
    Ok(f64::from(TOKENS) / start.elapsed().as_secs_f64())
}

fn table(rows: &[Value]) -> String {
    let mut out = String::new();
    let titles = ["--mem", "blocks", "weights", "bits/w", "KL", "bytes a token", "tokens/s"];
    let [mem, blocks, weights, bits, kl, bytes, rate] = titles;
    // Writing to a string does not fail.
    let _ = writeln!(out, "{mem:>10}{blocks:>15}{weights:>12}{bits:>9}{kl:>10}{bytes:>15}{rate:>11}");
    for row in rows {
        let n = |key: &str| row[key].as_u64();
        let number = |key: &str, digits| row[key].as_f64().map_or("-".into(), |x| format!("{x:.digits$}"));
        let of =
            n("blocks").zip(n("of_blocks")).map_or("all".into(), |(some, all)| format!("{some} of {all}"));
        let streamed = n("bytes_read_per_token").unwrap_or(0);
        let of = if streamed > 0 { format!("reads {}", megabytes(streamed)) } else { of };
        let mem = format!("{}M", n("memory").unwrap_or(0).div_ceil(1_000_000));
        let _ = writeln!(
            out,
            "{mem:>10}{of:>15}{:>12}{:>9}{:>10}{:>15}{:>11}",
            megabytes(n("weights").unwrap_or(0)),
            number("bits_per_weight", 3),
            number("kl", 4),
            megabytes(n("bytes_per_token").unwrap_or(0)),
            number("tokens_per_second", 1),
        );
    }
    out
}
