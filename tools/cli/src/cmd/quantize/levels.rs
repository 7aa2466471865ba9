//! `lutite quantize --bitstack`: one file for all sizes, of levels of signs.
//!
//! All levels are fitted in one flow of the text: every matrix to inputs that come from matrices with all of theirs. The least model
//! has one level, or the first number of them with which it is of any use, if nobody said how many. The blocks behind it are levels of the matrices of a layer,
//! in the order of what layers cost with each number of levels. The curve is measured.

use super::stack::{level, tell, write};
use super::{text, work};
use crate::args::{QuantizeArgs, SignLevels};
use crate::judge::curve::Judge;
use crate::load::{self, Source};
use crate::{cache, calib, ui};
use anyhow::Context;
use lutite_quant::stack;
use lutite_quant::{LevelOptions, Opened, PackOptions, Plan, calibrate, first_levels};
use lutite_runtime::store::ModelFile;
use std::time::Instant;

/// A model that loses more than this, in nats, says no more than how frequent words are.
const USELESS: f64 = 4.0;

pub(super) fn quantize(args: &QuantizeArgs, source: &Source, wanted: SignLevels) -> anyhow::Result<()> {
    let start = Instant::now();
    let threads = load::threads(args.threads);
    let SignLevels { least, levels, rank: of_levels } = wanted;
    let Some(levels) = levels else {
        let name = source.path.display();
        anyhow::bail!(
            "{name} is not BitStack's checkpoint; say how many levels to fit, such as --bitstack 6"
        );
    };
    let options =
        PackOptions { levels: Some(LevelOptions { levels, rank: of_levels }), ..PackOptions::exact() };
    let name = source.path.display();
    // What cannot be planned is said before anything is computed.
    let plan = Plan::new(&load::gguf(source)?, &options).with_context(|| format!("cannot pack {name}"))?;
    let fitted: Vec<String> = plan.fitted().map(str::to_owned).collect();
    drop(plan);
    let hash = cache::hash(source.file.chunks())?;
    let sequences = text(args, source)?;
    let exact = calib::exact(source, threads)?;
    let folder = work(args);
    let packed = level(source, hash, &options, &sequences, &folder, threads)?;
    let gguf = load::gguf(&packed)?;
    let whole = Opened { gguf: &gguf, file: &packed.file };
    let first = (1..=levels).map(|n| first_levels(whole, n)).collect::<Result<Vec<_>, _>>()?;
    let mut judge = Judge::new(&exact, threads)?;
    let least = match least {
        Some(levels) => levels - 1,
        None => of_use(&mut judge, &first)?,
    };
    let ggufs = first[least..].iter().map(ModelFile::gguf).collect::<Result<Vec<_>, _>>()?;
    let opened: Vec<Opened<'_>> =
        ggufs.iter().zip(&first[least..]).map(|(gguf, file)| Opened { gguf, file }).collect();
    // Matrices of a layer come up together, as in other stacks; what is exact does not come up.
    let mut parts = stack::parts(opened[0])?;
    parts.retain(|part| part.iter().all(|name| fitted.contains(name)));
    let stacked = write(args, judge, &exact, (&opened, &parts), &options.tag(), hash)?;
    drop(opened);
    drop(ggufs);
    // The result is whole; what stays is a waste of space and no harm.
    let _ = std::fs::remove_file(&packed.path);
    let _ = calibrate::forget(&folder);
    tell(args, stacked, start);
    Ok(())
}

/// Which of the models with ever more levels is the least of use; not the last, which would leave no blocks.
fn of_use(judge: &mut Judge, first: &[ModelFile]) -> anyhow::Result<usize> {
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
