//! Byte-level byte-pair encoding (GPT-2's).
//!
//! A text is cut into words ([`super::pre`]); a word starts as its bytes, each a symbol; then the pair of neighbours with
//! the best merge is joined, again and again, leftmost first among equals, until no neighbours have a merge:
//!
//! ```text
//! while some neighbours (a, b) have a merge: join the pair with the smallest (rank, position)
//! ```
//!
//! Words of up to [`SHORT`] bytes are done by scanning for the best pair each time (quadratic, but all in one cache line
//! or two); longer ones by a heap of candidates, O(n log n), where a candidate that no longer fits is skipped when it
//! comes up. So a megabyte without a space is no trouble.

use super::pre::{self, PreRule};
use super::spec::TokenizerError;
use super::strings::Strings;
use super::words::WordCache;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;

/// Words up to this many bytes are merged by scanning; measured break-even is between 32 and 128.
const SHORT: usize = 64;
/// A merge that does not exist: worse than any.
const NO_RANK: u32 = u32::MAX;
/// The end of the list of symbols, and a symbol that was joined to its left neighbour.
const NONE: u32 = u32::MAX;

/// One merge: the ids of its two parts and of the joined text.
#[derive(Debug, Clone, Copy)]
struct Merge {
    left: u32,
    right: u32,
    joined: u32,
}

/// The merges, by rank and by pair.
#[derive(Debug, Clone)]
pub(super) struct Bpe {
    rule: PreRule,
    merges: Vec<Merge>,
    /// Ranks, by the hash of the pair.
    index: HashTable<u32>,
    hasher: RandomState,
    /// The symbol of each byte.
    bytes: [u32; 256],
    /// Ids from here on are texts that occur in merges but are no tokens.
    vocab_size: u32,
}

impl Bpe {
    /// Reads the merges. Parts that are no tokens get ids after the vocabulary in `strings`: llama.cpp merges through
    /// them too, and real files have them.
    pub(super) fn new(rule: PreRule, merges: &[&str], strings: &mut Strings) -> Result<Bpe, TokenizerError> {
        if merges.is_empty() {
            return Err(TokenizerError::NoMerges);
        }
        let mut bpe = Bpe {
            rule,
            merges: Vec::with_capacity(merges.len()),
            index: HashTable::with_capacity(merges.len()),
            hasher: RandomState::default(),
            bytes: [0; 256],
            vocab_size: strings.len() as u32,
        };
        let mut joined = String::new();
        for (index, text) in merges.iter().enumerate() {
            // A part may be a space itself, hence not before the second byte (as llama.cpp).
            let gap = text.bytes().skip(1).position(|b| b == b' ').map(|at| at + 1);
            let (left, right) = match gap {
                Some(at) if at + 1 < text.len() => (&text[..at], &text[at + 1..]),
                _ => return Err(TokenizerError::BadMerge { index, text: text.chars().take(80).collect() }),
            };
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            bpe.add(strings.intern(left), strings.intern(right), strings.intern(&joined));
        }
        for (byte, symbol) in (0..=255).zip(&mut bpe.bytes) {
            *symbol = strings.intern(byte_to_char(byte).encode_utf8(&mut [0; 4]));
        }
        Ok(bpe)
    }

    fn add(&mut self, left: u32, right: u32, joined: u32) {
        // Of equal pairs the first counts; the later keeps its rank so that ranks stay positions.
        let rank = self.merges.len() as u32;
        let known = self.rank(left, right) != NO_RANK;
        self.merges.push(Merge { left, right, joined });
        if !known {
            let Bpe { merges, index, hasher, .. } = self;
            let hash_of = |m: &Merge| hasher.hash_one(pair(m.left, m.right));
            index.insert_unique(hash_of(&merges[rank as usize]), rank, |&r| hash_of(&merges[r as usize]));
        }
    }

    fn rank(&self, left: u32, right: u32) -> u32 {
        let same = |&rank: &u32| {
            let m = &self.merges[rank as usize];
            (m.left, m.right) == (left, right)
        };
        self.index.find(self.hasher.hash_one(pair(left, right)), same).copied().unwrap_or(NO_RANK)
    }

