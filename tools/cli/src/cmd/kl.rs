//! `lutite kl`: how far a model's predictions are from a reference's.

use super::evaluate;
use crate::args::KlArgs;
use crate::interrupt;
use crate::judge::base::BaseReader;
use crate::judge::protocol::{Chunk, Cut};
use crate::judge::score::{self, Compared, Reference};
use crate::judge::stats::{Divergence, Mean};
use crate::load::{self, Source};
use crate::ui::{self, Answer};
use anyhow::Context;
use lutite_models::{Model, Path, Tokenizer};
use lutite_runtime::decode::{Decoder, Phase};
use lutite_runtime::kv::KvType;
use serde_json::json;
use std::time::Instant;

/// What the model is compared with, and the text along with it.
enum Judge {
    /// A second model, which reads the same tokens at the same time.
    Model { source: Source, model: Box<Model>, cut: Cut },
    /// A file that holds tokens and the first model's word on each.
    File { reader: BaseReader, bos: Option<u32>, rows: Vec<f32> },
}

impl Judge {
    fn open(args: &KlArgs, tokenizer: &Tokenizer) -> anyhow::Result<Judge> {
        let bos = evaluate::bos(tokenizer);
        if let Some(base) = &args.base {
            if args.text.file.is_some() || args.text.ctx_size.is_some() {
                ui::warn(format_args!(
                    "{} has its own text and chunks: -f and -c are not used",
                    base.display()
                ));
            }
            if args.text.chunks.0 == Some(0) || args.text.positions.0 == Some(0) {
                return Err(crate::judge::protocol::CutError::Nothing.into());
            }
            return Ok(Judge::File { reader: BaseReader::open(base)?, bos, rows: Vec::new() });
        }
        let named = if args.reference == "plain" { args.model.named() } else { &args.reference };
        let source = evaluate::find(named, Path::Plain, &args.engine)?;
        let cut = evaluate::cut(&args.text, tokenizer)?;
        let model = evaluate::open(&source, Path::Plain, Some(KvType::F32), &args.engine, cut.context())
            .context("cannot open the reference")?;
        Ok(Judge::Model { source, model: Box::new(model), cut })
    }

    fn context(&self) -> usize {
        match self {
            Judge::Model { cut, .. } => cut.context(),
            Judge::File { reader, .. } => reader.context(),
        }
    }

    fn chunks(&self, args: &KlArgs) -> usize {
        match self {
            Judge::Model { cut, .. } => cut.chunks(),
            Judge::File { reader, .. } => reader.chunks().min(args.text.chunks.or(usize::MAX)),
        }
    }

    /// Scored positions of a chunk.
    fn positions(&self) -> usize {
        match self {
            Judge::Model { cut, .. } => cut.positions() / cut.chunks(),
            Judge::File { reader, .. } => reader.positions() / reader.chunks(),
        }
    }

    /// Checks that the reference's vocabulary is as large as the judged model's.
    fn expect_vocab(&self, ours: usize) -> anyhow::Result<()> {
        match self {
            Judge::File { reader, .. } => reader.expect_vocab(ours)?,
            Judge::Model { source, model, .. } if model.vocab() != ours => {
                let theirs = model.vocab();
                let file = source.path.display();
                anyhow::bail!(
                    "the reference {file} has a vocabulary of {theirs} tokens, the model one of {ours}; they \
                     must be of the same family"
                );
            }
            Judge::Model { .. } => {}
        }
        Ok(())
    }

    /// Begins chunk `i`.
    fn chunk(&mut self, i: usize) -> anyhow::Result<Chunk> {
        Ok(match self {
            Judge::Model { model, cut, .. } => {
                model.rewind(0);
                cut.chunk(i)
            }
            Judge::File { reader, bos, .. } => reader.chunk(i, *bos)?,
        })
    }

    /// The reference's rows for the next `tokens`, `scored` of them.
    fn rows(&mut self, tokens: &[u32], scored: usize, vocab: usize) -> anyhow::Result<Rows<'_>> {
        Ok(match self {
            Judge::Model { model, .. } => {
                Rows::Logits(model.step(tokens, Phase::Prompt, evaluate::wanted(scored > 0))?)
            }
            Judge::File { reader, rows, .. } => {
                rows.resize(scored * vocab, 0.0);
                rows.chunks_exact_mut(vocab).try_for_each(|row| reader.row(row))?;
                Rows::LogProbs(rows)
            }
        })
    }

    fn describe(&self, args: &KlArgs) -> serde_json::Value {
        match self {
            Judge::Model { source, model, .. } => evaluate::describe(source, model, Path::Plain),
            Judge::File { .. } => json!({ "file": args.base.as_ref().map(|f| f.display().to_string()) }),
        }
    }
}

