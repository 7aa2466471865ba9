//! Fitting with text: against the methods of others, and whatever happens on the way.

#[allow(dead_code, reason = "one of them is for the comparison on real models only")]
mod baselines;

use baselines::Baseline;
use lutite_kernels::isa::Isa;
use lutite_kernels::pack::ParamKind;
use lutite_models::Tokenizer;
use lutite_quant::calibrate::{self, CalibrateJob, Fits, HlqCd, Method, calibrate};
use lutite_quant::{Bits, Error, PackJob, PackOptions, Plan, pack_in_memory};
use lutite_runtime::os::map::Map;
use lutite_runtime::store::{Bytes, ModelFile};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const STORIES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/data/reference/stories260K-f32.gguf");
const TEXT: &str = include_str!("../../cli/tests/data/story.txt");

fn options(planes: usize, kind: ParamKind) -> PackOptions {
    PackOptions { bits: Bits::Planes(planes), group: 32, kind, ..PackOptions::exact() }
}

/// Calibrates the small model, until the progress has been told `stop` times.
fn run(
    method: &dyn Method,
    options: &PackOptions,
    folder: &Path,
    isa: Isa,
    threads: usize,
    stop: usize,
) -> Result<(Fits, Vec<u8>), Error> {
    let file = ModelFile::from(&Bytes::new(Map::open(STORIES).unwrap()));
    let gguf = file.gguf().unwrap();
    let plan = Plan::new(&gguf, options).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let text = tokenizer.encode(TEXT, false, false);
    let sequences = calibrate::spread(&text, tokenizer.bos(), 100, 400);
    assert_eq!(sequences.len(), 4);
    let (cancel, told) = (AtomicBool::new(false), AtomicUsize::new(0));
    let progress = |_| cancel.store(told.fetch_add(1, Ordering::Relaxed) >= stop, Ordering::Relaxed);
    let fits = calibrate(
        &plan,
        &CalibrateJob {
            source: &gguf,
            file: &file,
            name: "stories",
            sequences: &sequences,
            method,
            folder,
            isa,
            threads,
            progress: &progress,
            cancel: &cancel,
        },
    )?;
    let job = PackJob {
        source: &gguf,
        source_hash: 0,
        imatrix: None,
        fits: Some(&fits),
        threads,
        measure: None,
        progress: &|_, _| {},
        cancel: &AtomicBool::new(false),
    };
    let packed = pack_in_memory(&plan, &job).unwrap();
    Ok((fits, packed))
}

/// Geometric mean over matrices.
fn error(fits: &Fits) -> f64 {
    let errors = fits.errors().unwrap();
    // The matrices of five layers, and the head.
    assert_eq!(errors.len(), 5 * 7 + 1);
    assert_eq!(errors.last().unwrap().0, "token_embd");
    let logs: f64 = errors.iter().map(|(_, e)| f64::from(*e).ln()).sum();
    (logs / errors.len() as f64).exp()
}

#[test]
fn outputs_err_less_than_by_the_methods_of_others() {
    let isa = Isa::detect();
    let of = |method: &dyn Method, planes, kind| {
        let folder = tempfile::tempdir().unwrap();
        let options = options(planes, kind);
        error(&run(method, &options, &folder.path().join("work"), isa, 2, usize::MAX).unwrap().0)
    };
    for (planes, share) in [(2, 0.75), (3, 0.75)] {
        let [rtn, gptq, elutq] =
            [Baseline::Rtn, Baseline::Gptq, Baseline::Elutq].map(|b| of(&b, planes, ParamKind::Hlq16));
        let ours = [ParamKind::Hlq16, ParamKind::Hlq8].map(|kind| of(&HlqCd::default(), planes, kind));
        let all = format!("{planes} planes: {ours:?} against {rtn} {gptq} {elutq}");
        assert!(ours.iter().all(|ours| *ours < share * elutq.min(gptq)) && gptq < rtn, "{all}");
    }
}

#[test]
fn threads_and_interruptions_change_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let isa = Isa::detect();
    let options = options(2, ParamKind::Hlq8);
    let work = folder.path().join("work");
    let method = HlqCd::default();
    let whole = run(&method, &options, &work, isa, 1, usize::MAX).unwrap().1;
    calibrate::forget(&work).unwrap();
    assert!(!work.exists());
    assert_eq!(run(&method, &options, &work, isa, 3, usize::MAX).unwrap().1, whole);
    calibrate::forget(&work).unwrap();
    // A matrix or two at a time: no layer would ever be finished, but for the last matrices of one.
    for stop in [3, 7, 9, 20] {
        let stopped = run(&method, &options, &work, isa, 2, stop);
        assert!(matches!(stopped, Err(Error::Interrupted)), "{stop}");
    }
    assert!(work.join("layer.1.gguf").exists());
    assert_eq!(run(&method, &options, &work, isa, 2, usize::MAX).unwrap().1, whole);
    // Once more, from what is all there; and from what is damaged.
    assert_eq!(run(&method, &options, &work, isa, 2, usize::MAX).unwrap().1, whole);
    let hurt = |damage: &str| {
        let file = work.join(damage);
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes).unwrap();
    };
    for damage in ["layer.2.gguf", "layer.5.gguf", "layer.4.gguf"] {
        hurt(damage);
        assert_eq!(run(&method, &options, &work, isa, 2, usize::MAX).unwrap().1, whole, "{damage}");
    }
    // Without the head, to which the layers' outputs go and which is the last to need them.
    let layers = PackOptions { head: Some(Bits::Exact), ..options.clone() };
    let without = run(&method, &layers, &work, isa, 2, usize::MAX).unwrap().1;
    assert!(!work.join("layer.5.gguf").exists() && work.join("layer.4.gguf").exists());
    for damage in ["x.5", "reference-x.5"] {
        hurt(damage);
        assert_eq!(run(&method, &layers, &work, isa, 2, usize::MAX).unwrap().1, without, "{damage}");
    }
    // Of another job nothing is used.
    let other = PackOptions { bits: Bits::Planes(3), ..options };
    let found = run(&method, &other, &work, isa, 2, usize::MAX).unwrap().1;
    calibrate::forget(&work).unwrap();
    assert_eq!(run(&method, &other, &work, isa, 2, usize::MAX).unwrap().1, found);
    assert_ne!(found, whole);
}

