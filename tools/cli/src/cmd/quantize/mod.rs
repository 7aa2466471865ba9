//! `lutite quantize`: a packed file under a name of one's own.

mod checkpoint;
mod levels;
mod stack;

use crate::args::{Method, Params, QuantizeArgs};
use crate::cache::{self, Packing};
use crate::judge::loss;
use crate::judge::sensitivity::{self, Probe};
use crate::load::Source;
use crate::ui::{Progress, Quit};
use crate::{calib, folder, interrupt, load, pull, ui};
use anyhow::Context;
use lutite_kernels::isa::Isa;
use lutite_kernels::pack::ParamKind;
use lutite_models::config::Config;
use lutite_quant::allocate::{Allocation, PROXY_PLANES, Sensitivity, Size, allocate};
use lutite_quant::calibrate::Method as _;
use lutite_quant::{Bits, CalibrateJob, Fits, HlqCd, Imatrix, Loss, PackOptions, Plan, calibrate};
use lutite_runtime::os::{map::Map, memory};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

pub(crate) fn quantize(args: &QuantizeArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let path = pull::locate(&args.source, interrupt::flag())?;
    if let Some(levels) = args.bitstack
        && let Some(folder) = folder::of(&path).filter(|folder| folder::is_checkpoint(folder))
    {
        return checkpoint::quantize(args, &folder, levels);
    }
    let source = load::at(path)?;
    let options = PackOptions {
        bits: load::bits(args.bits),
        head: args.head_bits.map(load::bits),
        group: args.group as usize,
        kind: match args.params {
            Params::Hlq8 => ParamKind::Hlq8,
            Params::Hlq16 => ParamKind::Hlq16,
        },
        ..PackOptions::exact()
    };
    if let Some(levels) = args.bitstack {
        return levels::quantize(args, &source, levels);
    }
    if let Some(levels) = &args.stack {
        return stack::quantize(args, &source, &options, levels);
    }
    let imatrix = match &args.imatrix {
        None => None,
        Some(file) => {
            let context = || format!("cannot read the importance matrix {}", file.display());
            Some(
                Map::open(file)
                    .map_err(anyhow::Error::from)
                    .and_then(|m| Ok(Imatrix::read(&m)?))
                    .with_context(context)?,
            )
        }
    };
    let gguf = load::gguf(&source)?;
    let size = match (args.target_size, args.target_bpw) {
        (Some(size), _) => Some(Size::Bytes(size.0)),
        (None, bits) => bits.map(|bits| Size::BitsPerWeight(bits.0)),
    };
    let allocation = match size {
        None => None,
        Some(_) if args.method == Some(Method::Als) || imatrix.is_some() => {
            anyhow::bail!("bits are shared out for calibrated planes; leave --method als and --imatrix out")
        }
        Some(size) => Some(share(args, &source, &options, size)?),
    };
    let (options, predicted) =
        allocation.map_or((options, None), |Allocation { options, kl }| (options, Some(kl)));
    let plan =
        Plan::new(&gguf, &options).with_context(|| format!("cannot pack {}", source.path.display()))?;
    let hash = cache::hash(source.file.chunks())?;
    let method = args.method.unwrap_or(match options.bits {
        _ if args.calib.is_some() || predicted.is_some() => Method::Cd,
        Bits::Planes(1..=3) if imatrix.is_none() => Method::Cd,
        _ => Method::Als,
    });
    if method == Method::Als && args.calib.is_some() {
        anyhow::bail!("--method als does not read a text; leave --calib out, or use --method cd");
    }
    let work = work(args);
    let fits = match method {
        Method::Cd if plan.fitted().next().is_some() => {
            let sequences = text(args, &source)?;
            Some(fit(&source, &plan, hash, &sequences, &work, load::threads(args.threads))?)
        }
        _ => None,
    };
    let packing = Packing {
        source: &source.path,
        gguf: &gguf,
        hash,
        imatrix: imatrix.as_ref(),
        fits: fits.as_ref(),
        measure: (!args.no_measure).then_some(&source.file),
        accept: &|loss| match predicted {
            Some(predicted) if !args.keep => judge(loss, predicted).map_err(|why| {
                format!("{why}; --keep keeps it nevertheless (what is fitted is in {})", work.display())
            }),
            _ => Ok(()),
        },
        threads: load::threads(args.threads),
        way_out: "name another place with -o",
    };
    cache::pack(&packing, &plan, Some(&args.out_file))?;
    if fits.is_some() {
        // The result is whole; what stays of the folder is a waste of space and no harm.
        let _ = calibrate::forget(&work);
    }
    ui::note(format_args!(
        "{}: {} from {}, {:.3} bits per weight, in {:.1} s",
        args.out_file.display(),
        ui::megabytes(plan.bytes()),
        ui::megabytes(source.file.len()),
        plan.bits_per_weight(),
        start.elapsed().as_secs_f64(),
    ));
    loss::tell(&load::at(args.out_file.clone())?)
}

/// A result that lost so many times what was predicted for it is refused, beyond what kernels round.
const MUCH_WORSE: f64 = 2.0;
const ROUNDING: f64 = 2e-3;

/// Fewer tokens than these say little of a loss.
const JUDGED_TOKENS: u32 = 128;

