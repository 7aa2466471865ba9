//! Stacked files, from `quantize --stack` to a conversation whose memory changes, on a model of 260 thousand weights.

mod common;

use common::{Home, number, stack, stories};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::time::{Duration, Instant};

/// With a stacked model, `@stack.gguf`.
fn home() -> Home {
    let home = Home::new();
    home.write("stack.gguf", stack());
    home
}

/// What a model answers at temperature 0.
fn answer(home: &Home, file: &str, more: &str) -> String {
    home.fine(&format!("run -m @{file} -p Once --chat-template none --temp 0 -n 40 {more}")).0
}

#[test]
fn the_curve_falls_and_plan_says_what_memory_is_worth() {
    let home = home();
    let about = home.json("inspect @stack.gguf --svg @curve.svg");
    let curve = about["stack"]["curve"].as_array().unwrap();
    assert!(curve.len() >= 15, "{about}");
    for pair in curve.windows(2) {
        let noise = 2.0 * number(&pair[0], "kl_error");
        assert!(number(&pair[0], "kl") + noise > number(&pair[1], "kl"), "{pair:?}");
        assert!(number(&pair[0], "resident_bytes") < number(&pair[1], "resident_bytes"), "{pair:?}");
    }
    let (first, last) = (number(&curve[0], "kl"), number(&curve[curve.len() - 1], "kl"));
    assert!(first > 0.5 && last < 0.01, "{first} {last}");
    let svg = fs::read_to_string(home.path("curve.svg")).unwrap();
    assert!(svg.matches("<circle").count() == curve.len() && svg.trim_end().ends_with("</svg>"));
    assert!(home.fine("inspect @stack.gguf").0.contains("108 of 108 blocks"));
    home.fails("inspect MODEL --svg @no.svg", 1, "not stacked");

    let rows = home.json("plan @stack.gguf -c 64");
    let rows = rows.as_array().unwrap();
    assert!(rows.len() >= 6, "{rows:?}");
    for pair in rows.windows(2) {
        assert!(number(&pair[0], "weights") < number(&pair[1], "weights"), "{pair:?}");
        assert!(number(&pair[0], "kl") >= number(&pair[1], "kl"), "{pair:?}");
    }
    assert!(rows.iter().all(|row| number(row, "tokens_per_second") > 0.0));
    let one = home.json("plan @stack.gguf --mem 500M --no-speed -c 64");
    assert_eq!(one[0]["blocks"], 108, "{one}");
    home.fails("plan @stack.gguf --mem 1M", 1, "the program alone takes");
    // A file without blocks is all or nothing.
    let plain = home.json("plan MODEL --bits 4 --no-measure -c 64");
    assert_eq!((plain.as_array().unwrap().len(), &plain[0]["blocks"]), (1, &Value::Null));
}

#[test]
fn a_trimmed_file_is_a_file_that_was_cut_off_but_for_its_head() {
    let home = home();
    let whole = fs::read(home.path("stack.gguf")).unwrap();
    let all = home.json("inspect @stack.gguf");
    let curve = all["stack"]["curve"].as_array().unwrap();
    let point = &curve[curve.len() / 2];
    let cut = number(point, "file_bytes") as usize;
    home.write("cut.gguf", &whole[..cut + 100]);
    assert_eq!(home.json("inspect @cut.gguf")["stack"]["present"], point["blocks"]);
    // Of the file that was cut off everything fits.
    let (_, said) = home.fine(&format!("trim @cut.gguf --size {cut} -o @trimmed.gguf"));
    assert!(said.contains(&format!("{} of 108 blocks", point["blocks"])), "{said}");
    let trimmed = home.json("inspect @trimmed.gguf");
    assert_eq!(trimmed["stack"]["blocks"], point["blocks"]);
    let last = trimmed["stack"]["curve"].as_array().unwrap().last().unwrap();
    assert!(["blocks", "kl", "resident_bytes"].iter().all(|key| last[key] == point[key]), "{last}");
    // Of the whole file perhaps a block more, since its head becomes shorter.
    home.fine(&format!("trim @stack.gguf --size {cut} -o @part.gguf"));
    assert!(fs::metadata(home.path("part.gguf")).unwrap().len() <= cut as u64);
    assert!(number(&home.json("inspect @part.gguf")["stack"], "blocks") >= number(point, "blocks"));
    assert_eq!(answer(&home, "cut.gguf", ""), answer(&home, "trimmed.gguf", ""));
    assert_eq!(answer(&home, "cut.gguf", "--mem 500M"), answer(&home, "trimmed.gguf", ""));
    home.fine("verify @cut.gguf");
    // A file that was cut off can be trimmed as well, but not below the least model, nor can one be cut off there.
    let least = number(&curve[0], "file_bytes") as usize;
    home.fine(&format!("trim @cut.gguf --size {least} -o @least.gguf"));
    home.fails("trim @cut.gguf --size 50k -o @no.gguf", 1, "the least model has");
    home.write("no.gguf", &whole[..least - 50]);
    home.fails("run -m @no.gguf -p Once", 1, "cut off or damaged");
    home.fails("trim MODEL --size 50k -o @no.gguf", 1, "only stacked files can be trimmed");
}

