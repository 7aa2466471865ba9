//! Writes `corpus/*/seed-*`: well-formed inputs to begin with. `cargo run -p lutite-fuzz --example seeds`, after a change of
//! a format that they are in.

use lutite_kernels::ggml::GgmlType;
use lutite_kernels::pack::{ParamKind, PlaneShape};
use lutite_models::ChatTemplate;
use lutite_runtime::decode::Phase;
use lutite_runtime::sample::SamplerConfig;
use lutite_runtime::split::codec::{Codec, CodecSpec, Precision};
use lutite_runtime::split::message::{Card, Message, Open, Refusal, Ticket, VERSIONS};
use lutite_runtime::store::{
    FORMAT_VERSION, GgufWriter, MatrixInfo, PackedInfo, Stack, announce_checksums, layout_tag, version_name,
};
use std::error::Error;
use std::fs;
use std::path::Path;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let write = |target: &str, name: &str, bytes: &[u8]| -> Result<()> {
        fs::create_dir_all(corpus.join(target))?;
        Ok(fs::write(corpus.join(target).join(format!("seed-{name}")), bytes)?)
    };
    write("gguf", "all-types", &all_types()?)?;
    write("gguf", "empty", &GgufWriter::new().begin_in_memory()?.finish()?)?;

    for (name, ty, tied) in [("f32", GgmlType::F32, true), ("q8_0", GgmlType::Q8_0, false)] {
        write("packed", name, &model(&Form::Plain(ty), tied, &[])?)?;
    }
    for (name, kind, planes, group, tied) in [
        ("uniform", ParamKind::Uniform, 4, 32, true),
        ("centered", ParamKind::Centered(8), 4, 32, false),
        ("uniformk", ParamKind::UniformK, 2, 16, false),
        ("centeredk", ParamKind::CenteredK(4), 3, 16, true),
        ("hlq8", ParamKind::Hlq8, 2, 64, true),
        ("hlq16", ParamKind::Hlq16, 1, 256, false),
    ] {
        write("packed", name, &model(&Form::Packed { kind, planes, group }, tied, &[])?)?;
    }
    let form = Form::Packed { kind: ParamKind::Hlq8, planes: 2, group: 32 };
    write("packed", "stacked", &model(&form, true, &BLOCKS)?)?;
    for (name, bits) in [("lossless", 32), ("four-bits", 4), ("seven-bits", 7)] {
        write("codec", name, &state(bits)?)?;
    }
    for (i, message) in messages().iter().enumerate() {
        let mut bytes = vec![200];
        message.write(i as u32, 9, &mut bytes);
        write("frames", &format!("{i}"), &bytes)?;
    }
    for name in ChatTemplate::names() {
        write("template", name, ChatTemplate::builtin(name)?.source().as_bytes())?;
    }
    for (name, source) in TEMPLATES {
        write("template", name, source.as_bytes())?;
    }
    for (name, lines) in TOKENIZERS {
        write("tokenizer", name, lines.as_bytes())?;
    }
    Ok(())
}

/// A state of 40 values, two of them large, behind what it was agreed on.
fn state(bits: u8) -> Result<Vec<u8>> {
    let precision = if bits == 32 { Precision::Lossless } else { Precision::Bits(bits) };
    let channels = (0..40).step_by(9).collect();
    let spec = CodecSpec { width: 40, precision, channels, indexed: 4, guard: 1.0 };
    let mut x: Vec<f32> = (0..40).map(|i| (i * i % 17) as f32 - 8.0).collect();
    (x[3], x[30]) = (900.0, -1e6);
    let mut bytes = vec![40, 0, bits, 9, 4, 64];
    Codec::new(spec)?.encode(&x, &mut bytes)?;
    Ok(bytes)
}

/// One of each kind.
fn messages() -> Vec<Message<'static>> {
    let codec =
        CodecSpec { width: 40, precision: Precision::Bits(4), channels: vec![3, 9], indexed: 4, guard: 1.0 };
    let card = Card { fingerprint: [9; 32], layers: 30, least: 2, width: 40, context: 99, batch: 16 };
    let sampling = SamplerConfig::default();
    let open = Open { fingerprint: [9; 32], cut: 3, codec: codec.clone(), context: 50, sampling };
    let ticket = Ticket { session: [1; 16], secret: [2; 32] };
    vec![
        Message::Hello { versions: VERSIONS, token: "t" },
        Message::Welcome { version: 1, models: vec![card] },
        Message::Open(Box::new(open)),
        Message::Opened { ticket, lease_s: 120, window: 4 },
        Message::Step { phase: Phase::Prompt, sample: true, tokens: &[0; 8], count: 2, states: &[5; 60] },
        Message::Done { token: Some(7), compute_us: 5, queue_us: 3 },
        Message::Rewind,
        Message::Recode(Box::new(codec)),
        Message::Resume(ticket),
        Message::Resumed,
        Message::Ping(7),
        Message::Pong(7),
        Message::Close,
        Message::Error { refusal: Refusal::Busy, retry_ms: 9, text: "later" },
    ]
}

