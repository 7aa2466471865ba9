//! BitStack's checkpoints, made here from the published layout: what is read against the published formula, and each kind of
//! damage against its message.

#[path = "../../../models/tests/common/edit.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod edit;
#[path = "../../../runtime/tests/common/peak.rs"]
mod peak;

use edit::{Rng, mutate, mutations};
use half::f16;
use lutite_kernels::pack::{PlaneShape, SignLevel};
use lutite_quant::bitstack::{Block, Checkpoint, Level, Stacked};
use lutite_quant::{Error, Result};
use lutite_runtime::store::Bytes;
use peak::peak_of;
use std::collections::BTreeMap;
use std::fmt::Write;

const LAYERS: usize = 3;
const RANK: usize = 2;
const LEVELS: usize = 3;
/// Heads that are cut by tiles of 32 rows, and sizes whose products are no multiples of 8.
const HEAD: usize = 38;
const MODULES: [(&str, &str, usize, usize); 7] = [
    ("self_attn.q_proj", "attn_q", 2 * HEAD, 9),
    ("self_attn.k_proj", "attn_k", HEAD, 9),
    ("self_attn.v_proj", "attn_v", HEAD, 9),
    ("self_attn.o_proj", "attn_output", 9, 2 * HEAD),
    ("mlp.gate_proj", "ffn_gate", 35, 9),
    ("mlp.up_proj", "ffn_up", 35, 9),
    ("mlp.down_proj", "ffn_down", 9, 35),
];

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 9, "head_dim": 38,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3, "intermediate_size": 35, "vocab_size": 5,
    "max_position_embeddings": 64, "torch_dtype": "float16"}"#;

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const INDEX: &str = "model.safetensors.index.json";
const LIST: &str = "compression_config.json";

type Files = BTreeMap<String, Vec<u8>>;

#[derive(Clone)]
struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    data: Vec<u8>,
}

fn halves(rng: &mut Rng, n: usize) -> Vec<u8> {
    (0..n).flat_map(|_| f16::from_f32(rng.below(4001) as f32 / 1000.0 - 2.0).to_le_bytes()).collect()
}

/// All of a checkpoint's tensors, their numbers made up.
fn tensors() -> Vec<Tensor> {
    let mut rng = Rng(11);
    let mut all = vec![];
    let mut add = |name: String, dtype, shape: &[usize], data| {
        all.push(Tensor { name, dtype, shape: shape.to_vec(), data });
    };
    for (name, shape) in [("model.embed_tokens", &[5, 9][..]), ("model.norm", &[9]), ("lm_head", &[5, 9])] {
        add(format!("{name}.weight"), "F16", shape, halves(&mut rng, shape.iter().product()));
    }
    for layer in 0..LAYERS {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(format!("model.layers.{layer}.{norm}.weight"), "F16", &[9], halves(&mut rng, 9));
        }
        for (module, _, m, n) in MODULES {
            for i in 0..LEVELS {
                let name = |part: &str| format!("model.layers.{layer}.{module}.{part}_{i}");
                let mut signs: Vec<u8> = (0..(m * n).div_ceil(8)).map(|_| rng.next() as u8).collect();
                if m * n % 8 > 0 {
                    *signs.last_mut().unwrap() &= 0xff << (8 - m * n % 8);
                }
                add(name("qweight"), "U8", &[signs.len()], signs);
                add(name("u"), "F16", &[m, RANK], halves(&mut rng, m * RANK));
                add(name("vt"), "F16", &[RANK, n], halves(&mut rng, RANK * n));
            }
        }
    }
    all
}

fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = ("{\"__metadata__\": {\"format\": \"pt\"}".to_owned(), vec![]);
    for t in tensors {
        let at = data.len();
        data.extend_from_slice(&t.data);
        let Tensor { name, dtype, shape, .. } = t;
        let end = data.len();
        write!(
            header,
            ", \"{name}\": {{\"dtype\": \"{dtype}\", \"shape\": {shape:?}, \"data_offsets\": [{at}, {end}]}}"
        )
        .unwrap();
    }
    header.push('}');
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// Matrices in the model's order, as the list calls them.
fn listed() -> Vec<String> {
    let of_layer = |i| MODULES.iter().map(move |(module, ..)| format!("layer.{i}.{module}"));
    (0..LAYERS).flat_map(of_layer).collect()
}

