//! The real model that tests of several targets use.

#![allow(dead_code, reason = "not every target uses all of it")]

use lutite_quant::{Bits, PackJob, PackOptions, Plan, pack_in_memory};
use lutite_runtime::os::map::Map;
use lutite_runtime::store::{Bytes, Gguf};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// A model's file, its bytes, and its exact packing.
pub(crate) struct Smollm2 {
    pub(crate) path: PathBuf,
    pub(crate) source: Bytes,
    pub(crate) packed: Bytes,
}

/// SmolLM2 from `LUTITE_TEST_DATA`; without the variable `None`, or in CI a panic.
pub(crate) fn smollm2() -> Option<Smollm2> {
    let Some(dir) = std::env::var_os("LUTITE_TEST_DATA").map(PathBuf::from) else {
        assert!(std::env::var_os("CI").is_none(), "LUTITE_TEST_DATA must be set in CI");
        eprintln!("SKIPPED: LUTITE_TEST_DATA is not set (tools/fetch-test-data.sh fills a folder for it)");
        return None;
    };
    let path = dir.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let source = Bytes::new(Map::open(&path).unwrap());
    let packed = pack(&source, &PackOptions::exact());
    Some(Smollm2 { path, source, packed })
}

/// A tiny model of `models/tests/data/reference`.
pub(crate) fn reference(name: &str) -> Bytes {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/data/reference/");
    Bytes::new(Map::open(format!("{folder}{name}")).unwrap())
}

/// The packed form of `source` with so many planes everywhere.
pub(crate) fn planes(source: &Bytes, planes: usize) -> Bytes {
    let bits = Bits::Planes(planes);
    pack(source, &PackOptions { bits, head: Some(bits), group: 32, ..PackOptions::exact() })
}

/// The packed form of `source`.
pub(crate) fn pack(source: &Bytes, options: &PackOptions) -> Bytes {
    let gguf = Gguf::parse(source).unwrap();
    let job = PackJob {
        source: &gguf,
        source_hash: 0,
        imatrix: None,
        fits: None,
        measure: None,
        threads: 2,
        progress: &|_, _| {},
        cancel: &AtomicBool::new(false),
    };
    Bytes::new(pack_in_memory(&Plan::new(&gguf, options).unwrap(), &job).unwrap())
}
