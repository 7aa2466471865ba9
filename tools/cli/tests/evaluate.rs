//! `perplexity` and `kl` as a person runs them, on a model of 260 thousand weights.

mod common;

use common::{Home, number};

#[track_caller]
fn close(a: f64, b: f64, relative: f64) {
    assert!((a - b).abs() <= relative * b.abs(), "{a} is not {b}");
}

#[test]
fn perplexity_of_a_story() {
    let home = Home::new();
    let plain = home.json("perplexity MODEL -f TEXT -c 64 --path plain -ctk f32 -ctv f32");
    // A model of children's stories on a child's story: it knows some of it, and less of nothing.
    let ppl = number(&plain, "perplexity");
    assert!(ppl > 2.0 && ppl < 12.0, "{ppl}");
    close(number(&plain, "mean_nll").exp(), ppl, 1e-12);
    assert!(number(&plain, "perplexity_error") > 0.0 && number(&plain, "seconds") > 0.0);
    assert_eq!((&plain["protocol"], &plain["context"]), (&"llama".into(), &64.into()));
    let chunks = plain["chunks"].as_u64().unwrap();
    assert!(chunks >= 4);
    assert_eq!(plain["positions"], chunks * 31);
    assert_eq!((&plain["model"]["path"], &plain["model"]["type_k"]), (&"plain".into(), &"f32".into()));

    // How tokens are grouped into steps changes nothing.
    let batch = home.json("perplexity MODEL -f TEXT -c 64 --path plain -ctk f32 -ctv f32 -b 7");
    assert_eq!(batch["perplexity"], plain["perplexity"]);
    let lut = home.json("perplexity MODEL -f TEXT -c 64 --no-cache");
    assert_eq!(lut["model"]["path"], "lut");
    close(number(&lut, "perplexity"), ppl, 1e-2);

    let two = home.json("perplexity MODEL -f TEXT -c 64 --chunks 2 --path plain");
    assert_eq!((&two["chunks"], &two["positions"]), (&2.into(), &62.into()));
    let some = home.json("perplexity MODEL -f TEXT -c 64 --positions 40 --path plain");
    assert_eq!((&some["chunks"], &some["positions"]), (&2.into(), &40.into()));
    let papers = home.json("perplexity MODEL -f TEXT -c 64 --protocol papers --path plain");
    assert_eq!((&papers["protocol"], &papers["positions"]), (&"papers".into(), &(chunks * 63).into()));
}

#[test]
fn the_answer_alone_is_on_stdout() {
    let home = Home::new();
    let (code, stdout, stderr) = home.run("perplexity MODEL -f TEXT -c 64 --chunks 2 --path plain");
    assert_eq!(code, Some(0));
    assert!(stdout.starts_with("PPL = ") && stdout.lines().count() == 1, "{stdout}");
    assert!(stdout.contains("protocol llama, 2 chunks of 64, 62 tokens scored"), "{stdout}");
    assert!(stderr.contains("[1/2] ") && stderr.contains("[2/2] "), "{stderr}");
    let (code, stdout, _) = home.run("kl MODEL -f TEXT -c 64 --chunks 2 --no-cache");
    assert_eq!(code, Some(0));
    assert!(stdout.contains("\nmean KL ") && stdout.contains("\nsame top token"), "{stdout}");
}