/// Says what is wrong with a result that is much worse than predicted, by more than its measurement may be off.
fn judge(loss: &Loss, predicted: f64) -> Result<(), String> {
    if loss.tokens < JUDGED_TOKENS {
        ui::warn("too few tokens were compared to hold the loss against what was predicted");
        return Ok(());
    }
    let least = f64::from(loss.kl) - 3.0 * f64::from(loss.kl_error);
    if least <= MUCH_WORSE * predicted + ROUNDING {
        return Ok(());
    }
    Err(format!(
        "the result has a KL of {:.4} ± {:.4} where {predicted:.4} was predicted",
        loss.kl, loss.kl_error
    ))
}

/// Tokens of the calibration text that bits are shared out by.
const LOOK: usize = 2048;

/// Shares out bits, and says how.
fn share(
    args: &QuantizeArgs,
    source: &Source,
    options: &PackOptions,
    size: Size,
) -> anyhow::Result<Allocation> {
    let name = source.path.display();
    let gguf = load::gguf(source)?;
    check_memory(&Config::read(&gguf)?)?;
    let allocate = |sensitivities: &[Sensitivity]| {
        let found = allocate(&gguf, options, sensitivities, size, HlqCd::default().name().as_str());
        found.with_context(|| format!("cannot pack {name}"))
    };
    // An impossible size is said before anything is measured.
    let plan = sensitivity::few(&gguf, options).with_context(|| format!("cannot pack {name}"))?;
    allocate(&plan.fitted().map(|name| Sensitivity { name: name.to_owned(), kl: 0.0 }).collect::<Vec<_>>())?;
    let threads = load::threads(args.threads);
    let tokens = LOOK.min(args.calib_tokens.get() as usize);
    let calibration = calib::sequences(source, args.calib.as_deref(), tokens, threads)?;
    let probe = Probe::new(source, &plan, &calibration, threads)?;
    let each = probe.each(&plan)?;
    let found = allocate(&each)?;
    let (layers, head): (Vec<_>, Vec<_>) = each.iter().partition(|s| s.name.starts_with("blk."));
    let sum = |some: Vec<&Sensitivity>| some.iter().map(|s| s.kl).sum::<f64>();
    ui::note(format_args!(
        "one by one with {PROXY_PLANES} planes matrices of layers cost {:.4} together, the head {:.4}",
        sum(layers),
        sum(head)
    ));
    let mut counts = BTreeMap::new();
    for bits in found.options.each.values() {
        let planes = match bits {
            Bits::Exact => usize::MAX,
            Bits::Planes(planes) => *planes,
        };
        *counts.entry(planes).or_insert(0) += 1;
    }
    let counts = counts.into_iter().map(|(planes, count): (usize, usize)| match planes {
        usize::MAX => format!("{count} exact"),
        planes => format!("{count} with {planes}"),
    });
    ui::note(format_args!(
        "bits of matrices: {}; predicted KL {:.4}",
        counts.collect::<Vec<_>>().join(", "),
        found.kl
    ));
    Ok(found)
}

/// Whether there is memory to fit with text, and to share out bits, which needs less but for the logits.
fn check_memory(config: &Config) -> anyhow::Result<()> {
    let need = calibrate::memory_bytes(config).max(sensitivity::memory_bytes(config));
    if let Some(m) = memory::available()
        && need > m.bytes
    {
        let (need, have, by) = (need >> 20, m.bytes >> 20, m.bound_by);
        anyhow::bail!(
            "not enough memory: fitting with text needs {need} MiB, but {have} MiB are available (bound by {by}); \
             --bits with --method als needs next to none"
        );
    }
    Ok(())
}

/// The folder for what is finished.
fn work(args: &QuantizeArgs) -> PathBuf {
    args.work.clone().unwrap_or_else(|| {
        let mut name = args.out_file.clone().into_os_string();
        name.push(".work");
        name.into()
    })
}

/// The text to calibrate with.
fn text(args: &QuantizeArgs, source: &Source) -> anyhow::Result<Vec<Vec<u32>>> {
    check_memory(&Config::read(&load::gguf(source)?)?)?;
    let tokens = args.calib_tokens.get() as usize;
    calib::sequences(source, args.calib.as_deref(), tokens, load::threads(args.threads))
}

/// Fits with the inputs that matrices get from a text.
fn fit(
    source: &Source,
    plan: &Plan<'_>,
    hash: u64,
    sequences: &[Vec<u32>],
    work: &Path,
    threads: usize,
) -> anyhow::Result<Fits> {
    let gguf = load::gguf(source)?;
    // Levels aim at the weights as they are, and not at what the model made of its own inputs.
    let shift = if plan.options.levels.is_some() { 0 } else { HlqCd::default().shift };
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    let bar = Mutex::new(None);
    let progress = |p: calibrate::Progress| {
        let Ok(mut bar) = bar.lock() else { return };
        if p.resumed > 0 && bar.is_none() {
            ui::note(format_args!("going on behind {} finished layers in {}", p.resumed, work.display()));
        }
        bar.get_or_insert_with(|| Progress::share(&format!("fitting with {tokens} tokens"), p.total))
            .set(p.done);
    };
    let fits = calibrate::calibrate(
        plan,
        &CalibrateJob {
            source: &gguf,
            file: &source.file,
            name: &format!("{hash:016x}"),
            sequences,
            method: &HlqCd { shift },
            folder: work,
            isa: Isa::from_env()?,
            threads,
            progress: &progress,
            cancel: interrupt::flag(),
        },
    );
    fits.map_err(|e| match e {
        lutite_quant::Error::Interrupted => {
            ui::note(format_args!(
                "what is finished is kept in {}; the same command goes on there",
                work.display()
            ));
            Quit::Interrupted.into()
        }
        e => anyhow::Error::new(e).context(format!("cannot fit {}", source.path.display())),
    })
}
