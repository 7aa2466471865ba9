//! Small files that say they are large: what a reader allocates follows from the bytes that are there.

#[path = "../../runtime/tests/common/peak.rs"]
mod peak;

use lutite_kernels::ggml::GgmlType;
use lutite_kernels::isa::Isa;
use lutite_models::{ChatTemplate, Message, OpenOptions, Path, Tokenizer, open, verify};
use lutite_runtime::store::{Bytes, FORMAT_VERSION, GgufWriter, layout_tag};
use peak::peak_of;

/// What a reader may hold for an input of `len` bytes.
fn cap(len: usize) -> usize {
    (256 << 10) + 16 * len
}

/// The result of `read`, which must stay below the cap for an input of at most 1100 bytes.
fn capped<T>(what: &str, input: &[u8], read: impl FnOnce() -> T) -> T {
    assert!(input.len() <= 1100, "{what}: {} bytes are no small file", input.len());
    let (result, peak) = peak_of(read);
    assert!(peak <= cap(input.len()), "{what}: {peak} bytes held for a file of {}", input.len());
    result
}

/// A packed file of one tensor, with this directory and these Llama sizes.
fn packed(lines: &[&str], sizes: &[(&str, u32)]) -> Vec<u8> {
    let write = || {
        let mut w = GgufWriter::new();
        w.set("general.architecture", "lut-llama")?;
        for (key, n) in sizes {
            w.set(&format!("llama.{key}"), *n)?;
        }
        w.set("lutite.version", FORMAT_VERSION)?.set("lutite.layout", layout_tag())?;
        w.set("lutite.tensors", lines)?;
        w.add_tensor("output_norm.weight", GgmlType::F32, &[8])?;
        let mut stream = w.begin_in_memory()?;
        stream.tensor("output_norm.weight", &[0; 32])?;
        stream.finish()
    };
    lutite_runtime::Result::unwrap(write())
}

#[test]
fn packed_files() {
    let sizes: [(&str, u32); 6] = [
        ("embedding_length", 1 << 20),
        ("block_count", 1 << 23),
        ("feed_forward_length", 1 << 23),
        ("context_length", 1 << 23),
        ("attention.head_count", 1 << 12),
        ("attention.key_length", 256),
    ];
    let line = "token_embd kind=hlq16 rows=16777215 cols=16777215 planes=8 group=32";
    let layer = "blk.0.attn_q kind=uniform rows=16777215 cols=1048576 planes=8 group=32";
    for (what, file) in [
        ("rows and columns of the largest matrix", packed(&[line], &sizes)),
        ("the same ten times", packed(&[line; 5], &sizes)),
        ("a layer", packed(&[line, layer], &sizes)),
        ("no directory", packed(&[], &sizes)),
        ("no sizes", packed(&[line], &[])),
    ] {
        let bytes = Bytes::new(file.clone());
        capped(what, &file, || verify(&file, 1)).expect_err("no checksums");
        capped(what, &file, || open::check(&bytes)).expect_err(what);
        for path in [Path::Lut, Path::Plain] {
            let options = OpenOptions { path, verify: false, ..OpenOptions::new(Isa::scalar()) };
            capped(what, &file, || open::open(&bytes, &options)).expect_err(what);
        }
    }
}

/// A directory may say anything of matrices whose tensors are not there.
#[test]
fn a_directory_of_many_lines() {
    let sizes: [(&str, u32); 6] = [
        ("embedding_length", 8),
        ("block_count", 1),
        ("feed_forward_length", 8),
        ("context_length", 8),
        ("attention.head_count", 1),
        ("attention.key_length", 8),
    ];
    let line = |name: &str| format!("{name} kind=hlq8 rows=8 cols=16777215 planes=8 group=32");
    let mut lines: Vec<String> = (0..5000).map(|i| line(&format!("a{i}"))).collect();
    lines.push(line("token_embd"));
    let refused = |lines: &[String]| {
        let file = packed(&lines.iter().map(String::as_str).collect::<Vec<_>>(), &sizes);
        let bytes = Bytes::new(file.clone());
        let (result, peak) = peak_of(|| open::check(&bytes));
        assert!(peak <= cap(file.len()), "{peak} bytes held for a file of {}", file.len());
        result.unwrap_err().to_string()
    };
    assert!(refused(&lines).contains("blk.0.attn_norm.weight"));
    lines.push(line("a7"));
    let message = refused(&lines);
    assert!(message.contains("two entries for \"a7\""), "{message}");
}

