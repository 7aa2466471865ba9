//! A step of a model must not allocate, of one token or of many, whatever its weights are. Its own test target, because it
//! replaces the allocator. Needs `LUTITE_TEST_DATA` for whole codes (tools/fetch-test-data.sh).

#[path = "../../../runtime/tests/common/allocations.rs"]
mod allocations;
mod common;

use allocations::allocations_of;
use common::{pack, smollm2};
use lutite_kernels::isa::Isa;
use lutite_models::{OpenOptions, Path, open};
use lutite_quant::{Bits, PackOptions};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::kv::KvType;
use lutite_runtime::os::map::Map;
use lutite_runtime::store::Bytes;

const STORIES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/data/reference/stories260K-f32.gguf");

/// Allocations of 80 positions in steps of 1, 2, 5 and 32, after one step of each to start with.
fn allocations_in(bytes: &Bytes, isa: Isa, path: Path, kv: KvType, workers: usize) -> usize {
    let options =
        OpenOptions { path, kv: kv.into(), workers, batch: 32, context: Some(128), ..OpenOptions::new(isa) };
    let mut model = open::open(bytes, &options).unwrap();
    let ids: Vec<u32> = (1..=80).collect();
    let mut run = || {
        model.rewind(0);
        let mut rest = ids.as_slice();
        for n in [1, 2, 5, 32, 1, 1, 1, 32, 5] {
            let (now, later) = rest.split_at(n);
            let position = model.position();
            model.step(now, Phase::Prompt, Logits::Last).unwrap();
            model.rewind(position);
            model.step(now, Phase::Answer, Logits::Last).unwrap();
            rest = later;
        }
    };
    // Threads and locks may allocate when they are first used.
    run();
    allocations_of(run)
}

#[test]
fn steps_do_not_allocate() {
    let stories = Bytes::new(Map::open(STORIES).unwrap());
    let planes = PackOptions { bits: Bits::Planes(4), group: 32, ..PackOptions::exact() };
    let mut models =
        vec![("tables", Path::Lut, pack(&stories, &planes)), ("floats", Path::Plain, stories.clone())];
    models.extend(smollm2().map(|m| ("whole codes", Path::Lut, m.packed)));
    for (name, path, bytes) in &models {
        for isa in [Isa::scalar(), Isa::detect()] {
            // The scalar tier would take minutes for the largest.
            if isa.name() == "scalar" && *name == "whole codes" {
                continue;
            }
            // The stories' heads have 8 dimensions; a cache of bytes takes 32 and more.
            let small = if *name == "whole codes" { KvType::Q8_0 } else { KvType::F16 };
            for (kv, workers) in [(KvType::F16, 1), (small, 2), (KvType::F32, 3)] {
                let n = allocations_in(bytes, isa, *path, kv, workers);
                assert_eq!(n, 0, "{name}, {}, {kv:?}, {workers} workers", isa.name());
            }
        }
    }
}
