//! A stacked model whose budget changes at random while it writes.
//!
//!     cargo bench -p lutite-benches --bench residency -- FILE [CHANGES [TOKENS [SEED]]]      default: 1000 5000 1
//!
//! One session writes tokens undisturbed, then another one, and meanwhile its budget goes up and down between what the least
//! weights need and what all do. Printed are the times of a token in both, memory against the budget in force, what was read,
//! and whether the logits in the end are those of a fresh session.

use lutite_kernels::isa::Isa;
use lutite_models::open::open;
use lutite_models::{Budget, Model, OpenOptions};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::os::file::DataFile;
use lutite_runtime::os::map::Map;
use lutite_runtime::os::memory;
use lutite_runtime::store::{Bytes, ModelFile};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Positions of a text; then the next one begins.
const LENGTH: usize = 128;

/// Longer than any change takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the system may take beyond what is counted: pages of the file's head, stacks, the allocator's slack.
const SLACK_BYTES: u64 = 8 << 20;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let Some(path) = args.next() else {
        println!("no file was named: nothing is measured");
        return;
    };
    let mut number = |or: u64| args.next().map_or(or, |n| n.parse().expect("a number"));
    let (changes, tokens, seed) = (number(1000), number(5000) as usize, number(1));
    let file = ModelFile::from(&Bytes::new(Map::open(&path).expect("a file")));
    let data = Arc::new(DataFile::open(Path::new(&path)).expect("a file"));
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    let base = memory::resident().map_or(0, |r| r.now_bytes);
    let session = |bytes| {
        let budget = Budget { bytes, file: data.clone(), at_once: false };
        let options = OpenOptions {
            workers,
            context: Some(LENGTH),
            batch: 1,
            budget: Some(budget),
            ..OpenOptions::new(Isa::from_env().expect("a tier"))
        };
        open(&file, &options).expect("a stacked model")
    };
    let mut quiet = session(u64::MAX >> 1);
    let mut calm = times(&mut quiet, tokens, |_, _| {});
    let expected = last(&mut quiet);
    drop(quiet);

    let mut model = session(u64::MAX >> 1);
    let stack = model.residency().expect("a stacked file");
    let rest = model.rest_bytes();
    let blocks = stack.stack().blocks();
    let largest = blocks.iter().map(|b| b.bytes).max().unwrap_or(0);
    let (least, most) =
        (stack.stack().resident_bytes(0), stack.stack().resident_bytes(blocks.len()) + largest);
    let read_before = stack.account().map_or(0, |a| a.read());
    let every = (tokens as u64 / changes.max(1)).max(1);
    let (mut state, mut in_force, mut done) = (seed, None, 0);
    let (mut over, mut settled_over, mut low, mut high) = (i64::MIN, i64::MIN, u64::MAX, 0);
    let mut stormy = times(&mut model, tokens, |i, model| {
        let now = memory::resident().map_or(0, |r| r.now_bytes);
        if stack.wait(Duration::ZERO) {
            // What was allowed before a fall may be taken until it is done.
            settled_over =
                settled_over.max(in_force.map_or(i64::MIN, |bytes: u64| now as i64 - (base + bytes) as i64));
        }
        if in_force.is_some() {
            over = over.max(now as i64 - (base + rest + most) as i64);
        }
        (low, high) = (low.min(now), high.max(now));
        if (i as u64).is_multiple_of(every) && done < changes {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let bytes = rest + least + (state >> 33) % (most - least + 1);
            model.set_budget(bytes).expect("a budget above the least");
            in_force = Some(bytes);
            done += 1;
        }
    });
    let read = stack.account().map_or(0, |a| a.read()) - read_before;
    model.set_budget(u64::MAX >> 1).expect("all of it");
    assert!(stack.wait(PATIENCE), "{:?}", stack.resident());
    let equal = last(&mut model) == expected;
    let taken = stack.account().map_or(0, |a| a.now());
    drop(model);
    let left = stack.account().map_or(0, |a| a.now());

    let mb = |bytes: f64| bytes / 1e6;
    println!(
        "{path}: {} blocks, weights of {:.1} to {:.1} MB, {workers} workers",
        blocks.len(),
        mb(least as f64),
        mb((most - largest) as f64)
    );
    println!("| session | tokens | ms a token, p50 | p99 | most |");
    println!("|---|---:|---:|---:|---:|");
    for (name, times) in [("undisturbed", &mut calm), ("budget changes", &mut stormy)] {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        println!("| {name} | {} | {:.2} | {:.2} | {:.2} |", times.len(), at(0.5), at(0.99), at(1.0));
    }
    println!(
        "{done} changes; read {:.1} MB; memory of the program {:.1} to {:.1} MB",
        mb(read as f64),
        mb(low as f64),
        mb(high as f64)
    );
    println!(
        "memory above the budget once it was reached: {:.1} MB at most; above the largest budget, ever: {:.1} MB",
        mb(settled_over as f64),
        mb(over as f64)
    );
    println!(
        "weights in the end {:.1} MB, after the session {left} bytes; logits as in a fresh session: {equal}",
        mb(taken as f64)
    );
    let slack = SLACK_BYTES as i64;
    assert!(equal && left == 0 && settled_over <= slack && over <= slack, "not as it should be");
}

/// Times of single tokens; `between` is called before each.
fn times(model: &mut Model, tokens: usize, mut between: impl FnMut(usize, &Model)) -> Vec<Duration> {
    let mut times = Vec::with_capacity(tokens);
    let mut token = 1;
    for i in 0..tokens {
        if model.position() == model.context() {
            model.rewind(0);
        }
        between(i, model);
        let start = Instant::now();
        let logits = model.step(&[token], Phase::Answer, Logits::Last).expect("logits");
        times.push(start.elapsed());
        token = best(logits);
    }
    times
}

/// The logits behind a fixed text.
fn last(model: &mut Model) -> Vec<f32> {
    model.rewind(0);
    let mut logits = Vec::new();
    for token in 1..20 {
        logits = model.step(&[token], Phase::Answer, Logits::Last).expect("logits").to_vec();
    }
    logits
}

fn best(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(i, _)| i as u32)
}