/// Rows of a step.
enum Rows<'a> {
    Logits(&'a [f32]),
    LogProbs(&'a [f32]),
}

impl Rows<'_> {
    fn row(&self, t: usize, vocab: usize) -> Reference<'_> {
        match self {
            Rows::Logits(all) => Reference::Logits(&all[t * vocab..(t + 1) * vocab]),
            Rows::LogProbs(all) => Reference::LogProbs(&all[t * vocab..(t + 1) * vocab]),
        }
    }
}

pub(crate) fn kl(args: &KlArgs) -> anyhow::Result<()> {
    let source = evaluate::find(args.model.named(), Path::Lut, &args.engine)?;
    let tokenizer = load::tokenizer(&source)?;
    let mut judge = Judge::open(args, &tokenizer)?;
    let vocab = evaluate::config(&source)?.vocab;
    // Before a file's context is believed and a session made for it.
    judge.expect_vocab(vocab)?;
    let mut model = evaluate::open(&source, Path::Lut, None, &args.engine, judge.context())?;
    let (batch, threads) = (model.batch(), model.workers());
    let (chunks, context) = (judge.chunks(args), judge.context());
    let limit = args.text.positions.or(usize::MAX).min(judge.positions() * chunks);
    ui::note(format_args!("comparing {limit} positions in chunks of {context}"));

    let start = Instant::now();
    let mut all: Vec<Compared> = Vec::new();
    let mut mean = Mean::default();
    let mut done = 0;
    for i in 0..chunks {
        if all.len() == limit {
            break;
        }
        let mut chunk = judge.chunk(i)?;
        chunk.limit(limit - all.len());
        model.rewind(0);
        for step in chunk.steps(batch) {
            interrupt::check(interrupt::flag())?;
            let n = step.targets.len();
            let rows = judge.rows(step.tokens, n, vocab)?;
            let logits = model.step(step.tokens, Phase::Prompt, evaluate::wanted(n > 0))?;
            let compared = score::each(threads, n, |t| {
                score::compare(rows.row(t, vocab), &logits[t * vocab..(t + 1) * vocab], step.targets[t])
            });
            for one in compared {
                let one =
                    one.ok_or_else(|| evaluate::not_finite(&source, format_args!("chunk {}", i + 1)))?;
                mean.push(one.kl);
                all.push(one);
            }
        }
        done = i + 1;
        ui::note(format_args!("[{done}/{chunks}] {:.6}", mean.mean()));
    }
    let seconds = evaluate::took(start, done, context);
    let figures = Divergence::of(&all);
    if args.json {
        let mut value = serde_json::to_value(figures)?;
        if let Some(object) = value.as_object_mut() {
            let protocol = if args.base.is_some() { "llama" } else { evaluate::name(args.text.protocol) };
            object.insert("protocol".into(), protocol.into());
            object.insert("context".into(), context.into());
            object.insert("chunks".into(), done.into());
            object.insert("seconds".into(), seconds.into());
            object.insert("model".into(), evaluate::describe(&source, &model, Path::Lut));
            object.insert("reference".into(), judge.describe(args));
        }
        return evaluate::print_json(&value);
    }
    Answer::stdout().print(&table(&figures))
}

/// The figures for people.
fn table(d: &Divergence) -> String {
    let mut out = format!("positions            {}\n", d.positions);
    for (name, value, error) in [
        ("mean KL", d.mean_kl, Some(d.mean_kl_error)),
        ("median KL", d.median_kl, None),
        ("99 % KL", d.p99_kl, None),
        ("99.9 % KL", d.p99_9_kl, None),
        ("maximum KL", d.max_kl, None),
        ("same top token, %", 100.0 * d.top1_agreement, Some(100.0 * d.top1_agreement_error)),
        ("RMS of p change, %", 100.0 * d.rms_p_diff, Some(100.0 * d.rms_p_diff_error)),
        ("PPL of reference", d.reference_perplexity, Some(d.reference_perplexity_error)),
        ("PPL of model", d.perplexity, Some(d.perplexity_error)),
        ("ratio of the two", d.perplexity_ratio, Some(d.perplexity_ratio_error)),
    ] {
        let error = error.map_or(String::new(), |e| format!(" +/- {e:.6}"));
        out.push_str(&format!("{name:<20} {value:.6}{error}\n"));
    }
    out
}
