//! `eval` as a person runs it, on a model of 260 thousand weights.

mod common;

use common::{Home, MODEL, OTHER};
use flate2::Compression;
use flate2::write::GzEncoder;
use lutite_cli::judge::choices::pair::Pairing;
use lutite_cli::judge::score;
use lutite_kernels::isa::Isa;
use lutite_models::open::open;
use lutite_models::{Model, OpenOptions, Path, Tokenizer};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::kv::KvType;
use lutite_runtime::os::map::Map;
use lutite_runtime::store::{Bytes, Gguf};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;

/// Questions, their answers, and which is right.
const QUESTIONS: [(&str, &[&str], usize); 4] = [
    ("Once upon a time, there was a little", &[" girl", " refrigerator", " of", " boy named Tim"], 0),
    ("Lily went to the park with her mom. She wanted to", &[" play", " xqz"], 0),
    // Spaces at the end go over to the answers.
    ("Ben had a big red ball. He threw the  ", &["ball up high.", "war", "ball"], 2),
    ("The dog was very", &[" happy because it was a nice day and it liked to run", " zebra"], 1),
];

/// The lines of the questions: first all with their questions, then all without.
fn lines(uncond: bool) -> Vec<Value> {
    let mut out = Vec::new();
    for uncond in [false, true].into_iter().filter(|u| uncond || !u) {
        for (doc, (question, answers, label)) in QUESTIONS.iter().enumerate() {
            for (idx, answer) in answers.iter().enumerate() {
                out.push(json!({
                    "doc_id": 10 + doc, "uncond": uncond, "idx": idx,
                    "context": if uncond { "Answer:" } else { question },
                    "continuation": answer, "label": label,
                }));
            }
        }
    }
    out
}

/// Two contexts and one continuation in each document.
fn other_contexts() -> Vec<Value> {
    let request = |doc: u32, idx: u32, name: &str| {
        json!({
            "doc_id": doc, "uncond": false, "idx": idx, "context": format!("Tom gave Ann a cake so {name}"),
            "continuation": " was very happy.", "label": doc % 2, "more": "is not looked at",
        })
    };
    (0..3).flat_map(|doc| [request(doc, 0, "Tom"), request(doc, 1, "Ann")]).collect()
}

fn text(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// With the questions in `q.jsonl`.
fn home() -> Home {
    let home = Home::new();
    home.write("q.jsonl", text(&lines(true)));
    home
}

/// The records of a journal.
fn records(home: &Home, name: &str) -> Vec<Value> {
    home.read(name).lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::default());
    gz.write_all(text.as_bytes()).unwrap();
    gz.finish().unwrap()
}

/// The definition: every token of every request by itself, from nothing.
fn slow(model: &mut Model, pairing: &Pairing<'_>, request: &Value) -> f64 {
    let text = |key: &str| request[key].as_str().unwrap();
    let pair = pairing.pair(text("context"), text("continuation")).unwrap();
    let mut logits = Vec::new();
    model.rewind(0);
    for token in &pair.context {
        logits = model.step(&[*token], Phase::Prompt, Logits::Last).unwrap().to_vec();
    }
    let mut nll = 0.0;
    for token in &pair.continuation {
        nll += score::nll(&logits, *token).unwrap();
        if model.position() < model.context() {
            logits = model.step(&[*token], Phase::Prompt, Logits::Last).unwrap().to_vec();
        }
    }
    -nll
}