    /// Appends the tokens of `text`, which holds no special tokens.
    pub(super) fn encode(
        &self,
        text: &str,
        strings: &Strings,
        work: &mut Work,
        words: &mut WordCache,
        out: &mut Vec<u32>,
    ) {
        pre::split(self.rule.pre, text, &mut |word| {
            words.encode(word, out, |out| self.word(word, strings, work, out));
        });
    }

    fn word(&self, word: &str, strings: &Strings, work: &mut Work, out: &mut Vec<u32>) {
        if self.rule.ignore_merges {
            work.text.clear();
            work.text.extend(word.bytes().map(byte_to_char));
            if let Some(id) = strings.find(&work.text).filter(|&id| id < self.vocab_size) {
                out.push(id);
                return;
            }
        }
        work.ids.clear();
        work.ids.extend(word.bytes().map(|b| self.bytes[b as usize]));
        if work.ids.len() <= SHORT {
            self.merge_short(work);
        } else {
            self.merge_long(work);
        }
        for &id in &work.ids {
            self.emit(id, strings, out);
        }
    }

    /// Merges `work.ids` in place by scanning for the best pair.
    fn merge_short(&self, work: &mut Work) {
        let Work { ids, ranks, .. } = work;
        ranks.clear();
        ranks.extend(ids.windows(2).map(|w| self.rank(w[0], w[1])));
        while let Some((at, &rank)) = ranks.iter().enumerate().min_by_key(|&(_, rank)| *rank) {
            if rank == NO_RANK {
                break;
            }
            ids[at] = self.merges[rank as usize].joined;
            ids.remove(at + 1);
            ranks.remove(at);
            if at > 0 {
                ranks[at - 1] = self.rank(ids[at - 1], ids[at]);
            }
            if at < ranks.len() {
                ranks[at] = self.rank(ids[at], ids[at + 1]);
            }
        }
    }

    /// Merges `work.ids` in place with a heap of candidates. Symbols are a linked list over the positions of `ids`; a
    /// joined symbol's right half becomes [`NONE`].
    fn merge_long(&self, work: &mut Work) {
        let Work { ids, next, prev, heap, .. } = work;
        // A text of 4 GiB would overflow the positions; no caller has one, and Strings could not hold its result.
        let n = ids.len() as u32;
        next.clear();
        next.extend((1..n).chain([NONE]));
        prev.clear();
        prev.extend([NONE].into_iter().chain(0..n - 1));
        heap.clear();
        let candidate = |rank: u32, left: u32| Reverse(u64::from(rank) << 32 | u64::from(left));
        for (left, w) in ids.windows(2).enumerate() {
            let rank = self.rank(w[0], w[1]);
            if rank != NO_RANK {
                heap.push(candidate(rank, left as u32));
            }
        }
        while let Some(Reverse(best)) = heap.pop() {
            let (rank, left) = ((best >> 32) as usize, best as u32);
            let right = next[left as usize];
            let merge = self.merges[rank];
            // Outdated when either neighbour was joined to something else meanwhile.
            if right == NONE || ids[left as usize] != merge.left || ids[right as usize] != merge.right {
                continue;
            }
            ids[left as usize] = merge.joined;
            ids[right as usize] = NONE;
            let after = next[right as usize];
            next[left as usize] = after;
            next[right as usize] = NONE;
            if after != NONE {
                prev[after as usize] = left;
                let rank = self.rank(merge.joined, ids[after as usize]);
                if rank != NO_RANK {
                    heap.push(candidate(rank, left));
                }
            }
            let before = prev[left as usize];
            if before != NONE {
                let rank = self.rank(ids[before as usize], merge.joined);
                if rank != NO_RANK {
                    heap.push(candidate(rank, before));
                }
            }
        }
        ids.retain(|&id| id != NONE);
    }

