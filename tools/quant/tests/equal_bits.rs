//! The bit contract on a real model: every instruction set, any number of threads and any batch give the
//! same logits, and they are close to those of the plain path. Needs `LUTITE_TEST_DATA`
//! (tools/fetch-test-data.sh).

mod common;

use common::{Smollm2, pack, smollm2};
use lutite_kernels::dot::expand;
use lutite_kernels::isa::Isa;
use lutite_kernels::ops::softmax::log_sum_exp;
use lutite_models::{Model, OpenOptions, Path, Tokenizer, open};
use lutite_quant::{Bits, PackOptions};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::kv::KvType;
use lutite_runtime::sample::argmax;
use lutite_runtime::store::{Bytes, Gguf};
use xxhash_rust::xxh3::Xxh3;

fn load(bytes: &Bytes, isa: Isa, workers: usize, batch: usize) -> Model {
    let o = OpenOptions { workers, batch, context: Some(300), ..OpenOptions::new(isa) };
    open::open(bytes, &o).unwrap()
}

const PROMPTS: [&str; 10] = [
    "What is the capital of France?",
    "Write a short story about a lighthouse keeper and a storm.",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "Explain photosynthesis to a child in three sentences.",
    "1, 1, 2, 3, 5, 8, 13,",
    "Liste fünf Städte in Deutschland auf.",
    "The quick brown fox jumps over the lazy dog. ",
    "Translate to French: Good morning, my friend!",
    "🚀 Launch checklist:\n1.",
    "In 1492, Columbus",
];

/// Feeds the prompt and then `n` greedy tokens; returns them with a hash of all logits that chose them.
fn greedy(m: &mut Model, prompt: &[u32], n: usize) -> (Vec<u32>, u64) {
    m.rewind(0);
    let mut hash = Xxh3::new();
    let mut out = Vec::new();
    let batch = m.batch();
    let (mut fed, mut phase): (Vec<u32>, _) = (prompt.to_vec(), Phase::Prompt);
    for _ in 0..n {
        let mut next = None;
        for part in fed.chunks(batch) {
            let logits = m.step(part, phase, Logits::Last).unwrap();
            next = argmax(logits);
            logits.iter().for_each(|l| hash.update(&l.to_bits().to_le_bytes()));
        }
        (fed, phase) = (vec![next.unwrap()], Phase::Answer);
        out.push(fed[0]);
    }
    (out, hash.digest())
}

/// Ten prompts, 200 greedy tokens each: the fast tier with one thread and with two, and the scalar tier.
#[test]
fn every_tier_and_thread_count_gives_equal_bits() {
    let Some(Smollm2 { packed, .. }) = smollm2() else { return };
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&packed).unwrap()).unwrap();
    let n = 200;
    // The same batch everywhere: the hash covers the last logits of each step.
    let mut reference = load(&packed, Isa::scalar(), 2, 64);
    let mut others: Vec<(String, Model)> = Vec::new();
    for isa in Isa::available() {
        for workers in [1, 2] {
            if isa.name() != "scalar" {
                others.push((
                    format!("{} with {workers} threads", isa.name()),
                    load(&packed, isa, workers, 64),
                ));
            }
        }
    }
    for prompt in PROMPTS {
        let ids = tokenizer.encode(prompt, true, false);
        let (want, bits) = greedy(&mut reference, &ids, n);
        for (name, model) in &mut others {
            let (got, got_bits) = greedy(model, &ids, n);
            assert_eq!(got, want, "{prompt:?}: {name} chose other tokens than scalar");
            assert_eq!(got_bits, bits, "{prompt:?}: {name} has other bits than scalar");
        }
    }
    println!("{} tokens equal in bits on scalar and {} others", n * PROMPTS.len(), others.len());
}

