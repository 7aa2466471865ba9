//! `lutite trim`: the first part of a stacked file.

use crate::args::TrimArgs;
use crate::{load, ui};
use anyhow::Context;
use lutite_runtime::store::Directory;

pub(crate) fn trim(args: &TrimArgs) -> anyhow::Result<()> {
    let source = load::at(args.file.clone())?;
    let name = args.file.display();
    // A part of a damaged file would have checksums that say that it is whole.
    load::verify(&source, load::threads(None))?;
    let gguf = load::gguf(&source)?;
    let trimmed = lutite_quant::trim(&gguf, args.size.0, &args.out_file)
        .with_context(|| format!("cannot trim {name} to {}", ui::megabytes(args.size.0)))?;
    let all = Directory::base(&gguf)?.stack().blocks().len();
    ui::note(format_args!(
        "{}: {} of {all} blocks, {}",
        args.out_file.display(),
        trimmed.blocks,
        ui::megabytes(trimmed.bytes)
    ));
    Ok(())
}
