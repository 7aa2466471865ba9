//! The curve of a stacked file: what memory is worth. For `inspect`.

use crate::ui::megabytes;
use lutite_runtime::store::{Directory, Gguf};
use serde_json::{Value, json};
use std::fmt::Write;

/// A measured point.
struct Row {
    blocks: usize,
    resident: u64,
    file: u64,
    /// Of packed matrices.
    bits: f64,
    kl: f32,
    error: f32,
}

/// See the module's head.
pub(super) struct Curve {
    present: usize,
    blocks: usize,
    rows: Vec<Row>,
}

/// The curve of a file; `None` if it is not stacked.
pub(super) fn read(gguf: &Gguf<'_>) -> anyhow::Result<Option<Curve>> {
    let directory = Directory::base(gguf)?;
    let stack = directory.stack();
    if stack.blocks().is_empty() {
        return Ok(None);
    }
    let rows = stack.curve().iter().map(|p| {
        let (bytes, weights) = directory.clone().at(p.blocks).size();
        Row {
            blocks: p.blocks,
            resident: stack.resident_bytes(p.blocks),
            file: stack.file_bytes(p.blocks),
            bits: 8.0 * bytes as f64 / weights.max(1) as f64,
            kl: p.kl,
            error: p.error,
        }
    });
    Ok(Some(Curve { present: stack.present(), blocks: stack.blocks().len(), rows: rows.collect() }))
}

/// Columns of the bars on a terminal.
const BAR: usize = 30;

/// Sizes of the drawing, and of its margins, in pixels.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 20.0;

impl Curve {
    /// Whether anything was measured.
    pub(super) fn is_measured(&self) -> bool {
        !self.rows.is_empty()
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let row = |r: &Row| {
            json!({
                "blocks": r.blocks, "resident_bytes": r.resident, "file_bytes": r.file, "bits_per_weight": r.bits,
                "kl": r.kl, "kl_error": r.error,
            })
        };
        let rows: Vec<Value> = self.rows.iter().map(row).collect();
        json!({ "present": self.present, "blocks": self.blocks, "curve": rows })
    }

    /// Decades around all losses but 0.
    fn decades(&self) -> (f64, f64) {
        let logs = || self.rows.iter().filter(|r| r.kl > 0.0).map(|r| f64::from(r.kl).log10());
        let (low, high) =
            (logs().fold(f64::INFINITY, f64::min).floor(), logs().fold(f64::NEG_INFINITY, f64::max).ceil());
        if low < high { (low, high) } else { (-1.0, 0.0) }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let (low, high) = self.decades();
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ =
            writeln!(out, "\n{:>7}{:>12}{:>12}{:>9}{:>18}", "blocks", "in memory", "of file", "bits/w", "KL");
        for r in &self.rows {
            let share = ((f64::from(r.kl).max(1e-9).log10() - low) / (high - low)).clamp(0.0, 1.0);
            let _ = writeln!(
                out,
                "{:>7}{:>12}{:>12}{:>9.3}{:>9.4} ± {:<6.4} {}",
                r.blocks,
                megabytes(r.resident),
                megabytes(r.file),
                r.bits,
                r.kl,
                r.error,
                "#".repeat((share * BAR as f64).round() as usize),
            );
        }
        let _ = writeln!(out, "bars are logarithmic, from {} to {}", 10f64.powf(low), 10f64.powf(high));
        out
    }

    /// As a drawing: KL over memory.
    pub(super) fn svg(&self) -> String {
        let (low, high) = self.decades();
        let most = self.rows.iter().map(|r| r.resident).max().unwrap_or(1) as f64;
        let x = |bytes: f64| LEFT + bytes / most * (WIDTH - LEFT - 20.0);
        let y = |kl: f64| {
            let share = ((kl.max(1e-9).log10() - low) / (high - low)).clamp(0.0, 1.0);
            HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)
        };
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"11\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        for decade in low as i32..=high as i32 {
            let (kl, right) = (10f64.powi(decade), WIDTH - 20.0);
            let _ = writeln!(
                out,
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/><text x=\"{1}\" y=\"{0:.1}\" \
                 text-anchor=\"end\">{kl}</text>",
                y(kl),
                LEFT - 6.0
            );
        }
        for k in 0..=4 {
            let bytes = most * f64::from(k) / 4.0;
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{:.0} MB</text>",
                x(bytes),
                HEIGHT - BOTTOM + 16.0,
                bytes / 1e6
            );
        }
        let points =
            self.rows.iter().map(|r| format!("{:.1},{:.1}", x(r.resident as f64), y(f64::from(r.kl))));
        let points: Vec<String> = points.collect();
        let _ = writeln!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"#c0392b\"/>", points.join(" "));
        for point in &points {
            if let Some((x, y)) = point.split_once(',') {
                let _ = writeln!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"#c0392b\"/>");
            }
        }
        let _ = writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"{:.0}\">KL divergence over memory of weights</text>\n</svg>",
            HEIGHT - 8.0
        );
        out
    }
}
