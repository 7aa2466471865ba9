//! Parsing with given defaults. What a process's variables do is tested by whole processes, in `tests/`.

use super::*;
use crate::catalog;
use crate::peak::peak_of;
use lutite_models::sampling::SamplingDefaults;
use std::io::Write;

fn argv(line: &str) -> Vec<OsString> {
    std::iter::once("lutite").chain(line.split_whitespace()).map(OsString::from).collect()
}

fn parse_line(line: &str) -> Result<Verb, clap::Error> {
    parse_with(argv(line), &Defaults::default())
}

fn with_file(toml: &str, line: &str) -> Result<Verb, clap::Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(toml.as_bytes()).unwrap();
    let message = |message: String| clap::Error::raw(ErrorKind::Io, message);
    parse_with(argv(line), &Defaults::load(Some((file.path().into(), true))).map_err(message)?)
}

macro_rules! verb {
    ($verb:ident, $parsed:expr) => {
        match $parsed {
            Ok(Verb::$verb(args)) => args,
            other => panic!("{other:?}"),
        }
    };
}

#[test]
fn the_definitions_are_sound() {
    Cli::command().debug_assert();
    let command = Cli::command();
    for verb in command.get_subcommands() {
        assert!(verb.get_about().is_some(), "{}", verb.get_name());
    }
    for (one, other) in EITHER {
        let has = |id: &str| command.get_subcommands().any(|v| v.get_arguments().any(|a| a.get_id() == id));
        assert!(has(one) && has(other), "{one} {other}");
    }
}

#[test]
fn llama_spellings() {
    let line = "run -m x.gguf -p hi -n -1 -c 2048 -t 2 -b 64 -ctk f32 -ctv=f16 -sys be --temp 0 --top-k 1 --top-p 0.5 \
                --min-p 0.1 --repeat-penalty 1.1 --repeat-last-n -1 -s 7 -r a -r b --chat-template none --no-cache";
    let run = verb!(Run, parse_line(line));
    assert_eq!(run.model.named(), "x.gguf");
    assert_eq!(run.prompt.as_deref(), Some("hi"));
    assert_eq!(run.talk.system.as_deref(), Some("be"));
    assert_eq!(run.talk.reverse_prompt, ["a", "b"]);
    assert_eq!((run.talk.predict, run.talk.ctx_size), (Limit(None), Some(2048)));
    assert_eq!((run.engine.threads.map(|n| n.get()), run.engine.batch_size.get()), (Some(2), 64));
    assert_eq!((run.engine.cache_type_k, run.engine.cache_type_v), (CacheType::F32, CacheType::F16));
    assert!(run.engine.no_cache);
    let config = run.sampling.config(&SamplingDefaults::default(), 2048);
    assert_eq!((config.top_k, config.repeat_last_n, config.seed), (1, 2048, 7));
    assert_eq!((config.temperature, config.top_p, config.min_p, config.repeat_penalty), (0.0, 0.5, 0.1, 1.1));
}

#[test]
fn the_sampler_agrees_with_the_flags_on_defaults() {
    let run = verb!(Run, parse_line("run -s 0"));
    let none = SamplingDefaults::default();
    assert_eq!(run.sampling.config(&none, 4096), lutite_runtime::sample::SamplerConfig::default());
    let random = verb!(Run, parse_line("run"));
    assert_ne!(random.sampling.config(&none, 1).seed, random.sampling.config(&none, 1).seed);
}

#[test]
fn a_flag_beats_the_model_and_the_model_beats_the_default() {
    let model = SamplingDefaults {
        temperature: Some(0.0),
        top_k: Some(0),
        repeat_penalty: Some(1.1),
        repeat_last_n: Some(-1),
        ..SamplingDefaults::default()
    };
    let run = verb!(Run, parse_line("run -s 0"));
    let config = run.sampling.config(&model, 4096);
    assert_eq!((config.temperature, config.top_k, config.top_p), (0.0, 0, 0.95));
    assert_eq!((config.repeat_penalty, config.repeat_last_n), (1.1, 4096));
    assert_eq!(run.sampling.taken_from(&model), "--temp 0 --top-k 0 --repeat-penalty 1.1 --repeat-last-n -1");
    let run = verb!(Run, with_file("temp = 0.5", "run -s 0 --top-k 7 --repeat-penalty 1 --repeat-last-n 3"));
    let config = run.sampling.config(&model, 4096);
    assert_eq!((config.temperature, config.top_k), (0.5, 7));
    assert_eq!((config.repeat_penalty, config.repeat_last_n), (1.0, 3));
    assert_eq!(run.sampling.taken_from(&model), "");
}