type Entries = Vec<(String, Vec<(String, String)>)>;

/// Entries of one level everywhere and then of one level more each, in the order of `raised`.
fn entries(raised: &[usize]) -> Entries {
    let names = listed();
    let mut levels = vec![1; names.len()];
    let mut all = vec![];
    for (step, raise) in std::iter::once(None).chain(raised.iter().map(Some)).enumerate() {
        if let Some(raise) = raise {
            levels[*raise] += 1;
        }
        let layers =
            names.iter().zip(&levels).map(|(name, n): (&String, &i32)| (name.clone(), n.to_string()));
        all.push(((1000 + 100 * step).to_string(), layers.collect()));
    }
    all
}

/// The order in which the tests' list raises matrices: the last one's first, level after level.
fn raised() -> Vec<usize> {
    (1..LEVELS).flat_map(|_| (0..listed().len()).rev()).collect()
}

fn list(entries: &Entries) -> Vec<u8> {
    let entry = |(memory, layers): &(String, Vec<(String, String)>)| {
        let layers: Vec<String> = layers.iter().map(|(name, n)| format!("\"{name}\": {n}")).collect();
        format!("{{\"memory\": {memory}, \"layers\": {{{}}}}}", layers.join(", "))
    };
    format!("[{}]", entries.iter().map(entry).collect::<Vec<_>>().join(", ")).into_bytes()
}

