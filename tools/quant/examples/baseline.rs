//! Packs a model by a method of others, to be judged beside ours, and prints the relative error of each matrix' outputs:
//!
//!     cargo run --release -p lutite-quant --example baseline -- \
//!         elutq|gptq|rtn|cd|cd0|both MODEL.gguf OUT.gguf BITS GROUP TEXT TOKENS
//!
//! Parameters are f16, or int8 for ours: cd, and cd0, whose targets are not moved. Matrices of layers only; everything else
//! stays as it is in the source. `both` is cd0, and prints beside the error of each of its matrices that of elutq with
//! groups twice as long, which takes as many bits: for the same weights and the same inputs.

#[path = "../tests/baselines/mod.rs"]
mod baselines;

use baselines::Baseline;
use lutite_kernels::isa::Isa;
use lutite_kernels::pack::ParamKind;
use lutite_models::Tokenizer;
use lutite_quant::als::FitSpec;
use lutite_quant::calibrate::{self, Method, Target, calibrate};
use lutite_quant::cd::Calibrated;
use lutite_quant::gram::Gram;
use lutite_quant::{Bits, CalibrateJob, HlqCd, PackJob, PackOptions, Plan, pack_to_file};
use lutite_runtime::os::map::Map;
use lutite_runtime::store::{Bytes, ModelFile};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

/// Ours, with elutq fitted to the same on the side.
#[derive(Default)]
struct Both {
    /// Its relative errors, in the order of fitting.
    others: Mutex<Vec<f64>>,
}

impl Method for &Both {
    fn name(&self) -> String {
        "both".into()
    }

    fn fit(&self, isa: Isa, gram: &Gram, targets: &[Target<'_>]) -> lutite_quant::Result<Vec<Calibrated>> {
        let mut longer = targets.to_vec();
        for t in &mut longer {
            t.spec = FitSpec { group: 2 * t.spec.group, kind: ParamKind::Hlq16, ..t.spec };
        }
        let other = Baseline::Elutq.fit(isa, gram, &longer)?;
        if let Ok(mut others) = self.others.lock() {
            others.extend(other.iter().map(|fit| fit.error / fit.whole));
        }
        HlqCd { shift: 0 }.fit(isa, gram, targets)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [method, model, out, bits, group, text, tokens] = args.as_slice() else {
        return Err("usage: baseline elutq|gptq|rtn|cd|cd0|both MODEL OUT BITS GROUP TEXT TOKENS".into());
    };
    let both = Both::default();
    let (method, kind): (Box<dyn Method + '_>, _) = match method.as_str() {
        "elutq" => (Box::new(Baseline::Elutq), ParamKind::Hlq16),
        "gptq" => (Box::new(Baseline::Gptq), ParamKind::Hlq16),
        "rtn" => (Box::new(Baseline::Rtn), ParamKind::Hlq16),
        "cd" => (Box::new(HlqCd::default()), ParamKind::Hlq8),
        "cd0" => (Box::new(HlqCd { shift: 0 }), ParamKind::Hlq8),
        "both" => (Box::new(&both), ParamKind::Hlq8),
        other => return Err(format!("no method {other}").into()),
    };
    let file = ModelFile::from(&Bytes::new(Map::open(Path::new(model))?));
    let gguf = file.gguf()?;
    let options = PackOptions {
        bits: Bits::Planes(bits.parse()?),
        head: Some(Bits::Exact),
        group: group.parse()?,
        kind,
        ..PackOptions::exact()
    };
    let plan = Plan::new(&gguf, &options)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let all = tokenizer.encode(&std::fs::read_to_string(text)?, false, false);
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let sequences = calibrate::spread(&all, bos, calibrate::LENGTH, tokens.parse()?);
    let folder = format!("{out}.work");
    let threads = std::thread::available_parallelism()?.get();
    let cancel = AtomicBool::new(false);
    let fits = calibrate(
        &plan,
        &CalibrateJob {
            source: &gguf,
            file: &file,
            name: model,
            sequences: &sequences,
            method: &*method,
            folder: Path::new(&folder),
            isa: Isa::from_env()?,
            threads,
            progress: &|p| eprintln!("{} of {} weights", p.done, p.total),
            cancel: &cancel,
        },
    )?;
    let others = both.others.lock().map_err(|e| e.to_string())?;
    // Logarithms of ours over elutq's, by kind of matrix.
    let mut ratios: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (i, (name, error)) in fits.errors()?.into_iter().enumerate() {
        let Some(other) = others.get(i) else {
            println!("{name} {error}");
            continue;
        };
        println!("{name} {error} {other}");
        let ratio = (f64::from(error) / other).ln();
        for kind in [name.rsplit('.').next().unwrap_or(&name), "all"] {
            ratios.entry(kind.to_owned()).or_default().push(ratio);
        }
    }
    for (kind, ratios) in &ratios {
        let mean = (ratios.iter().sum::<f64>() / ratios.len() as f64).exp();
        eprintln!("{kind}: {mean:.4} of elutq's error, geometric mean over {} matrices", ratios.len());
    }
    let job = PackJob {
        source: &gguf,
        source_hash: 0,
        imatrix: None,
        fits: Some(&fits),
        threads,
        measure: None,
        progress: &|_, _| {},
        cancel: &cancel,
    };
    pack_to_file(&plan, &job, Path::new(out))?;
    calibrate::forget(Path::new(&folder))?;
    Ok(())
}