#[test]
fn a_model_is_named_in_two_ways() {
    assert_eq!(verb!(Run, parse_line("run a.gguf")).model.named(), "a.gguf");
    assert_eq!(verb!(Chat, parse_line("chat -m a.gguf")).model.named(), "a.gguf");
    assert_eq!(verb!(Chat, parse_line("chat")).model.named(), catalog::DEFAULT);
    assert_eq!(parse_line("run a.gguf -m b.gguf").unwrap_err().kind(), ErrorKind::ArgumentConflict);
    assert_eq!(verb!(Pull, parse_line("pull")).name, catalog::DEFAULT);
    for spelling in ["-hf", "-hfr", "--hf-repo"] {
        let run = verb!(Run, parse_line(&format!("run {spelling} o/r:Q4_0")));
        assert_eq!(run.model.named(), "hf.co/o/r:Q4_0");
    }
    assert_eq!(parse_line("run -m a.gguf -hf o/r").unwrap_err().kind(), ErrorKind::ArgumentConflict);
    // Of the typed and the one of the file, the typed.
    assert_eq!(verb!(Run, with_file("model = 'm.gguf'", "run -hf o/r")).model.named(), "hf.co/o/r");
    assert_eq!(verb!(Run, with_file("hf-repo = 'o/r'", "run -m m.gguf")).model.named(), "m.gguf");
    assert_eq!(verb!(Run, with_file("hf-repo = 'o/r'", "run")).model.named(), "hf.co/o/r");
}