fn tokenizer_file(model: &str, tokens: &[&str], merges: &[&str], ids: u32) -> Vec<u8> {
    let write = || {
        let mut w = GgufWriter::new();
        w.set("tokenizer.ggml.model", model)?.set("tokenizer.ggml.tokens", tokens)?;
        w.set("tokenizer.ggml.merges", merges)?;
        for name in ["bos", "eos", "eot", "eom", "unknown", "padding"] {
            w.set(&format!("tokenizer.ggml.{name}_token_id"), ids)?;
        }
        w.begin_in_memory()?.finish()
    };
    lutite_runtime::Result::unwrap(write())
}

#[test]
fn tokenizers() {
    let read = |what: &str, file: &[u8]| {
        let gguf = lutite_runtime::store::Gguf::parse(file).unwrap();
        capped(what, file, || Tokenizer::from_gguf(&gguf))
    };
    // The cache of words, the table of 256 bytes and the like are there for the smallest vocabulary already.
    let t = read("ids outside", &tokenizer_file("llama", &["a", "b"], &[], u32::MAX)).unwrap();
    assert_eq!((t.vocab_size(), t.warnings().len()), (2, 6));
    let chain = ["a b", "ab ab", "abab abab", "abababab abababab"];
    read("merges that double", &tokenizer_file("gpt2", &["a", "b"], &chain, 0)).unwrap();
    read("merges of spaces", &tokenizer_file("gpt2", &["a"], &["  "; 20], 0)).unwrap_err();
    read("empty tokens", &tokenizer_file("llama", &[""; 60], &[], 7)).unwrap();
    read("no tokens", &tokenizer_file("llama", &[], &[], 0)).unwrap_err();
}

/// Each template would make or hold much. Rendering has a budget of its own (16 MiB): here it is the compiler's
/// memory that is capped, and then that of rendering by the budget.
#[test]
fn templates() {
    const BUDGET: usize = 16 << 20;
    let nested = "(".repeat(400) + "1" + &")".repeat(400);
    let lists = "{{ ".to_owned() + &"[".repeat(400) + &"]".repeat(400) + " }}";
    let ifs = "{% if a %}".repeat(90);
    let sum = format!("{{{{ {}'a' }}}}", "'a' ~ ".repeat(150));
    for source in [
        &format!("{{{{ {nested} }}}}"),
        &lists,
        &ifs,
        &sum,
        "{{ 'a' * 199 * 199 * 199 * 199 }}",
        "{{ 'a' * 999999999 }}",
        "{{ [1] * 999999999 }}",
        "{{ range(999999999)|list }}",
        "{% set ns = namespace(x='aa') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% for a in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}",
        "{% macro f(x) %}{{ f([x, x]) }}{% endmacro %}{{ f(1) }}",
        // Lists of four million characters or pieces.
        "{% set n = 4000000 %}{% set x = 'a' * n %}{{ x|list|length }}",
        "{% set n = 4000000 %}{% set x = 'a' * n %}{{ x|map('upper')|length }}",
        "{% set n = 4000000 %}{% set x = 'a' * n %}{{ []|chain(x)|length }}",
        "{% set n = 4000000 %}{% set x = 'a' * n %}{{ x.split('a')|length }}",
        "{% set n = 4000000 %}{% set x = 'a ' * n %}{{ x.split()|length }}",
        "{% set n = 4000000 %}{% set x = 'a\\n' * n %}{{ x.splitlines()|length }}",
        "{% set n = 4000000 %}{% set x = 'a' * n %}{{ x[::-1]|length }}",
    ] {
        let compiled = capped(source, source.as_bytes(), || ChatTemplate::new(source));
        if let Ok(template) = compiled {
            let messages = [Message::new("user", "Hi")];
            let (_, peak) = peak_of(|| template.render_with(&messages, "", "", true));
            assert!(peak <= 2 * BUDGET, "{source}: {peak} bytes held");
        }
    }
}