fn in_one_file(tensors: &[Tensor], list: Vec<u8>) -> Files {
    let files = [
        ("config.json", CONFIG.as_bytes().to_vec()),
        ("model.safetensors", safetensors(tensors)),
        (LIST, list),
    ];
    files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

fn in_shards(tensors: &[Tensor], list: Vec<u8>) -> Files {
    let mut files = in_one_file(&[], list);
    files.remove("model.safetensors");
    // Not at the end of a matrix: its parts are in both.
    let (first, second) = tensors.split_at(tensors.len() / 2 + 1);
    let mut map = vec![];
    for (name, part) in SHARDS.iter().zip([first, second]) {
        files.insert((*name).to_owned(), safetensors(part));
        map.extend(part.iter().map(|t| format!("\"{}\": \"{name}\"", t.name)));
    }
    files.insert(INDEX.into(), format!("{{\"weight_map\": {{{}}}}}", map.join(", ")).into_bytes());
    files
}

fn sound() -> Files {
    in_one_file(&tensors(), list(&entries(&raised())))
}

fn read(files: &Files, levels: Option<usize>) -> Result<Checkpoint> {
    Checkpoint::read(&mut |name| Ok(files.get(name).map(|bytes| Bytes::new(bytes.clone()))), levels)
}

fn message(files: &Files) -> String {
    read(files, None).expect_err("accepted").to_string()
}

/// `S_0 o (u_0 vt_0) + S_1 o (u_1 vt_1) + ...` of a module, `[m][n]`, straight from the tensors, rows as they are there.
fn published(tensors: &[Tensor], module: &str, m: usize, n: usize, levels: usize) -> Vec<f32> {
    let data = |part: &str, i: usize| {
        let name = format!("{module}.{part}_{i}");
        &tensors.iter().find(|t| t.name == name).unwrap().data
    };
    let value = |data: &[u8], i: usize| f16::from_le_bytes([data[2 * i], data[2 * i + 1]]).to_f32();
    let mut w = vec![0.0; m * n];
    for i in 0..levels {
        let (signs, u, vt) = (data("qweight", i), data("u", i), data("vt", i));
        for (at, w) in w.iter_mut().enumerate() {
            let (r, c) = (at / n, at % n);
            let magnitude = (0..RANK).fold(0.0, |sum, j| sum + value(u, r * RANK + j) * value(vt, j * n + c));
            let plus = signs[at / 8] & [128, 64, 32, 16, 8, 4, 2, 1][at % 8] > 0;
            *w += if plus { magnitude } else { -magnitude };
        }
    }
    w
}

/// Rows of heads as GGUF has them: `[head][2][half]` to `[head][half][2]`, as llama.cpp's converter turns them.
fn rotary_pairs(w: &[f32], m: usize, n: usize) -> Vec<f32> {
    let mut out = vec![];
    for head in 0..m / HEAD {
        for pair in 0..HEAD / 2 {
            for side in 0..2 {
                let row = head * HEAD + side * (HEAD / 2) + pair;
                out.extend_from_slice(&w[row * n..(row + 1) * n]);
            }
        }
    }
    out
}

fn weights(of: &Stacked, levels: &[Level]) -> Vec<f32> {
    let shape = of.shape();
    let mut w = vec![0.0; shape.rows * shape.cols];
    for level in levels {
        let level = SignLevel::new(shape, of.rank(), &level.signs, &level.u, &level.v).unwrap();
        w.chunks_exact_mut(shape.cols).enumerate().for_each(|(row, w)| level.add_row(row, w).unwrap());
    }
    w
}

#[test]
fn levels_are_the_published_formula() {
    let tensors = tensors();
    for files in [sound(), in_shards(&tensors, list(&entries(&raised())))] {
        let checkpoint = read(&files, None).unwrap();
        assert_eq!(checkpoint.matrices().len(), LAYERS * MODULES.len());
        for (index, matrix) in checkpoint.matrices().iter().enumerate() {
            let layer = index / MODULES.len();
            let (module, gguf, m, n) = MODULES[index % MODULES.len()];
            assert_eq!(matrix.name(), format!("blk.{layer}.{gguf}"));
            let found = (matrix.shape(), matrix.rank(), matrix.levels());
            assert_eq!(found, (PlaneShape { rows: m, cols: n }, RANK, LEVELS));
            let levels: Vec<Level> = (0..LEVELS).map(|i| matrix.level(i).unwrap()).collect();
            assert!(levels.iter().all(|level| level.error.is_nan()));
            for count in 0..=LEVELS {
                let module = format!("model.layers.{layer}.{module}");
                let mut expected = published(&tensors, &module, m, n, count);
                if gguf == "attn_q" || gguf == "attn_k" {
                    expected = rotary_pairs(&expected, m, n);
                }
                assert!(weights(matrix, &levels[..count]) == expected, "{module}, {count} levels");
            }
            let e = matrix.level(LEVELS).unwrap_err().to_string();
            assert!(e.contains(gguf) && e.contains("none of number 3"), "{e}");
        }
    }
}

#[test]
fn the_ranking_is_that_of_the_list() {
    let count = listed().len();
    let checkpoint = read(&sound(), None).unwrap();
    assert_eq!(checkpoint.least(), count);
    let expected = (0..count)
        .map(|matrix| Block { matrix, level: 0 })
        .chain((1..LEVELS).flat_map(|level| (0..count).rev().map(move |matrix| Block { matrix, level })));
    assert_eq!(checkpoint.ranking(), expected.collect::<Vec<_>>());

    // Less than the list has: its order without what is not taken.
    let checkpoint = read(&sound(), Some(2)).unwrap();
    assert!(checkpoint.matrices().iter().all(|m| m.levels() == 2));
    assert_eq!(checkpoint.ranking().len(), 2 * count);
    let mut less = tensors();
    less.retain(|t| !(t.name.contains("layers.1.mlp.up_proj") && t.name.ends_with("_2")));
    let checkpoint = read(&in_one_file(&less, list(&entries(&raised()))), None).unwrap();
    let missing = Block { matrix: MODULES.len() + 5, level: 2 };
    assert_eq!(checkpoint.matrices()[missing.matrix].levels(), 2);
    assert_eq!(checkpoint.ranking().len(), LEVELS * count - 1);
    assert!(!checkpoint.ranking().contains(&missing));

    // Entries that raise several matrices by several levels, and one that raises nothing.
    let step = |levels: [u64; 2], memory: &str| {
        let names = listed().into_iter().enumerate();
        let layers = names.map(|(i, name)| (name, levels[usize::from(i == 4)].to_string()));
        (memory.to_owned(), layers.collect())
    };
    let all = vec![step([1, 2], "7"), step([1, 2], "7"), step([u64::MAX, 3], "8")];
    let checkpoint = read(&in_one_file(&tensors(), list(&all)), None).unwrap();
    let others = || (0..count).filter(|matrix| *matrix != 4);
    let mut expected: Vec<Block> = (0..count).map(|matrix| Block { matrix, level: 0 }).collect();
    expected.push(Block { matrix: 4, level: 1 });
    assert_eq!(checkpoint.least(), expected.len());
    expected.extend(others().map(|matrix| Block { matrix, level: 1 }));
    expected.extend((0..count).map(|matrix| Block { matrix, level: 2 }));
    assert_eq!(checkpoint.ranking(), expected);

    // Levels beyond the list have no place.
    let checkpoint = read(&in_one_file(&tensors(), list(&entries(&[3]))), None).unwrap();
    assert_eq!(checkpoint.ranking().len(), count + 1);
}

#[test]
fn padding_copies_and_frequencies_are_passed_over() {
    let mut all = tensors();
    let q = all.iter_mut().find(|t| t.name.ends_with("k_proj.qweight_0")).unwrap();
    *q.data.last_mut().unwrap() |= 1;
    let data = vec![0; 4];
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq".into();
    all.push(Tensor { name, dtype: "F32", shape: vec![1], data });
    let checkpoint = read(&in_one_file(&all, list(&entries(&[]))), None).unwrap();
    let plain = read(&sound(), None).unwrap();
    let signs = |c: &Checkpoint| c.matrices()[1].level(0).unwrap().signs;
    assert_eq!(signs(&checkpoint), signs(&plain));
}

const UP: &str = "model.layers.1.mlp.up_proj";

#[test]
fn every_damage_of_tensors_is_said() {
    type Change = fn(&mut Vec<Tensor>);
    fn at<'a>(all: &'a mut [Tensor], part: &str) -> &'a mut Tensor {
        all.iter_mut().find(|t| t.name == format!("{UP}.{part}")).unwrap()
    }
    fn rename(all: &mut [Tensor], part: &str, name: &str) {
        at(all, part).name = name.into();
    }
    fn drop_level(all: &mut Vec<Tensor>, level: &str) {
        all.retain(|t| !(t.name.starts_with(UP) && t.name.ends_with(level)));
    }
    fn with_rank(all: &mut [Tensor], rank: usize, levels: &[&str]) {
        for t in
            all.iter_mut().filter(|t| t.name.starts_with(UP) && levels.iter().any(|l| t.name.ends_with(l)))
        {
            match t.name.contains(".u_") {
                true => t.shape = vec![35, rank],
                false if t.name.contains(".vt_") => t.shape = vec![rank, 9],
                false => continue,
            }
            t.data = vec![0; 2 * t.shape[0] * t.shape[1]];
        }
    }
    let cases: [(Change, &str, &[&str]); 16] = [
        (
            |all| drop_level(all, "_0"),
            "model.safetensors",
            &["has no tensor", "up_proj.qweight_0", "incomplete"],
        ),
        (|all| drop_level(all, "_1"), "model.safetensors", &["up_proj.qweight_2", "lower levels", "fetch"]),
        (
            |all| all.retain(|t| t.name != format!("{UP}.vt_1")),
            "model.safetensors",
            &["no tensor", "up_proj.vt_1"],
        ),
        (|all| all.retain(|t| !t.name.contains("qweight")), "model.safetensors", &["qweight_0", "--no_avd"]),
        (
            |all| {
                let t = at(all, "qweight_1");
                t.data.pop();
                t.shape[0] -= 1;
            },
            "model.safetensors",
            &["up_proj.qweight_1", "U8 of shape [39], not U8 of shape [40]"],
        ),
        (
            |all| at(all, "u_2").shape = vec![2, 35],
            "model.safetensors",
            &["up_proj.u_2", "has rank 35, level 0 has 2"],
        ),
        (
            |all| at(all, "u_2").shape = vec![70],
            "model.safetensors",
            &["up_proj.u_2", "has rank 0, level 0 has 2"],
        ),
        (
            |all| at(all, "vt_0").shape = vec![9, 2],
            "model.safetensors",
            &["up_proj.vt_0", "[9, 2], not F16 of shape [2, 9]"],
        ),
        (|all| at(all, "vt_0").dtype = "BF16", "model.safetensors", &["up_proj.vt_0", "is BF16"]),
        (
            |all| with_rank(all, 4, &["_1"]),
            "model.safetensors",
            &["up_proj.u_1", "has rank 4, level 0 has 2"],
        ),
        (
            |all| with_rank(all, 3, &["_0", "_1", "_2"]),
            "model.safetensors",
            &["up_proj.u_0", "has rank 3", "--k"],
        ),
        (
            |all| rename(all, "u_2", "model.layers.1.mlp.top_proj.u_2"),
            "model.safetensors",
            &["no tensor", "up_proj.u_2"],
        ),
        (
            |all| rename(all, "u_2", "model.layers.3.mlp.up_proj.u_2"),
            "model.safetensors",
            &["no tensor", "up_proj.u_2"],
        ),
        (
            |all| {
                let t = all[0].clone();
                all.push(Tensor { name: "model.layers.3.mlp.up_proj.u_0".into(), ..t });
            },
            "model.safetensors",
            &["model.layers.3.mlp.up_proj.u_0", "is no part of a level", "config.json"],
        ),
        (
            |all| {
                let t = all[0].clone();
                all.push(Tensor { name: format!("{UP}.scales"), ..t });
            },
            "model.safetensors",
            &["up_proj.scales", "--no_fuse_scale"],
        ),
        (
            |all| {
                let t = all[0].clone();
                all.push(Tensor { name: format!("{UP}.bias"), ..t });
            },
            "model.safetensors",
            &["up_proj.bias", "another model's"],
        ),
    ];
    for (change, file, parts) in cases {
        let mut all = tensors();
        change(&mut all);
        let e = message(&in_one_file(&all, list(&entries(&raised()))));
        assert!(e.starts_with(&format!("{file}: ")), "{e}");
        parts.iter().for_each(|part| assert!(e.contains(part), "{e}: no {part}"));
    }
    // A shard is named by its own name.
    let mut all = tensors();
    all.last_mut().unwrap().dtype = "I16";
    let e = message(&in_shards(&all, list(&entries(&raised()))));
    assert!(e.starts_with(SHARDS[1]) && e.contains("down_proj.vt_2"), "{e}");
}

