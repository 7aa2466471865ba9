//! What matrices of a model cost when they alone are held by few planes: for those who share out bits among them.
//!
//! The source writes a few short texts, and reads them again with one matrix after the other exchanged for planes that were
//! fitted to its weights and to how large its inputs are. All else goes by the same kernels as before, so that what those round
//! does not count.

use super::loss::{self, LENGTH};
use super::score;
use crate::load::{self, Source};
use crate::ui::Progress;
use crate::{calib, interrupt};
use anyhow::Context;
use lutite_kernels::isa::Isa;
use lutite_models::Model;
use lutite_models::config::Config;
use lutite_quant::allocate::{PROXY_PLANES, Sensitivity};
use lutite_quant::calibrate::importance;
use lutite_quant::{Bits, Opened, PackOptions, Plan, mix};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::store::{Gguf, ModelFile};

/// Texts of [`LENGTH`] tokens that are compared.
const TEXTS: usize = 4;

/// The plan that holds all matrices that can have other bits by few planes.
pub(crate) fn few<'a>(gguf: &Gguf<'a>, options: &PackOptions) -> anyhow::Result<Plan<'a>> {
    let few = Bits::Planes(PROXY_PLANES);
    Ok(Plan::new(gguf, &PackOptions { bits: few, head: Some(few), ..options.clone() })?)
}

/// Bytes that the logits of all texts take.
pub(crate) fn memory_bytes(c: &Config) -> u64 {
    4 * (TEXTS * LENGTH) as u64 * c.vocab as u64
}

/// The source in both forms, and what it makes of the texts.
pub(crate) struct Probe {
    exact: Source,
    few: ModelFile,
    texts: Vec<Vec<u32>>,
    /// `[text][position][vocab]`
    expected: Vec<Vec<f32>>,
    threads: usize,
}

impl Probe {
    /// Packs the source by the plan that [`few`] made of it, by inputs as `calibration` makes them, and lets it write.
    ///
    /// # Errors
    /// A model that cannot be opened, for memory above all.
    pub(crate) fn new(
        source: &Source,
        plan: &Plan<'_>,
        calibration: &[Vec<u32>],
        threads: usize,
    ) -> anyhow::Result<Probe> {
        let exact = calib::exact(source, threads)?;
        let mut model = loss::session(&exact.file, LENGTH, threads)?;
        let label = "writing text to measure with";
        let texts = calib::written(&exact, label, TEXTS, model.context(), threads)?;
        let gguf = load::gguf(source)?;
        let isa = Isa::from_env()?;
        let imatrix = importance(&gguf, &source.file, calibration, isa, threads, interrupt::flag());
        interrupt::check(interrupt::flag())?;
        let few = loss::in_memory(&gguf, plan, Some(&imatrix?), threads);
        interrupt::check(interrupt::flag())?;
        let few = ModelFile::from(&few?);
        let read = |text: &Vec<u32>| Ok(read(&mut model, text)?.to_vec());
        let expected = texts.iter().map(read).collect::<anyhow::Result<_>>()?;
        Ok(Probe { exact, few, texts, expected, threads })
    }

    /// Measures the plan's matrices one by one.
    ///
    /// # Errors
    /// As [`Probe::cost`].
    pub(crate) fn each(&self, plan: &Plan<'_>) -> anyhow::Result<Vec<Sensitivity>> {
        let mut bar = Progress::share("measuring what each matrix costs", plan.fitted().count() as u64);
        let one = |(i, name): (usize, &str)| {
            interrupt::check(interrupt::flag())?;
            let kl = self.cost(name)?;
            bar.set(i as u64 + 1);
            Ok(Sensitivity { name: name.to_owned(), kl })
        };
        plan.fitted().enumerate().map(one).collect()
    }

    /// Mean KL divergence with few planes for one matrix.
    ///
    /// # Errors
    /// A logit that is not finite.
    fn cost(&self, name: &str) -> anyhow::Result<f64> {
        let (exact, few) = (load::gguf(&self.exact)?, self.few.gguf()?);
        let from = Opened { gguf: &exact, file: &self.exact.file };
        let file = mix(from, Opened { gguf: &few, file: &self.few }, |n| n == name)?;
        let mut model = loss::session(&file, LENGTH, self.threads)?;
        let vocab = model.vocab();
        let (mut sum, mut count) = (0.0, 0);
        for (text, expected) in self.texts.iter().zip(&self.expected) {
            let found = read(&mut model, text)?;
            let kls = score::divergences(expected, found, vocab, self.threads);
            let kls = kls.context("a logit is not finite")?;
            sum += kls.iter().sum::<f64>();
            count += kls.len();
        }
        Ok((sum / count.max(1) as f64).max(0.0))
    }
}

/// Logits at all positions of a text.
fn read<'m>(model: &'m mut Model, text: &[u32]) -> anyhow::Result<&'m [f32]> {
    model.rewind(0);
    Ok(model.step(text, Phase::Prompt, Logits::All)?)
}
