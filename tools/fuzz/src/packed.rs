//! Model files, packed or not: checksums, configuration, weights, and some steps of the forward pass.

use crate::within;
use lutite_kernels::isa::Isa;
use lutite_models::{Model, OpenOptions, Path, open, verify};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::store::{Bytes, Gguf, Value};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// What a session may allocate beside what its file explains.
const SESSION_BYTES: usize = 4 << 20;
/// Longer than a small file takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// Weights are made up where the input ends, so that an input can be a head alone and mutations hit what is read.
const MADE_UP_BYTES: usize = 64 << 10;

/// A model file, its end made up and its checksums set right: it opens or is refused, in little memory; an open one runs,
/// on all instruction sets with equal bits.
///
/// # Panics
/// Where that does not hold.
pub fn packed(input: &[u8]) -> bool {
    let mut file = input.to_vec();
    // Small finite numbers as f32, f16 and bf16: no byte is above 0x3f.
    file.extend((0..MADE_UP_BYTES).map(|i| (i * 37 % 64) as u8));
    let small = 20 * file.len() + (256 << 10);
    // As it came. Matching checksums are unlikely; reading them must go well.
    let _ = within("verify", small, 2.0, || verify(&file, 1));
    let sealed = seal(&mut file).is_some();
    let file = Bytes::new(file);
    let config = within("check", small, 2.0, || open::check(&file));
    let mut accepted = false;
    // Prompts that need not be exact may take other ways on other instruction sets.
    for (path, exact) in [(Path::Lut, true), (Path::Lut, false), (Path::Plain, true)] {
        let runs = Isa::available().into_iter().map(|isa| {
            let options = OpenOptions {
                path,
                exact,
                context: Some(8),
                batch: 4,
                available: Some((SESSION_BYTES as u64, "the fuzz target".into())),
                verify: sealed,
                ..OpenOptions::new(isa)
            };
            within("open and run", SESSION_BYTES + small, 10.0, || run(&file, &options))
        });
        let runs: Vec<Option<Vec<u32>>> = runs.collect();
        let equal = |a: &Option<Vec<u32>>, b: &Option<Vec<u32>>| {
            if exact { a == b } else { a.is_some() == b.is_some() }
        };
        assert!(runs.windows(2).all(|pair| equal(&pair[0], &pair[1])), "tiers differ on path {path:?}");
        accepted |= runs.iter().any(Option::is_some);
    }
    assert!(!accepted || config.is_ok(), "opens, but check says {config:?}");
    accepted
}

/// The bits of all logits of a prompt and of one more token, NaN without its payload; `None` if the file was refused.
fn run(file: &Bytes, options: &OpenOptions) -> Option<Vec<u32>> {
    let mut model = match open::open(file, options) {
        Ok(model) => model,
        Err(e) => {
            assert!(!e.to_string().is_empty());
            return None;
        }
    };
    let all = steps(&mut model);
    // A stack goes down to its least and comes back.
    if let Some(stack) = model.residency() {
        for blocks in [0, stack.stack().present()] {
            stack.set_blocks(blocks);
            assert!(stack.wait(PATIENCE), "{:?}", stack.resident());
            assert_eq!(stack.resident().blocks, blocks);
            let again = steps(&mut model);
            assert!(blocks == 0 || again == all, "another answer with the same blocks");
        }
    }
    Some(all)
}

/// See [`run`].
fn steps(model: &mut Model) -> Vec<u32> {
    model.rewind(0);
    let vocab = model.vocab();
    let last = vocab as u32 - 1;
    let mut bits = Vec::new();
    let steps =
        [(&[0, last, last / 2][..], Phase::Prompt, Logits::All), (&[last][..], Phase::Answer, Logits::Last)];
    for (tokens, phase, logits) in steps {
        let rows = if logits == Logits::All { tokens.len() } else { 1 };
        let out = model.step(tokens, phase, logits).expect("tokens of the vocabulary, within the context");
        assert_eq!(out.len(), rows * vocab);
        bits.extend(out.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }));
    }
    bits
}

/// Sets the checksums right, as `docs/format.md` defines them. `None` if the file has no room for them.
fn seal(file: &mut [u8]) -> Option<()> {
    let gguf = Gguf::parse(file).ok()?;
    // The elements are borrowed from the file, so that this is their offset in it.
    let place = |key: &str, numbers: usize| match gguf.get(key) {
        Some(Value::Array(a)) if a.u64s().is_some() && a.bytes().len() == 8 * numbers => {
            Some(a.bytes().as_ptr() as usize - file.as_ptr() as usize)
        }
        _ => None,
    };
    let sums: Vec<u64> = gguf.tensors().iter().map(|t| xxh3_64(t.data)).collect();
    let (tensors, head) = (place("lutite.checksum.xxh3", sums.len())?, place("lutite.checksum.head", 1)?);
    let end = (gguf.data_offset() as usize).min(file.len());
    for (i, sum) in sums.iter().enumerate() {
        file[tensors + 8 * i..tensors + 8 * (i + 1)].copy_from_slice(&sum.to_le_bytes());
    }
    file[head..head + 8].fill(0);
    let sum = xxh3_64(&file[..end]);
    file[head..head + 8].copy_from_slice(&sum.to_le_bytes());
    Some(())
}