#[test]
fn numbers_that_are_none_are_found_when_a_level_is_made() {
    for (part, bad) in [("u_1", f16::NAN), ("vt_1", f16::NEG_INFINITY)] {
        let mut all = tensors();
        let t = all.iter_mut().find(|t| t.name == format!("{UP}.{part}")).unwrap();
        t.data[10..12].copy_from_slice(&bad.to_le_bytes());
        let checkpoint = read(&in_one_file(&all, list(&entries(&raised()))), None).unwrap();
        let up = &checkpoint.matrices()[MODULES.len() + 5];
        assert!(up.level(0).is_ok() && up.level(2).is_ok());
        let e = up.level(1).unwrap_err().to_string();
        assert!(e.contains("model.safetensors") && e.contains(part) && e.contains("value 5 is"), "{e}");
    }
}

#[test]
fn levels_that_are_asked_for_have_to_be_there() {
    let e = read(&sound(), Some(4)).unwrap_err().to_string();
    assert!(
        e.contains("layers.0.self_attn.q_proj.qweight_3") && e.contains("levels needed of each matrix: 4"),
        "{e}"
    );
    assert!(matches!(read(&sound(), Some(0)), Err(Error::Setting { .. })));
    assert!(read(&sound(), Some(LEVELS)).is_ok());
}