#[test]
fn memory_decides_what_is_read_and_damage_is_named() {
    let home = home();
    assert_eq!(answer(&home, "stack.gguf", ""), answer(&home, "stack.gguf", "--mem 70%"));
    let (_, said) = home.fine("run -m @stack.gguf -p Once --chat-template none -n 4");
    assert!(said.contains("108 of 108 blocks, weights of 0.3 MB"), "{said}");
    home.fails("run -m @stack.gguf -p Once --mem 1M", 1, "the program alone takes");

    let mut bytes = fs::read(home.path("stack.gguf")).unwrap();
    let last = bytes.len() - 1000;
    bytes[last] ^= 1;
    home.write("damaged.gguf", &bytes);
    for line in
        ["run -m @damaged.gguf -p Once", "run -m @damaged.gguf -p Once --mem 300M", "verify @damaged.gguf"]
    {
        let (code, out, said) = home.run(line);
        let said = said + &out;
        assert_eq!(code, Some(1), "{line}: {said}");
        assert!(said.contains("does not match its checksum") && said.contains(".v"), "{line}: {said}");
    }
    // What lies before it is a model.
    let about = home.json("inspect @stack.gguf");
    let curve = about["stack"]["curve"].as_array().unwrap();
    let before = number(&curve[curve.len() - 2], "file_bytes") as usize;
    home.write("before.gguf", &bytes[..before]);
    home.fine("run -m @before.gguf -p Once -n 4 --chat-template none");
}

#[test]
fn levels_of_signs_make_a_stack_as_well() {
    let home = home();
    home.write("text", stories());
    let line = "quantize MODEL --bitstack 5:1 --calib @text --calib-tokens 2048 -o @levels.gguf";
    let (_, said) = home.fine(line);
    // 35 matrices, and one level is of no use.
    assert!(said.contains("levels of all matrices: 1, KL") && said.contains("105 blocks"), "{said}");
    assert!(!home.names().iter().any(|name| name.contains("work")), "{:?}", home.names());
    let about = home.json("inspect @levels.gguf");
    let curve = about["stack"]["curve"].as_array().unwrap();
    for pair in curve.windows(2) {
        let noise = 2.0 * number(&pair[0], "kl_error");
        assert!(number(&pair[0], "kl") + noise > number(&pair[1], "kl"), "{pair:?}");
        assert!(number(&pair[0], "resident_bytes") < number(&pair[1], "resident_bytes"), "{pair:?}");
        // Nothing is replaced: what comes into memory is what lies in the file.
        let more = |key| number(&pair[1], key) - number(&pair[0], key);
        assert!((more("resident_bytes") - more("file_bytes")).abs() < 64.0 * 3.0 * 105.0, "{pair:?}");
    }
    let (first, last) = (number(&curve[0], "kl"), number(&curve[curve.len() - 1], "kl"));
    assert!(first < 4.0 && last < 0.5, "{first} {last}");
    // The same by the file's map, in memory of its own, cut off and trimmed.
    assert_eq!(answer(&home, "levels.gguf", ""), answer(&home, "levels.gguf", "--mem 500M"));
    let cut = number(&curve[curve.len() / 2], "file_bytes") as usize;
    home.write("cut.gguf", &fs::read(home.path("levels.gguf")).unwrap()[..cut + 40]);
    home.fine(&format!("trim @cut.gguf --size {cut} -o @trimmed.gguf"));
    assert_eq!(answer(&home, "cut.gguf", ""), answer(&home, "trimmed.gguf", "--mem 500M"));
    home.fine("verify @trimmed.gguf");
    home.fine("export @trimmed.gguf @floats.gguf --type f32");
    // Again, the same bytes.
    home.fine(&line.replace("levels.gguf", "again.gguf"));
    assert!(fs::read(home.path("levels.gguf")).unwrap() == fs::read(home.path("again.gguf")).unwrap());
    // Of use or not.
    home.fine("quantize MODEL --bitstack 1-2:1 --calib @text --calib-tokens 128 -o @one.gguf");
    assert_eq!(home.json("inspect @one.gguf")["stack"]["blocks"], 35);
    for wrong in ["1", "33", "4:3", "4:", "x", "0-3", "3-3", "-3"] {
        home.fails(&format!("quantize MODEL --bitstack={wrong} -o @no.gguf"), 2, "such as 6, 6:2 or 1-6:2");
    }
}

