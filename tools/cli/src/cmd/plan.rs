//! `lutite plan`: what of a model would be in memory, what it is worth and how fast it runs, for one budget or for several.

use crate::args::{Mem, PlanArgs};
use crate::mem::PATIENCE;
use crate::ui::{Answer, Progress, megabytes};
use crate::{interrupt, load, mem};
use lutite_models::config::Config;
use lutite_models::{Model, Path};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::residency::needed;
use lutite_runtime::store::{Directory, Stack};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Instant;

/// Budgets that are shown where none is named.
const ROWS: usize = 8;

/// Tokens that are written to see how fast it is, after one that is not timed.
const TOKENS: u32 = 8;

pub(crate) fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    let source = load::find_packed(
        args.model.named(),
        &load::Packing { by_piece: true, ..load::Packing::of(&args.engine) },
    )?;
    let gguf = load::gguf(&source)?;
    let context = load::context(args.ctx_size, &Config::read(&gguf)?);
    let mut options = load::options(&args.engine, Some(context), Path::Lut)?;
    // As a program that answers has it by now.
    let tokenizer = load::tokenizer(&source)?;
    let taken = mem::taken();
    // Never more than there is; where the system does not tell, all.
    let asked = args.engine.mem.unwrap_or(Mem::Auto);
    options.budget = Some(match mem::budget(asked, &source, true) {
        Err(_) if args.engine.mem.is_none() => mem::budget(Mem::Bytes(u64::MAX >> 1), &source, true)?,
        budget => budget?,
    });
    let mut model = load::model(&source, &options)?;
    drop(tokenizer);
    let fixed = taken + model.rest_bytes();
    let mut rows = Vec::new();
    match model.residency() {
        None => rows.push(whole(&mut model, fixed, !args.no_speed)?),
        Some(handle) => {
            let directory = Directory::base(&gguf)?;
            let (stack, fits) = (handle.stack(), handle.resident().target);
            let blocks = if args.engine.mem.is_none() { spread(stack) } else { vec![fits] };
            let mut bar = Progress::share("trying", blocks.len() as u64);
            for n in blocks {
                interrupt::check(interrupt::flag())?;
                let rate = if args.no_speed || n > fits {
                    None
                } else {
                    handle.set_blocks(n);
                    let failure = || handle.resident().failure.unwrap_or_default();
                    anyhow::ensure!(handle.wait(PATIENCE), "{}", failure());
                    Some(rate(&mut model)?)
                };
                rows.push(prefix(&directory.clone().at(n), n, fixed, rate));
                bar.set(rows.len() as u64);
            }
        }
    }
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

/// A stacked file with its first `n` blocks, in which `directory` has its matrices.
fn prefix(directory: &Directory, n: usize, fixed: u64, rate: Option<f64>) -> Value {
    let (stack, (bytes, weights)) = (directory.stack(), directory.size());
    json!({
        "memory": fixed.saturating_add(needed(stack, n)),
        "blocks": n,
        "of_blocks": stack.blocks().len(),
        "weights": stack.resident_bytes(n),
        "bits_per_weight": 8.0 * bytes as f64 / weights.max(1) as f64,
        "kl": stack.kl(n),
        "bytes_per_token": bytes,
        "bytes_read_per_token": 0,
        "tokens_per_second": rate,
    })
}

/// A model without blocks, or whose weights do not fit even at their least.
fn whole(model: &mut Model, fixed: u64, speed: bool) -> anyhow::Result<Value> {
    let (per_token, streamed) = (model.bytes_per_token() as u64, model.streamed_bytes());
    Ok(json!({
        "memory": fixed + per_token - streamed,
        "blocks": null,
        "of_blocks": null,
        "weights": per_token - streamed,
        "bits_per_weight": 8.0 * per_token as f64 / model.weights_per_token() as f64,
        "kl": null,
        "bytes_per_token": per_token,
        "bytes_read_per_token": streamed,
        "tokens_per_second": if speed { Some(rate(model)?) } else { None },
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