#[test]
fn every_damage_of_the_list_is_said() {
    type Change = fn(&mut Entries);
    let cases: [(Change, &[&str]); 11] = [
        (|all| all.clear(), &["has no entry"]),
        (|all| all.swap(2, 3), &["entry 3", "memory shrinks from 1300 to 1200"]),
        (|all| all[5].1[20].1 = "1".into(), &["entry 5", "layer.2.mlp.down_proj shrinks from 2 to 1 levels"]),
        (|all| all[0].1[3].1 = "0".into(), &["entry 0", "layer.0.self_attn.o_proj has no level"]),
        (|all| all[1].1[3].1 = "-1".into(), &["entry 1", "layers.layer.0.self_attn.o_proj", "invalid value"]),
        (
            |all| all[1].1[3].1 = "\"2\"".into(),
            &["entry 1", "layers.layer.0.self_attn.o_proj", "invalid type"],
        ),
        (|all| _ = all[4].1.pop(), &["entry 4", "layer.2.mlp.down_proj is missing"]),
        (
            |all| all[0].1[1].0 = "layer.0.self_attn.kk_proj".into(),
            &["entry 0", "kk_proj", "no matrix of this model"],
        ),
        (|all| all[0].1[1].0 = "layer.0.self_attn.q_proj".into(), &["entry 0", "appears twice"]),
        (|all| all[0].0 = "1.5".into(), &["entry 0", "memory: invalid type"]),
        (|all| all[0].0 = "null".into(), &["entry 0", "memory is missing"]),
    ];
    for (change, parts) in cases {
        let mut all = entries(&raised());
        change(&mut all);
        let e = message(&in_one_file(&tensors(), list(&all)));
        assert!(e.starts_with(&format!("{LIST}: ")) && e.contains("fetch it again"), "{e}");
        parts.iter().for_each(|part| assert!(e.contains(part), "{e}: no {part}"));
    }
    for (bytes, part) in [
        (&b"{}"[..], "expected a sequence"),
        (b"[", "EOF"),
        (b"[3]", "entry 0"),
        (b"\xff", "not UTF-8"),
        (b"", "EOF"),
    ] {
        let e = message(&in_one_file(&tensors(), bytes.to_vec()));
        assert!(e.starts_with(&format!("{LIST}: ")) && e.contains(part), "{e}");
    }
}