#[test]
fn every_number_equals_its_slow_twin() {
    let home = home();
    home.write("w.jsonl", text(&other_contexts()));
    for (name, path, kv, kv_name) in [
        ("MODEL", MODEL, KvType::F32, "f32"),
        ("MODEL", MODEL, KvType::F16, "f16"),
        // A model of noise, whose heads are long enough for these.
        ("OTHER", OTHER, KvType::Q8_0, "q8_0"),
        ("OTHER", OTHER, KvType::Q4_0, "q4_0"),
    ] {
        let file = Bytes::new(Map::open(std::path::Path::new(path)).unwrap());
        let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
        // Of 20 positions the longest answer leaves one to its question.
        for positions in [128, 20] {
            let options = OpenOptions {
                path: Path::Plain,
                kv: kv.into(),
                context: Some(positions),
                ..OpenOptions::new(Isa::from_env().unwrap())
            };
            let mut model = open(&file, &options).unwrap();
            let pairing = Pairing { tokenizer: &tokenizer, positions };
            let flags = format!("--path plain -ctk {kv_name} -ctv {kv_name} -c {positions} -b 5");
            let journal = format!("{kv_name}-{positions}.journal");
            home.json(&format!("eval {name} --task @q.jsonl --task @w.jsonl {flags} --resume @{journal}"));
            let found = records(&home, &journal);
            let found = found.iter().flat_map(|r| r["log_probs"].as_array().unwrap());
            let found: Vec<f64> = found.map(|x| x.as_f64().unwrap()).collect();
            let requests = [lines(true), other_contexts()].concat();
            let slow: Vec<f64> = requests.iter().map(|r| slow(&mut model, &pairing, r)).collect();
            assert_eq!(found, slow, "{name} {kv_name} {positions}");
        }
    }
}

/// The path that is used, whose bits depend on nothing but the tokens: neither on what was read before nor on steps.
#[test]
fn neither_order_nor_steps_change_a_number() {
    let home = home();
    let mut mixed = lines(true);
    mixed.sort_by_key(|line| line["idx"].as_u64());
    home.write("m.jsonl", text(&mixed));
    let of = |task: &str, flags: &str| {
        let journal = home.path("j");
        let _ = fs::remove_file(&journal);
        home.json(&format!("eval MODEL --bits 4 --no-measure --no-cache --task {task} {flags} --resume @j"));
        let mut records = records(&home, "j");
        records.sort_by_key(|r| (r["document"].as_u64(), r["uncond"].as_bool()));
        records
    };
    let usual = of("@q.jsonl", "");
    assert_eq!(usual.len(), 8);
    assert_eq!(usual, of("@m.jsonl", ""));
    assert_eq!(usual, of("@q.jsonl", "-b 1"));
    assert_eq!(usual, of("@q.jsonl", "-b 3"));
    // Ways to multiply that are not all the same.
    assert_ne!(usual, of("@q.jsonl", "--exact-prompts"));
}

#[test]
fn the_answer_for_people_and_for_programs() {
    let home = home();
    home.write("w.jsonl.gz", gzip(&text(&other_contexts())));
    let (code, stdout, stderr) = home.run("eval MODEL --no-cache --task @q.jsonl");
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stdout.lines().count(), 2, "{stdout}");
    assert!(
        stdout.starts_with("task") && stdout.contains("acc_uncond") && stdout.contains("\nq "),
        "{stdout}"
    );
    assert!(stderr.contains("q: 4 of 4 documents"), "{stderr}");
    let (_, stdout, _) = home.run("eval MODEL --no-cache --task @q.jsonl --task @w.jsonl.gz");
    assert!(stdout.lines().count() == 4 && stdout.contains("\naverage "), "{stdout}");

    let both = home.json("eval MODEL --no-cache --task @q.jsonl --task @w.jsonl.gz");
    let (q, w, average) = (&both["tasks"][0], &both["tasks"][1], &both["average"]);
    assert_eq!((&q["task"], &q["documents"]), (&"q".into(), &4.into()));
    assert_eq!((&w["task"], &w["documents"], &w["chance"]), (&"w".into(), &3.into(), &0.5.into()));
    assert!((q["chance"].as_f64().unwrap() - (1.0 / 4.0 + 0.5 + 1.0 / 3.0 + 0.5) / 4.0).abs() < 1e-15, "{q}");
    assert!(q["acc_uncond"].is_number() && w["acc_uncond"].is_null() && average["acc_uncond"].is_null());
    let mean = (q["acc"].as_f64().unwrap() + w["acc"].as_f64().unwrap()) / 2.0;
    assert!((average["acc"].as_f64().unwrap() - mean).abs() < 1e-15, "{both}");
    assert_eq!((&average["documents"], &both["model"]["path"]), (&7.into(), &"lut".into()));

    let two = home.json("eval MODEL --no-cache --task @q.jsonl --limit 2");
    // A model of stories knows what stories are made of.
    assert_eq!((&two["tasks"][0]["documents"], &two["tasks"][0]["acc"]), (&2.into(), &1.0.into()));
    assert!(two["average"].is_null());

    // A form of compression is no other task.
    home.write("z.jsonl", text(&lines(true)));
    home.json("eval MODEL --no-cache --task @z.jsonl --resume @j");
    home.write("z.jsonl", gzip(&text(&lines(true))));
    let (_, _, stderr) = home.run("eval MODEL --no-cache --task @z.jsonl --resume @j");
    assert!(stderr.contains("which has 8 results"), "{stderr}");
}

