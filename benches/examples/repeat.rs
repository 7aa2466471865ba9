//! One product, or the preparing of its activations (tables, or integers), a given number of times: for counting
//! instructions, by the difference of two numbers. `instructions/count.sh` runs it.
//!
//!     repeat gemv|table TIER ROWS COLS PLANES GROUP hlq16|hlq8|uniform TIMES

use lutite_benches::Product;
use lutite_kernels::isa::Isa;
use lutite_kernels::pack::ParamKind;
use std::hint::black_box;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [what, tier, rows, cols, q, group, kind, times] = args.as_slice() else {
        eprintln!("usage: repeat gemv|table TIER ROWS COLS PLANES GROUP hlq16|hlq8|uniform TIMES");
        std::process::exit(2);
    };
    let number = |text: &String| text.parse::<usize>().unwrap_or_else(|e| fail(&format!("{text}: {e}")));
    let Some(isa) = Isa::available().into_iter().find(|isa| isa.name() == tier) else {
        fail(&format!("the tier {tier} does not run here"));
    };
    let kind = match kind.as_str() {
        "hlq16" => ParamKind::Hlq16,
        "hlq8" => ParamKind::Hlq8,
        "uniform" => ParamKind::Uniform,
        other => fail(&format!("{other}: none of hlq16, hlq8, uniform")),
    };
    let mut product = Product::new(number(rows), number(cols), number(q), number(group), kind);
    let mut y = vec![[0.0; 32]; number(rows) / 32];
    product.prepare(isa);
    for _ in 0..number(times) {
        match what.as_str() {
            "gemv" => product.multiply(isa, 0..product.tiles(), black_box(&mut y)),
            "table" => black_box(&mut product).prepare(isa),
            other => fail(&format!("{other}: neither gemv nor table")),
        }
    }
}

fn fail(why: &str) -> ! {
    eprintln!("repeat: {why}");
    std::process::exit(2);
}