#[test]
fn kl_against_the_plain_path_is_small() {
    let home = Home::new();
    let kl = home.json("kl MODEL -f TEXT -c 64 --no-cache");
    assert!(number(&kl, "mean_kl").abs() < 1e-3 && number(&kl, "top1_agreement") > 0.97, "{kl}");
    assert!(number(&kl, "median_kl") <= number(&kl, "p99_kl"));
    assert!(number(&kl, "p99_kl") <= number(&kl, "p99_9_kl"));
    assert!(number(&kl, "p99_9_kl") <= number(&kl, "max_kl"));
    let plain = home.json("perplexity MODEL -f TEXT -c 64 --path plain -ctk f32 -ctv f32");
    close(number(&kl, "reference_perplexity"), number(&plain, "perplexity"), 1e-12);
    close(number(&kl, "reference_perplexity_error"), number(&plain, "perplexity_error"), 1e-12);
    let ratio = number(&kl, "perplexity") / number(&kl, "reference_perplexity");
    close(number(&kl, "perplexity_ratio"), ratio, 1e-9);
    assert_eq!((&kl["positions"], &kl["model"]["path"]), (&plain["positions"], &"lut".into()));
    assert_eq!(kl["reference"]["path"], "plain");

    // The same by way of a named reference, and of fewer positions.
    let named = home.json("kl MODEL --reference MODEL -f TEXT -c 64 --no-cache");
    assert_eq!(named["mean_kl"], kl["mean_kl"]);
    let few = home.json("kl MODEL -f TEXT -c 64 --positions 33 --no-cache");
    assert_eq!((&few["positions"], &few["chunks"]), (&33.into(), &2.into()));
}

#[test]
fn kl_against_a_file_equals_kl_against_the_model() {
    let home = Home::new();
    let saved = home.json("perplexity MODEL -f TEXT -c 64 --path plain -ctk f32 -ctv f32 --save-base @b.kld");
    let file = home.json("kl MODEL --base @b.kld --no-cache");
    let model = home.json("kl MODEL -f TEXT -c 64 --no-cache");
    assert_eq!((&file["positions"], &file["context"]), (&saved["positions"], &64.into()));
    close(number(&file, "reference_perplexity"), number(&saved, "perplexity"), 1e-4);
    close(number(&file, "perplexity"), number(&model, "perplexity"), 1e-12);
    // The file rounds logarithms to 16 / 65535.
    assert!((number(&file, "mean_kl") - number(&model, "mean_kl")).abs() < 1e-4, "{file} {model}");
    let few = home.json("kl MODEL --base @b.kld --chunks 2 --no-cache");
    assert_eq!((&few["positions"], &few["chunks"]), (&62.into(), &2.into()));

    let bytes = std::fs::read(home.path("b.kld")).unwrap();
    home.write("cut.kld", &bytes[..bytes.len() / 2]);
    home.fails("kl MODEL --base @cut.kld --no-cache", 1, "was cut short");
    home.fails("kl MODEL --base @none.kld --no-cache", 1, "none.kld");
    home.fails("kl MODEL --base TEXT --no-cache", 1, "does not begin with `_logits_`");
    let mut other = b"_logits_".to_vec();
    for n in [3u32, 2, 1, 0, 1, 1] {
        other.extend(n.to_le_bytes());
    }
    other.extend([0; 12]);
    home.write("other.kld", &other);
    home.fails("kl MODEL --base @other.kld --no-cache", 1, "a vocabulary of 2 tokens");
}

#[test]
fn mistakes_are_named() {
    let home = Home::new();
    home.write("short.txt", "Once upon a time.");
    home.write("bytes.txt", [0xff, 0xfe, 0x00]);
    home.fails("perplexity MODEL -f @short.txt -c 64 --path plain", 1, "one chunk needs 64");
    home.fails("kl MODEL -f @short.txt -c 64 --no-cache", 1, "one chunk needs 64");
    home.fails("perplexity MODEL -f @none.txt --path plain", 1, "cannot read the text");
    home.fails("perplexity MODEL -f @bytes.txt --path plain", 1, "UTF-8");
    home.fails("perplexity @none.gguf -f TEXT --path plain", 1, "none.gguf");
    home.fails("perplexity MODEL -f TEXT -c 2 --path plain", 1, "at least 3");
    home.fails("perplexity MODEL -f TEXT -c 64 --chunks 0 --path plain", 1, "--chunks");
    home.fails("kl MODEL -f TEXT -c 64 --positions 0 --no-cache", 1, "--positions");
    home.fails("perplexity MODEL", 2, "-f FILE");
    home.fails("kl MODEL", 2, "-f FILE");
    home.fails("perplexity MODEL -f TEXT --protocol papers --save-base @x", 2, "--protocol llama");
    home.fails("perplexity MODEL -f TEXT -c 64 --path plain --save-base @no/x.kld", 1, "cannot create");
}
