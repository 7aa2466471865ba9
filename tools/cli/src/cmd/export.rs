//! `lutite export`: an ordinary GGUF file, for other programs.

use crate::args::{self, ExportArgs};
use crate::judge::loss;
use crate::ui::{self, Progress, Quit};
use crate::{interrupt, load};
use anyhow::Context;
use lutite_quant::{Error, Export, FloatType};
use std::time::Instant;

pub(crate) fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let source = load::find(&args.source)?;
    if load::is_packed(&source)? {
        // In the result nothing would show what was damaged here.
        load::verify(&source, load::threads(None))?;
    }
    let (name, out) = (source.path.display(), args.out.display());
    let gguf = load::gguf(&source)?;
    let (ty, called) = match args.float_type {
        args::FloatType::F16 => (FloatType::F16, "F16"),
        args::FloatType::F32 => (FloatType::F32, "F32"),
    };
    let export = Export::new(&gguf, ty).with_context(|| format!("cannot export {name}"))?;
    loss::tell(&source)?;
    let start = Instant::now();
    let label = format!("exporting {}", source.path.file_name().unwrap_or_default().to_string_lossy());
    let mut bar = Progress::bytes(&label, export.bytes());
    let written = export.to_file(&args.out, &mut |done| bar.set(done), interrupt::flag());
    drop(bar);
    written.map_err(|e| match e {
        Error::Interrupted => Quit::Interrupted.into(),
        // Reading is no I/O but paging.
        Error::Runtime(e) => anyhow::Error::new(e).context(format!("cannot write {out}; name another place")),
        e => anyhow::Error::new(e).context(format!("cannot export {name}")),
    })?;
    ui::note(format_args!(
        "{out}: {}, {} packed matrices as {called}, {} tensors copied, in {:.1} s",
        ui::megabytes(export.bytes()),
        export.dequantized(),
        export.copied(),
        start.elapsed().as_secs_f64(),
    ));
    Ok(())
}
