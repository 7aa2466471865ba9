//! What a stacked file lost, block by block, on texts that the model with exact weights writes.

use super::loss::{LENGTH, session};
use super::score::{self, Reference};
use super::stats::Mean;
use crate::load::Source;
use crate::ui::Progress;
use crate::{calib, interrupt};
use anyhow::Context;
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::store::{Bytes, Point};
use std::time::Duration;

/// Texts of [`LENGTH`] tokens that are compared.
const TEXTS: usize = 8;

/// Longer than any disk takes for a prefix.
const PATIENCE: Duration = Duration::from_secs(600);

/// The loss of the stacked file `packed` with its first so many blocks, against `exact`.
///
/// # Errors
/// A model that cannot be opened, for memory above all; [`crate::ui::Quit::Interrupted`].
pub(crate) fn measure(
    exact: &Source,
    packed: &Bytes,
    points: &[usize],
    threads: usize,
) -> anyhow::Result<Vec<Point>> {
    let mut reference = session(&exact.file, LENGTH, threads).context("the source")?;
    let label = "writing text to measure with";
    let texts = calib::written(exact, label, TEXTS, reference.context(), threads)?;
    let mut model = session(&packed.into(), LENGTH, threads).context("the packed model")?;
    let stack = model.residency().context("the file has no blocks")?;
    let vocab = model.vocab();
    let mut means = vec![Mean::default(); points.len()];
    let mut bar = Progress::share("measuring the loss", (texts.len() * points.len()) as u64);
    for (t, text) in texts.iter().enumerate() {
        reference.rewind(0);
        let expected = reference.step(text, Phase::Prompt, Logits::All)?;
        for (i, (point, mean)) in points.iter().zip(&mut means).enumerate() {
            interrupt::check(interrupt::flag())?;
            stack.set_blocks(*point);
            anyhow::ensure!(stack.wait(PATIENCE), "{}", stack.resident().failure.unwrap_or_default());
            model.rewind(0);
            let found = model.step(text, Phase::Prompt, Logits::All)?;
            for (expected, found) in expected.chunks_exact(vocab).zip(found.chunks_exact(vocab)) {
                let one =
                    score::compare(Reference::Logits(expected), found, 0).context("a logit is not finite")?;
                mean.push(one.kl);
            }
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