/// A metadata value of each type, and tensors of three types.
fn all_types() -> Result<Vec<u8>> {
    let mut w = GgufWriter::new();
    w.set("general.architecture", "llama")?.set("u8", 200u8)?.set("i8", -1i8)?.set("u16", 60_000u16)?;
    w.set("i16", -2i16)?.set("u32", 7u32)?.set("i32", -3i32)?.set("f32", 1.5f32)?.set("bool", true)?;
    w.set("u64", 1u64 << 40)?.set("i64", -4i64)?.set("f64", 2.5f64)?;
    w.set("strs", ["a", "", "\u{2581}the"].as_slice())?.set("f32s", [0.5f32, -1.0].as_slice())?;
    w.set("i32s", [7i32].as_slice())?.set("bools", [false, true].as_slice())?;
    let tensors =
        [("a", GgmlType::F32, vec![4, 3]), ("b", GgmlType::Q4_0, vec![64, 2]), ("c", GgmlType::F16, vec![5])];
    for (name, ty, shape) in &tensors {
        w.add_tensor(name, *ty, shape)?;
    }
    let mut stream = w.begin_in_memory()?;
    for (name, ty, shape) in &tensors {
        stream.tensor(name, &data(*ty, shape))?;
    }
    Ok(stream.finish()?)
}

/// Small finite numbers in whatever type.
fn data(ty: GgmlType, shape: &[u64]) -> Vec<u8> {
    let values = shape.iter().product::<u64>() as usize;
    (0..ty.row_bytes(values).unwrap_or(0)).map(|i| (i * 37 % 64) as u8).collect()
}

/// How the matrices of a model are stored.
enum Form {
    Plain(GgmlType),
    Packed { kind: ParamKind, planes: usize, group: usize },
}

/// Versions of matrices that a stack brings: matrix, version, kind, planes, group.
const BLOCKS: [(&str, usize, ParamKind, usize, usize); 3] = [
    ("blk.0.ffn_up", 1, ParamKind::Hlq8, 3, 64),
    ("token_embd", 1, ParamKind::Centered(128), 8, 32),
    ("blk.0.ffn_up", 2, ParamKind::Uniform, 4, 32),
];

/// The head of the smallest Llama there is: one layer, 4 heads of 8 dimensions, 40 tokens. The target makes the data up.
fn model(form: &Form, tied: bool, blocks: &[(&str, usize, ParamKind, usize, usize)]) -> Result<Vec<u8>> {
    let (dim, kv, ffn, vocab) = (32, 16, 64, 40);
    let mut w = GgufWriter::new();
    let arch = if matches!(form, Form::Plain(_)) { "llama" } else { "lut-llama" };
    w.set("general.architecture", arch)?;
    for (key, n) in [
        ("embedding_length", dim as u32),
        ("block_count", 1),
        ("feed_forward_length", ffn as u32),
        ("context_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 8),
        ("rope.dimension_count", 8),
    ] {
        w.set(&format!("llama.{key}"), n)?;
    }
    w.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32)?.set("llama.rope.freq_base", 10_000f32)?;
    if tied {
        w.set("llama.rope.scaling.type", "yarn")?.set("llama.rope.scaling.factor", 4f32)?;
        w.set("llama.rope.scaling.original_context_length", 32u32)?;
    }
    let mut matrices = vec![
        ("token_embd", dim, vocab),
        ("blk.0.attn_q", dim, dim),
        ("blk.0.attn_k", dim, kv),
        ("blk.0.attn_v", dim, kv),
        ("blk.0.attn_output", dim, dim),
        ("blk.0.ffn_gate", dim, ffn),
        ("blk.0.ffn_up", dim, ffn),
        ("blk.0.ffn_down", ffn, dim),
    ];
    if !tied {
        matrices.push(("output", dim, vocab));
    }
    let blocks: Vec<PackedInfo> = blocks
        .iter()
        .filter_map(|&(name, version, kind, planes, group)| {
            let &(_, cols, rows) = matrices.iter().find(|m| m.0 == name)?;
            let shape = PlaneShape { rows: rows as usize, cols: cols as usize };
            Some(PackedInfo { name: version_name(name, version), kind, shape, planes, group })
        })
        .collect();
    let (mut tensors, mut lines) = (Vec::new(), Vec::new());
    for (name, cols, rows) in matrices {
        match *form {
            Form::Packed { kind, planes, group } if tied || name != "token_embd" => {
                let shape = PlaneShape { rows: rows as usize, cols: cols as usize };
                let info = PackedInfo { name: name.into(), kind, shape, planes, group };
                lines.push(info.line());
                tensors.extend(info.tensors());
            }
            Form::Packed { .. } => tensors.push((format!("{name}.weight"), GgmlType::F16, vec![cols, rows])),
            Form::Plain(ty) => tensors.push((format!("{name}.weight"), ty, vec![cols, rows])),
        }
    }
    for name in ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight", "blk.0.attn_q.bias"]
    {
        tensors.push((name.into(), GgmlType::F32, vec![dim]));
    }
    if tied {
        tensors.push(("rope_freqs.weight".into(), GgmlType::F32, vec![4]));
    }
    tensors.extend(blocks.iter().flat_map(PackedInfo::tensors));
    for (name, ty, shape) in &tensors {
        w.add_tensor(name, *ty, shape)?;
    }
    if !blocks.is_empty() {
        let blocks: Vec<MatrixInfo> = blocks.into_iter().map(MatrixInfo::Packed).collect();
        Stack::announce(&mut w, &blocks, &[0, blocks.len()])?;
    }
    if let Form::Packed { .. } = form {
        w.set("lutite.version", FORMAT_VERSION)?.set("lutite.layout", layout_tag())?;
        w.set("lutite.tensors", lines.as_slice())?;
        announce_checksums(&mut w, tensors.len())?;
    }
    Ok(w.begin_in_memory()?.head().to_vec())
}