#[test]
fn a_conversation_goes_on_while_its_memory_changes() {
    let home = home();
    let input = "Once\n/stats\n/mem 1M\n/mem\n/mem many\n/mem 400M\nupon\n/stats\n";
    let (code, out, said) = home.talk("chat -m @stack.gguf --chat-template none --temp 0 -n 8", input);
    assert_eq!(code, Some(0), "{said}");
    assert!(out.lines().count() >= 2, "{out}");
    assert!(said.contains("the program alone takes") && said.contains("an amount such as 300M"), "{said}");
    assert!(said.matches("108 of 108 blocks").count() >= 3, "{said}");
}

/// Where blocks that come and go are no answer, the model is opened again, and the conversation goes on.
#[test]
fn a_model_is_opened_again_for_another_memory() {
    let home = home();
    let talk = |input: &str| {
        let (code, out, said) = home
            .talk("chat -m MODEL --bits 4 --no-measure -c 1024 --chat-template none --temp 0 -n 8", input);
        assert_eq!(code, Some(0), "{said}");
        (out, said)
    };
    let (expected, said) = talk("Once\n/mem 1M\nupon\n");
    let alone = said.split("the program alone takes ").nth(1).unwrap().split(' ').next().unwrap();
    let little = alone.parse::<f64>().unwrap() + 0.3;
    let (out, said) = talk(&format!("Once\n/mem 400M\n/mem\n/mem {little}M\nupon\n"));
    assert_eq!(out, expected, "{said}");
    assert!(said.matches("all weights are in memory: the file has no blocks").count() >= 2, "{said}");
    assert!(said.contains("not enough memory") || said.matches("alone takes").count() == 1, "{said}");
}

#[test]
fn a_model_that_is_still_arriving_answers_and_gets_better() {
    let home = home();
    let whole = fs::read(home.path("stack.gguf")).unwrap();
    let about = home.json("inspect @stack.gguf");
    let curve = about["stack"]["curve"].as_array().unwrap();
    let part = number(&curve[4], "file_bytes") as usize + 77;
    home.write("arriving.gguf", &whole[..part]);
    let mut child = home.start("chat -m @arriving.gguf --chat-template none --temp 0 -n 8 --at-once");
    let (mut input, said) = (child.stdin.take().unwrap(), BufReader::new(child.stderr.take().unwrap()));
    let mut said = said.lines().map(Result::unwrap);
    let mut ask = |words: &str| {
        input.write_all(words.as_bytes()).unwrap();
        said.find(|line| line.contains("of 108 blocks")).unwrap()
    };
    let start = Instant::now();
    let mut until = |words: &str, blocks: &str| {
        loop {
            let line = ask(words);
            if line.contains(blocks) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{line}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until("Once\n/stats\n", &format!("{} of 108 blocks", curve[4]["blocks"]));
    let mut file = fs::OpenOptions::new().append(true).open(home.path("arriving.gguf")).unwrap();
    file.write_all(&whole[part..]).unwrap();
    until("upon\n/stats\n", "108 of 108 blocks");
    drop(input);
    assert!(child.wait().unwrap().success());
}
