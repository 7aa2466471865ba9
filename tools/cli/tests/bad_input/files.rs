//! Model files that are none, and requests that cannot be met.

use super::*;

#[test]
fn what_is_no_model() {
    let here = Here::new();
    let model = |name: &str, bytes: &[u8]| {
        here.write(name, bytes);
        fails(&mut here.run(name, &[]))
    };
    holds(&model("zero.gguf", b""), &["zero.gguf is empty; fetch or copy it again"]);
    holds(&model("text.gguf", b"Once upon a time\n"), &["cannot read text.gguf", "this is no GGUF file"]);
    let folder = [
        ". has no config.json, so it is no folder of a model",
        "name a file in it: ./text.gguf, ./tiny.gguf",
    ];
    holds(&model("x.safetensors", b"any"), &folder);
    holds(&fails(&mut here.run(".", &[])), &folder);
    holds(&fails(&mut here.run("/dev/null", &[])), &["/dev/null is a device or pipe, not a file"]);
    holds(
        &fails(&mut here.run("none.gguf", &[])),
        &["no model file none.gguf, and no such name in the catalog"],
    );
    assert_eq!(here.cached(), [""; 0]);
}

#[test]
fn what_is_not_whole() {
    let here = Here::new();
    let whole = tiny();
    for len in [3, 4, 20, 500, 5000, whole.len() / 2, whole.len() - 100] {
        here.write("cut.gguf", &whole[..len]);
        holds(
            &fails(&mut here.run("cut.gguf", &[])),
            &["cannot read cut.gguf", "is cut off or damaged, fetch it again"],
        );
    }
    // A tensor description: length and name, number of dimensions, two dimensions, type, offset.
    let name = b"blk.1.attn_q.weight";
    let at = whole.windows(name.len()).position(|w| w == name).unwrap() + name.len();
    let with = |skip: usize, number: u64| {
        let mut bad = whole.clone();
        bad[at + skip..at + skip + 8].copy_from_slice(&number.to_le_bytes());
        here.write("bad.gguf", &bad);
        fails(&mut here.run("bad.gguf", &[]))
    };
    holds(&with(4, 1 << 40), &["tensor `blk.1.attn_q.weight` (byte ", "needs ", "bytes, the file has "]);
    holds(&with(4, u64::MAX - 31), &["tensor `blk.1.attn_q.weight`", "is larger than any file"]);
    holds(&with(12, 0), &["tensor `blk.1.attn_q.weight`", "dimension 1 is zero"]);
    holds(&with(24, 0), &["data overlaps that of tensor `", "the file is damaged"]);
    holds(&with(24, 7), &["data offset 7 is no multiple of the alignment"]);
    holds(&with(24, 1 << 62), &["bytes, the file has 0 left"]);
    let mut bad = whole.clone();
    bad[8..16].copy_from_slice(&(1u64 << 60).to_le_bytes());
    here.write("bad.gguf", &bad);
    holds(&fails(&mut here.run("bad.gguf", &[])), &["says there are 1152921504606846976 tensors"]);
    assert_eq!(here.cached(), [""; 0]);
}