/// What the built-in templates do not use.
const TEMPLATES: [(&str, &str); 7] = [
    ("chatml-generation", "{%- for m in messages -%}{%- generation -%}{{ m['content'] | trim }}{%- endgeneration -%}{%- endfor %}"),
    (
        "qwen",
        "{%- if tools %}{{- '<tools>' + tools | tojson }}{%- else %}{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and not(message.content.startswith('<tool>')) and ns.last == messages|length - 1 %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}{{- message.content.split('</think>')[-1].lstrip('\\n') }}{%- endfor %}",
    ),
    (
        "values",
        "{{ none }} {{ true }} {{ 1 + 2 * 3 }} {{ 7 // 2 }} {{ 'ab' * 2 }}{{ {'a': [1, none, 'x']} | tojson(indent=2) }}{{ ['b', 'a'] | sort | join(', ') }}{{ 'a-b'.replace('-', '+').upper() }}{{ '{}-{:>3}'.format('a', 'b') }}{{ [1, 2, 3][::-1] }}{{ strftime_now('%Y-%m-%d') }}",
    ),
    (
        "macros",
        "{% macro f(x, y=2) %}[{{ x }}{{ y }}]{% endmacro %}{{ f('a') ~ f(1, y=3) }}{% set t %}{{ f(t) }}{% endset %}{{ t }}{% filter upper %}{{ t }}{% endfilter %}{% block b %}x{% endblock %}{% macro g() %}({{ caller() }}){% endmacro %}{% call g() %}y{% endcall %}",
    ),
    (
        "filters",
        "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join('|') }}{{ messages|groupby('role')|list|length }}{{ {'b': 1}|dictsort }}{{ 'a b'|title|indent(2) }}{{ [3, 1]|min }}{{ range(4)|sum }}{{ [1, 1]|unique|list }}{{ 'x'|replace('x', 'y') }}{{ (1, 2)|zip([3, 4])|list }}",
    ),
    (
        "loops",
        "{% for m in messages recursive %}{% if loop.index > 2 %}{% break %}{% endif %}{{ loop.cycle('a', 'b') }}{{ m.role }}{% else %}none{% endfor %}{% for a in range(3) if a is odd %}{% continue %}{% endfor %}{% with x = 1 %}{{ x }}{% endwith %}",
    ),
    ("messages", "{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}\n===\nuser\nHi\n===\nassistant\nHello"),
];

/// In the lines of `lutite_fuzz::tokenizer`.
const TOKENIZERS: [(&str, &str); 6] = [
    (
        "gpt2",
        "m gpt2\nn gpt-2\na\nt1 th\nt1 the\nt1 \u{120}the\nt1 ab\nt1 abab\n+ t h\n+ th e\n+ \u{120} the\n+ a b\n+ ab ab\nx 1 the ab's 123 abab\\n\\n é\nx 200 ababab\n",
    ),
    (
        "smollm",
        "m gpt2\nn smollm\na\nt1 12\nt3 <|im_start|>\nt3 <|im_end|>\n+ 1 2\ni0 257\ni1 258\ni5 258\nx 1 <|im_start|>user\\nHi 123<|im_end|>\n",
    ),
    (
        "llama3",
        "m gpt2\nn llama-bpe\na\nt1 hello\nt1 he\n+ h e\nt3 <|eot_id|>\ni0 258\nx 3 hello he'LL 12345 \u{3042} \n",
    ),
    ("qwen", "m gpt2\nn qwen35\na\n+ x y\nt4 <think>\nx 1 <think>xy e\u{301} 12\n"),
    (
        "spm",
        "m llama\na\nt1 \u{2581}\nt1 a\nt1 \u{2581}a\nt1 ab\nt1 aba\nt1 ba\nx 1 aba  abab é\nx 500 ab\nx 300 a b\n",
    ),
    (
        "spm-special",
        "m llama\nt2 <unk>\nt3 <s>\nt3 </s>\nt6 <0x41>\nt1 \u{2581}\nt1 a\u{2581}b\nt4 \\n\\n\nt5 x\nt1 a\ns 0\ns 0\ns 0\ns 0\ns -1\ns -2\ns -3\ns 1e9\ns -1\nf0 1\nf1 1\nf2 0\nx 1 <s>a b\\n\\nA\u{1f600}</s>\n",
    ),
];
