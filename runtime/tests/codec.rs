//! Hidden states there and back: how near they come, how long they are, and bytes that are none.

use half::bf16;
use lutite_runtime::split::codec::{Codec, CodecError, CodecSpec, MAX_WIDTH, Precision};

/// Makes something wrong.
type Spoil<'a> = &'a dyn Fn(&mut Vec<u8>);

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// Between -1 and 1, rarely a thousand times that.
    fn value(&mut self) -> f32 {
        let v = self.next() as f32 / (1u64 << 30) as f32 - 1.0;
        if self.below(40) == 0 { v * 1000.0 } else { v }
    }
}

/// Something to agree on.
fn spec(rng: &mut Rng) -> CodecSpec {
    let width = [1, 2, 3, 7, 8, 64, 577, 4096][rng.below(8)];
    let channels = (0..width as u16).filter(|_| rng.below(30) == 0).collect();
    let precision = match rng.below(8) {
        0 => Precision::Lossless,
        n => Precision::Bits(n as u8 + 1),
    };
    CodecSpec { width, precision, channels, indexed: rng.below(40) as u8, guard: 0.5 }
}

fn there_and_back(codec: &mut Codec, x: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut back) = (vec![7; 3], vec![0.0; x.len()]);
    codec.encode(x, &mut bytes).unwrap();
    assert_eq!(bytes[..3], [7; 3]);
    let bytes = bytes.split_off(3);
    assert!(bytes.len() <= codec.max_bytes());
    // What follows is not read.
    let longer: Vec<u8> = bytes.iter().copied().chain([1, 2, 3]).collect();
    assert_eq!(codec.decode(&longer, &mut back), Ok(bytes.len()));
    (bytes, back)
}

fn squares(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum()
}

#[test]
fn what_comes_back_is_near() {
    let mut rng = Rng(3);
    for _ in 0..2000 {
        let mut codec = Codec::new(spec(&mut rng)).unwrap();
        let spec = codec.spec().clone();
        let scale = [1.0, 1e-20, 1e6, 1e12][rng.below(4)];
        let x: Vec<f32> = (0..spec.width).map(|_| scale * rng.value()).collect();
        let (bytes, back) = there_and_back(&mut codec, &x);
        let lost: Vec<f32> = x.iter().zip(&back).map(|(a, b)| a - b).collect();
        // What is sent apart loses what bf16 does, beside what the guard allows to the others.
        assert!(squares(&lost).sqrt() <= (0.5f64.sqrt() + 0.005) * squares(&x).sqrt(), "{spec:?}");
        for c in &spec.channels {
            let c = usize::from(*c);
            let apart = if bytes[0] == 32 { x[c] } else { bf16::from_f32(x[c]).to_f32() };
            assert_eq!(back[c], apart);
        }
        if spec.precision == Precision::Lossless {
            assert_eq!(back, x);
        } else if let Precision::Bits(bits) = spec.precision {
            assert!(bytes[0] >= bits);
        }
    }
}

/// Each bit more halves what is lost, or nearly; without what is sent apart there is hardly anything left of the others.
#[test]
fn more_bits_lose_less_and_large_values_apart_save_the_others() {
    let mut rng = Rng(5);
    let x: Vec<f32> = (0..576).map(|_| rng.value()).collect();
    let lost = |bits, indexed| {
        let precision = Precision::Bits(bits);
        let spec = CodecSpec { width: 576, precision, channels: vec![], indexed, guard: f32::MAX };
        let (bytes, back) = there_and_back(&mut Codec::new(spec).unwrap(), &x);
        let small = |i: &usize| x[*i].abs() <= 1.0;
        let at: Vec<f32> = (0..576).filter(small).map(|i| x[i] - back[i]).collect();
        (bytes.len(), squares(&at))
    };
    for bits in 3..=8 {
        assert!(lost(bits, 40).1 < 0.45 * lost(bits - 1, 40).1, "{bits}");
    }
    let (bytes, with) = lost(4, 40);
    let (without_bytes, without) = lost(4, 0);
    assert!(with * 100.0 < without && bytes < without_bytes + 3 * 40 + 3, "{with} {without} {bytes}");
    assert_eq!(without_bytes, 6 + 288);
}

#[test]
fn a_token_that_would_lose_too_much_gets_more_bits() {
    let mut rng = Rng(8);
    let x: Vec<f32> = (0..300).map(|_| rng.value()).collect();
    let kind = |guard| {
        let spec =
            CodecSpec { width: 300, precision: Precision::Bits(2), channels: vec![], indexed: 20, guard };
        let (bytes, back) = there_and_back(&mut Codec::new(spec).unwrap(), &x);
        let lost: Vec<f32> = x.iter().zip(&back).map(|(a, b)| a - b).collect();
        (bytes[0], squares(&lost) / squares(&x))
    };
    let kinds: Vec<u8> = [1.0, 1e-6, 1e-7, 1e-8, 0.0].map(|guard| kind(guard).0).to_vec();
    assert!(kinds.is_sorted() && kinds[0] == 2 && kinds[2] > 2 && kinds[4] == 32, "{kinds:?}");
    assert_eq!(kind(0.0).1, 0.0);
}

