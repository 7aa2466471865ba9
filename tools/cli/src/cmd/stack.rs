//! `lutite quantize --stack`: one file for all sizes.

use super::quantize::{costs, fit, text, work};
use crate::args::{self, QuantizeArgs};
use crate::judge::curve;
use crate::load::{self, Source};
use crate::ui::{self, Progress, Quit};
use crate::{cache, calib, interrupt};
use anyhow::Context;
use lutite_quant::{Bits, PackOptions, Plan, StackJob, StackPlan, calibrate, stack_to_file};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

pub(super) fn quantize(
    args: &QuantizeArgs,
    source: &Source,
    options: &PackOptions,
    levels: &args::Levels,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let name = source.path.display();
    let levels: Vec<Bits> = levels.0.iter().map(|bits| load::bits(*bits)).collect();
    let gguf = load::gguf(source)?;
    let plan = |each: &_| {
        StackPlan::new(&gguf, options, each, &levels).with_context(|| format!("cannot pack {name}"))
    };
    let each = costs(args, source, options, |all| plan(all).map(|_| ()))?;
    let plan = plan(&each)?;
    let hash = cache::hash(&source.file)?;
    let threads = load::threads(args.threads);
    let sequences = text(args, source)?;
    let (mut fits, mut folders) = (BTreeMap::new(), Vec::new());
    let work = work(args);
    for bits in &levels {
        let Bits::Planes(planes) = bits else { continue };
        ui::note(format_args!("matrices of {planes} planes"));
        let of_level = each.iter().map(|s| (s.name.clone(), *bits)).collect();
        let options = PackOptions { bits: Bits::Exact, head: None, each: of_level, ..options.clone() };
        let level = Plan::new(&gguf, &options).with_context(|| format!("cannot pack {name}"))?;
        // A folder for each, which stays until the file is whole.
        let mut folder = work.clone().into_os_string();
        folder.push(format!("-{planes}"));
        let folder = PathBuf::from(folder);
        fits.insert(*planes, fit(source, &level, hash, &sequences, &folder, threads)?);
        folders.push(folder);
    }
    let exact = calib::exact(source, threads)?;
    let bar = Mutex::new(Some(Progress::bytes("packing", plan.source_bytes())));
    let progress = |done: u64, _total: u64| {
        if let Ok(mut bar) = bar.lock()
            && let Some(bar) = &mut *bar
        {
            bar.set(done);
        }
    };
    let measure = |file, points: &[usize]| {
        if let Ok(mut bar) = bar.lock() {
            *bar = None;
        }
        curve::measure(&exact, &file, points, threads)
            .map_err(|e| lutite_quant::Error::Refused(format!("the loss cannot be measured: {e:#}")))
    };
    let job = StackJob {
        source: &gguf,
        source_hash: hash,
        fits: &fits,
        threads,
        measure: if args.no_measure { None } else { Some(&measure) },
        progress: &progress,
        cancel: interrupt::flag(),
    };
    stack_to_file(&plan, &job, &args.out_file).map_err(|e| match e {
        _ if interrupt::requested() => Quit::Interrupted.into(),
        e => anyhow::Error::new(e).context(format!("cannot pack {name}")),
    })?;
    for folder in &folders {
        // The result is whole; what stays of the folder is a waste of space and no harm.
        let _ = calibrate::forget(folder);
    }
    let (least, all) = plan.bytes();
    ui::note(format_args!(
        "{}: {} with {} blocks, {} at the least, in {:.1} s",
        args.out_file.display(),
        ui::megabytes(all),
        plan.blocks(),
        ui::megabytes(least),
        start.elapsed().as_secs_f64(),
    ));
    Ok(())
}