/// From log-probabilities that were made up to accuracies that were worked out by hand.
#[test]
fn accuracies_are_lm_evals() {
    let home = home();
    let mut task = Vec::new();
    for uncond in [false, true] {
        for (doc, choices, label) in [(0, 2, 1), (1, 2, 0), (2, 2, 1), (3, 3, 2)] {
            // 2 characters in 4 bytes, 4, and 4; spaces at the start do not count.
            for (idx, answer) in ["  éé", " four", " fore"].into_iter().enumerate().take(choices) {
                task.push(json!({
                    "doc_id": doc, "uncond": uncond, "idx": idx, "context": "A", "continuation": answer,
                    "label": label,
                }));
            }
        }
    }
    home.write("t.jsonl", text(&task));
    home.json("eval MODEL --path plain --task @t.jsonl --resume @j");
    let header = home.read("j").lines().next().unwrap().to_owned();
    let record = |document: usize, uncond: bool, log_probs: &[f64]| {
        json!({ "task": 0, "document": document, "uncond": uncond, "log_probs": log_probs }).to_string()
    };
    let records = [
        header,
        record(0, false, &[-3.0, -5.0]), // acc: 0, wrong; per character 1.5 to 1.25: 1, right
        record(1, false, &[-4.0, -4.0]), // acc: the first of equals, right; per character 1: wrong
        record(2, false, &[-3.0, -2.0]), // right; right
        record(3, false, &[-9.0, -8.0, -8.5]), // 1, wrong; 1, wrong
        record(0, true, &[-3.0, -5.5]),  // 0 to 0.5: 1, right
        record(1, true, &[-4.0, -4.5]),  // 0 to 0.5: 1, wrong
        record(2, true, &[-3.5, -1.0]),  // 0.5 to -1: 0, wrong
        record(3, true, &[-9.0, -8.0, -9.5]), // 0, 0, 1: 2, right
    ];
    home.write("j", records.join("\n") + "\n");
    let figures = home.json("eval MODEL --path plain --task @t.jsonl --resume @j");
    let figures = &figures["tasks"][0];
    for (key, value) in [("acc", 0.5), ("acc_norm", 0.5), ("acc_uncond", 0.5)] {
        assert_eq!(figures[key], value, "{key} of {figures}");
        // sqrt(0.25 / (4 - 1))
        let error = figures[format!("{key}_error")].as_f64().unwrap();
        assert!((error - (0.25f64 / 3.0).sqrt()).abs() < 1e-15, "{error}");
    }
    assert_eq!(home.read("j"), records.join("\n") + "\n", "nothing was computed again");
    // One document at a time tells which of them were right.
    for (limit, right) in [(1, [0.0, 1.0, 1.0]), (2, [1.0, 1.0, 1.0]), (3, [2.0, 2.0, 1.0])] {
        let some = home.json(&format!("eval MODEL --path plain --task @t.jsonl --resume @j --limit {limit}"));
        for (key, right) in ["acc", "acc_norm", "acc_uncond"].into_iter().zip(right) {
            let found = some["tasks"][0][key].as_f64().unwrap() * f64::from(limit);
            assert!((found - right).abs() < 1e-15, "{key} of {some}");
        }
    }
}

