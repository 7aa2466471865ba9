//! `lutite doctor`: what this machine has, what a model could reach on it, and what would be slow and why.

use crate::args::{Bits, DoctorArgs, Synthetic};
use crate::bandwidth::ReadBandwidth;
use crate::synthetic::Recipe;
use crate::ui::{self, Answer, megabytes};
use crate::{load, places, tuning};
use lutite_kernels::isa::{Features, Isa};
use lutite_models::OpenOptions;
use lutite_runtime::os::disk;
use lutite_runtime::os::memory::{self, MemoryReport};
use lutite_runtime::os::topology::Topology;
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Room in the cache folder below which the default model and its packed form do not fit.
const CACHE_ROOM_MIN: u64 = 250_000_000;

pub(crate) fn doctor(args: &DoctorArgs) -> anyhow::Result<()> {
    let topology = Topology::read();
    let workers = topology.default_workers();
    let memory = memory::available();
    let (isa, best) = (Isa::from_env()?, Isa::detect());
    ui::note("measuring how fast memory can be read");
    let buffer = ReadBandwidth::new()?;
    let bandwidth = (buffer.measure(1)?, buffer.measure(workers)?);
    drop(buffer);
    ui::note("measuring how far ahead to ask for weights");
    let ahead = match tuning::measure(isa, workers) {
        Ok((ahead, file)) => {
            json!({ "planes": ahead.planes, "codes": ahead.codes, "file": file.display().to_string() })
        }
        Err(e) if e.is::<ui::Quit>() => return Err(e),
        Err(e) => json!({ "error": format!("{e:#}") }),
    };
    // The two models whose speed people ask for first: the catalog's default, and the largest for a small
    // machine.
    let smollm2 = Recipe::new(Synthetic::SmolLm2, None, None)?.bytes_per_token();
    let seven_b = Recipe::new(Synthetic::Llama2_7b, Some(Bits::Planes(2)), Some(128))?.bytes_per_token();
    let mut reach = vec![("SmolLM2 135M".to_owned(), smollm2), ("7B at 2 bits".to_owned(), seven_b)];
    if let Some(named) = &args.model {
        reach.insert(0, (named.clone(), bytes_per_token(named, workers, isa)?));
    }
    let reach = reach.iter().map(|(model, bytes)| {
        let speed = bandwidth.1 / *bytes as f64;
        json!({ "model": model, "bytes_per_token": bytes, "tokens_per_second": speed })
    });
    let cache = cache();
    let slow = slow(&topology, isa, best, memory.as_ref(), &cache, seven_b);

    let names = |all: &Features, present: bool| {
        all.iter().filter(|(_, has)| *has == present).map(|(name, _)| *name).collect::<Vec<_>>()
    };
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "tier": {
            "name": isa.name(),
            "best": best.name(),
            "tiers": Isa::tiers().iter().map(|(name, needs)| json!({
                "name": name,
                "has": names(needs, true),
                "lacks": names(needs, false),
            })).collect::<Vec<_>>(),
            "unused": names(&Isa::unused_features(), true),
            "lutite_isa": std::env::var("LUTITE_ISA").ok(),
        },
        "cores": {
            "text": topology.to_string(),
            "classes": topology.cores.chunk_by(|a, b| a.capacity == b.capacity).map(|class| json!({
                "cores": class.len(),
                "cpus": class.iter().flat_map(|c| c.cpus.clone()).collect::<Vec<_>>(),
                "capacity": class[0].capacity,
            })).collect::<Vec<_>>(),
            "quota": topology.quota.as_ref().map(|(cpus, place)| json!({ "cpus": cpus, "set_by": place })),
            "default_workers": workers,
        },
        "memory": memory.as_ref().map(|m| json!({
            "total_bytes": m.total_bytes,
            "available_bytes": m.bytes,
            "bound_by": m.bound_by,
            "chain": m.chain.iter().map(|b| json!({ "what": b.what, "bytes": b.bytes })).collect::<Vec<_>>(),
        })),
        "control_groups": groups.lines().collect::<Vec<_>>(),
        "read_bandwidth_gb_s": { "one_thread": bandwidth.0 / 1e9, "default_threads": bandwidth.1 / 1e9 },
        "asks_ahead_bytes": ahead,
        "could_reach": reach.collect::<Vec<_>>(),
        "cache": cache,
        "slow": slow,
    });
    let text = if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        text(&report, memory.as_ref())
    };
    Answer::stdout().print(&text)
}