#[test]
fn importance_is_the_mean_square_of_inputs() {
    let file = ModelFile::from(&Bytes::new(Map::open(STORIES).unwrap()));
    let gguf = file.gguf().unwrap();
    // Longer than the parts that go through a layer together.
    let sequences = [(1..150).collect::<Vec<u32>>(), vec![7], (200..280).collect()];
    let of = |threads| {
        let never = AtomicBool::new(false);
        calibrate::importance(&gguf, &file, &sequences, Isa::detect(), threads, &never).unwrap()
    };
    let found = of(2);
    assert_eq!(found, of(1));
    assert_eq!(found.tensors().len(), 5 * 7 + 2);
    // What goes into the first layer is the norm of the tokens' vectors.
    let f32s = |name: &str| -> Vec<f32> {
        let data = gguf.require(name).unwrap().data;
        data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let (table, weight) = (f32s("token_embd.weight"), f32s("blk.0.attn_norm.weight"));
    let mut expected = vec![0.0f64; weight.len()];
    let tokens: Vec<u32> = sequences.concat();
    for token in &tokens {
        let x = &table[*token as usize * weight.len()..][..weight.len()];
        let mean: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / weight.len() as f64;
        for ((e, x), w) in expected.iter_mut().zip(x).zip(&weight) {
            *e += (f64::from(*x) * f64::from(*w)).powi(2) / (mean + 1e-5) / tokens.len() as f64;
        }
    }
    for part in ["attn_q", "attn_k", "attn_v"] {
        let found = found.importance(&format!("blk.0.{part}.weight")).unwrap();
        assert!(found.iter().zip(&expected).all(|(f, e)| (f64::from(*f) / e - 1.0).abs() < 1e-4), "{part}");
    }
    // Normed inputs have a mean square of 1, but for the norm's weights.
    let (head, weight) = (found.importance("token_embd.weight").unwrap(), f32s("output_norm.weight"));
    let mean = head.iter().zip(&weight).map(|(x, w)| x / (w * w)).sum::<f32>() / weight.len() as f32;
    assert!((mean - 1.0).abs() < 1e-3, "{mean}");
    // Later ones are no copies of it.
    assert_ne!(found.importance("blk.4.attn_q.weight"), found.importance("blk.0.attn_q.weight"));
    assert_eq!(found.importance("blk.4.ffn_up.weight"), found.importance("blk.4.ffn_gate.weight"));
}

#[test]
fn a_folder_of_something_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("letter.txt"), "dear").unwrap();
    let options = options(2, ParamKind::Hlq8);
    let refused = run(&HlqCd::default(), &options, folder.path(), Isa::detect(), 1, usize::MAX).map(|_| ());
    assert!(refused.unwrap_err().to_string().contains("nothing that a calibration left"));
    assert_eq!(fs::read_to_string(folder.path().join("letter.txt")).unwrap(), "dear");
}

#[test]
fn tiers_change_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let packed = |isa: Isa| {
        let work = folder.path().join(isa.name());
        run(&HlqCd::default(), &options(2, ParamKind::Hlq8), &work, isa, 2, usize::MAX).unwrap().1
    };
    let first = packed(Isa::scalar());
    assert!(Isa::available().into_iter().all(|isa| packed(isa) == first));
}

#[test]
fn parts_of_a_text_are_spread_over_it() {
    let text: Vec<u32> = (0..1000).collect();
    let parts = calibrate::spread(&text, Some(7), 11, 44);
    assert_eq!(parts.len(), 4);
    assert!(parts.iter().all(|p| p.len() == 11 && p[0] == 7 && p[1..].is_sorted_by(|a, b| a + 1 == *b)));
    assert_eq!((parts[0][1], parts[3][10]), (0, 999));
    assert_eq!(calibrate::spread(&text, None, 400, 4000).len(), 2);
    assert_eq!(calibrate::spread(&text[..5], None, 10, 40).len(), 0);
    assert_eq!(calibrate::spread(&[], Some(1), 1, 40).len(), 0);
}
