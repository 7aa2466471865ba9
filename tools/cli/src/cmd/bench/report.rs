//! Results as a table, as JSON and as CSV.

use crate::args::BenchFormat;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// One test with one number of threads.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) model: String,
    /// Bytes of all tensors.
    pub(super) size: usize,
    pub(super) parameters: usize,
    /// Instruction set and formats.
    pub(super) kernel: String,
    /// Over the matrices that a token reads.
    pub(super) bits_per_weight: f64,
    pub(super) threads: usize,
    pub(super) test: String,
    /// Tokens per second of each repetition; at least one.
    pub(super) samples: Vec<f64>,
    /// Bytes of weights per token.
    pub(super) weight_bytes: f64,
    /// Bytes of keys and values per token.
    pub(super) kv_bytes: f64,
    /// Bytes per second that as many threads can read.
    pub(super) read_bandwidth: f64,
    /// In bytes; the process's highest so far.
    pub(super) peak_rss: Option<u64>,
}

impl Row {
    fn median(&self) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len().is_multiple_of(2) {
            (sorted[middle - 1] + sorted[middle]) / 2.0
        } else {
            sorted[middle]
        }
    }
    fn mean(&self) -> f64 {
        self.samples.iter().sum::<f64>() / self.samples.len() as f64
    }
    /// Of the sample, as llama-bench has it; 0 for one repetition.
    fn deviation(&self) -> f64 {
        let mean = self.mean();
        let squares: f64 = self.samples.iter().map(|x| (x - mean).powi(2)).sum();
        (squares / (self.samples.len() - 1).max(1) as f64).sqrt()
    }
    fn bytes_per_token(&self) -> f64 {
        self.weight_bytes + self.kv_bytes
    }
    /// Bytes per second at the median.
    fn bytes_per_second(&self) -> f64 {
        self.median() * self.bytes_per_token()
    }
    fn bandwidth_fraction(&self) -> f64 {
        self.bytes_per_second() / self.read_bandwidth
    }

    fn values(&self) -> Map<String, Value> {
        let fields = [
            ("model", json!(self.model)),
            ("size_bytes", json!(self.size)),
            ("parameters", json!(self.parameters)),
            ("kernel", json!(self.kernel)),
            ("bits_per_weight", json!(self.bits_per_weight)),
            ("threads", json!(self.threads)),
            ("test", json!(self.test)),
            ("tokens_per_second", json!(self.median())),
            ("mean", json!(self.mean())),
            ("deviation", json!(self.deviation())),
            ("samples", json!(self.samples)),
            ("bytes_per_token", json!(self.bytes_per_token())),
            ("kv_bytes_per_token", json!(self.kv_bytes)),
            ("gb_s", json!(self.bytes_per_second() / 1e9)),
            ("read_bandwidth_gb_s", json!(self.read_bandwidth / 1e9)),
            ("bandwidth_fraction", json!(self.bandwidth_fraction())),
            ("peak_rss_bytes", json!(self.peak_rss)),
        ];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// All rows in the form asked for, with a newline at the end.
pub(super) fn print(rows: &[Row], format: BenchFormat) -> anyhow::Result<String> {
    Ok(match format {
        BenchFormat::Md => markdown(rows),
        BenchFormat::Csv => csv(rows),
        BenchFormat::Json => {
            let rows: Vec<_> = rows.iter().map(Row::values).collect();
            serde_json::to_string_pretty(&rows)? + "\n"
        }
    })
}

/// llama-bench's columns, ours behind them; columns are padded, numbers stand right.
fn markdown(rows: &[Row]) -> String {
    const HEAD: [(&str, bool); 12] = [
        ("model", false),
        ("size", true),
        ("params", true),
        ("kernel", false),
        ("threads", true),
        ("test", true),
        ("t/s", true),
        ("bits/weight", true),
        ("GB/s", true),
        ("read GB/s", true),
        ("fraction", true),
        ("peak RSS", true),
    ];
    let mib = |bytes: f64| {
        let mib = bytes / f64::from(1 << 20);
        if mib < 1024.0 { format!("{mib:.2} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
    };
    let count = |n: usize| {
        if n < 1_000_000_000 {
            format!("{:.2} M", n as f64 / 1e6)
        } else {
            format!("{:.2} B", n as f64 / 1e9)
        }
    };
    let cells = |r: &Row| {
        [
            r.model.clone(),
            mib(r.size as f64),
            count(r.parameters),
            r.kernel.clone(),
            r.threads.to_string(),
            r.test.clone(),
            format!("{:.2} ± {:.2}", r.mean(), r.deviation()),
            format!("{:.3}", r.bits_per_weight),
            format!("{:.2}", r.bytes_per_second() / 1e9),
            format!("{:.2}", r.read_bandwidth / 1e9),
            format!("{:.1} %", 100.0 * r.bandwidth_fraction()),
            r.peak_rss.map_or("?".into(), |bytes| mib(bytes as f64)),
        ]
    };
    let cells: Vec<_> = rows.iter().map(cells).collect();
    let width = |i: usize| {
        let widths = cells.iter().map(|c| c[i].chars().count()).chain([HEAD[i].0.len()]);
        widths.max().unwrap_or(0)
    };
    let mut out = String::new();
    let line = |out: &mut String, cell: &dyn Fn(usize) -> String| {
        (0..HEAD.len()).for_each(|i| out.push_str(&format!("| {} ", cell(i))));
        out.push_str("|\n");
    };
    let pad = |i: usize, text: &str| {
        let (_, right) = HEAD[i];
        if right { format!("{text:>0$}", width(i)) } else { format!("{text:<0$}", width(i)) }
    };
    line(&mut out, &|i| pad(i, HEAD[i].0));
    line(&mut out, &|i| if HEAD[i].1 { format!("{:->1$}:", "", width(i) - 1) } else { "-".repeat(width(i)) });
    for row in &cells {
        line(&mut out, &|i| pad(i, &row[i]));
    }
    out
}

/// The keys of JSON as columns; the repetitions share a cell, blanks between.
fn csv(rows: &[Row]) -> String {
    let mut out = String::new();
    for (i, row) in rows.iter().map(Row::values).enumerate() {
        if i == 0 {
            let keys: Vec<&str> = row.keys().map(String::as_str).collect();
            // Writing to a string does not fail.
            let _ = writeln!(out, "{}", keys.join(","));
        }
        let cells: Vec<String> = row.values().map(cell).collect();
        let _ = writeln!(out, "{}", cells.join(","));
    }
    out
}

/// RFC 4180: text in quotes, quotes in it doubled.
fn cell(value: &Value) -> String {
    match value {
        Value::Array(all) => all.iter().map(Value::to_string).collect::<Vec<_>>().join(" "),
        Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(samples: &[f64]) -> Row {
        Row {
            model: "a \"b\"".into(),
            size: 3 << 20,
            parameters: 134_500_000,
            kernel: "avx2 uniform q=4 g=32; head centered q=8 g=32".into(),
            bits_per_weight: 5.5,
            threads: 2,
            test: "tg8".into(),
            samples: samples.to_vec(),
            weight_bytes: 0.9e8,
            kv_bytes: 0.1e8,
            read_bandwidth: 20e9,
            peak_rss: None,
        }
    }

    #[test]
    fn statistics() {
        let r = row(&[10.0, 30.0, 20.0, 100.0]);
        assert_eq!((r.median(), r.mean()), (25.0, 40.0));
        assert!((r.deviation() - (900.0 + 100.0 + 400.0 + 3600.0_f64).sqrt() / 3.0_f64.sqrt()).abs() < 1e-9);
        assert_eq!(r.bandwidth_fraction(), 0.125);
        assert_eq!((row(&[7.0]).median(), row(&[7.0]).deviation()), (7.0, 0.0));
    }

    #[test]
    fn forms() {
        let rows = [row(&[100.0])];
        let md = print(&rows, BenchFormat::Md).unwrap();
        let lengths: Vec<usize> = md.lines().map(|l| l.chars().count()).collect();
        assert!(lengths.len() == 3 && lengths.iter().all(|l| *l == lengths[0]), "{md}");
        assert!(md.contains("| 100.00 ± 0.00 |") && md.contains("| 134.50 M |"), "{md}");
        let csv = print(&rows, BenchFormat::Csv).unwrap();
        assert!(csv.starts_with("model,") && csv.contains("\n\"a \"\"b\"\"\",3145728,"), "{csv}");
        let json: Value = serde_json::from_str(&print(&rows, BenchFormat::Json).unwrap()).unwrap();
        assert_eq!(json[0]["samples"], json!([100.0]));
    }
}
