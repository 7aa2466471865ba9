//! What a packed model lost against its source, without any text: on tokens that the source itself writes.
//!
//! A model's own samples are text as it expects it, in its languages and on its subjects, so that no corpus has to be
//! shipped or chosen. A few sequences are drawn at temperature 1 from the source, and the packed model reads the same tokens;
//! the two distributions are compared at each. Both are computed by the kernels that they have in use, the source with its
//! weights as they are. These round differently for tables, codes and floats (`docs/speed.md`: a KL of some 1e-3), which is
//! part of the loss.

use super::score::{self, Reference};
use super::stats::Mean;
use crate::{interrupt, load};
use anyhow::Context;
use lutite_kernels::isa::Isa;
use lutite_models::config::Config;
use lutite_models::{Model, OpenOptions, Path, Tokenizer, open::open};
use lutite_quant::{Imatrix, Loss, PackJob, PackOptions, Plan, pack_in_memory};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::os::memory;
use lutite_runtime::sample::{Sampler, SamplerConfig};
use lutite_runtime::store::{Bytes, Gguf, ModelFile, is_packed};
use std::time::{Duration, Instant};

/// Positions that are compared. The standard error of the mean is then some tenth of it.
const TOKENS: u64 = 512;

/// Positions of a sequence at most.
pub(super) const LENGTH: usize = 64;

/// After this time what there is has to do.
const BUDGET: Duration = Duration::from_secs(30);

/// Compares a packed model with its source; `None` if Ctrl-C came before the first token.
///
/// # Errors
/// A model that cannot be opened, for memory above all.
pub(crate) fn measure(source: &ModelFile, packed: &Bytes, threads: usize) -> anyhow::Result<Option<Loss>> {
    let (start, ends) = frame(source);
    let exact = exact(source, threads);
    if interrupt::requested() {
        return Ok(None);
    }
    let mut reference = session(&exact?, 1, threads).context("the source")?;
    let mut model = session(&packed.into(), 1, threads).context("the packed model")?;
    let (mut kl, mut same) = (Mean::default(), Mean::default());
    let begun = Instant::now();
    'sequences: for seed in 0.. {
        let mut sampler = Sampler::new(SamplerConfig::untouched(seed))?;
        reference.rewind(0);
        model.rewind(0);
        let mut token = start;
        for position in 1..=reference.context() {
            if kl.count() == TOKENS || begun.elapsed() > BUDGET || interrupt::requested() {
                break 'sequences;
            }
            let expected = reference.step(&[token], Phase::Answer, Logits::Last)?;
            let found = model.step(&[token], Phase::Answer, Logits::Last)?;
            token = sampler.sample(expected, position as u64)?;
            let one = score::compare(Reference::Logits(expected), found, token)
                .context("a logit of the packed model is not finite")?;
            kl.push(one.kl);
            same.push(f64::from(u8::from(one.same_top)));
            if ends.contains(&token) {
                break;
            }
        }
    }
    Ok((kl.count() > 0).then(|| Loss {
        kl: kl.mean() as f32,
        kl_error: kl.error() as f32,
        same_top: same.mean() as f32,
        tokens: kl.count() as u32,
    }))
}

/// The token that a sequence begins with, and those that end one. Without a tokenizer any token is as good.
fn frame(model: &ModelFile) -> (u32, Vec<u32>) {
    let gguf = model.gguf().ok();
    let Some(t) = gguf.and_then(|gguf| Tokenizer::from_gguf(&gguf).ok()) else { return (0, Vec::new()) };
    let ends = t.eog_ids().to_vec();
    (t.bos().or(ends.first().copied()).unwrap_or(0), ends)
}

/// The source with its weights as they are: packed exactly in memory, or its own file where they are plain numbers.
fn exact(source: &ModelFile, threads: usize) -> anyhow::Result<ModelFile> {
    let gguf = source.gguf()?;
    let plan = Plan::new(&gguf, &PackOptions::exact())?;
    if !plan.packs() {
        return Ok(source.clone());
    }
    Ok((&in_memory(&gguf, &plan, None, threads)?).into())
}

/// Packs without a word.
pub(super) fn in_memory(
    gguf: &Gguf<'_>,
    plan: &Plan<'_>,
    imatrix: Option<&Imatrix>,
    threads: usize,
) -> anyhow::Result<Bytes> {
    if let Some(m) = memory::available()
        && plan.bytes() > m.bytes
    {
        let (need, have, by) = (plan.bytes() >> 20, m.bytes >> 20, m.bound_by);
        anyhow::bail!(
            "not enough memory: weights to compare with need {need} MiB, but {have} MiB are available (bound by {by})"
        );
    }
    let job = PackJob {
        source: gguf,
        source_hash: 0,
        imatrix,
        fits: None,
        measure: None,
        threads,
        progress: &|_, _| (),
        cancel: interrupt::flag(),
    };
    Ok(Bytes::new(pack_in_memory(plan, &job)?))
}

/// A model for short sequences, `batch` tokens at a time.
pub(super) fn session(file: &ModelFile, batch: usize, threads: usize) -> anyhow::Result<Model> {
    let gguf = file.gguf()?;
    let path = if is_packed(&gguf)? { Path::Lut } else { Path::Plain };
    Ok(open(
        file,
        &OpenOptions {
            workers: threads,
            path,
            context: Some(LENGTH.min(Config::read(&gguf)?.context)),
            batch,
            available: memory::available().map(|m| (m.bytes, m.bound_by)),
            // It was written this moment, and its checksums come last.
            verify: false,
            ..OpenOptions::new(Isa::from_env()?)
        },
    )?)
}

/// Says what a packed file tells of its loss, if its weights are not exact.
pub(crate) fn tell(source: &load::Source) -> anyhow::Result<()> {
    let gguf = load::gguf(source)?;
    if let Some(loss) = Loss::read(&gguf)? {
        let how =
            gguf.str("lutite.quantizer")?.and_then(|q| q.rsplit(' ').next()).unwrap_or("by other means");
        let name = source.path.file_name().unwrap_or_default().to_string_lossy();
        crate::ui::warn(format_args!("weights of {name} are re-quantized, {how}: {loss}"));
    }
    Ok(())
}
