//! What is best on this machine and has no influence on results: how far ahead weights are asked for.
//!
//! `lutite doctor` measures it on a model of random weights and keeps it in `tuning.json` of the folder of models, under the
//! instruction set and the cores that it was measured on; every session reads it there. Without it, [`Ahead::default`].

use crate::args::{Bits, Synthetic};
use crate::synthetic::Recipe;
use crate::{interrupt, places};
use anyhow::Context;
use lutite_kernels::isa::Isa;
use lutite_models::{Ahead, OpenOptions, open};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::os::topology::Topology;
use lutite_runtime::store::Bytes;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Bytes that are tried.
const CANDIDATES: [usize; 5] = [1024, 2048, 4096, 8192, 16_384];

/// Each of the two layouts is measured for about this long, and at least [`ROUNDS_MIN`] times with each candidate.
const TIME: Duration = Duration::from_millis(1500);
/// See [`TIME`].
const ROUNDS_MIN: u32 = 3;
/// Tokens are timed together for this long, one at least; the fastest such time counts.
const SAMPLE: Duration = Duration::from_millis(16);
/// Most tokens of a sample.
const TOKENS: u32 = 16;

/// Another distance than the default must be faster by this factor: less is noise.
const GAIN: f64 = 1.03;

/// The distances that were measured on this machine, or the usual ones.
pub(crate) fn ahead(isa: Isa) -> Ahead {
    read(isa).unwrap_or_default()
}

fn file() -> anyhow::Result<PathBuf> {
    Ok(places::home()?.join("tuning.json"))
}

/// Under which name the distances for this machine are kept.
fn machine(isa: Isa) -> String {
    format!("{}, {}", isa.name(), Topology::read())
}

/// None where nothing was measured, or where the file is damaged: it can be made anew at any time.
fn read(isa: Isa) -> Option<Ahead> {
    let all: Value = serde_json::from_slice(&fs::read(file().ok()?).ok()?).ok()?;
    kept(&all[&machine(isa)])
}

/// What was kept of one machine, if it is what [`measure`] may have written.
fn kept(of_machine: &Value) -> Option<Ahead> {
    let of = |key: &str| {
        let bytes = usize::try_from(of_machine[key].as_u64()?).ok()?;
        CANDIDATES.contains(&bytes).then_some(bytes)
    };
    Some(Ahead { planes: of("planes")?, codes: of("codes")? })
}

/// Measures both distances and keeps them; says where.
///
/// # Errors
/// When there is no memory for the models, or no folder to keep the result in; [`crate::ui::Quit::Interrupted`] after Ctrl-C.
pub(crate) fn measure(isa: Isa, workers: usize) -> anyhow::Result<(Ahead, PathBuf)> {
    let default = Ahead::default();
    let file = file()?;
    let recipe = |bits| Recipe::new(Synthetic::SmolLm2, bits, None);
    let planes = recipe(Some(Bits::Planes(2)))?.build(workers)?;
    let planes = best(isa, workers, &planes, default.planes, |bytes| Ahead { planes: bytes, ..default })?;
    let codes = recipe(None)?.build(workers)?;
    let codes = best(isa, workers, &codes, default.codes, |bytes| Ahead { codes: bytes, ..default })?;

    let mut all = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let all = all.get_or_insert_with(|| json!({}));
    if !all.is_object() {
        *all = json!({});
    }
    let ahead = Ahead { planes, codes };
    all[machine(isa)] = to_keep(ahead);
    let write = || {
        fs::create_dir_all(file.parent().unwrap_or(&file))?;
        fs::write(&file, serde_json::to_string_pretty(all)? + "\n")
    };
    write().with_context(|| format!("cannot write {}", file.display()))?;
    Ok((ahead, file))
}

fn to_keep(ahead: Ahead) -> Value {
    json!({ "planes": ahead.planes, "codes": ahead.codes })
}

/// The candidate with which a token of `model` takes least time.
fn best(
    isa: Isa,
    workers: usize,
    model: &Bytes,
    default: usize,
    ahead: impl Fn(usize) -> Ahead,
) -> anyhow::Result<usize> {
    let mut times = [f64::INFINITY; CANDIDATES.len()];
    let begin = Instant::now();
    let mut rounds = 0;
    // Interleaved, so that what else the machine does hits all of them.
    while rounds < ROUNDS_MIN || begin.elapsed() < TIME {
        for (time, bytes) in times.iter_mut().zip(CANDIDATES) {
            interrupt::check(interrupt::flag())?;
            let options = OpenOptions {
                workers,
                context: Some(1 + TOKENS as usize),
                verify: false,
                ahead: ahead(bytes),
                ..OpenOptions::new(isa)
            };
            let mut model = open::open(model, &options)?;
            model.step(&[1], Phase::Answer, Logits::Last)?;
            let (start, mut tokens) = (Instant::now(), 0);
            while tokens == 0 || (start.elapsed() < SAMPLE && tokens < TOKENS) {
                model.step(&[tokens], Phase::Answer, Logits::Last)?;
                tokens += 1;
            }
            *time = time.min(start.elapsed().as_secs_f64() / f64::from(tokens));
        }
        rounds += 1;
    }
    Ok(fastest(&times, default))
}

fn fastest(times: &[f64; CANDIDATES.len()], default: usize) -> usize {
    let of_default =
        CANDIDATES.iter().position(|bytes| *bytes == default).map_or(f64::INFINITY, |i| times[i]);
    let (mut best, mut least) = (default, of_default / GAIN);
    for (bytes, time) in CANDIDATES.into_iter().zip(times) {
        if *time < least {
            (best, least) = (bytes, *time);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_stays_unless_another_is_clearly_faster() {
        assert_eq!(fastest(&[1.0, 1.0, 1.0, 0.98, 0.99], 4096), 4096);
        assert_eq!(fastest(&[1.0, 0.9, 1.0, 0.8, 0.85], 4096), 8192);
        assert_eq!(fastest(&[1.0, 0.9, 1.0, 0.8, 0.85], 8192), 8192);
    }

    #[test]
    fn what_is_kept_is_read_again_and_nothing_else() {
        for ahead in [Ahead::default(), Ahead { planes: 1024, codes: 16_384 }] {
            assert_eq!(kept(&to_keep(ahead)), Some(ahead));
        }
        for text in [
            "null",
            "[]",
            r#"{"planes": 4096}"#,
            r#"{"planes": 4096, "codes": 5}"#,
            r#"{"planes": -1, "codes": 4096}"#,
        ] {
            assert_eq!(kept(&serde_json::from_str(text).unwrap()), None, "{text}");
        }
    }
}
