//! `lutite quantize --bitstack`, of a folder that is BitStack's checkpoint: its levels as a stacked file.

use super::stack::tell;
use crate::args::{QuantizeArgs, SignLevels};
use crate::folder::Folder;
use crate::ui::{self, Progress, Quit};
use crate::{cache, interrupt, load};
use anyhow::{Context, bail};
use lutite_models::config::Config;
use lutite_quant::bitstack::{ImportJob, import_to_file};
use std::cell::RefCell;
use std::path::Path;
use std::time::Instant;

pub(super) fn quantize(args: &QuantizeArgs, path: &Path, wanted: SignLevels) -> anyhow::Result<()> {
    let start = Instant::now();
    let name = path.display();
    let SignLevels { least: None, levels, rank: None } = wanted else {
        bail!(
            "{name} is BitStack's checkpoint, which says itself what is least and has ranks of its own; \
             say with --bitstack how many levels to take, or `all`"
        );
    };
    if args.calib.is_some() {
        bail!("{name} is BitStack's checkpoint, whose levels are taken as they are; leave --calib out");
    }
    let context = || format!("cannot read the checkpoint {name}");
    let mut folder = Folder::new(path)?;
    let (rest, checkpoint) = folder.checkpoint(levels).with_context(context)?;
    let gguf = rest.gguf().with_context(context)?;
    // Before anything is read through.
    Config::read(&gguf).with_context(context)?;
    let source_hash = cache::hash(folder.bytes())?;
    let bar = RefCell::new(None);
    let progress = |done: u64, total: u64| {
        let mut bar = bar.borrow_mut();
        bar.get_or_insert_with(|| Progress::bytes("writing levels", total)).set(done);
    };
    let job = ImportJob {
        checkpoint: &checkpoint,
        rest: &gguf,
        source_hash,
        threads: load::threads(args.threads),
        progress: &progress,
        cancel: interrupt::flag(),
    };
    let stacked = import_to_file(&job, &args.out_file).map_err(|e| match e {
        _ if interrupt::requested() => Quit::Interrupted.into(),
        e => anyhow::Error::new(e).context(format!("cannot make {} of {name}", args.out_file.display())),
    })?;
    drop(bar);
    tell(args, stacked, start);
    ui::note("what its levels lost is not known: the model that they were taken off is not there");
    Ok(())
}
