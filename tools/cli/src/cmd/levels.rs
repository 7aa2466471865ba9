//! `lutite quantize --bitstack`: one file for all sizes, of levels of signs.
//!
//! All levels are fitted in one flow of the text: every matrix to inputs that come from matrices with all of theirs. The least model
//! has one level, or the first number of them with which it is of any use. The blocks behind it are single levels of single matrices,
//! in the order of what they are predicted to gain for their bytes:
//!
//! ```text
//! gain of level i = error of the matrix' outputs with i levels - with i + 1        relative to the outputs, on the text
//! ```
//!
//! taken as if all matrices mattered alike. The curve is measured.

use super::quantize::{text, work};
use super::stack::{Written, level, tell, write};
use crate::args::{QuantizeArgs, SignLevels};
use crate::judge::curve::Judge;
use crate::load::{self, Source};
use crate::{cache, calib, ui};
use anyhow::Context;
use lutite_quant::rank::{Gain, rank};
use lutite_quant::stack::bytes;
use lutite_quant::{Fits, LevelOptions, Opened, PackOptions, Plan, calibrate, first_levels};
use lutite_runtime::store::ModelFile;
use std::time::Instant;

/// A model that loses more than this, in nats, says no more than how frequent words are.
const USELESS: f64 = 4.0;

pub(super) fn quantize(args: &QuantizeArgs, source: &Source, wanted: SignLevels) -> anyhow::Result<()> {
    let start = Instant::now();
    let threads = load::threads(args.threads);
    let SignLevels { levels, rank: of_levels } = wanted;
    let options =
        PackOptions { levels: Some(LevelOptions { levels, rank: of_levels }), ..PackOptions::exact() };
    let name = source.path.display();
    // What cannot be planned is said before anything is computed.
    let plan = Plan::new(&load::gguf(source)?, &options).with_context(|| format!("cannot pack {name}"))?;
    let matrices: Vec<Vec<String>> = plan.fitted().map(|name| vec![name.to_owned()]).collect();
    drop(plan);
    let hash = cache::hash(&source.file)?;
    let sequences = text(args, source)?;
    let exact = calib::exact(source, threads)?;
    let folder = work(args);
    let (packed, fits) = level(source, hash, &options, &sequences, &folder, threads)?;
    let gguf = load::gguf(&packed)?;
    let whole = Opened { gguf: &gguf, file: &packed.file };
    let first = (1..=levels).map(|n| first_levels(whole, n)).collect::<Result<Vec<_>, _>>()?;
    let mut judge = Judge::new(&exact, threads)?;
    let least = least(&mut judge, &first)?;
    let ggufs = first[least..].iter().map(ModelFile::gguf).collect::<Result<Vec<_>, _>>()?;
    let opened: Vec<Opened<'_>> =
        ggufs.iter().zip(&first[least..]).map(|(gguf, file)| Opened { gguf, file }).collect();
    let order = rank(&gains(&opened, &matrices, &fits, least)?);
    let what = Written { levels: &opened, parts: &matrices, order: &order, tag: &options.tag(), hash };
    let stacked = write(args, judge, &what)?;
    drop(opened);
    drop(ggufs);
    // The result is whole; what stays is a waste of space and no harm.
    let _ = std::fs::remove_file(&packed.path);
    let _ = calibrate::forget(&folder);
    tell(args, stacked, start);
    Ok(())
}

/// Which of the models with ever more levels is the least of use; not the last, which would leave no blocks.
fn least(judge: &mut Judge, first: &[ModelFile]) -> anyhow::Result<usize> {
    let last = first.len().saturating_sub(2);
    for (i, file) in first.iter().enumerate().take(last) {
        let kl = judge.loss(file)?;
        ui::note(format_args!("levels of all matrices: {}, KL {kl:.4}", i + 1));
        if kl <= USELESS {
            return Ok(i);
        }
    }
    Ok(last)
}

/// What each level of each matrix is predicted to gain, from those with which `opened` begins on.
fn gains(
    opened: &[Opened<'_>],
    matrices: &[Vec<String>],
    fits: &Fits,
    least: usize,
) -> anyhow::Result<Vec<Vec<Gain>>> {
    let errors = fits.errors()?;
    let of_matrix = |names: &Vec<String>| {
        let errors: Vec<f64> =
            errors.iter().filter(|(name, _)| names.contains(name)).map(|(_, e)| f64::from(*e)).collect();
        let errors = errors.get(least..).unwrap_or_default();
        let step = |(errors, files): (&[f64], &[Opened<'_>])| {
            let more = bytes(files[1], names)?.saturating_sub(bytes(files[0], names)?);
            Ok(Gain { bytes: more.max(1), kl: errors[0] - errors[1], error: 0.0 })
        };
        errors.windows(2).zip(opened.windows(2)).map(step).collect()
    };
    matrices.iter().map(of_matrix).collect()
}
