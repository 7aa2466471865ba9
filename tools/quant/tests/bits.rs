//! A short generation, packed and generated on this machine, as one hash: all tiers have to agree, and the hash is
//! printed, so that machines of different architectures can be compared as well (`.ci/run aarch64`).

mod common;

use common::pack;
use lutite_kernels::isa::Isa;
use lutite_models::{OpenOptions, Path, Tokenizer, open};
use lutite_quant::{Bits, PackOptions};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::os::map::Map;
use lutite_runtime::sample::argmax;
use lutite_runtime::store::{Bytes, Gguf};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// A model of 260,032 floats that tells stories; `models/tests/data/reference/README.md` has its origin.
const STORIES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/data/reference/stories260K-f32.gguf");

/// A greedy continuation of `prompt`, and a hash of all logits on the way.
fn generate(bytes: &Bytes, isa: Isa, path: Path, prompt: &str, tokens: usize) -> (String, u64) {
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(bytes).unwrap()).unwrap();
    let options = OpenOptions { workers: 2, path, context: Some(128), ..OpenOptions::new(isa) };
    let mut model = open::open(bytes, &options).unwrap();
    let mut hash = Xxh3::new();
    let mut ids = tokenizer.encode(prompt, true, false);
    let mut fed = 0;
    for _ in 0..tokens {
        let phase = if fed == 0 { Phase::Prompt } else { Phase::Answer };
        let logits = model.step(&ids[fed..], phase, Logits::All).unwrap();
        logits.iter().for_each(|l| hash.update(&l.to_bits().to_le_bytes()));
        fed = ids.len();
        ids.push(argmax(&logits[logits.len() - tokenizer.vocab_size()..]).unwrap());
    }
    (String::from_utf8_lossy(&tokenizer.decode(&ids, false)).into_owned(), hash.digest())
}

#[test]
fn bits_of_a_generation() {
    let source = Bytes::new(Map::open(STORIES).unwrap());
    // 4 planes per matrix.
    let packed = pack(&source, &PackOptions { bits: Bits::Planes(4), group: 32, ..PackOptions::exact() });
    println!("bits: packed file = {:016x}", xxh3_64(&packed));
    for (name, bytes, path) in
        [("generation by tables", &packed, Path::Lut), ("generation by floats", &source, Path::Plain)]
    {
        let scalar = generate(bytes, Isa::scalar(), path, "Lily found", 48);
        for isa in Isa::available() {
            let (text, hash) = generate(bytes, isa, path, "Lily found", 48);
            println!("bits: {name} = {hash:016x} ({}) {text:?}", isa.name());
            assert_eq!((text, hash), scalar, "{name} on {} and on scalar", isa.name());
        }
    }
}
