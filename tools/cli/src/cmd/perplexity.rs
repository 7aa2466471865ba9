//! `lutite perplexity`: how well a model predicts a text.

use super::evaluate;
use crate::args::PerplexityArgs;
use crate::judge::base::BaseWriter;
use crate::judge::score;
use crate::judge::stats::Mean;
use crate::ui::{self, Answer};
use crate::{interrupt, load};
use lutite_runtime::decode::{Decoder, Phase};
use serde_json::json;
use std::time::Instant;

pub(crate) fn perplexity(args: &PerplexityArgs) -> anyhow::Result<()> {
    let path = evaluate::path(args.path);
    let source = evaluate::find(args.model.named(), path, &args.engine)?;
    let tokenizer = load::tokenizer(&source)?;
    let cut = evaluate::cut(&args.text, &tokenizer)?;
    let mut model = evaluate::open(&source, path, None, &args.engine, cut.context())?;
    let (vocab, batch, threads) = (model.vocab(), model.batch(), model.workers());
    let mut base = match &args.save_base {
        Some(file) => Some(BaseWriter::create(file, &cut, vocab)?),
        None => None,
    };
    let limit = args.text.positions.or(usize::MAX).min(cut.positions());
    ui::note(format_args!("scoring {limit} tokens in chunks of {}", cut.context()));

    let start = Instant::now();
    let mut scores = Mean::default();
    let mut done = 0;
    for i in 0..cut.chunks() {
        let left = limit - scores.count() as usize;
        if left == 0 {
            break;
        }
        let mut chunk = cut.chunk(i);
        chunk.limit(left);
        model.rewind(0);
        for step in chunk.steps(batch) {
            interrupt::check(interrupt::flag())?;
            let logits =
                model.step(step.tokens, Phase::Prompt, evaluate::wanted(!step.targets.is_empty()))?;
            let row = |t: usize| &logits[t * vocab..(t + 1) * vocab];
            let nlls = score::each(threads, step.targets.len(), |t| score::nll(row(t), step.targets[t]));
            for nll in nlls {
                scores
                    .push(nll.ok_or_else(|| evaluate::not_finite(&source, format_args!("chunk {}", i + 1)))?);
            }
            if let Some(base) = &mut base {
                (0..step.targets.len()).try_for_each(|t| base.row(row(t)))?;
            }
        }
        done = i + 1;
        ui::note(format_args!("[{done}/{}] {:.4}", cut.chunks(), scores.perplexity()));
    }
    if let Some(base) = base {
        base.finish()?;
    }
    let seconds = evaluate::took(start, done, cut.context());

    let protocol = evaluate::name(args.text.protocol);
    if args.json {
        return evaluate::print_json(&json!({
            "perplexity": scores.perplexity(),
            "perplexity_error": scores.perplexity_error(),
            "mean_nll": scores.mean(),
            "mean_nll_error": scores.error(),
            "positions": scores.count(),
            "protocol": protocol,
            "context": cut.context(),
            "chunks": done,
            "seconds": seconds,
            "model": evaluate::describe(&source, &model, path),
        }));
    }
    Answer::stdout().print(&format!(
        "PPL = {:.4} +/- {:.5} (protocol {protocol}, {done} chunks of {}, {} tokens scored)\n",
        scores.perplexity(),
        scores.perplexity_error(),
        cut.context(),
        scores.count(),
    ))
}
