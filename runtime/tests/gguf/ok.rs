//! Files that are right: read, written, and written again.

use std::fs;
use std::path::Path;

use crate::common::{Raw, entry, tensor, walk};
use lutite_kernels::ggml::GgmlType;
use lutite_runtime::Error;
use lutite_runtime::os::map::Map;
use lutite_runtime::store::{Fault, Gguf, GgufWriter, Value, ValueType};

#[test]
fn every_value_and_tensor_is_read() {
    for version in [2, 3] {
        let file = Raw { version, ..Raw::sample() }.bytes();
        let gguf = Gguf::parse(&file).unwrap();
        walk(&gguf, file.len());
        assert_eq!((gguf.version(), gguf.alignment()), (version, 64));
        assert_eq!(gguf.metadata().len(), 17);
        assert_eq!(gguf.metadata()[0].0, "general.architecture");
        assert_eq!(gguf.str("general.architecture"), Ok(Some("llama")));
        assert_eq!(gguf.u32("t.u8"), Ok(Some(200)));
        assert_eq!(gguf.get("t.i8"), Some(Value::I8(-1)));
        assert_eq!(gguf.u64("t.u16"), Ok(Some(60_000)));
        assert_eq!(gguf.get("t.i16"), Some(Value::I16(-2)));
        assert_eq!(gguf.get("t.i32"), Some(Value::I32(-3)));
        assert_eq!(gguf.f32("t.f32"), Ok(Some(1.5)));
        assert_eq!(gguf.bool("t.bool"), Ok(Some(true)));
        assert_eq!(gguf.u64("t.u64"), Ok(Some(1 << 40)));
        assert_eq!(gguf.get("t.i64"), Some(Value::I64(-4)));
        assert_eq!(gguf.get("t.f64"), Some(Value::F64(2.5)));
        let strs: Vec<&str> = gguf.str_array("t.strs").unwrap().unwrap().collect();
        assert_eq!(strs, ["a", "", "\u{2581}the"]);
        let f32s: Vec<f32> = gguf.f32_array("t.f32s").unwrap().unwrap().collect();
        assert_eq!(f32s, [0.5, -1.0]);
        assert_eq!(gguf.u64_array("t.i32s").unwrap().unwrap().collect::<Vec<_>>(), [7]);
        let Some(Value::Array(nested)) = gguf.get("t.nested") else { panic!("no array") };
        assert_eq!((nested.element_type(), nested.len()), (ValueType::Array, 2));
        let Some(Value::Array(first)) = nested.values().next() else { panic!("no array in the array") };
        assert_eq!(first.u32s().unwrap().collect::<Vec<_>>(), [1, 2]);

        let names: Vec<&str> = gguf.tensors().iter().map(|t| t.name).collect();
        assert_eq!(names, ["tok.weight", "blk.0.weight", "blk.0.bias"]);
        let w = gguf.require("blk.0.weight").unwrap();
        assert_eq!((w.ty, w.shape(), w.rows(), w.elements()), (GgmlType::Q4_0, &[64, 2][..], 2, 128));
        assert_eq!(w.data, &Raw::sample().data[64..136]);
        assert_eq!(gguf.require("blk.0.bias").unwrap().data.len(), 10);
    }
}

#[test]
fn what_is_unusual_but_right() {
    // Data in any order, with gaps.
    let file = Raw::with_tensors(&[tensor("x", &[8, 2], 0, 96), tensor("y", &[8], 0, 0)], 160).bytes();
    walk(&Gguf::parse(&file).unwrap(), file.len());

    // A scalar.
    let file = Raw::with_tensors(&[tensor("x", &[], 0, 0)], 4).bytes();
    assert_eq!(Gguf::parse(&file).unwrap().require("x").unwrap().shape(), [1]);

    // Nothing at all, and an alignment far behind the end.
    let far = entry("general.alignment", 4, &(1u32 << 31).to_le_bytes());
    let empty = Raw { tensors: vec![], data: vec![], ..Raw::with_entry(far) }.bytes();
    let gguf = Gguf::parse(&empty).unwrap();
    assert_eq!((gguf.tensors().len(), gguf.data_offset()), (0, 1 << 31));
}

#[test]
fn what_is_absent_or_of_another_type_is_said() {
    let file = Raw::sample().bytes();
    let gguf = Gguf::parse(&file).unwrap();
    assert_eq!(gguf.str("none"), Ok(None));
    let say = |e: lutite_runtime::store::GgufError| e.to_string();
    assert_eq!(
        say(gguf.require("blk.1.weight").unwrap_err()),
        "GGUF tensor `blk.1.weight`: is missing; the file is incomplete or of another kind of model"
    );
    assert_eq!(
        say(gguf.u32("t.i8").unwrap_err()),
        "GGUF metadata `t.i8`: is i8 -1, expected an integer that fits u32"
    );
    assert_eq!(
        say(gguf.u32("t.u64").unwrap_err()),
        "GGUF metadata `t.u64`: is u64 1099511627776, expected an integer that fits u32"
    );
    assert_eq!(say(gguf.str("t.f32").unwrap_err()), "GGUF metadata `t.f32`: is f32, expected str");
    assert_eq!(
        say(gguf.f32_array("t.strs").unwrap_err()),
        "GGUF metadata `t.strs`: is array of 3 str, expected array of f32"
    );
}

