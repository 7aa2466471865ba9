//! What a stacked file is worth, on texts that the model with exact weights writes: what each of its parts costs at each level,
//! and what is lost with some of its blocks.

use super::loss::{LENGTH, session};
use super::score;
use super::stats::Mean;
use crate::load::Source;
use crate::mem::PATIENCE;
use crate::ui::Progress;
use crate::{calib, interrupt};
use anyhow::Context;
use lutite_models::Model;
use lutite_quant::rank::Cost;
use lutite_quant::stack::bytes;
use lutite_quant::{Opened, mix};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::store::{Bytes, ModelFile, Point};

/// Texts of [`LENGTH`] tokens that are compared.
const TEXTS: usize = 8;

/// The model with exact weights, and what it wrote.
pub(crate) struct Judge {
    reference: Model,
    texts: Vec<Vec<u32>>,
    threads: usize,
}

impl Judge {
    /// Lets `exact` write.
    ///
    /// # Errors
    /// A model that cannot be opened, for memory above all; [`crate::ui::Quit::Interrupted`].
    pub(crate) fn new(exact: &Source, threads: usize) -> anyhow::Result<Judge> {
        let reference = session(&exact.file, LENGTH, threads).context("the source")?;
        let label = "writing text to measure with";
        let texts = calib::written(exact, label, TEXTS, reference.context(), threads)?;
        Ok(Judge { reference, texts, threads })
    }

    /// What each part costs at each level, `[part][level]`. That is measured with all others exact, which does not add up: what parts
    /// of layers cost is brought to the sum that all of them together cost at that level, and what the others cost to what they
    /// add to that. A level that is `exact` itself costs nothing.
    ///
    /// # Errors
    /// Levels that are not of one model; [`crate::ui::Quit::Interrupted`].
    pub(crate) fn costs(
        &mut self,
        exact: Opened<'_>,
        levels: &[Opened<'_>],
        parts: &[Vec<String>],
    ) -> anyhow::Result<Vec<Vec<Cost>>> {
        let is_layer = |part: &&Vec<String>| part.iter().all(|name| name.starts_with("blk."));
        // The layers, and everything.
        let together = [
            parts.iter().filter(is_layer).flatten().cloned().collect::<Vec<_>>(),
            parts.iter().flatten().cloned().collect(),
        ];
        let mut means = vec![vec![Mean::default(); levels.len()]; parts.len() + together.len()];
        let is_exact =
            |level: &Opened<'_>| std::ptr::eq(level.file.head().as_ptr(), exact.file.head().as_ptr());
        let measured = levels.iter().filter(|level| !is_exact(level)).count();
        let label = "measuring what parts of the model cost";
        let mut bar = Progress::share(label, (self.texts.len() * measured * means.len()) as u64);
        let mut done = 0;
        for t in 0..self.texts.len() {
            let expected = self.expected(t)?;
            for (level, packed) in levels.iter().enumerate().filter(|(_, level)| !is_exact(level)) {
                for (part, means) in parts.iter().chain(&together).zip(&mut means) {
                    interrupt::check(interrupt::flag())?;
                    let mixed = mix(exact, *packed, |name| part.iter().any(|n| n == name))?;
                    let kls = self.divergences(t, &expected, &mixed)?;
                    kls.into_iter().for_each(|kl| means[level].push(kl));
                    done += 1;
                    bar.set(done);
                }
            }
        }
        let (alone, together) = means.split_at(parts.len());
        let mut costs = vec![Vec::new(); parts.len()];
        for (level, packed) in levels.iter().enumerate() {
            let of = |layers: bool| {
                let own = parts.iter().zip(alone).filter(move |(part, _)| is_layer(part) == layers);
                own.map(|(_, means)| means[level].mean()).sum::<f64>()
            };
            let [layers, all] = [0, 1].map(|i: usize| together[i][level].mean());
            let factor = |to: f64, sum: f64| if sum > 0.0 { to.max(0.0) / sum } else { 1.0 };
            let (of_layers, of_others) = (factor(layers, of(true)), factor(all - layers, of(false)));
            for ((part, means), costs) in parts.iter().zip(alone).zip(&mut costs) {
                let factor = if is_layer(&part) { of_layers } else { of_others };
                costs.push(Cost { bytes: bytes(*packed, part)?, kl: means[level].mean() * factor });
            }
        }
        Ok(costs)
    }

    /// The loss of a model.
    ///
    /// # Errors
    /// A file that cannot be opened; [`crate::ui::Quit::Interrupted`].
    pub(crate) fn loss(&mut self, file: &ModelFile) -> anyhow::Result<f64> {
        let mut mean = Mean::default();
        for t in 0..self.texts.len() {
            interrupt::check(interrupt::flag())?;
            let expected = self.expected(t)?;
            self.divergences(t, &expected, file)?.into_iter().for_each(|kl| mean.push(kl));
        }
        Ok(mean.mean())
    }

    /// The loss of the stacked file `packed` with its first so many blocks.
    ///
    /// # Errors
    /// A file that cannot be opened; [`crate::ui::Quit::Interrupted`].
    pub(crate) fn curve(&mut self, packed: &Bytes, points: &[usize]) -> anyhow::Result<Vec<Point>> {
        let mut model = session(&packed.into(), LENGTH, self.threads).context("the packed model")?;
        let stack = model.residency().context("the file has no blocks")?;
        let mut means = vec![Mean::default(); points.len()];
        let mut bar = Progress::share("measuring the loss", (self.texts.len() * points.len()) as u64);
        for t in 0..self.texts.len() {
            let expected = self.expected(t)?;
            for (i, (point, mean)) in points.iter().zip(&mut means).enumerate() {
                interrupt::check(interrupt::flag())?;
                stack.set_blocks(*point);
                anyhow::ensure!(stack.wait(PATIENCE), "{}", stack.resident().failure.unwrap_or_default());
                let kls = self.divergences_of(t, &expected, &mut model)?;
                kls.into_iter().for_each(|kl| mean.push(kl));
                bar.set((t * points.len() + i + 1) as u64);
            }
        }
        let point = |(blocks, mean): (&usize, &Mean)| Point {
            blocks: *blocks,
            kl: mean.mean() as f32,
            error: mean.error() as f32,
        };
        Ok(points.iter().zip(&means).map(point).collect())
    }

    /// What the model with exact weights makes of text `t`: `[position][vocab]`.
    fn expected(&mut self, t: usize) -> anyhow::Result<Vec<f32>> {
        self.reference.rewind(0);
        Ok(self.reference.step(&self.texts[t], Phase::Prompt, Logits::All)?.to_vec())
    }

    /// The divergence of another model at each position.
    fn divergences(&self, t: usize, expected: &[f32], file: &ModelFile) -> anyhow::Result<Vec<f64>> {
        self.divergences_of(t, expected, &mut session(file, LENGTH, self.threads)?)
    }

    fn divergences_of(&self, t: usize, expected: &[f32], model: &mut Model) -> anyhow::Result<Vec<f64>> {
        model.rewind(0);
        let found = model.step(&self.texts[t], Phase::Prompt, Logits::All)?;
        let vocab = self.reference.vocab();
        score::divergences(expected, found, vocab, self.threads).context("a logit is not finite")
    }
}