/// More workers than cores, and batches of other sizes, on a shorter run: whole codes, which every phase takes, and 3 and
/// 4 planes, of which prompts make whole codes unless they are to be exact.
#[test]
fn batches_and_more_workers_give_equal_bits() {
    let Some(Smollm2 { source, packed, .. }) = smollm2() else { return };
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&packed).unwrap()).unwrap();
    let ids = tokenizer.encode(PROMPTS[1], true, false);
    let all = |bytes: &Bytes, isa, workers, batch: usize, phase, exact| {
        let o = OpenOptions { workers, batch, exact, context: Some(300), ..OpenOptions::new(isa) };
        let mut m = open::open(bytes, &o).unwrap();
        let mut bits = Vec::new();
        for part in ids.chunks(batch) {
            bits.extend(m.step(part, phase, Logits::All).unwrap().iter().map(|l| l.to_bits()));
        }
        bits
    };
    let planes = |q| pack(&source, &PackOptions { bits: Bits::Planes(q), ..PackOptions::exact() });
    for (q, bytes) in [(0, &packed), (3, &planes(3)), (4, &planes(4))] {
        let isa = Isa::detect();
        for phase in [Phase::Prompt, Phase::Answer] {
            let want = all(bytes, isa, 1, 1, phase, false);
            for (workers, batch) in [(1, 5), (2, 64), (3, 2), (8, 17)] {
                let got = all(bytes, isa, workers, batch, phase, false);
                assert!(got == want, "{q} planes, {phase:?}, {workers} workers, batches of {batch}");
            }
        }
        let answer = all(bytes, isa, 2, 64, Phase::Answer, false);
        assert!(all(bytes, isa, 2, 64, Phase::Prompt, true) == answer, "{q} planes: an exact prompt");
        let prompt = all(bytes, isa, 2, 64, Phase::Prompt, false);
        assert!((prompt != answer) == expand::pays(isa, q), "{q} planes: a prompt and an answer");
    }
}

/// Teacher-forced on text of the repository: mean KL below 1e-3, top-1 agreement of 98 % or more.
#[test]
fn whole_codes_stay_close_to_plain_weights() {
    let Some(Smollm2 { source, packed, .. }) = smollm2() else { return };
    let (kl, top1) = distance("whole codes", &packed, &source, Phase::Prompt, 4);
    assert!(kl < 1e-3 && top1 >= 0.98);
}

/// The same for 4 planes against the same weights: answers, by tables, and prompts, by codes made of the planes. A model of
/// weights that have lost something doubts more, so that the same errors change more (`docs/speed.md`).
#[test]
fn planes_stay_close_to_plain_weights() {
    let Some(Smollm2 { source, .. }) = smollm2() else { return };
    let planes = pack(&source, &PackOptions { bits: Bits::Planes(4), ..PackOptions::exact() });
    for phase in [Phase::Answer, Phase::Prompt] {
        let (kl, top1) = distance(&format!("4 planes, {phase:?}"), &planes, &planes, phase, 2);
        assert!(kl < 2.5e-3 && top1 >= 0.96);
    }
}

/// Mean KL and share of equal top tokens, over chunks of 500 positions, of `packed` on the fast path to `source` on the plain
/// one.
fn distance(what: &str, packed: &Bytes, source: &Bytes, phase: Phase, chunks: usize) -> (f64, f64) {
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(packed).unwrap()).unwrap();
    let text = include_str!("../../../LICENSE-APACHE");
    let ids = tokenizer.encode(text, true, false);
    let options = |path, kv: KvType| OpenOptions {
        path,
        kv: kv.into(),
        workers: 2,
        context: Some(500),
        ..OpenOptions::new(Isa::detect())
    };
    let mut lut = open::open(packed, &options(Path::Lut, KvType::F16)).unwrap();
    let mut plain = open::open(source, &options(Path::Plain, KvType::F32)).unwrap();
    let vocab = lut.vocab();
    let (mut kl, mut equal, mut n) = (0.0, 0, 0);
    for chunk in ids.chunks_exact(500).take(chunks) {
        lut.rewind(0);
        plain.rewind(0);
        for part in chunk.chunks(50) {
            let p = plain.step(part, phase, Logits::All).unwrap();
            let q = lut.step(part, phase, Logits::All).unwrap();
            for (p, q) in p.chunks_exact(vocab).zip(q.chunks_exact(vocab)) {
                let (zp, zq) = (log_sum_exp(p), log_sum_exp(q));
                kl += p
                    .iter()
                    .zip(q)
                    .map(|(p, q)| (f64::from(*p) - zp, f64::from(*q) - zq))
                    .map(|(p, q)| p.exp() * (p - q))
                    .sum::<f64>();
                equal += usize::from(argmax(p) == argmax(q));
                n += 1;
            }
        }
    }
    let (kl, top1) = (kl / n as f64, equal as f64 / n as f64);
    println!("{what}: {n} positions: mean KL {kl:.2e}, top-1 agreement {:.2} %", 100.0 * top1);
    assert_eq!(n, 500 * chunks);
    (kl, top1)
}
