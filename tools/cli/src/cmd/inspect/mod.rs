//! `lutite inspect`: what is in a model file, on one screen.

mod curve;

use crate::args::InspectArgs;
use crate::load;
use crate::ui::{Answer, megabytes};
use anyhow::Context;
use curve::Curve;
use lutite_models::config::Config;
use lutite_quant::Loss;
use lutite_runtime::store::{self, ARCH_PREFIX, Directory, Gguf};
use serde_json::{Value, json};
use std::fmt::Write;

/// A matrix or vector of the model, however many tensors of the file it is made of.
#[derive(Debug)]
struct Part {
    name: String,
    /// Type, or kind, planes and group.
    format: String,
    /// Fastest first.
    shape: Vec<u64>,
    bytes: u64,
}

impl Part {
    fn weights(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// What a part is for, in the order of the table.
const CLASSES: [&str; 5] = ["embedding", "attention", "feed-forward", "head", "norms and others"];

fn class(part: &Part, tied: bool) -> usize {
    let local = part.name.rsplit_once("blk.").map_or(part.name.as_str(), |(_, rest)| rest);
    let is =
        |prefix: &str| local.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').starts_with(prefix);
    if part.shape.len() < 2 {
        4
    } else if is("token_embd") {
        // One matrix for both: it is multiplied with, and so counts as the head.
        if tied { 3 } else { 0 }
    } else if is("attn_") {
        1
    } else if is("ffn_") {
        2
    } else if is("output") {
        3
    } else {
        4
    }
}

pub(crate) fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let source = load::find(args.model.named())?;
    let name = source.path.display().to_string();
    let gguf = load::gguf(&source)?;
    let parts = parts(&gguf).with_context(|| format!("cannot read the directory of {name}"))?;
    let mut out = report(&name, &gguf, source.file.len(), &parts)?;
    if args.tensors {
        let list = parts
            .iter()
            .map(|p| json!({ "name": p.name, "format": p.format, "shape": p.shape, "bytes": p.bytes }));
        out["tensors"] = list.collect();
    }
    let curve = curve::read(&gguf)?;
    if let Some(curve) = &curve {
        out["stack"] = curve.json();
    }
    if let Some(file) = &args.svg {
        let curve = curve.as_ref().context("the file is not stacked; it has no curve to draw")?;
        anyhow::ensure!(curve.is_measured(), "the file's curve was not measured; there is nothing to draw");
        std::fs::write(file, curve.svg()).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let text = if args.json {
        serde_json::to_string_pretty(&out)? + "\n"
    } else {
        text(&out) + &curve.filter(Curve::is_measured).map_or(String::new(), |c| c.text())
    };
    Answer::stdout().print(&text)
}

/// The model's parts in the order of the file, packed ones once.
fn parts(gguf: &Gguf<'_>) -> anyhow::Result<Vec<Part>> {
    let directory = Directory::read(gguf)?;
    let parts = directory.parts(gguf)?.into_iter().map(|part| match part {
        store::Part::Packed(name, info) => Part {
            name: name.to_owned(),
            format: info.format(),
            shape: vec![info.shape().cols as u64, info.shape().rows as u64],
            bytes: info.bytes().unwrap_or(usize::MAX) as u64,
        },
        store::Part::Plain(t) => Part {
            name: t.name.to_owned(),
            format: t.ty.name().to_owned(),
            shape: t.shape().to_vec(),
            bytes: t.data.len() as u64,
        },
    });
    Ok(parts.collect())
}

/// Everything but the list of tensors.
fn report(name: &str, gguf: &Gguf<'_>, file_bytes: u64, parts: &[Part]) -> anyhow::Result<Value> {
    let arch = gguf.str("general.architecture")?.unwrap_or("(none)");
    let tied = !parts.iter().any(|p| p.name == "output" || p.name == "output.weight");
    let classes = CLASSES.iter().enumerate().filter_map(|(i, title)| {
        let members: Vec<&Part> = parts.iter().filter(|p| class(p, tied) == i).collect();
        let mut formats: Vec<&str> = Vec::new();
        for p in &members {
            if !formats.contains(&p.format.as_str()) {
                formats.push(&p.format);
            }
        }
        let weights: u64 = members.iter().map(|p| p.weights()).sum();
        let bytes: u64 = members.iter().map(|p| p.bytes).sum();
        let bits = bytes as f64 * 8.0 / weights.max(1) as f64;
        let title = if i == 3 && tied { "head and embedding" } else { title };
        (!members.is_empty()).then(|| {
            json!({ "class": title, "weights": weights, "bytes": bytes, "bits_per_weight": bits, "formats": formats })
        })
    });
    let matrices = || parts.iter().filter(|p| p.shape.len() > 1);
    let bits = matrices().map(|p| p.bytes).sum::<u64>() as f64 * 8.0;
    let model = match Config::read(gguf) {
        Ok(c) => json!({
            "context": c.context, "layers": c.layers, "dim": c.dim, "ffn": c.ffn, "heads": c.heads,
            "kv_heads": c.kv_heads, "head_dim": c.head_dim, "vocab": c.vocab,
        }),
        // Still worth looking at, if not to be run.
        Err(e) => json!({ "error": e.to_string() }),
    };
    let packed = if arch.starts_with(ARCH_PREFIX) {
        json!({
            "version": gguf.u32("lutite.version")?,
            "layout": gguf.str("lutite.layout")?,
            "quantizer": gguf.str("lutite.quantizer")?,
            "source_xxh3": gguf.u64("lutite.source.xxh3")?.map(|hash| format!("{hash:016x}")),
            "checksums": gguf.u64_array("lutite.checksum.xxh3")?.is_some(),
            "loss": Loss::read(gguf)?.map(|loss| {
                json!({
                    "kl": loss.kl, "kl_error": loss.kl_error, "same_top": loss.same_top, "tokens": loss.tokens,
                    "text": loss.to_string(),
                })
            }),
        })
    } else {
        Value::Null
    };
    Ok(json!({
        "file": name,
        "file_bytes": file_bytes,
        "name": gguf.str("general.name")?,
        "architecture": arch.strip_prefix(ARCH_PREFIX).unwrap_or(arch),
        "parameters": parts.iter().map(Part::weights).sum::<u64>(),
        "bits_per_weight": bits / matrices().map(Part::weights).sum::<u64>().max(1) as f64,
        "model": model,
        "tokenizer": gguf.str("tokenizer.ggml.model")?,
        "pre": gguf.str("tokenizer.ggml.pre")?,
        "chat_template": gguf.get("tokenizer.chat_template").is_some(),
        "packed": packed,
        "classes": classes.collect::<Vec<_>>(),
    }))
}

/// The report for people.
fn text(v: &Value) -> String {
    let s = |v: &Value| match v {
        Value::String(text) => text.clone(),
        Value::Null => "(none)".into(),
        other => other.to_string(),
    };
    let n = |v: &Value| v.as_u64().unwrap_or(0);
    let millions = |v: &Value| format!("{:.2} M", n(v) as f64 / 1e6);
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{key:<15}{value}");
    };
    line("file", format!("{} ({})", s(&v["file"]), megabytes(n(&v["file_bytes"]))));
    line("name", s(&v["name"]));
    line(
        "architecture",
        format!(
            "{}, {} parameters, {:.3} bits per weight",
            s(&v["architecture"]),
            millions(&v["parameters"]),
            v["bits_per_weight"].as_f64().unwrap_or(0.0)
        ),
    );
    let m = &v["model"];
    if m["error"].is_null() {
        line("context", format!("{} positions", m["context"]));
        line("layers", format!("{}, width {}, feed-forward {}", m["layers"], m["dim"], m["ffn"]));
        let heads = format!(
            "{} of queries, {} of keys and values, {} dimensions",
            m["heads"], m["kv_heads"], m["head_dim"]
        );
        line("heads", heads);
        line("vocabulary", format!("{} tokens", m["vocab"]));
    } else {
        line("runs here", format!("no: {}", s(&m["error"])));
    }
    line("tokenizer", format!("{}, pre {}", s(&v["tokenizer"]), s(&v["pre"])));
    line("chat template", if v["chat_template"] == true { "yes".into() } else { "no".into() });
    let p = &v["packed"];
    if p.is_null() {
        line("packed", "no".into());
    } else {
        let sums = if p["checksums"] == true { "with" } else { "no" };
        let how = format!("version {}, layout {}, {sums} checksums", s(&p["version"]), s(&p["layout"]));
        line("packed", how);
        line("packed by", format!("{}, source xxh3 {}", s(&p["quantizer"]), s(&p["source_xxh3"])));
        let loss = &p["loss"]["text"];
        let stack = &v["stack"];
        if !stack.is_null() {
            line("stack", format!("{} of {} blocks", stack["present"], stack["blocks"]));
        }
        line(
            "loss",
            if stack["curve"].as_array().is_some_and(Vec::is_empty) {
                "by blocks, not measured".into()
            } else if !stack.is_null() {
                "by blocks, see below".into()
            } else if loss.is_null() {
                "none, the weights are the source's".into()
            } else {
                s(loss)
            },
        );
    }
    let _ = writeln!(out, "\n{:<20}{:>12}{:>14}{:>9}  formats", "class", "weights", "bytes", "bits/w");
    for c in v["classes"].as_array().into_iter().flatten() {
        let formats: Vec<String> = c["formats"].as_array().into_iter().flatten().map(s).collect();
        let bits = c["bits_per_weight"].as_f64().unwrap_or(0.0);
        let (title, weights) = (s(&c["class"]), millions(&c["weights"]));
        let _ = writeln!(
            out,
            "{title:<20}{weights:>12}{:>14}{bits:>9.3}  {}",
            megabytes(n(&c["bytes"])),
            formats.join(", ")
        );
    }
    if let Some(tensors) = v["tensors"].as_array() {
        let _ = writeln!(out, "\n{:<36}{:<22}{:<20}{:>12}", "tensor", "format", "shape", "bytes");
        for t in tensors {
            let shape: Vec<String> = t["shape"].as_array().into_iter().flatten().map(s).collect();
            let (name, format) = (s(&t["name"]), s(&t["format"]));
            let _ = writeln!(out, "{name:<36}{format:<22}{:<20}{:>12}", shape.join(" x "), n(&t["bytes"]));
        }
    }
    out
}
