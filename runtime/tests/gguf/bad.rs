//! Files that are wrong: each must give an error that says what and where, without a panic and without
//! allocating more than a small multiple of the file.

use std::time::{Duration, Instant};

use crate::common::{Raw, array, entry, tensor, text, walk};
use crate::peak::peak_of;
use lutite_runtime::store::Gguf;

/// Most bytes that parsing a file of `len` bytes may hold: 56/14 per entry and 96/33 per tensor (see
/// `gguf.rs`), doubled, and something for messages.
fn cap(len: usize) -> usize {
    8 * len + (64 << 10)
}

/// Parses under the cap, and walks what was parsed.
fn parse(file: &[u8]) -> Result<(), String> {
    let (result, peak) = peak_of(|| Gguf::parse(file));
    assert!(peak <= cap(file.len()), "{peak} bytes held for a file of {}", file.len());
    match result {
        Ok(gguf) => {
            walk(&gguf, file.len());
            Ok(())
        }
        Err(e) => Err(e.to_string()),
    }
}

/// The message for `raw`, which must be wrong.
fn refused(raw: &Raw) -> String {
    parse(&raw.bytes()).expect_err("accepted")
}

#[test]
fn cut_anywhere() {
    let file = Raw::sample().bytes();
    parse(&file).unwrap();
    for len in 0..file.len() {
        let message = parse(&file[..len]).expect_err("accepted");
        assert!(
            message.starts_with("GGUF ") && message.contains("fetch it again"),
            "cut at {len}: {message}"
        );
    }
    assert_eq!(
        parse(b"").unwrap_err(),
        "GGUF header (byte 0): needs 4 bytes, the file has 0 left; it is cut off or damaged, fetch it again"
    );
    let message = parse(&file[..file.len() - 1]).unwrap_err();
    assert!(message.starts_with("GGUF tensor `blk.0.bias` (byte "), "{message}");
    assert!(message.contains("needs 10 bytes, the file has 9 left"), "{message}");
}

#[test]
fn any_bit_flipped() {
    let file = Raw::sample().bytes();
    for bit in 0..file.len() * 8 {
        let mut bad = file.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let _ = parse(&bad);
    }
}

#[test]
fn another_kind_of_file() {
    assert_eq!(
        parse(b"PK\x03\x04 and more").unwrap_err(),
        "GGUF header (byte 0): starts with bytes [50, 4b, 03, 04], not \"GGUF\"; this is no GGUF file"
    );
    for (version, expected) in [
        (0, "version 0 is too old, 2 and 3 can be read; convert the model again"),
        (1, "version 1 is too old, 2 and 3 can be read; convert the model again"),
        (4, "version 4 is too new, 2 and 3 can be read; update this program"),
        (3u32.swap_bytes(), "numbers are big-endian; convert the file for little-endian machines"),
        (1u32.swap_bytes(), "numbers are big-endian; convert the file for little-endian machines"),
    ] {
        assert_eq!(refused(&Raw { version, ..Raw::one() }), format!("GGUF header (byte 4): {expected}"));
    }
}

#[test]
fn counts_that_the_file_cannot_hold() {
    for count in [100, 1 << 20, 1 << 32, 1 << 61, u64::MAX] {
        let message = refused(&Raw { counts: Some((count, 0)), ..Raw::one() });
        let expected =
            format!("GGUF header (byte 24): says there are {count} tensors, this file can hold at most 2; ");
        assert!(message.starts_with(&expected), "{message}");
        let message = refused(&Raw { counts: Some((0, count)), ..Raw::one() });
        assert!(
            message.contains(&format!("{count} metadata entries, this file can hold at most 5")),
            "{message}"
        );
    }
    // A file that has the room still cannot make a count of billions plausible.
    let large = Raw { counts: Some((0, 1 << 20)), data: vec![0; 20 << 20], ..Raw::one() };
    assert_eq!(refused(&large), "GGUF metadata entry 1 (byte 38): name is empty");
}

#[test]
fn strings_that_are_none() {
    let string = |s: &[u8]| Raw::with_entry(entry("k", 8, s));
    for len in [1000, 1 << 40, u64::MAX] {
        let message = refused(&string(&len.to_le_bytes()));
        assert!(
            message.starts_with(&format!("GGUF metadata `k` (byte 45): needs {len} bytes, the file has ")),
            "{message}"
        );
    }
    let message = refused(&string(&text(b"ab\xff")));
    assert_eq!(
        message,
        "GGUF metadata `k` (byte 45): text is not UTF-8 from its byte 2 on; convert the model again"
    );
    let message =
        refused(&Raw::with_entry(entry("k", 9, &array(8, 2, &[text(b"a"), text(b"\xc3")].concat()))));
    assert!(message.starts_with("GGUF metadata `k`, element 1 (byte 66): text is not UTF-8"), "{message}");
}

