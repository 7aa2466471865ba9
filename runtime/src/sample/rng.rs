//! A counter-based random number generator: Philox 4x32-10.
//!
//! A draw is a pure function of (seed, position). No state walks along with the text, so a draw can be repeated after
//! a roll-back, and the machine that takes over a split model in mid-answer draws what the first one would have drawn.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3; constants
//! and known answers from the authors' Random123 library (`include/Random123/philox.h`, `tests/kat_vectors`).

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Weyl increments of the key: the golden ratio and sqrt(3) - 1, as fractions of 2^32.
const KEY_STEP: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Ten rounds is the authors' default; seven are the fewest that pass BigCrush.
const ROUNDS: usize = 10;

/// Four words of Philox 4x32-10 for one counter and one key.
#[must_use]
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(KEY_STEP[0]), key[1].wrapping_add(KEY_STEP[1])];
        }
        let product0 = u64::from(MULTIPLIER[0]) * u64::from(counter[0]);
        let product1 = u64::from(MULTIPLIER[1]) * u64::from(counter[2]);
        counter = [
            high(product1) ^ counter[1] ^ key[0],
            low(product1),
            high(product0) ^ counter[3] ^ key[1],
            low(product0),
        ];
    }
    counter
}

/// A uniform number in `[0, 1)` for this seed and position, with 53 random bits.
///
/// The key is the seed; the counter is the position, its upper half zero.
#[must_use]
pub fn uniform(seed: u64, position: u64) -> f64 {
    let words = philox4x32([low(position), high(position), 0, 0], [low(seed), high(seed)]);
    let bits = u64::from(words[0]) << 32 | u64::from(words[1]);
    // 53 bits: every value is exact in f64 and 1.0 cannot be reached by rounding.
    (bits >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

fn low(x: u64) -> u32 {
    x as u32
}

fn high(x: u64) -> u32 {
    (x >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random123, `tests/kat_vectors`, lines `philox4x32 10`.
    #[test]
    fn published_vectors() {
        let ones = u32::MAX;
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, want) in cases {
            assert_eq!(philox4x32(counter, key), want);
        }
    }

    #[test]
    fn uniform_is_even_and_in_range() {
        let mut bins = [0_u32; 16];
        let n = 160_000;
        for position in 0..n {
            let u = uniform(7, position);
            assert!((0.0..1.0).contains(&u));
            bins[(u * 16.0) as usize] += 1;
        }
        // Standard deviation of a bin: sqrt(n * 1/16 * 15/16) = 97; five of them.
        for (bin, &count) in bins.iter().enumerate() {
            assert!(count.abs_diff(10_000) < 485, "bin {bin}: {count}");
        }
    }

    #[test]
    fn neighbours_differ() {
        assert_ne!(uniform(1, 5).to_bits(), uniform(1, 6).to_bits());
        assert_ne!(uniform(1, 5).to_bits(), uniform(2, 5).to_bits());
        assert_ne!(uniform(1, 5).to_bits(), uniform(1, 5 + (1 << 32)).to_bits());
        assert_ne!(uniform(1, 5).to_bits(), uniform(1 + (1 << 32), 5).to_bits());
    }
}
