//! The tiny models of `data/reference`, rewritten: other metadata, other tensors, quantized matrices.
//! Also included by the tests of `tools/cli`.

use lutite_kernels::ggml::{GgmlType, dequantize_row};
use lutite_runtime::store::{Gguf, GgufWriter, Value};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A tensor's name, type, shape (fastest dimension first) and data.
pub(crate) type Tensor = (String, GgmlType, Vec<u64>, Vec<u8>);

/// Bytes of a reference model.
pub(crate) fn reference(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/data/reference");
    let folder_of_cli = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/data/reference");
    let folder = [folder, folder_of_cli].map(PathBuf::from).into_iter().find(|f| f.is_dir()).unwrap();
    std::fs::read(folder.join(name)).unwrap()
}

/// `seed` with metadata replaced, added, or (`None`) removed, and with the tensors that `change` leaves.
pub(crate) fn edit(
    seed: &[u8],
    metadata: &[(&str, Option<Value<'_>>)],
    change: impl FnOnce(&mut Vec<Tensor>),
) -> Vec<u8> {
    let gguf = Gguf::parse(seed).unwrap();
    let mut w = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        if *key != "general.alignment" && metadata.iter().all(|(k, _)| k != key) {
            w.set(key, *value).unwrap();
        }
    }
    for (key, value) in metadata {
        if let Some(value) = value {
            w.set(key, *value).unwrap();
        }
    }
    let whole = |t: &lutite_runtime::store::TensorInfo<'_>| {
        (t.name.to_owned(), t.ty, t.shape().to_vec(), t.data.to_vec())
    };
    let mut tensors: Vec<Tensor> = gguf.tensors().iter().map(whole).collect();
    change(&mut tensors);
    for (name, ty, shape, _) in &tensors {
        w.add_tensor(name, *ty, shape).unwrap();
    }
    let mut out = w.begin_in_memory().unwrap();
    for (name, _, _, data) in &tensors {
        out.tensor(name, data).unwrap();
    }
    out.finish().unwrap()
}

/// Rounds every matrix whose rows are whole blocks to Q8_0, so that packing has something to do.
pub(crate) fn quantize(tensors: &mut [Tensor]) {
    for (_, ty, shape, data) in tensors.iter_mut().filter(|t| t.2.len() == 2 && t.2[0].is_multiple_of(32)) {
        let mut x = vec![0.0f32; (shape[0] * shape[1]) as usize];
        dequantize_row(*ty, data, &mut x).unwrap();
        let (blocks, _) = x.as_chunks::<32>();
        *data = blocks.iter().flat_map(q8_0).collect();
        *ty = GgmlType::Q8_0;
    }
}

/// A block of Q8_0: the scale as f16, and 32 codes.
fn q8_0(block: &[f32; 32]) -> [u8; 34] {
    let largest = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    // The nearest f16 from above 2^-14 on, by cutting the f32's exponent and mantissa: enough for a test.
    let bits = (largest / 127.0).to_bits();
    let exponent = (bits >> 23) as i32 - 127 + 15;
    let half = if exponent <= 0 { 0 } else { ((exponent as u32) << 10 | (bits >> 13 & 0x3ff)) as u16 };
    let scale = f32::from_bits(if exponent <= 0 { 0 } else { bits & !0x1fff });
    let mut out = [0; 34];
    out[..2].copy_from_slice(&half.to_le_bytes());
    for (o, x) in out[2..].iter_mut().zip(block) {
        *o = if scale > 0.0 { (x / scale).round().clamp(-127.0, 127.0) as i8 as u8 } else { 0 };
    }
    out
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Runs `case`, which says whether its mutation was accepted, for 2 seconds, or for `LUTITE_FUZZ_SECONDS`. A failure
/// prints the seed of the case; set `LUTITE_FUZZ_SEED` to it to start with that case.
pub(crate) fn mutations(case: impl Fn(&mut Rng) -> bool) {
    let seconds = std::env::var("LUTITE_FUZZ_SECONDS").ok().map_or(2.0, |s| s.parse().expect("seconds"));
    let first: u64 = std::env::var("LUTITE_FUZZ_SEED").ok().map_or(1, |s| s.parse().expect("a seed"));
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let (mut cases, mut accepted) = (0u64, 0u64);
    while Instant::now() < end {
        let number = first + cases;
        match catch_unwind(AssertUnwindSafe(|| case(&mut Rng(number)))) {
            Ok(fine) => accepted += u64::from(fine),
            Err(_) => panic!("case failed: run again with LUTITE_FUZZ_SEED={number}"),
        }
        cases += 1;
    }
    println!("{cases} cases from seed {first}, {accepted} of them accepted");
    assert!(accepted > 0 && accepted < cases, "mutations are too strong or too weak to test anything");
}

/// Numbers that counts, types and lengths are least prepared for.
pub(crate) const NUMBERS: [u64; 18] = [
    0,
    1,
    2,
    3,
    4,
    8,
    9,
    12,
    31,
    64,
    255,
    1 << 16,
    1 << 24,
    1 << 31,
    u32::MAX as u64,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

/// Changes `file` somewhere, most often in its first `head` bytes.
pub(crate) fn mutate(rng: &mut Rng, file: &mut Vec<u8>, head: usize) {
    let range = if rng.below(5) > 0 { head.min(file.len()) } else { file.len() };
    let at = rng.below(range);
    let rest = file.len() - at;
    match rng.below(6) {
        0 if rest >= 1 => file[at] ^= 1 << rng.below(8),
        1 if rest >= 1 => file[at] = rng.next() as u8,
        2 if rest >= 4 => {
            file[at..at + 4].copy_from_slice(&(NUMBERS[rng.below(NUMBERS.len())] as u32).to_le_bytes());
        }
        3 if rest >= 8 => file[at..at + 8].copy_from_slice(&NUMBERS[rng.below(NUMBERS.len())].to_le_bytes()),
        4 if rng.below(8) == 0 => file.truncate(at),
        _ if rest >= 1 => file[at] = file[at].wrapping_add(if rng.below(2) == 0 { 1 } else { 255 }),
        _ => {}
    }
}
