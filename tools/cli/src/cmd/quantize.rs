//! `lutite quantize`: a packed file under a name of one's own.

use crate::args::{Params, QuantizeArgs};
use crate::cache::{self, Packing};
use crate::judge::loss;
use crate::{load, ui};
use anyhow::Context;
use lutite_kernels::pack::ParamKind;
use lutite_quant::{Imatrix, PackOptions, Plan};
use lutite_runtime::os::map::Map;
use std::time::Instant;

pub(crate) fn quantize(args: &QuantizeArgs) -> anyhow::Result<()> {
    let source = load::find(&args.source)?;
    let options = PackOptions {
        bits: load::bits(args.bits),
        head: args.head_bits.map(load::bits),
        group: args.group as usize,
        kind: match args.params {
            Params::Hlq8 => ParamKind::Hlq8,
            Params::Hlq16 => ParamKind::Hlq16,
        },
    };
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
    let plan =
        Plan::new(&gguf, &options).with_context(|| format!("cannot pack {}", source.path.display()))?;
    let start = Instant::now();
    let packing = Packing {
        source: &source.path,
        gguf: &gguf,
        hash: cache::hash(&source.file)?,
        imatrix: imatrix.as_ref(),
        measure: (!args.no_measure).then_some(&source.file),
        threads: load::threads(args.threads),
        way_out: "name another place with -o",
    };
    cache::pack(&packing, &plan, Some(&args.out_file))?;
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