#[test]
fn the_tools() {
    let bench =
        verb!(Bench, parse_line("bench --synthetic llama2-7b -p 0 -n 16,32 -t 1,2 -r 3 -o csv --bits 2"));
    assert_eq!(bench.synthetic, Some(Synthetic::Llama2_7b));
    assert_eq!((bench.n_prompt, bench.n_gen), (vec![0], vec![16, 32]));
    assert_eq!(bench.threads.iter().map(|n| n.get()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((bench.output, bench.bits), (BenchFormat::Csv, Some(Bits::Planes(2))));
    let quantize =
        verb!(Quantize, parse_line("quantize a.gguf -o b.gguf --bits exact --group 128 --params hlq16"));
    assert_eq!((quantize.bits, quantize.group, quantize.params), (Bits::Exact, 128, Params::Hlq16));
    let export = verb!(Export, parse_line("export a.gguf b.gguf"));
    assert_eq!((export.source.as_str(), export.float_type), ("a.gguf", FloatType::F16));
    assert_eq!(verb!(Export, parse_line("export a b --type f32")).float_type, FloatType::F32);
    let perplexity = verb!(Perplexity, parse_line("perplexity -f a.txt --protocol papers --path plain"));
    assert_eq!((perplexity.text.context(), perplexity.path), (2048, KernelPath::Plain));
    let perplexity = verb!(Perplexity, parse_line("perplexity -f a.txt -c 256 --chunks 4"));
    assert_eq!((perplexity.text.context(), perplexity.text.chunks), (256, Limit(Some(4))));
    assert_eq!(verb!(Kl, parse_line("kl a.gguf -f a.txt")).reference, "plain");
    assert!(verb!(Kl, parse_line("kl a.gguf -f a.txt --base x.kld")).base.is_some());
    assert!(verb!(Kl, parse_line("kl a.gguf --kl-divergence-base x.kld")).text.file.is_none());
    let eval = verb!(Eval, parse_line("eval a.gguf --task x --task y.gz --limit 5 --resume j -c 9"));
    assert_eq!((eval.model.named(), eval.tasks.len(), eval.limit), ("a.gguf", 2, Limit(Some(5))));
    assert!(eval.resume.is_some() && eval.ctx_size.is_some() && eval.path == KernelPath::Lut);
    assert_eq!(verb!(Eval, with_file("[eval]\ntask = ['a', 'b']", "eval")).tasks.len(), 2);
    for spelling in ["--save-base", "--kl-divergence-base", "--save-all-logits"] {
        let line = format!("perplexity -f a.txt {spelling} x.kld");
        assert!(verb!(Perplexity, parse_line(&line)).save_base.is_some());
    }
}

#[test]
fn usage_errors() {
    for line in [
        "",
        "fly",
        "run --no-such-flag",
        "run -p a -f b",
        "run --temp -1",
        "run --temp warm",
        "run --top-p 0",
        "run --min-p 2",
        "run --repeat-penalty 0",
        "run -s -2",
        "run -n -5",
        "run -t 0",
        "run -b 0",
        "run -ctk q4_1",
        "chat -p hello",
        "run -hf smollm2",
        "run -hf o/r:../x",
        "rm",
        "list -o xml",
        "quantize a.gguf",
        "quantize a.gguf -o b.gguf --bits 9",
        "quantize a.gguf -o b.gguf --group 48",
        "perplexity a.gguf",
        "perplexity -f a.txt --protocol mine",
        "perplexity -f a.txt --protocol papers --save-base b",
        "perplexity -f a.txt --positions 9 --save-base b",
        "kl a.gguf",
        "kl -f a.txt --base x --reference y",
        "eval a.gguf",
        "eval --task a --limit -2",
        "bench --synthetic gpt5",
        "bench a.gguf --synthetic smollm2",
        "bench -o xml",
    ] {
        let error = parse_line(line).expect_err(line);
        assert!(error.use_stderr() && error.exit_code() == 2, "{line}: {error}");
    }
}

#[test]
fn the_file_gives_defaults_that_flags_beat() {
    let toml = "top-k = 7\ntemp = 0.5\nno-cache = true\nreverse-prompt = ['a b', 'c']\nmodel = 'm.gguf'\n\
                [run]\nthreads = 3\n[bench]\nthreads = [1, 2]";
    let run = verb!(Run, with_file(toml, "run --temp 0.25"));
    assert_eq!((run.sampling.top_k, run.sampling.temp), (Some(7), Some(0.25)));
    assert!(run.engine.no_cache);
    assert_eq!(run.talk.reverse_prompt, ["a b", "c"]);
    assert_eq!(run.engine.threads.map(|n| n.get()), Some(3));
    assert_eq!(run.model.named(), "m.gguf");
    assert_eq!(verb!(Run, with_file(toml, "run x.gguf -r z")).model.named(), "x.gguf");
    assert_eq!(verb!(Run, with_file(toml, "run x.gguf -r z")).talk.reverse_prompt, ["z"]);
    assert_eq!(verb!(Chat, with_file(toml, "chat")).engine.threads, None);
    assert_eq!(verb!(Bench, with_file(toml, "bench")).threads.len(), 2);
    assert_eq!(
        verb!(Perplexity, with_file("file = 'x.txt'", "perplexity")).text.file.unwrap().as_os_str(),
        "x.txt"
    );
}

#[test]
fn of_two_ways_the_typed_one_counts() {
    let run = verb!(Run, with_file("prompt = 'hi'", "run -f x"));
    assert!(run.prompt.is_none() && run.file.is_some());
    let bench = verb!(Bench, with_file("synthetic = 'smollm2'", "bench x.gguf"));
    assert!(bench.synthetic.is_none());
    assert!(verb!(Kl, with_file("base = 'x'", "kl -f t --reference y")).base.is_none());
}

#[test]
fn mistakes_in_the_file_are_named() {
    for (toml, line, says) in [
        ("topk = 1", "run", "`topk` is no flag"),
        ("[run]\nn-gen = 1", "run", "[run] has `n-gen`"),
        ("[fly]\nx = 1", "run", "`fly` is no flag"),
        ("temp = 1979-05-27", "run", "`temp` must be"),
        ("temp = ", "run", "no TOML"),
        ("temp = 'warm'", "run", "defaults were read from"),
        ("temp = -1.0", "run", "temperature is -1"),
    ] {
        let error = with_file(toml, line).expect_err(toml);
        assert!(error.to_string().contains(says), "{toml}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
    let missing = Defaults::load(Some(("/no/such/file".into(), true)));
    assert!(missing.unwrap_err().contains("/no/such/file"));
    assert!(Defaults::load(Some(("/no/such/file".into(), false))).is_ok());
}

/// The configuration is a person's own, but a slip of the pen should not eat the machine.
#[test]
fn odd_configurations_take_little_memory() {
    let read = |toml: &str| peak_of(|| with_file(toml, "pull smollm2").err().map(|e| e.to_string()));
    // clap's description of all verbs and flags is most of it.
    let (error, usual) = read("temp = 0.5\n");
    assert_eq!(error, None);
    for toml in [
        "[".repeat(1000),
        format!("x = {}", "[".repeat(900)),
        format!("x = {}", "{a=".repeat(300)),
        format!("{}x = 1", "a.".repeat(450)),
        format!("[{}a]", "a.".repeat(450)),
        "[[a]]\n".repeat(150),
        format!("x = \"{}\"", "\\U0010FFFF".repeat(90)),
        "temp = 99999999999999999999999999".to_owned(),
    ] {
        let (error, peak) = read(&toml);
        let start: String = toml.chars().take(20).collect();
        assert!(peak <= usual + (512 << 10), "{start}: {peak} bytes held, {usual} usually");
        assert!(error.is_some(), "{start} was accepted");
    }
}
