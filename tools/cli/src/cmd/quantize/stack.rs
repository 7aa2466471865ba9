//! `lutite quantize --stack`: one file for all sizes.

use super::{fit, text, work};
use crate::args::{self, QuantizeArgs};
use crate::cache::{self, Packing};
use crate::judge::curve::Judge;
use crate::load::{self, Source};
use crate::ui::{self, Quit};
use crate::{calib, interrupt};
use anyhow::Context;
use lutite_quant::rank::rank;
use lutite_quant::stack::{self, Measure, StackJob, Stacked, stack_to_file};
use lutite_quant::{Bits, Opened, PackOptions, Plan, calibrate};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

pub(super) fn quantize(
    args: &QuantizeArgs,
    source: &Source,
    options: &PackOptions,
    levels: &args::Levels,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let threads = load::threads(args.threads);
    let hash = cache::hash(source.file.chunks())?;
    let levels: Vec<Bits> = levels.0.iter().map(|bits| load::bits(*bits)).collect();
    // What cannot be planned is said before anything is computed.
    for bits in &levels {
        let name = source.path.display();
        Plan::new(&load::gguf(source)?, &all(options, *bits))
            .with_context(|| format!("cannot pack {name}"))?;
    }
    let sequences = text(args, source)?;
    let exact = calib::exact(source, threads)?;
    let work = work(args);
    let mut packed = Vec::new();
    for bits in &levels {
        packed.push(match bits {
            Bits::Exact => exact.clone(),
            Bits::Planes(planes) => {
                ui::note(format_args!("{planes} planes"));
                level(source, hash, &all(options, *bits), &sequences, &beside(&work, *planes, ""), threads)?
            }
        });
    }
    let ggufs = packed.iter().map(load::gguf).collect::<anyhow::Result<Vec<_>>>()?;
    let opened: Vec<Opened<'_>> =
        packed.iter().zip(&ggufs).map(|(source, gguf)| Opened { gguf, file: &source.file }).collect();
    let parts = stack::parts(opened[0])?;
    // A level without some of its matrices packed is found out before it is measured.
    for level in &opened {
        parts.iter().try_for_each(|part| stack::bytes(*level, part).map(|_| ()))?;
    }
    let judge = Judge::new(&exact, threads)?;
    let stacked = write(args, judge, &exact, (&opened, &parts), &tag(&levels, options), hash)?;
    drop(opened);
    drop(ggufs);
    drop(packed);
    for bits in &levels {
        if let Bits::Planes(planes) = bits {
            // The result is whole; what stays is a waste of space and no harm.
            let _ = std::fs::remove_file(beside(&work, *planes, ".gguf"));
            let _ = calibrate::forget(&beside(&work, *planes, ""));
        }
    }
    tell(args, stacked, start);
    Ok(())
}

/// Writes a stack of a model at each level and what comes up together, in an order and with a curve that `judge` measures.
pub(super) fn write(
    args: &QuantizeArgs,
    mut judge: Judge,
    exact: &Source,
    (levels, parts): (&[Opened<'_>], &[Vec<String>]),
    tag: &str,
    source_hash: u64,
) -> anyhow::Result<Stacked> {
    let gguf = load::gguf(exact)?;
    let order = rank(&judge.costs(Opened { gguf: &gguf, file: &exact.file }, levels, parts)?);
    let judge = Mutex::new(judge);
    let measure = |file, points: &[usize]| {
        let mut judge = judge.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        judge
            .curve(&file, points)
            .map_err(|e| lutite_quant::Error::Refused(format!("the loss cannot be measured: {e:#}")))
    };
    let measure: &Measure<'_> = &measure;
    let job = StackJob {
        levels,
        parts,
        order: &order,
        tag,
        source_hash,
        measure: (!args.no_measure).then_some(measure),
        cancel: interrupt::flag(),
    };
    stack_to_file(&job, &args.out_file).map_err(|e| match e {
        _ if interrupt::requested() => Quit::Interrupted.into(),
        e => anyhow::Error::new(e).context(format!("cannot write {}", args.out_file.display())),
    })
}

/// Says what was written.
pub(super) fn tell(args: &QuantizeArgs, stacked: Stacked, start: Instant) {
    ui::note(format_args!(
        "{}: {} with {} blocks, {} without, in {:.1} s",
        args.out_file.display(),
        ui::megabytes(stacked.all),
        stacked.blocks,
        ui::megabytes(stacked.least),
        start.elapsed().as_secs_f64(),
    ));
}

/// The whole model at a level.
fn all(options: &PackOptions, bits: Bits) -> PackOptions {
    PackOptions { bits, head: Some(bits), ..options.clone() }
}

/// A path of a level.
fn beside(work: &Path, planes: usize, end: &str) -> PathBuf {
    let mut name = work.to_owned().into_os_string();
    name.push(format!("-{planes}{end}"));
    name.into()
}

/// Fits and packs a level in the work folder `folder`, and beside it.
pub(super) fn level(
    source: &Source,
    hash: u64,
    options: &PackOptions,
    sequences: &[Vec<u32>],
    folder: &Path,
    threads: usize,
) -> anyhow::Result<Source> {
    let gguf = load::gguf(source)?;
    let plan = Plan::new(&gguf, options)?;
    let fits = fit(source, &plan, hash, sequences, folder, threads)?;
    let packing = Packing {
        source: &source.path,
        gguf: &gguf,
        hash,
        imatrix: None,
        fits: Some(&fits),
        measure: None,
        accept: &|_| Ok(()),
        threads,
        way_out: "name another place with -o or --work",
    };
    let mut path = folder.to_owned().into_os_string();
    path.push(".gguf");
    let path = PathBuf::from(path);
    cache::pack(&packing, &plan, Some(&path))?;
    load::at(path)
}

/// The options in one word: `stack-2-3-4-exact-g64-hlq8`.
fn tag(levels: &[Bits], options: &PackOptions) -> String {
    let level = |bits: &Bits| match bits {
        Bits::Exact => "exact".to_owned(),
        Bits::Planes(planes) => planes.to_string(),
    };
    let levels: Vec<String> = levels.iter().map(level).collect();
    format!("stack-{}-g{}-{}-cd", levels.join("-"), options.group, options.kind.name())
}