#[test]
fn what_is_another_model() {
    let here = Here::new();
    let refused = |metadata: &[(&str, Option<Value<'_>>)], change: &dyn Fn(&mut Vec<Tensor>)| {
        here.write("bad.gguf", &edit(&tiny(), metadata, |t| change(t)));
        fails(&mut here.run("bad.gguf", &[]))
    };
    let same = |_: &mut Vec<Tensor>| {};
    let arch = refused(&[("general.architecture", Some(Value::Str("mamba")))], &same);
    holds(
        &arch,
        &["cannot load bad.gguf", "architecture \"mamba\" is not supported; this build reads: llama"],
    );
    let missing = refused(&[], &|all| all.retain(|t| t.0 != "blk.3.ffn_up.weight"));
    holds(&missing, &["tensor `blk.3.ffn_up.weight`: is missing; the file is incomplete"]);
    let layers = refused(&[("llama.block_count", Some(Value::U32(1 << 31)))], &same);
    holds(&layers, &["llama.block_count: 2147483648 is out of range"]);
    let layers = refused(&[("llama.block_count", Some(Value::U32(1 << 20)))], &same);
    holds(&layers, &["tensor `blk.5.attn_norm.weight`: is missing"]);
    let shape = refused(&[("llama.feed_forward_length", Some(Value::U32(180)))], &same);
    holds(
        &shape,
        &[
            "tensor \"blk.0.ffn_gate.weight\": has shape [64, 172], the model's configuration asks for [64, 180]",
        ],
    );
    let scale = refused(&[], &|all| {
        let t = all.iter_mut().find(|t| t.0 == "blk.2.attn_k.weight").unwrap();
        t.3[34..36].copy_from_slice(&[0, 0x7e]);
    });
    holds(&scale, &["tensor \"blk.2.attn_k.weight\": has a block with the scale NaN", "fetch it again"]);
    let norm = refused(&[], &|all| {
        all.iter_mut().find(|t| t.0 == "output_norm.weight").unwrap().3[0..4]
            .copy_from_slice(&[0, 0, 0x80, 0x7f]);
    });
    holds(&norm, &["tensor \"output_norm.weight\": value 0 is inf"]);
    let tokens = refused(&[("tokenizer.ggml.tokens", None)], &same);
    holds(&tokens, &["cannot read the tokenizer of bad.gguf", "tokenizer.ggml.tokens"]);
    // NaN in a matrix that is not packed shows in the first logits.
    let nan = refused(&[], &|all| {
        let t = all.iter_mut().find(|t| t.0 == "blk.0.ffn_down.weight").unwrap();
        assert_eq!(t.1, GgmlType::F32);
        t.3.as_chunks_mut().0.iter_mut().for_each(|x| *x = f32::NAN.to_le_bytes());
    });
    holds(&nan, &["sampling at position", "is NaN; the model file is damaged"]);

    // Ids outside are said and ignored: the model runs.
    let ids = [
        ("tokenizer.ggml.eos_token_id", Some(Value::U32(512))),
        ("tokenizer.ggml.bos_token_id", Some(Value::U32(u32::MAX))),
    ];
    here.write("ids.gguf", &edit(&tiny(), &ids, |_| {}));
    let (_, notes) = answers(&mut here.run("ids.gguf", &[]));
    holds(
        &notes,
        &["warning: tokenizer.ggml.eos_token_id is 512, outside the vocabulary of 512 tokens: ignored"],
    );
}

#[test]
fn contexts_and_prompts_that_do_not_fit() {
    let here = Here::new();
    let long = "word ".repeat(40);
    let message = fails(&mut here.run("tiny.gguf", &["-c", "16", "-p", &long]));
    holds(
        &message,
        &[
            " positions are needed, but the context has 16; shorten the prompt or ask for a longer context with -c",
        ],
    );
    let message = fails(&mut here.run("tiny.gguf", &["-c", "100000000"]));
    holds(
        &message,
        &["not enough memory: a context of 100000000 positions", " MiB are available (bound by ", "-c"],
    );
    let message = failed(here.limited("-v 700000", &["-t", "1", "-c", "4000000"]));
    holds(&message, &["not enough memory", "bound by resource limit \"Max address space\""]);
    let (code, _, usage) = said(&mut here.run("tiny.gguf", &["-c", "5000000000"]));
    assert_eq!(code, Some(2), "{usage}");
    let (code, _, usage) = said(&mut here.run("tiny.gguf", &["-t", "100000"]));
    assert_eq!(code, Some(2), "{usage}");
    holds(&usage, &["a number of threads from 1 to 1024"]);
    // The model's own, 512.
    let message = fails(&mut here.run("tiny.gguf", &["-c", "0", "-p", &"word ".repeat(600)]));
    holds(&message, &["but the context has 512;"]);
    answers(&mut here.run("tiny.gguf", &["-c", "0"]));
}

#[test]
fn prompts_that_are_none() {
    let here = Here::new();
    here.write("latin1.txt", b"caf\xe9");
    let message = fails(&mut here.run("tiny.gguf", &["-f", "latin1.txt"]));
    holds(&message, &["the prompt file latin1.txt is not UTF-8 from its byte 3 on"]);
    holds(&fails(&mut here.run("tiny.gguf", &["-f", "none.txt"])), &["cannot read the prompt file none.txt"]);
    holds(&fails(&mut here.run("tiny.gguf", &["-f", "/dev/zero"])), &["has more than 64 MiB"]);
    // stdin is /dev/null here, and then closed.
    holds(&fails(&mut here.run("tiny.gguf", &["-"])), &["the prompt is empty; give one with -p TEXT"]);
    let mut closed = Command::new("/bin/sh");
    closed.args(["-c", "exec \"$0\" run tiny.gguf <&-", env!("CARGO_BIN_EXE_lutite")]).env_clear();
    closed.env("HOME", here.dir.path()).current_dir(here.dir.path());
    holds(&fails(&mut closed), &["the prompt is empty"]);
    let mut piped =
        here.run("tiny.gguf", &["-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(b"\xff\xfe").unwrap();
    let out = piped.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    holds(
        &String::from_utf8(out.stderr).unwrap(),
        &["the prompt on standard input is not UTF-8 from its byte 0 on"],
    );
}

#[test]
fn settings_that_are_none() {
    let here = Here::new();
    let message = fails(here.run("tiny.gguf", &[]).env("LUTITE_ISA", "nonsense"));
    holds(&message, &["nonsense", "scalar"]);
    // Said before anything was packed.
    assert_eq!(here.cached(), [""; 0]);
    let message = fails(here.run("tiny.gguf", &[]).env_remove("HOME"));
    holds(&message, &["--no-cache", "neither LUTITE_HOME nor a home folder is set; set LUTITE_HOME"]);
    answers(here.run("tiny.gguf", &["--no-cache"]).env_remove("HOME"));
    assert_eq!(here.cached(), [""; 0]);
}
