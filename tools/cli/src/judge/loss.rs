//! What a packed model lost against its source, without any text: on tokens that the source itself writes.
//!
//! A model's own samples are text as it expects it, in its languages and on its subjects, so that no corpus has to be
//! shipped or chosen. A few sequences are drawn at temperature 1 from the source, which is computed plainly in f32;
//! the packed model reads the same tokens by its tables, as it will in use, and the two distributions are compared
//! at each.

use super::score::{self, Reference};
use super::stats::Mean;
use crate::{interrupt, load};
use anyhow::Context;
use lutite_kernels::isa::Isa;
use lutite_models::{Model, OpenOptions, Path, Tokenizer, open::open};
use lutite_quant::Loss;
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::kv::KvType;
use lutite_runtime::os::memory;
use lutite_runtime::sample::{Sampler, SamplerConfig};
use lutite_runtime::store::{Bytes, Gguf, ModelFile};
use std::time::{Duration, Instant};

/// Positions that are compared. The standard error of the mean is then some tenth of it.
const TOKENS: u64 = 256;

/// Positions of a sequence at most.
const LENGTH: usize = 64;

/// After this time what there is has to do: a large model computed plainly takes seconds for a token.
const BUDGET: Duration = Duration::from_secs(30);

/// Compares a packed model with its source; `None` if Ctrl-C came before the first token.
///
/// # Errors
/// A model that cannot be opened, for the memory of its plain floats above all.
pub(crate) fn measure(source: &ModelFile, packed: &Bytes, threads: usize) -> anyhow::Result<Option<Loss>> {
    let (start, ends) = frame(packed);
    let mut reference =
        session(source, Path::Plain, KvType::F32, threads).context("the source, as floats")?;
    let mut model = session(&packed.into(), Path::Lut, KvType::F16, threads).context("the packed model")?;
    let (mut kl, mut same) = (Mean::default(), Mean::default());
    let begun = Instant::now();
    'sequences: for seed in 0.. {
        let mut sampler = Sampler::new(SamplerConfig::untouched(seed))?;
        reference.rewind(0);
        model.rewind(0);
        let mut token = start;
        for position in 1..=LENGTH {
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
fn frame(packed: &Bytes) -> (u32, Vec<u32>) {
    let gguf = Gguf::parse(packed).ok();
    let Some(t) = gguf.and_then(|gguf| Tokenizer::from_gguf(&gguf).ok()) else { return (0, Vec::new()) };
    let ends = t.eog_ids().to_vec();
    (t.bos().or(ends.first().copied()).unwrap_or(0), ends)
}

fn session(file: &ModelFile, path: Path, kv: KvType, threads: usize) -> anyhow::Result<Model> {
    Ok(open(
        file,
        &OpenOptions {
            workers: threads,
            path,
            context: Some(LENGTH),
            batch: 1,
            kv: kv.into(),
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
