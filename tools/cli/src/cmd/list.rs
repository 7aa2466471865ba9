//! `lutite list`: which models are on this machine.

use crate::args::{ListArgs, ListFormat};
use crate::inventory::{Inventory, Item, What};
use crate::ui::{Answer, megabytes};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn list(args: &ListArgs) -> anyhow::Result<()> {
    let all = Inventory::read()?;
    let text = match args.output {
        ListFormat::Table => table(&all),
        ListFormat::Json => {
            let models: Vec<Value> = all.items.iter().map(item).collect();
            let report = json!({
                "models": models,
                "total_bytes": all.bytes(),
                "folders": {
                    "models": all.models.display().to_string(),
                    "hub": all.settings.cache.display().to_string(),
                    "packed": all.packed.display().to_string(),
                },
            });
            serde_json::to_string_pretty(&report)? + "\n"
        }
    };
    Answer::stdout().print(&text)
}

fn item(item: &Item) -> Value {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs());
    let mut value = json!({
        "name": item.name,
        "kind": item.what.kind(),
        "format": item.format,
        "bytes": item.bytes,
        "last_used": item.used.and_then(seconds),
        "path": item.path.display().to_string(),
    });
    if let What::Packed { sources } = &item.what {
        value["packed_from"] = json!(sources);
    }
    value
}

fn table(all: &Inventory) -> String {
    let widest = all.items.iter().map(|item| item.name.chars().count()).max().unwrap_or(0).max(4);
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(out, "{:<widest$}  {:<11}  {:>10}  {:<14}  from", "name", "format", "size", "last used");
    for item in &all.items {
        let from = match &item.what {
            What::Packed { sources } if sources.is_empty() => "packed; its source is gone".to_owned(),
            What::Packed { sources } => format!("packed from {}", sources.join(", ")),
            what => what.kind().to_owned(),
        };
        let used = item.used.map_or_else(|| "?".to_owned(), ago);
        let _ = writeln!(
            out,
            "{:<widest$}  {:<11}  {:>10}  {used:<14}  {from}",
            item.name,
            item.format,
            megabytes(item.bytes)
        );
    }
    let n = all.items.len();
    let _ = writeln!(out, "{n} model{}, {}", if n == 1 { "" } else { "s" }, megabytes(all.bytes()));
    out
}

/// How long ago, in the largest unit that makes one.
fn ago(time: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(time).unwrap_or_default().as_secs();
    let (n, unit) = match seconds {
        0..60 => return "now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times() {
        let at = |seconds| ago(SystemTime::now() - Duration::from_secs(seconds));
        assert_eq!(
            [at(5), at(61), at(7300), at(90_000)],
            ["now", "1 minute ago", "2 hours ago", "1 day ago"]
        );
        assert_eq!(ago(SystemTime::now() + Duration::from_secs(9)), "now");
    }
}