/// Figures without what differs from run to run.
fn same(mut figures: Value) -> Value {
    figures["seconds"] = Value::Null;
    figures
}

#[test]
fn a_killed_run_goes_on_where_it_stopped() {
    let home = home();
    home.write("w.jsonl", text(&other_contexts()));
    let all = "eval MODEL --no-cache --task @q.jsonl --task @w.jsonl";
    let whole = same(home.json(&format!("{all} --resume @whole")));
    assert_eq!(same(home.json(all)), whole);
    let journal = home.read("whole");
    assert_eq!(journal.lines().count(), 1 + 8 + 3);

    // First some, then all.
    home.json(&format!("{all} --resume @j --limit 2"));
    assert_eq!(records(&home, "j").len(), 4 + 2);
    assert_eq!(same(home.json(&format!("{all} --resume @j"))), whole);
    assert_eq!(records(&home, "j").len(), 8 + 3);
    // And fewer again.
    assert_eq!(
        same(home.json(&format!("{all} --resume @j --limit 2"))),
        same(home.json(&format!("{all} --limit 2")))
    );

    // Killed anywhere.
    let header = journal.find('\n').unwrap();
    let cuts =
        [0, 1, header, header + 1, header + 2, journal.len() / 2, journal.len() - 2, journal.len() - 1];
    for cut in cuts {
        home.write("j", &journal[..cut]);
        assert_eq!(same(home.json(&format!("{all} --resume @j"))), whole, "cut at {cut}");
        assert_eq!(home.read("j"), journal, "cut at {cut}");
    }
}

#[test]
fn a_journal_of_something_else_is_refused_and_left_as_it_is() {
    let home = home();
    home.write("w.jsonl", text(&other_contexts()));
    let usual = "eval MODEL --path plain --task @q.jsonl --resume @j";
    home.json(usual);
    let journal = home.read("j");
    for (line, says) in [
        ("eval OTHER --path plain --task @q.jsonl --resume @j", "is the journal of another model"),
        ("eval MODEL --path plain --task @w.jsonl --resume @j", "is the journal of other tasks"),
        (
            "eval MODEL --path plain --task @q.jsonl --task @w.jsonl --resume @j",
            "is the journal of other tasks",
        ),
        ("eval MODEL --path plain --task @q.jsonl --resume @j -ctk f32", "type_k \"f16\", not \"f32\""),
        ("eval MODEL --path plain --task @q.jsonl --resume @j -c 100", "ctx_size 512, not 100"),
        (
            "eval MODEL --path plain --task @q.jsonl --resume @j --exact-prompts",
            "exact_prompts false, not true",
        ),
        // Other bytes multiplied in another way.
        ("eval MODEL --no-cache --task @q.jsonl --resume @j", "is the journal of another model"),
    ] {
        home.fails(line, 1, says);
        assert_eq!(home.read("j"), journal);
    }
    for (wrong, says) in [
        ("hello", "is no journal of `lutite eval`"),
        ("{}\n", "is no journal of `lutite eval`"),
        ("\n", "is no journal of `lutite eval`"),
        (&journal.replace("\"uncond\":false", "\"uncond\":0"), "line 2: invalid type"),
        (&journal.replace("\"document\":0", "\"document\":7"), "line 2: there is no document 7"),
        (&journal.replace("\"task\":0", "\"task\":1"), "line 2: there is no such task"),
        (
            &journal.replace("\"log_probs\":[", "\"log_probs\":[0.5,"),
            "line 2: document 0 does not want these",
        ),
        (
            &format!("{journal}{}\n", journal.lines().last().unwrap()),
            "line 10: document 3 does not want these",
        ),
    ] {
        home.write("j", wrong);
        home.fails(usual, 1, says);
        assert_eq!(home.read("j"), wrong);
    }
    home.fails("eval MODEL --path plain --task @q.jsonl --resume @no/j", 1, "cannot open the journal");
    // Another process is at it.
    home.write("j", &journal);
    let other = fs::File::open(home.path("j")).unwrap();
    other.lock().unwrap();
    home.fails(usual, 1, "another process writes the journal");
}

