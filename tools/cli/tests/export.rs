//! `lutite export`: what other programs are given is what was packed.

#[path = "../../../models/tests/common/edit.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod edit;

use edit::{edit, quantize, reference};
use half::f16;
use lutite_kernels::ggml::{GgmlType, dequantize_row};
use lutite_kernels::isa::Isa;
use lutite_models::{OpenOptions, Path, open};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::store::{Bytes, Directory, Gguf, Part};
use std::process::{Command, Output, Stdio};

/// A home with `tiny.gguf`, of real words, with most of its matrices in Q8_0; `exact.gguf`, packed exactly; and
/// `two.gguf`, fitted to 2 planes.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let tiny = edit(&reference("stories260K-f32.gguf"), &[], |t| quantize(t));
    std::fs::write(home.path().join("tiny.gguf"), tiny).unwrap();
    lutite(&home, "quantize tiny.gguf -o exact.gguf");
    lutite(&home, "quantize tiny.gguf -o two.gguf --bits 2 --head-bits 2 --no-measure");
    home
}

/// Standard output and error of what has to work.
#[track_caller]
fn lutite(home: &tempfile::TempDir, line: &str) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lutite"));
    command.args(line.split_whitespace()).env_clear().env("HOME", home.path()).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.current_dir(home.path()).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(status.success(), "{line}: {stderr}");
    (String::from_utf8(stdout).unwrap(), stderr)
}

fn read(home: &tempfile::TempDir, name: &str) -> Bytes {
    Bytes::new(std::fs::read(home.path().join(name)).unwrap())
}

/// Logits of a few tokens by plain kernels, as bits.
fn logits(file: &Bytes) -> Vec<u32> {
    let o =
        OpenOptions { path: Path::Plain, workers: 2, context: Some(64), ..OpenOptions::new(Isa::detect()) };
    let mut model = open::open(file, &o).unwrap();
    let tokens: Vec<u32> = (0..24).map(|i| (i * 37 + 1) % 512).collect();
    model.step(&tokens, Phase::Prompt, Logits::All).unwrap().iter().map(|x| x.to_bits()).collect()
}

/// All numbers of a plain tensor.
fn numbers(gguf: &Gguf<'_>, name: &str) -> Vec<f32> {
    let t = gguf.require(name).unwrap();
    let mut out = vec![0.0; t.elements() as usize];
    dequantize_row(t.ty, &t.all_rows(), &mut out).unwrap();
    out
}

/// Each packed matrix: its tensor's name in an ordinary file, and its numbers.
fn packed_numbers(gguf: &Gguf<'_>) -> Vec<(String, Vec<f32>)> {
    let directory = Directory::read(gguf).unwrap();
    let parts = directory.parts(gguf).unwrap().into_iter();
    let matrices = parts.filter_map(|part| match part {
        Part::Packed(_, info) => Some(info),
        Part::Plain(_) => None,
    });
    let matrix = |info: &lutite_runtime::store::MatrixInfo| {
        let w = info.view(info.find(gguf).unwrap().iter().map(|t| t.data)).unwrap();
        let mut out = vec![0.0; info.shape().rows * info.shape().cols];
        out.chunks_mut(info.shape().cols).enumerate().for_each(|(r, row)| w.dequantize_row(r, row).unwrap());
        (format!("{}.weight", info.name()), out)
    };
    matrices.map(matrix).collect()
}

#[test]
fn in_f32_nothing_is_rounded() {
    let home = home();
    std::fs::write(home.path().join("t.txt"), "Once upon a time there was a dog. ".repeat(20)).unwrap();
    for packed in ["exact.gguf", "two.gguf"] {
        lutite(&home, &format!("export {packed} f32.gguf --type f32"));
        let (packed_file, exported) = (read(&home, packed), read(&home, "f32.gguf"));
        assert!(logits(&packed_file) == logits(&exported), "{packed}: logits differ");
        let (packed_gguf, exported) = (Gguf::parse(&packed_file).unwrap(), Gguf::parse(&exported).unwrap());
        let matrices = packed_numbers(&packed_gguf);
        assert!(matrices.len() > 20, "{}", matrices.len());
        for (name, want) in matrices {
            assert_eq!(exported.require(&name).unwrap().ty, GgmlType::F32);
            assert!(numbers(&exported, &name) == want, "{packed}, {name}");
        }
        let perplexity = |file: &str| {
            lutite(&home, &format!("perplexity {file} -f t.txt -c 64 --path plain -ctk f32 -ctv f32")).0
        };
        assert_eq!(perplexity(packed), perplexity("f32.gguf"));
    }
}