/// A writer with metadata of every kind and two tensors of 48 and 36 bytes.
fn planned() -> GgufWriter {
    let mut w = GgufWriter::new();
    w.set("general.architecture", "lut-llama").unwrap();
    w.set("t.u32", 7u32).unwrap().set("t.bool", true).unwrap().set("t.f64", 0.1f64).unwrap();
    w.set("t.strs", &["x", "yz"][..]).unwrap().set("t.none", &[0i32; 0][..]).unwrap();
    w.set("t.owned", &[String::from("s")][..]).unwrap();
    w.add_tensor("a.weight", GgmlType::F32, &[4, 3]).unwrap();
    w.add_tensor("b.weight", GgmlType::Q4_0, &[32, 2]).unwrap();
    w
}

fn files(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_is_written_is_read_and_can_be_copied() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let (a, b) = ([1u8; 48], [2u8; 36]);
    let mut w = planned();
    w.set_alignment(4096).unwrap();
    let mut w = w.begin(&path).unwrap();
    assert_eq!(w.total_bytes(), 3 * 4096);
    w.tensor("a.weight", &a).unwrap();
    assert!(!path.exists());
    w.tensor("b.weight", &b).unwrap();
    w.finish().unwrap();
    assert_eq!(files(dir.path()), ["m.gguf"]);

    let map = Map::open(&path).unwrap();
    assert_eq!(map.len(), 3 * 4096);
    let gguf = Gguf::parse(&map).unwrap();
    walk(&gguf, map.len());
    assert_eq!((gguf.version(), gguf.alignment(), gguf.data_offset()), (3, 4096, 4096));
    assert_eq!(gguf.str("general.architecture"), Ok(Some("lut-llama")));
    assert_eq!(gguf.str_array("t.strs").unwrap().unwrap().collect::<Vec<_>>(), ["x", "yz"]);
    assert_eq!(gguf.i32_array("t.none").unwrap().unwrap().len(), 0);
    assert_eq!(gguf.require("a.weight").unwrap().data, a);
    assert_eq!(gguf.require("b.weight").unwrap().data, b);

    // Every value of a file can be written again as it is, over a file that is there.
    let sample = Raw::sample().bytes();
    let source = Gguf::parse(&sample).unwrap();
    let mut copy = GgufWriter::new();
    for &(key, value) in source.metadata().iter().filter(|(key, _)| *key != "general.alignment") {
        copy.set(key, value).unwrap();
    }
    for t in source.tensors() {
        copy.add_tensor(t.name, t.ty, t.shape()).unwrap();
    }
    let other = dir.path().join("copy.gguf");
    fs::write(&other, b"old").unwrap();
    let mut copy = copy.begin(&other).unwrap();
    for t in source.tensors() {
        assert_eq!(fs::read(&other).unwrap(), b"old");
        copy.tensor(t.name, t.data).unwrap();
    }
    copy.finish().unwrap();
    let bytes = fs::read(&other).unwrap();
    let copied = Gguf::parse(&bytes).unwrap();
    for &(key, value) in source.metadata() {
        assert_eq!(copied.get(key), Some(value), "{key}");
    }
    for (s, c) in source.tensors().iter().zip(copied.tensors()) {
        assert_eq!((s.name, s.ty, s.shape(), s.data), (c.name, c.ty, c.shape(), c.data));
    }
}

#[test]
fn an_unfinished_file_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut w = planned().begin(&path).unwrap();
    let part = files(dir.path());
    assert!(part.len() == 1 && part[0].starts_with("m.gguf.part-"), "{part:?}");

    // Tensors out of order or of another size, which the right one may still follow.
    let message = w.tensor("b.weight", &[0; 36]).unwrap_err().to_string();
    assert!(
        message.ends_with("expected tensor `a.weight` of 48 bytes, was given tensor `b.weight` of 36 bytes")
    );
    assert!(matches!(w.tensor("a.weight", &[0; 47]), Err(Error::WriteOrder { .. })));
    w.tensor("a.weight", &[0; 48]).unwrap();
    let message = w.finish().unwrap_err().to_string();
    assert!(
        message.ends_with("expected tensor `b.weight` of 36 bytes, was given the end of the file"),
        "{message}"
    );
    assert!(files(dir.path()).is_empty());

    let mut w = planned().begin(&path).unwrap();
    w.tensor("a.weight", &[0; 48]).unwrap();
    drop(w);
    assert!(files(dir.path()).is_empty());

    // A target that cannot be replaced.
    fs::create_dir(&path).unwrap();
    let mut w = planned().begin(&path).unwrap();
    w.tensor("a.weight", &[0; 48]).unwrap();
    w.tensor("b.weight", &[0; 36]).unwrap();
    let message = w.finish().unwrap_err().to_string();
    assert!(message.starts_with("cannot replace "), "{message}");
    assert_eq!(files(dir.path()), ["m.gguf"]);

    let message = planned().begin(dir.path().join("no/m.gguf")).unwrap_err().to_string();
    assert!(message.starts_with("cannot create ") && message.ends_with("; check the path"), "{message}");
}