/// What one token of a model reads.
fn bytes_per_token(named: &str, workers: usize, isa: Isa) -> anyhow::Result<u64> {
    let source = load::find_packed(named, &load::Packing::exact(workers, false))?;
    let options = OpenOptions { workers, context: Some(1), ..OpenOptions::new(isa) };
    Ok(load::model(&source, &options)?.bytes_per_token() as u64)
}

/// The folder of models, what lies there and what still fits.
fn cache() -> Value {
    match places::home() {
        Err(e) => json!({ "error": e.to_string() }),
        Ok(folder) => {
            let (files, bytes) = usage(&folder);
            json!({
                "folder": folder.display().to_string(),
                "files": files,
                "bytes": bytes,
                "free_bytes": disk::free_bytes(&folder),
            })
        }
    }
}

/// Files below a folder, and their bytes. What cannot be read is not counted; links are not followed.
fn usage(folder: &Path) -> (u64, u64) {
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            let (f, b) = usage(&entry.path());
            files += f;
            bytes += b;
        } else if kind.is_file() {
            files += 1;
            bytes += entry.metadata().map_or(0, |m| m.len());
        }
    }
    (files, bytes)
}

/// What would be slow or fail, and what to do about it.
fn slow(
    topology: &Topology,
    isa: Isa,
    best: Isa,
    memory: Option<&MemoryReport>,
    cache: &Value,
    seven_b: u64,
) -> Vec<String> {
    let mut all = Vec::new();
    if isa.name() != best.name() {
        all.push(format!(
            "LUTITE_ISA holds this machine to the tier {}, it has {}; unset the variable",
            isa.name(),
            best.name()
        ));
    } else if best.name() == "scalar" {
        all.push("no vector instructions that this build can use: some ten times slower".to_owned());
    }
    if let Some((cpus, place)) = &topology.quota
        && *cpus < 1.0
    {
        all.push(format!(
            "less than one CPU is allowed ({cpus:.2}, {place}): all threads stand still for a part of each period; raise it"
        ));
    }
    let workers = topology.default_workers();
    if workers < topology.big_cores().len() {
        let big = topology.big_cores().len();
        all.push(format!("the CPU quota leaves {workers} of {big} cores to work with"));
    }
    let little = topology.cores.len() - topology.big_cores().len();
    if little > 0 {
        all.push(format!(
            "{little} slow cores are left out by default; with them (-t) the fast ones would wait"
        ));
    }
    let asked = std::env::var("LUTITE_THREADS").ok().and_then(|t| t.parse::<usize>().ok());
    if let Some(asked) = asked.filter(|asked| *asked > topology.cores.len()) {
        let cores = topology.cores.len();
        all.push(format!(
            "LUTITE_THREADS asks for {asked} threads on {cores} cores: they would wait for each other; at most {cores}"
        ));
    }
    if let Some(load) = load_average().filter(|load| *load > 0.5 && workers > 0) {
        all.push(format!("other programs keep {load:.1} CPUs busy (load average of the last minute)"));
    }
    if let Some(m) = memory.filter(|m| m.bytes < seven_b) {
        all.push(format!(
            "a 7B model at 2 bits needs {} and {} has {} left: its weights would be read from disk for every token",
            megabytes(seven_b),
            m.bound_by,
            megabytes(m.bytes)
        ));
    }
    if let Some(free) = cache["free_bytes"].as_u64().filter(|free| *free < CACHE_ROOM_MIN) {
        all.push(format!(
            "only {} are free for models and their packed forms; set LUTITE_HOME to another disk",
            megabytes(free)
        ));
    }
    all
}

