//! A model packed to fewer bits names what that lost, as a person sees it, on a model of 260 thousand weights.

mod common;

use common::Home;

/// The line that starts with `warning: weights of`.
fn warning(stderr: &str) -> Option<&str> {
    stderr.lines().find(|line| line.starts_with("warning: weights of"))
}

const RUN: &str = "run -m MODEL -p Once --chat-template none -n 4 --seed 1 -t 2";

#[test]
fn run_measures_once_and_tells_always() {
    let home = Home::new();
    let (_, first) = home.fine(&format!("{RUN} --bits 4"));
    let told = warning(&first).unwrap_or_else(|| panic!("{first}"));
    assert!(told.contains("q4-g64-hlq8: KL ") && told.contains("over 512 tokens"), "{told}");
    assert!(first.contains("measuring what"), "{first}");
    let (_, second) = home.fine(&format!("{RUN} --bits 4"));
    assert_eq!(warning(&second), Some(told));
    assert!(!second.contains("measuring what"), "{second}");
    // The figures do not depend on how many threads there were, nor on where the result lies.
    let (_, in_memory) = home.fine(&format!("{} --bits 4 --no-cache", RUN.replace("-t 2", "-t 1")));
    assert_eq!(warning(&in_memory), Some(told));
    // There is a better way to fewer bits.
    let better = "`lutite quantize` does";
    assert!(home.fine(&format!("{RUN} --bits 3")).1.contains(better) && !second.contains(better));
    // Exact weights have lost nothing.
    let (_, exact) = home.fine(RUN);
    assert_eq!(warning(&exact), None);
}

#[test]
fn quantize_and_inspect_tell_the_loss() {
    let home = Home::new();
    let loss = |bits: u32| {
        let (_, told) = home.fine(&format!(
            "quantize MODEL -o @{bits}.gguf --bits {bits} --head-bits {bits} --method als -t 2"
        ));
        let told = warning(&told).unwrap().to_owned();
        let loss = home.json(&format!("inspect @{bits}.gguf"))["packed"]["loss"].clone();
        assert!(told.ends_with(loss["text"].as_str().unwrap()), "{told}: {loss}");
        assert_eq!(loss["tokens"], 512);
        let (text, _) = home.fine(&format!("inspect @{bits}.gguf"));
        assert!(text.contains(loss["text"].as_str().unwrap()), "{text}");
        (loss["kl"].as_f64().unwrap(), loss["same_top"].as_f64().unwrap())
    };
    let (two, four, eight) = (loss(2), loss(4), loss(8));
    assert!(two.0 > 2.0 * four.0 && four.0 > 2.0 * eight.0 && eight.0 > 0.0, "{two:?} {four:?} {eight:?}");
    assert!(two.1 < four.1 && four.1 < eight.1 && eight.1 > 0.9, "{two:?} {four:?} {eight:?}");

    let (_, told) = home.fine("quantize MODEL -o @none.gguf --bits 2 --method als --no-measure");
    assert!(warning(&told).unwrap().ends_with("q2-g64-hlq8: loss not measured"), "{told}");
    home.fails("run -m @none.gguf -p Once --bits 2", 1, "packed already");
}
