//! A stacked model whose weights come and go.
//!
//!     cargo bench -p lutite-benches --bench residency -- FILE [CHANGES [TOKENS [SEED]]]      default: 1000 5000 1
//!
//! 1. *Start*: from opening the file to the first token with the least weights, which others then join, beside reading that part of
//!    the file in order; both from the disk, where the system lets go of the file.
//! 2. *Budgets*: one session writes tokens undisturbed, then another one, and meanwhile its budget goes up and down at random between
//!    what the least weights need and what all do. Printed are the times of a token in both, memory against the budget in force, what
//!    was read, and whether the logits in the end are those of a fresh session.
//! 3. *Rise*: from the least weights to all, beside reading as many bytes in order; from the page cache and, where the system
//!    lets go of the file, from the disk.
//! 4. *Speed*: a token with the first so many blocks, read into memory of their own, beside the same file cut off there and mapped.

use lutite_kernels::isa::Isa;
use lutite_models::open::open;
use lutite_models::{Budget, Model, OpenOptions};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::os::file::DataFile;
use lutite_runtime::os::map::Map;
use lutite_runtime::os::memory;
use lutite_runtime::store::{Bytes, ModelFile};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Positions of a text; then the next one begins.
const LENGTH: usize = 128;

/// Measurements of which the median counts.
const ROUNDS: usize = 5;

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
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    // First, since no page of the file is in use yet.
    start(Path::new(&path), workers);
    let file = ModelFile::from(&Bytes::new(Map::open(&path).expect("a file")));
    let session = |bytes| budgeted(Path::new(&path), &file, bytes, false, workers);
    budgets(&path, &session, workers, (changes, tokens, seed));
    // Last, since they look at pages of the map, which then count as this program's memory.
    rise(Path::new(&path), &session(u64::MAX >> 1));
    speed(&file, &mut session(u64::MAX >> 1), workers);
}

/// A session undisturbed, and one whose budget changes.
fn budgets(
    path: &str,
    session: &dyn Fn(u64) -> Model,
    workers: usize,
    (changes, tokens, seed): (u64, usize, u64),
) {
    let mut quiet = session(u64::MAX >> 1);
    let mut calm = times(&mut quiet, tokens, |_, _| {});
    let expected = last(&mut quiet);
    drop(quiet);
    // What the program takes without a model, its code and the file's head included.
    let base = memory::resident().map_or(0, |r| r.now_bytes);

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
        let settled = stack.wait(Duration::ZERO);
        let now = memory::resident().map_or(0, |r| r.now_bytes);
        if settled {
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

fn options(workers: usize) -> OpenOptions {
    let isa = Isa::from_env().expect("a tier");
    OpenOptions { workers, context: Some(LENGTH), batch: 1, ..OpenOptions::new(isa) }
}

/// A session with so many bytes.
fn budgeted(path: &Path, file: &ModelFile, bytes: u64, at_once: bool, workers: usize) -> Model {
    let data = Arc::new(DataFile::open(path).expect("a file"));
    let budget = Budget { bytes, bound: "the benchmark".into(), file: data, at_once };
    open(file, &OpenOptions { budget: Some(budget), ..options(workers) }).expect("a stacked model")
}

/// From opening the file to the first token.
fn start(path: &Path, workers: usize) {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        evict(path, true);
        let start = Instant::now();
        let file = ModelFile::from(&Bytes::new(Map::open(path).expect("a file")));
        let mut model = budgeted(path, &file, u64::MAX >> 1, true, workers);
        model.step(&[1], Phase::Prompt, Logits::Last).expect("a token");
        let written = start.elapsed().as_secs_f64();
        let stack = model.residency().expect("a stacked file");
        let bytes = stack.stack().file_bytes(0);
        // A page that is mapped is not forgotten.
        drop((model, file));
        evict(path, true);
        let start = Instant::now();
        let mut least = File::open(path).expect("a file").take(bytes);
        std::io::copy(&mut least, &mut std::io::sink()).expect("bytes");
        let read = start.elapsed().as_secs_f64();
        rounds.push((written / read, written, read, bytes));
    }
    rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (ratio, written, read, bytes) = rounds[ROUNDS / 2];
    println!("| least part of the file, MB | to the first token, ms | reading it in order, ms | ratio |");
    println!("|---:|---:|---:|---:|");
    let (written, read, bytes) = (written * 1e3, read * 1e3, bytes as f64 / 1e6);
    println!("| {bytes:.1} | {written:.1} | {read:.1} | {ratio:.2} |");
}

/// Tokens with some prefixes, in turn with the same file cut off there: what else the machine does hits both.
fn speed(file: &ModelFile, model: &mut Model, workers: usize) {
    println!("| blocks | weights, MB | ms a token, read | mapped file that ends there | ratio |");
    println!("|---:|---:|---:|---:|---:|");
    let handle = model.residency().expect("a stacked file");
    let (stack, all) = (handle.stack(), handle.stack().blocks().len());
    for blocks in [0, all / 3, 2 * all / 3, all] {
        let end = stack.file_bytes(blocks) as usize;
        let cut = file.whole().and_then(|whole| whole.range(0..end)).expect("one file");
        let mut mapped = open(ModelFile::from(&cut), &options(workers)).expect("a smaller model");
        handle.set_blocks(blocks);
        assert!(handle.wait(PATIENCE), "{:?}", handle.resident());
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            here.extend(times(model, LENGTH / 2, |_, _| {}));
            there.extend(times(&mut mapped, LENGTH / 2, |_, _| {}));
        }
        let median = |times: &mut Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64() * 1e3
        };
        let (here, there) = (median(&mut here), median(&mut there));
        let mb = stack.resident_bytes(blocks) as f64 / 1e6;
        println!("| {blocks} | {mb:.1} | {here:.2} | {there:.2} | {:.3} |", here / there);
    }
}