#[test]
fn all_that_is_finite_arrives() {
    let spec = |bits| CodecSpec {
        width: 10,
        precision: Precision::Bits(bits),
        channels: vec![2],
        indexed: 2,
        guard: 0.1,
    };
    for bits in 2..=8 {
        let mut codec = Codec::new(spec(bits)).unwrap();
        for (value, other) in [(0.0, 0.0), (3.0, 3.0), (f32::MAX, f32::MIN), (1e-45, -1e-45), (f32::MAX, 1.0)]
        {
            let x: Vec<f32> = (0..10).map(|i| if i % 3 == 0 { value } else { other }).collect();
            let (_, back) = there_and_back(&mut codec, &x);
            assert!(back.iter().all(|x| x.is_finite()), "{back:?}");
            let near =
                |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-38f32.max(0.4 * value.abs().max(other.abs()));
            assert!(x.iter().zip(&back).all(near), "{x:?} {back:?}");
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 10];
            x[7] = bad;
            let mut bytes = vec![];
            let why = codec.encode(&x, &mut bytes).unwrap_err().to_string();
            assert!(why.contains("in channel 7") && bytes.is_empty(), "{why}");
        }
    }
}

#[test]
fn what_cannot_be_agreed_on() {
    let good =
        CodecSpec { width: 8, precision: Precision::Bits(4), channels: vec![1, 5], indexed: 3, guard: 0.1 };
    Codec::new(good.clone()).unwrap();
    for (bad, what) in [
        (CodecSpec { width: 0, channels: vec![], ..good.clone() }, "0 values"),
        (CodecSpec { width: MAX_WIDTH + 1, ..good.clone() }, "65537 values"),
        (CodecSpec { precision: Precision::Bits(1), ..good.clone() }, "with 1 bits"),
        (CodecSpec { precision: Precision::Bits(9), ..good.clone() }, "with 9 bits"),
        (CodecSpec { channels: vec![5, 5], ..good.clone() }, "no such channels"),
        (CodecSpec { channels: vec![8], ..good.clone() }, "no such channels"),
        (CodecSpec { guard: f32::NAN, ..good.clone() }, "lose NaN"),
        (CodecSpec { guard: -1.0, ..good.clone() }, "lose -1"),
    ] {
        let why = Codec::new(bad).unwrap_err().to_string();
        assert!(why.contains(what), "{why}");
    }
}

/// A state with one thing wrong each.
#[test]
fn bytes_that_are_no_state() {
    let spec = CodecSpec {
        width: 301,
        precision: Precision::Bits(5),
        channels: vec![0, 300],
        indexed: 4,
        guard: 1.0,
    };
    let mut codec = Codec::new(spec).unwrap();
    let mut x = vec![0.5; 301];
    (x[3], x[290], x[10]) = (90.0, -80.0, 0.1);
    let (good, _) = there_and_back(&mut codec, &x);
    // 5 bits, two values with their places: behind 2 others, and 286 behind that.
    assert_eq!((good[0], good[1], good[10], good[13], good[14]), (5, 2, 2, 255, 31));
    let decode = |change: Spoil<'_>| {
        let mut bytes = good.clone();
        change(&mut bytes);
        let result: Result<usize, CodecError> = codec.decode(&bytes, &mut vec![0.0; 301]);
        result.map_err(|e| e.to_string())
    };
    assert_eq!(decode(&|_| {}), Ok(good.len()));
    let nan = bf16::NAN.to_le_bytes();
    let wrong: [(Spoil<'_>, &str); 12] = [
        (&|b| b.truncate(0), "ends before"),
        (&|b| b.truncate(12), "ends before"),
        (&|b| b.truncate(b.len() - 1), "ends before"),
        (&|b| b[0] = 0, "says 0 bits"),
        (&|b| b[0] = 9, "says 9 bits"),
        (&|b| b[1] = 5, "5 indexed values, 4"),
        (&|b| b[2..4].copy_from_slice(&nan), "has NaN among"),
        (&|b| b[5] = 0xc0, "has a scale of"),
        (&|b| b[4..6].copy_from_slice(&bf16::MAX.to_le_bytes()), "has a scale of"),
        (&|b| b[14] = 50, "behind its 299 others"),
        (&|b| b[6..8].copy_from_slice(&nan), "has NaN among"),
        (&|b| *b.last_mut().unwrap() |= 0x80, "not filled up with zeros"),
    ];
    for (change, why) in wrong {
        let said = decode(change).unwrap_err();
        assert!(said.contains(why), "{said}: {why}");
    }
    let mut lossless = vec![32];
    lossless.extend([f32::INFINITY; 301].iter().flat_map(|x| x.to_le_bytes()));
    assert!(codec.decode(&lossless, &mut x).unwrap_err().to_string().contains("has inf"));
}

/// Whatever comes, it ends, and what is taken for a state is made of finite numbers.
#[test]
fn random_bytes() {
    let mut rng = Rng(11);
    let mut taken = 0;
    for _ in 0..20_000 {
        let mut codec = Codec::new(spec(&mut rng)).unwrap();
        let width = codec.spec().width;
        let mut bytes = Vec::new();
        let x: Vec<f32> = (0..width).map(|_| rng.value()).collect();
        codec.encode(&x, &mut bytes).unwrap();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(bytes.len().min(40));
            bytes[at] ^= 1 << rng.below(8);
        }
        let mut back = vec![0.0; width];
        if let Ok(n) = codec.decode(&bytes, &mut back) {
            assert!(n <= bytes.len() && back.iter().all(|x| x.is_finite()));
            taken += 1;
        }
    }
    assert!(taken > 1000 && taken < 19_000, "{taken}");
}