#[test]
fn names_that_are_none() {
    let key = |key: &str| refused(&Raw::with_entry(entry(key, 0, &[1])));
    assert_eq!(key(""), "GGUF metadata entry 0 (byte 24): name is empty");
    assert_eq!(key("a\0b"), "GGUF metadata entry 0 (byte 24): name has the control character '\\0'");
    assert_eq!(key("a\x1b[2J"), "GGUF metadata entry 0 (byte 24): name has the control character '\\u{1b}'");
    assert!(key(&"k".repeat(65_536)).ends_with("name has 65536 bytes, at most 65535 are allowed"));
    let name = |name: &str| refused(&Raw::with_tensors(&[tensor(name, &[8], 0, 0)], 32));
    assert_eq!(name(""), "GGUF tensor entry 0 (byte 24): name is empty");
    assert_eq!(name("a\0"), "GGUF tensor entry 0 (byte 24): name has the control character '\\0'");
    assert_eq!(
        name(&"n".repeat(64)),
        "GGUF tensor entry 0 (byte 24): name has 64 bytes, at most 63 are allowed"
    );
}

#[test]
fn names_that_appear_twice() {
    let e = entry("k", 0, &[1]);
    let message = refused(&Raw { entries: vec![e.clone(), entry("j", 0, &[1]), e], ..Raw::one() });
    assert_eq!(message, "GGUF metadata `k`: appears twice; which one is meant cannot be known");
    let message = refused(&Raw::with_tensors(&[tensor("x", &[8], 0, 0), tensor("x", &[8], 0, 32)], 64));
    assert_eq!(message, "GGUF tensor `x`: appears twice; which one is meant cannot be known");
}

#[test]
fn values_that_are_none() {
    let value = |ty, bytes: &[u8]| refused(&Raw::with_entry(entry("k", ty, bytes)));
    assert_eq!(
        value(13, &[]),
        "GGUF metadata `k` (byte 33): 13 is no type of a metadata value (0 to 12 are)"
    );
    assert_eq!(value(7, &[2]), "GGUF metadata `k` (byte 37): a bool is stored as 2, not 0 or 1");
    assert_eq!(
        value(9, &array(7, 3, &[0, 1, 9])),
        "GGUF metadata `k`, element 2 (byte 51): a bool is stored as 9, not 0 or 1"
    );
    assert!(value(9, &array(99, 0, &[])).contains("(byte 37): 99 is no type"));
    for (ty, count) in [(0, 1000), (4, u64::MAX), (12, 1 << 61), (8, 1 << 60), (9, u64::MAX / 12)] {
        let message = value(9, &array(ty, count, &[]));
        let expected =
            format!("GGUF metadata `k` (byte 41): says there are {count} array elements, this file can hold");
        assert!(message.starts_with(&expected), "{message}");
    }
}

#[test]
fn arrays_in_arrays() {
    let nested = |depth| (1..depth).fold(array(0, 1, &[5]), |inner, _| array(9, 1, &inner));
    parse(&Raw::with_entry(entry("k", 9, &nested(4))).bytes()).unwrap();
    let message = refused(&Raw::with_entry(entry("k", 9, &nested(5))));
    assert_eq!(message, "GGUF metadata `k`, element 0 (byte 85): arrays are nested more than 4 deep");
    refused(&Raw::with_entry(entry("k", 9, &nested(100_000))));
}

#[test]
fn alignments() {
    for (ty, bytes, expected) in [
        (4, 0u64, "alignment is 0, not a power of two"),
        (4, 48, "alignment is 48, not a power of two"),
        (5, 0xffff_ffff, "is i32 -1, expected an integer that fits u64"),
        (6, 32, "is f32, expected an integer that fits u64"),
    ] {
        let message = refused(&Raw::with_entry(entry("general.alignment", ty, &bytes.to_le_bytes()[..4])));
        assert_eq!(message, format!("GGUF metadata `general.alignment`: {expected}"));
    }
    // Powers of two that put the data behind the end of the file, or of the address space.
    for shift in [20, 62, 63] {
        let alignment = entry("general.alignment", 10, &(1u64 << shift).to_le_bytes());
        assert!(refused(&Raw::with_entry(alignment)).contains("needs 32 bytes, the file has 0 left"));
    }
}