#[test]
fn bad_input_is_named() {
    let home = home();
    let good = text(&lines(false));
    let with = |n: usize, change: &dyn Fn(&mut Value)| {
        let mut lines = lines(false);
        change(&mut lines[n]);
        text(&lines)
    };
    let gz = gzip(&good);
    let mut flipped = gz.clone();
    flipped[gz.len() / 2] ^= 0x40;
    let cases: [(Vec<u8>, &str); 21] = [
        ("".into(), "has no requests"),
        ("\n\n".into(), "has no requests"),
        ("hello\n".into(), "line 1: expected value, at column 1"),
        ([&good[..], "{\"doc_id\": 1"].concat().into(), "line 12: EOF while parsing"),
        (with(2, &|l| l["label"] = "A".into()).into(), "line 3: invalid type: string \"A\""),
        (
            with(2, &|l| _ = l.as_object_mut().unwrap().remove("label")).into(),
            "line 3: missing field `label`",
        ),
        (with(2, &|l| l["label"] = (-1).into()).into(), "line 3: invalid value: integer `-1`"),
        (with(2, &|l| l["label"] = 1.into()).into(), "line 3: label 1, but 0 in line 1"),
        (with(2, &|l| l["idx"] = 3.into()).into(), "line 3: idx 3, but the next choice of doc_id 10 is 2"),
        (with(2, &|l| l["idx"] = 0.into()).into(), "line 3: idx 0, but"),
        (with(2, &|l| l["continuation"] = "".into()).into(), "line 3: the continuation is empty"),
        (with(2, &|l| l["continuation"] = " \n".into()).into(), "line 3: the continuation is empty"),
        (with(4, &|l| l["continuation"] = "x ".repeat(600).into()).into(), "line 5: the continuation has "),
        (with(5, &|l| l["doc_id"] = 7.into()).into(), "line 6: idx 1, but the next choice of doc_id 7 is 0"),
        (text(&lines(false)[..10]).into(), "line 10: a document with 1 choices"),
        (with(10, &|l| l["uncond"] = true.into()).into(), "line 11: idx 1"),
        (text(&lines(true)[..12]).into(), "`uncond` requests"),
        (
            text(&lines(true)).replace("\"label\":2", "\"label\":3").into(),
            "line 7: label 3 of a document with 3 choices",
        ),
        (vec![b'{'; 2 << 20], "line 1: longer than 1048576 bytes"),
        (gz[..gz.len() - 9].into(), "cannot be read"),
        (flipped, "line "),
    ];
    for (bytes, says) in cases {
        home.write("bad.jsonl", &bytes);
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let (code, stdout, stderr) = home.run("eval MODEL --path plain --task @bad.jsonl");
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{says}: {start}: {stderr}");
        assert!(stderr.contains("bad.jsonl") && stderr.contains(says), "{says}: {start}: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
    home.fails("eval MODEL --path plain --task @none.jsonl", 1, "cannot open");
    // A model whose last weight is no number.
    let mut model = fs::read(MODEL).unwrap();
    let last = model.len() - 4;
    model[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    home.write("nan.gguf", model);
    home.fails("eval @nan.gguf --path plain --task @q.jsonl", 1, "not finite in");
    home.fails("eval MODEL --path plain --task @q.jsonl --limit 0", 1, "--limit");
    home.fails("eval MODEL --path plain", 2, "--task");
}

#[test]
fn what_is_too_long_is_cut_and_said_once() {
    let home = home();
    let (code, _, stderr) = home.run("eval MODEL --path plain --task @q.jsonl -c 20");
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stderr.matches("do not fit in 20 positions").count(), 1, "{stderr}");
    let (_, _, stderr) = home.run("eval MODEL --path plain --task @q.jsonl");
    assert!(!stderr.contains("do not fit"), "{stderr}");
}