#[test]
fn portions_make_a_tensor() {
    let begin = || {
        let mut w = GgufWriter::new();
        w.add_tensor("x", GgmlType::I8, &[5]).unwrap().add_tensor("y", GgmlType::I8, &[2]).unwrap();
        w.begin_in_memory().unwrap()
    };
    let write = |portions: &[&[u8]]| {
        let mut out = begin();
        out.tensor_by_portions("x", portions.iter().map(|p| Ok::<_, Error>(*p)))?;
        out.tensor("y", &[6, 7])?;
        out.finish()
    };
    let whole = write(&[&[1, 2, 3, 4, 5]]).unwrap();
    assert_eq!(write(&[&[1], &[], &[2, 3], &[4, 5]]).unwrap(), whole);
    for wrong in [&[&[1, 2][..], &[3, 4]][..], &[&[1, 2, 3], &[4, 5, 6]], &[]] {
        let message = write(wrong).unwrap_err().to_string();
        assert!(message.contains("expected tensor `x` of 5 bytes, was given tensor `x` of"), "{message}");
    }
    let mut out = begin();
    let message = out.tensor_by_portions("y", [Ok::<_, Error>([6, 7])]).unwrap_err().to_string();
    assert!(message.contains("expected tensor `x` of 5 bytes, was given tensor `y`"), "{message}");
    // Another's error is passed on, and what was written is no file.
    let refused = || Err::<[u8; 2], _>(Error::Packed("no more".into()));
    let message = out.tensor_by_portions("x", [Ok([1, 2]), refused()]).unwrap_err().to_string();
    assert_eq!(message, "packed model file: no more");
    assert!(out.finish().is_err());
}

#[test]
fn what_cannot_be_written_is_refused() {
    let fault = |result: lutite_runtime::Result<&mut GgufWriter>| match result {
        Err(Error::Gguf(e)) => e.fault().clone(),
        other => panic!("{other:?}"),
    };
    let mut w = GgufWriter::new();
    assert_eq!(fault(w.set("", 1u8)), Fault::EmptyName);
    assert_eq!(fault(w.set("a\0b", 1u8)), Fault::ControlCharacter('\0'));
    assert_eq!(fault(w.set("general.alignment", 32u32)), Fault::Reserved);
    assert_eq!(fault(w.set_alignment(48)), Fault::Alignment(48));
    let long = "n".repeat(64);
    assert_eq!(fault(w.add_tensor(&long, GgmlType::F32, &[1])), Fault::LongName { len: 64, most: 63 });
    assert_eq!(fault(w.add_tensor("x", GgmlType::F32, &[])), Fault::Dims(0));
    assert_eq!(fault(w.add_tensor("x", GgmlType::F32, &[1; 5])), Fault::Dims(5));
    assert_eq!(fault(w.add_tensor("x", GgmlType::F32, &[3, 0])), Fault::ZeroDim(1));
    assert_eq!(fault(w.add_tensor("x", GgmlType::Q4_0, &[33])), Fault::Row { row: 33, ty: GgmlType::Q4_0 });
    assert_eq!(fault(w.add_tensor("x", GgmlType::F32, &[1 << 62])), Fault::Shape([1 << 62].into()));

    let dir = tempfile::tempdir().unwrap();
    let begin_fault = |w: GgufWriter| match w.begin(dir.path().join("m.gguf")) {
        Err(Error::Gguf(e)) => (e.place().to_string(), e.fault().clone()),
        other => panic!("{other:?}"),
    };
    w.set("k", 1u8).unwrap().set("k", 2u8).unwrap();
    assert_eq!(begin_fault(w), ("metadata `k`".to_owned(), Fault::Duplicate));
    let mut w = planned();
    w.add_tensor("a.weight", GgmlType::I8, &[1]).unwrap();
    assert_eq!(begin_fault(w), ("tensor `a.weight`".to_owned(), Fault::Duplicate));
    assert!(files(dir.path()).is_empty());
}