#[test]
fn shapes() {
    let shape = |dims: &[u64], ty| refused(&Raw::with_tensors(&[tensor("x", dims, ty, 0)], 32));
    assert_eq!(shape(&[1; 5], 0), "GGUF tensor `x` (byte 33): has 5 dimensions, at most 4 are allowed");
    assert_eq!(shape(&[8, 0], 0), "GGUF tensor `x` (byte 33): dimension 1 is zero");
    assert_eq!(
        shape(&[33], 2),
        "GGUF tensor `x` (byte 33): rows of 33 values are no multiple of the 32 values in a block of Q4_0"
    );
    for dims in [
        &[1 << 32, 1 << 32][..],
        &[u64::MAX],
        &[1 << 62],
        &[1 << 31, 1 << 31, 4],
        &[u64::MAX, u64::MAX, 2, 2],
    ] {
        assert_eq!(
            shape(dims, 0),
            format!("GGUF tensor `x` (byte 33): shape {dims:?} is larger than any file")
        );
    }
    for ty in [4, 5, 31, 38, 43, 1000, u32::MAX] {
        let message = shape(&[8], ty);
        assert!(
            message.starts_with(&format!("GGUF tensor `x` (byte 45): tensor type {ty} is unknown")),
            "{message}"
        );
    }
}

#[test]
fn data_that_lies_wrong() {
    let two = |offset, len| {
        refused(&Raw::with_tensors(&[tensor("x", &[8, 2], 0, 0), tensor("y", &[8], 0, offset)], len))
    };
    assert_eq!(
        two(32, 96),
        "GGUF tensor `y` (byte 160): data overlaps that of tensor `x`; the file is damaged"
    );
    assert_eq!(
        two(0, 96),
        "GGUF tensor `y` (byte 128): data overlaps that of tensor `x`; the file is damaged"
    );
    assert_eq!(
        two(65, 128),
        "GGUF tensor `y` (byte 193): data offset 65 is no multiple of the alignment, 32"
    );
    assert!(two(64, 95).contains("tensor `y` (byte 192): needs 32 bytes, the file has 31 left"));
    for far in [1 << 20, 1 << 63, u64::MAX - 31] {
        assert!(two(far, 96).contains("needs 32 bytes, the file has 0 left"), "{}", two(far, 96));
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn mutate(rng: &mut Rng, file: &mut Vec<u8>) {
    const NUMBERS: [u64; 14] =
        [0, 1, 2, 4, 8, 9, 12, 31, 255, 1 << 31, u32::MAX as u64, 1 << 62, i64::MAX as u64, u64::MAX];
    // Most of the structure is in the front half.
    let range = if rng.below(4) > 0 { file.len() / 2 } else { file.len() };
    let at = rng.below(range);
    let rest = file.len() - at;
    match rng.below(8) {
        0 if rest > 0 => file[at] ^= 1 << rng.below(8),
        1 if rest > 0 => file[at] = rng.next() as u8,
        2 if rest >= 4 => {
            file[at..at + 4].copy_from_slice(&(NUMBERS[rng.below(NUMBERS.len())] as u32).to_le_bytes());
        }
        3 if rest >= 8 => file[at..at + 8].copy_from_slice(&NUMBERS[rng.below(NUMBERS.len())].to_le_bytes()),
        4 => file.truncate(at),
        5 => {
            let from = rng.below(file.len());
            let len = rng.below(64).min(file.len() - from);
            let piece = file[from..from + len].to_vec();
            file.splice(at..at, piece);
        }
        6 => drop(file.drain(at..at + rng.below(16).min(rest))),
        _ if rest > 0 => file[at] = file[at].wrapping_add(if rng.below(2) == 0 { 1 } else { 255 }),
        _ => {}
    }
}

/// Runs for 2 seconds, or for `LUTITE_FUZZ_SECONDS`. A failure prints the seed of the case; set
/// `LUTITE_FUZZ_SEED` to it to start with that case.
#[test]
fn mutated_files() {
    let seconds = std::env::var("LUTITE_FUZZ_SECONDS").ok().map_or(2.0, |s| s.parse().expect("seconds"));
    let first: u64 = std::env::var("LUTITE_FUZZ_SEED").ok().map_or(1, |s| s.parse().expect("a seed"));
    let seeds = [
        Raw::sample().bytes(),
        Raw { version: 2, ..Raw::sample() }.bytes(),
        Raw::one().bytes(),
        Raw::with_entry(entry("k", 9, &array(9, 1, &array(9, 1, &array(8, 1, &text(b"s")))))).bytes(),
    ];
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let (mut cases, mut accepted) = (0u64, 0u64);
    while Instant::now() < end {
        for seed in first + cases..first + cases + 256 {
            let mut rng = Rng(seed);
            let mut file = seeds[rng.below(seeds.len())].clone();
            for _ in 0..1 + rng.below(6) {
                mutate(&mut rng, &mut file);
            }
            let result = std::panic::catch_unwind(|| parse(&file).is_ok());
            match result {
                Ok(ok) => accepted += u64::from(ok),
                Err(_) => panic!("case failed: run again with LUTITE_FUZZ_SEED={seed}"),
            }
        }
        cases += 256;
    }
    println!("{cases} cases from seed {first}, {accepted} of them accepted");
    assert!(accepted > 0 && accepted < cases, "mutations are too strong or too weak to test anything");
}