/// From the least to all, from the page cache and from the disk.
fn rise(path: &Path, model: &Model) {
    let handle = model.residency().expect("a stacked file");
    let all = handle.stack().blocks().len();
    let to = |blocks| {
        let start = Instant::now();
        handle.set_blocks(blocks);
        assert!(handle.wait(PATIENCE), "{:?}", handle.resident());
        start.elapsed().as_secs_f64()
    };
    let read = || handle.account().map_or(0, |account| account.read());
    println!("| from | bytes read, MB | rise, ms | as many read in order, ms | ratio |");
    println!("|---|---:|---:|---:|---:|");
    for (name, cold) in [("page cache", false), ("disk", true)] {
        let mut ratios = Vec::new();
        for _ in 0..ROUNDS {
            to(0);
            evict(path, cold);
            let before = read();
            let risen = to(all);
            let bytes = read() - before;
            evict(path, cold);
            let plain = plain_read(path, bytes);
            ratios.push((risen / plain, risen, plain, bytes));
        }
        ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ratio, risen, plain, bytes) = ratios[ROUNDS / 2];
        println!(
            "| {name} | {:.1} | {:.1} | {:.1} | {ratio:.2} |",
            bytes as f64 / 1e6,
            risen * 1e3,
            plain * 1e3
        );
    }
}

/// Lets the system forget what it keeps of the file.
fn evict(path: &Path, wanted: bool) {
    if wanted {
        let file = File::open(path).expect("a file");
        file.sync_all().expect("a disk");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("a system that forgets");
    }
}

/// Seconds to read so many bytes, the last of the file, one after the other.
fn plain_read(path: &Path, bytes: u64) -> f64 {
    let mut file = File::open(path).expect("a file");
    let start = Instant::now();
    file.seek(SeekFrom::End(-(bytes as i64))).expect("a place");
    std::io::copy(&mut file, &mut std::io::sink()).expect("bytes");
    start.elapsed().as_secs_f64()
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