#[test]
fn in_f16_every_number_is_the_nearest() {
    let home = home();
    for packed in ["exact.gguf", "two.gguf"] {
        lutite(&home, &format!("export {packed} f16.gguf"));
        let (packed, exported) = (read(&home, packed), read(&home, "f16.gguf"));
        let (packed, exported) = (Gguf::parse(&packed).unwrap(), Gguf::parse(&exported).unwrap());
        for (name, want) in packed_numbers(&packed) {
            let t = exported.require(&name).unwrap();
            assert_eq!(t.ty, GgmlType::F16);
            let (got, _) = t.data.as_chunks::<2>();
            assert_eq!(got.len(), want.len());
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let got = f16::from_le_bytes(*got);
                let off = |x: f16| (x.to_f32() - want).abs();
                // Beside a zero one of the two is NaN.
                let beside = [got.to_bits().wrapping_sub(1), got.to_bits() + 1].map(f16::from_bits);
                let nearest = beside.iter().all(|b| b.is_nan() || off(got) <= off(*b));
                assert!(nearest, "{name}, {i}: {got} for {want}");
            }
        }
    }
}

#[test]
fn everything_else_is_the_source() {
    let home = home();
    let tiny = read(&home, "tiny.gguf");
    let source = Gguf::parse(&tiny).unwrap();
    for (packed, ty, file_type) in [("exact.gguf", "f16", 1), ("two.gguf", "f32", 0)] {
        let (_, said) = lutite(&home, &format!("export {packed} out.gguf --type {ty}"));
        // The result does not tell what its weights lost, so that the verb does.
        assert_eq!(said.contains("re-quantized, q2-g64-hlq8"), packed == "two.gguf", "{said}");
        let file = read(&home, "out.gguf");
        let gguf = Gguf::parse(&file).unwrap();
        // The same tensors in the same order; a tied head stays tied.
        let names = |gguf: &Gguf<'_>| {
            gguf.tensors().iter().map(|t| (t.name.to_owned(), t.shape().to_vec())).collect::<Vec<_>>()
        };
        assert_eq!(names(&gguf), names(&source));
        assert!(gguf.tensor("output.weight").is_none());
        let packed = read(&home, packed);
        let packed = Gguf::parse(&packed).unwrap();
        let mut copied = 0;
        for t in gguf.tensors() {
            if let Some(of_packed) = packed.tensor(t.name) {
                assert!((t.ty, t.data) == (of_packed.ty, of_packed.data), "{}", t.name);
                copied += 1;
            }
        }
        assert!(copied > 10, "{copied}");
        // The same keys with the same values, but for what speaks of the file.
        for (key, value) in source.metadata() {
            if !["general.alignment", "general.file_type"].contains(key) {
                assert_eq!(gguf.get(key).map(|v| format!("{v:?}")), Some(format!("{value:?}")), "{key}");
            }
        }
        assert_eq!(gguf.str("general.architecture").unwrap(), Some("llama"));
        assert_eq!(gguf.u32("general.file_type").unwrap(), Some(file_type));
        assert_eq!(gguf.u32("general.quantization_version").unwrap(), Some(2));
        assert!(gguf.metadata().iter().all(|(key, _)| !key.starts_with("lutite.")));
    }
}

/// An exported model is a model like any other: it runs, and is packed again.
#[test]
fn what_was_exported_is_a_source() {
    let home = home();
    lutite(&home, "export exact.gguf f16.gguf");
    let (answer, _) = lutite(&home, "run f16.gguf -p Once -n 4 --temp 0 -t 2");
    assert!(!answer.trim().is_empty());
    lutite(&home, "quantize f16.gguf -o again.gguf --bits 4 --no-measure");
    lutite(&home, "run again.gguf -p Once -n 4 --temp 0 -t 2");
    // What has nothing packed in it is copied.
    let (_, said) = lutite(&home, "export f16.gguf copy.gguf --type f32");
    assert!(said.contains(" 0 packed matrices"), "{said}");
    assert_eq!(read(&home, "copy.gguf")[..], read(&home, "f16.gguf")[..]);
}

/// A folder's q and k have their rows in another order; in the file they are in GGUF's.
#[test]
fn a_folder_becomes_a_file() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("stories");
    std::fs::create_dir(&folder).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::write(folder.join(name), reference(&format!("stories260K/{name}"))).unwrap();
    }
    lutite(&home, "export stories out.gguf");
    let (file, twin) = (read(&home, "out.gguf"), reference("stories260K-f32.gguf"));
    let (gguf, twin_gguf) = (Gguf::parse(&file).unwrap(), Gguf::parse(&twin).unwrap());
    assert_eq!(gguf.tensors().len(), twin_gguf.tensors().len());
    for t in gguf.tensors() {
        assert!(t.data == twin_gguf.require(t.name).unwrap().data, "{}", t.name);
    }
    assert!(logits(&file) == logits(&Bytes::new(twin)), "logits differ");
}