    /// Appends a symbol: itself when it is a token, else those of its characters that are, one by one. llama.cpp tries
    /// bytes instead of characters, which for the two-byte characters of the byte alphabet never is a token.
    fn emit(&self, id: u32, strings: &Strings, out: &mut Vec<u32>) {
        if id < self.vocab_size {
            out.push(id);
            return;
        }
        let text = strings.get(id).unwrap_or_default();
        let ascii = text.char_indices().filter(|(_, c)| c.is_ascii());
        out.extend(
            ascii.filter_map(|(at, _)| strings.find(&text[at..=at]).filter(|&id| id < self.vocab_size)),
        );
    }
}

/// The key of a pair.
fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Buffers of one call of `encode`, used again for each word.
#[derive(Debug, Default)]
pub(super) struct Work {
    ids: Vec<u32>,
    ranks: Vec<u32>,
    next: Vec<u32>,
    prev: Vec<u32>,
    heap: BinaryHeap<Reverse<u64>>,
    text: String,
}

/// GPT-2's alphabet: bytes that print in Latin-1 stand for themselves, the other 68 for U+0100 and up, in order.
pub(super) fn byte_to_char(byte: u8) -> char {
    let code = match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => u32::from(byte),
        0..=0x20 => 0x100 + u32::from(byte),
        0x7F..=0xA0 => 0x121 + u32::from(byte - 0x7F),
        0xAD => 0x143,
    };
    // Below U+0144, far from the surrogates: always a character.
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The way back from [`byte_to_char`].
pub(super) fn char_to_byte(c: char) -> Option<u8> {
    Some(match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => code as u8,
        code @ 0x100..=0x120 => (code - 0x100) as u8,
        code @ 0x121..=0x142 => (code - 0x121) as u8 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_one_to_one() {
        for byte in 0..=255 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
        }
        assert_eq!((byte_to_char(b' '), byte_to_char(b'\n')), ('Ġ', 'Ċ'));
        assert_eq!((char_to_byte(' '), char_to_byte('\u{144}'), char_to_byte('▁')), (None, None, None));
    }

    fn toy() -> (Bpe, Strings) {
        let mut strings = Strings::with_capacity(0, 0);
        for byte in 0..=255 {
            strings.intern(byte_to_char(byte).encode_utf8(&mut [0; 4]));
        }
        for text in ["ab", "bc", "abc", "aa", "aaaa"] {
            strings.intern(text);
        }
        let rule = PreRule::by_name("gpt-2").unwrap();
        // "b d" joins to a text that is no token, and "bd bd" goes through it.
        let bpe =
            Bpe::new(rule, &["b c", "a b", "a bc", "a a", "aa aa", "b d", "bd bd"], &mut strings).unwrap();
        (bpe, strings)
    }

    #[test]
    fn merges_go_by_rank_then_from_the_left() {
        let (bpe, strings) = toy();
        let texts = |text: &str| {
            let (mut out, mut work, mut words) = (Vec::new(), Work::default(), WordCache::default());
            bpe.encode(text, &strings, &mut work, &mut words, &mut out);
            out.iter().map(|&id| strings.get(id).unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(texts("abc"), ["abc"]);
        assert_eq!(texts("abab"), ["ab", "ab"]);
        assert_eq!(texts("aaaaaaa"), ["aaaa", "aa", "a"]);
        // No token "bdbd": back to its characters.
        assert_eq!(texts("bdbd"), ["b", "d", "b", "d"]);
    }

    #[test]
    fn both_ways_to_merge_agree() {
        let (bpe, _) = toy();
        let mut seed = 1u32;
        for len in 2..200 {
            let symbols: Vec<u32> = (0..len)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    bpe.bytes[usize::from(b"abcd"[(seed >> 24) as usize % 4])]
                })
                .collect();
            let mut short = Work { ids: symbols.clone(), ..Work::default() };
            let mut long = Work { ids: symbols, ..Work::default() };
            bpe.merge_short(&mut short);
            bpe.merge_long(&mut long);
            assert_eq!(short.ids, long.ids);
        }
    }
}