/// The average number of threads that ran or wanted to during the last minute, on Linux.
fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// The report for people.
fn text(v: &Value, memory: Option<&MemoryReport>) -> String {
    let list = |v: &Value| {
        let all: Vec<&str> = v.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    };
    let f = |v: &Value| v.as_f64().unwrap_or(0.0);
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{key:<16}{}", value.replace('\n', &format!("\n{:16}", "")));
    };
    let tier = &v["tier"];
    let name = tier["name"].as_str().unwrap_or_default();
    let why = match tier["lutite_isa"].as_str().filter(|asked| !asked.is_empty()) {
        Some(_) => {
            format!("asked for by LUTITE_ISA (the best here is {})", tier["best"].as_str().unwrap_or("?"))
        }
        None => "the best that this machine has".to_owned(),
    };
    line("instructions", format!("{name}: {why}"));
    for t in tier["tiers"].as_array().into_iter().flatten() {
        let (has, lacks) = (t["has"].as_array(), t["lacks"].as_array());
        let what = match (has.is_some_and(Vec::is_empty), lacks.is_some_and(Vec::is_empty)) {
            (true, true) => "runs everywhere".to_owned(),
            (false, true) => format!("there: has {}", list(&t["has"])),
            _ => format!("not there: lacks {}", list(&t["lacks"])),
        };
        line("", format!("  {:<10}{what}", t["name"].as_str().unwrap_or_default()));
    }
    if tier["unused"].as_array().is_some_and(|unused| !unused.is_empty()) {
        line("", format!("  has {} too, which no tier uses yet", list(&tier["unused"])));
    }
    line("cores", v["cores"]["text"].as_str().unwrap_or_default().to_owned());
    line("threads", format!("{} by default", v["cores"]["default_workers"]));
    match memory {
        Some(m) => {
            let total = megabytes(m.total_bytes);
            line("memory", format!("{total} in all; {} left, by {}\n{m}", megabytes(m.bytes), m.bound_by));
        }
        None => line("memory", "this system does not tell".into()),
    }
    line("control groups", list(&v["control_groups"]));
    let b = &v["read_bandwidth_gb_s"];
    line(
        "reads memory",
        format!(
            "at {:.1} GB/s with 1 thread, {:.1} GB/s with {}",
            f(&b["one_thread"]),
            f(&b["default_threads"]),
            v["cores"]["default_workers"]
        ),
    );
    let ahead = &v["asks_ahead_bytes"];
    let distance = match ahead["error"].as_str() {
        Some(error) => format!("as usual, not measured: {error}"),
        None => format!(
            "{} bytes for bit planes, {} for codes: the fastest here, kept in {}",
            ahead["planes"],
            ahead["codes"],
            ahead["file"].as_str().unwrap_or_default()
        ),
    };
    line("asks ahead", distance);
    for reach in v["could_reach"].as_array().into_iter().flatten() {
        let title = reach["model"].as_str().unwrap_or_default();
        let bytes = megabytes(reach["bytes_per_token"].as_u64().unwrap_or(0));
        let speed = f(&reach["tokens_per_second"]);
        line("could reach", format!("{speed:.1} tokens/s with {title} ({bytes} a token)"));
    }
    let cache = &v["cache"];
    match cache["error"].as_str() {
        Some(error) => line("cache", error.to_owned()),
        None => {
            let size = |key: &str| cache[key].as_u64().map_or("?".into(), megabytes);
            let folder = cache["folder"].as_str().unwrap_or_default();
            let (files, bytes, free) = (&cache["files"], size("bytes"), size("free_bytes"));
            line("cache", format!("{folder}: {files} files, {bytes}; {free} free"));
        }
    }
    let slow: Vec<&str> = v["slow"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    line("slow", if slow.is_empty() { "nothing found".into() } else { slow.join("\n") });
    out
}