#[test]
fn files_that_are_missing_are_named() {
    for name in sound().keys() {
        let mut files = sound();
        files.remove(name);
        let e = message(&files);
        assert!(e.contains(name.as_str()) && e.contains("fetch") || e.contains("incomplete"), "{e}");
    }
    let mut files = sound();
    let config = CONFIG.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 16000000");
    files.insert("config.json".into(), config.into_bytes());
    let e = message(&files);
    assert!(e.contains("has no tensor model.layers.3.self_attn.q_proj.qweight_0"), "{e}");
    let huge = CONFIG.replace("\"hidden_size\": 9", "\"hidden_size\": 16777215");
    let huge = huge.replace("\"num_attention_heads\": 2", "\"num_attention_heads\": 16777215");
    let huge = huge.replace("\"head_dim\": 38", "\"head_dim\": 16777214");
    files.insert("config.json".into(), huge.into_bytes());
    let e = message(&files);
    assert!(
        e.starts_with("config.json: asks for model.layers.0.self_attn.q_proj") && e.contains("memory"),
        "{e}"
    );
}

/// Whatever is changed, reading and making levels ends, in little memory.
#[test]
fn mutated_checkpoints() {
    let seeds =
        [in_one_file(&tensors(), list(&entries(&[7, 3]))), in_shards(&tensors(), list(&entries(&[7, 3])))];
    mutations(|rng| {
        let mut files = seeds[rng.below(2)].clone();
        let names: Vec<String> = files.keys().cloned().collect();
        for _ in 0..1 + rng.below(3) {
            let file = files.get_mut(&names[rng.below(names.len())]).unwrap();
            let head = file.len();
            mutate(rng, file, head);
        }
        let size: usize = files.values().map(Vec::len).sum();
        let (result, held) = peak_of(|| read(&files, None));
        // Opening copies the files here; a program maps them.
        assert!(held <= (64 << 10) + 17 * size, "{held} bytes held for files of {size}");
        let Ok(checkpoint) = result else { return false };
        checkpoint.matrices().iter().for_each(|m| (0..m.levels()).for_each(|i| _ = m.level(i)));
        true
    });
}
