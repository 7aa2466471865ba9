//! SentencePiece's BPE with scores, as llama.cpp's `llm_tokenizer_spm`.
//!
//! The text, its spaces written U+2581, starts as its characters; the neighbours whose joined text is the token with the
//! highest score are joined, leftmost first among equals, until no neighbours form a token. Characters that are no
//! tokens become their bytes, `<0xNN>`. The candidates are kept in a heap, O(n log n); one that no longer fits is skipped
//! when it comes up.
//!
//! By definition the whole text is one list. But where no token has U+2581 after another character (Llama's vocabulary,
//! for one), nothing is ever joined across the start of a word; so words are done by themselves, which gives the same
//! tokens from small heaps and a cache, thirty times as fast on prose.

use super::strings::Strings;
use super::words::WordCache;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// The space of SentencePiece, U+2581.
pub(super) const SPACE: &str = "\u{2581}";
/// The end of the list of symbols.
const NONE: u32 = u32::MAX;

/// What joining and falling back need.
#[derive(Debug, Clone)]
pub(super) struct Spm {
    /// By token id; empty when the file has none (all are 0 then).
    scores: Vec<f32>,
    /// What each byte becomes when its character is no token; `None`: nothing can say it.
    bytes: Vec<Option<u32>>,
    /// Whether no token has U+2581 after another character.
    by_word: bool,
}

/// A stretch of the text.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: u32,
    /// 0: joined to the left neighbour.
    len: u32,
    prev: u32,
    next: u32,
    /// The token, once joined; looked up at the end for a lone character.
    id: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    score: f32,
    left: u32,
    right: u32,
    /// Length of the joined text: tells whether either side has changed since.
    len: u32,
    id: u32,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap yields the greatest: the best score, then the leftmost.
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl Spm {
    /// `scores` hold no NaN (checked by the caller); `unk` stands for bytes that have no token.
    pub(super) fn new(scores: &[f32], unk: Option<u32>, strings: &Strings) -> Spm {
        let byte_token = |byte: u8| {
            let hex = strings.find(&format!("<0x{byte:02X}>"));
            let raw =
                || byte.is_ascii().then(|| strings.find(char::from(byte).encode_utf8(&mut [0; 4]))).flatten();
            hex.or_else(raw).or(unk)
        };
        // + 0.0 makes -0.0 equal to 0.0 also for total_cmp.
        let scores = scores.iter().map(|s| s + 0.0).collect();
        let by_word = (0..strings.len() as u32)
            .filter_map(|id| strings.get(id))
            .all(|text| word_len(text) == text.len());
        Spm { scores, bytes: (0..=255).map(byte_token).collect(), by_word }
    }

    /// Appends the tokens of `text`, whose spaces are U+2581 already.
    pub(super) fn encode(&self, text: &str, strings: &Strings, words: &mut WordCache, out: &mut Vec<u32>) {
        let mut rest = text;
        while !rest.is_empty() {
            let (word, tail) = rest.split_at(if self.by_word { word_len(rest) } else { rest.len() });
            words.encode(word, out, |out| self.word(word, strings, out));
            rest = tail;
        }
    }

    fn word(&self, text: &str, strings: &Strings, out: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        for (i, (start, c)) in (0u32..).zip(text.char_indices()) {
            let (start, len) = (start as u32, c.len_utf8() as u32);
            symbols.push(Symbol { start, len, prev: i.wrapping_sub(1), next: i + 1, id: None });
        }
        let Some(last) = symbols.last_mut() else { return };
        last.next = NONE;

        let mut heap = BinaryHeap::new();
        for right in 1..symbols.len() as u32 {
            heap.extend(self.candidate(text, strings, &symbols, right - 1, right));
        }
        while let Some(Candidate { left, right, len, id, .. }) = heap.pop() {
            let (l, r) = (symbols[left as usize], symbols[right as usize]);
            if l.len == 0 || r.len == 0 || l.len + r.len != len {
                continue;
            }
            symbols[left as usize] = Symbol { len, next: r.next, id: Some(id), ..l };
            symbols[right as usize].len = 0;
            if r.next != NONE {
                symbols[r.next as usize].prev = left;
                heap.extend(self.candidate(text, strings, &symbols, left, r.next));
            }
            if l.prev != NONE {
                heap.extend(self.candidate(text, strings, &symbols, l.prev, left));
            }
        }
        for symbol in symbols.iter().filter(|s| s.len > 0) {
            let piece = &text[symbol.start as usize..(symbol.start + symbol.len) as usize];
            match symbol.id.or_else(|| strings.find(piece)) {
                Some(id) => out.push(id),
                None => out.extend(piece.bytes().filter_map(|b| self.bytes[b as usize])),
            }
        }
    }

    fn candidate(
        &self,
        text: &str,
        strings: &Strings,
        symbols: &[Symbol],
        left: u32,
        right: u32,
    ) -> Option<Candidate> {
        let (l, r) = (symbols[left as usize], symbols[right as usize]);
        let len = l.len + r.len;
        let id = strings.find(&text[l.start as usize..(l.start + len) as usize])?;
        let score = self.scores.get(id as usize).copied().unwrap_or(0.0);
        Some(Candidate { score, left, right, len, id })
    }
}

/// The length in bytes of the first word of `text`: spaces, then everything up to the next space.
fn word_len(text: &str) -> usize {
    let spaces = text.len() - text.trim_start_matches(SPACE).len();
    text[spaces..].find(SPACE).map_or(text.len(), |at| spaces + at)
}

#[cfg(test)]
mod tests {
    use super::{Spm, Strings, WordCache};

    fn encode(tokens: &[(&str, f32)], text: &str) -> Vec<String> {
        let mut strings = Strings::with_capacity(0, 0);
        for (token, _) in tokens {
            strings.insert(token).unwrap();
        }
        let scores: Vec<f32> = tokens.iter().map(|t| t.1).collect();
        let mut out = Vec::new();
        Spm::new(&scores, strings.find("<unk>"), &strings).encode(
            text,
            &strings,
            &mut WordCache::default(),
            &mut out,
        );
        out.iter().map(|&id| strings.get(id).unwrap().to_owned()).collect()
    }

    #[test]
    fn the_best_score_wins_then_the_leftmost() {
        let vocab = [("a", 0.0), ("b", 0.0), ("ab", -2.0), ("ba", -1.0), ("aba", -3.0), ("aa", -5.0)];
        assert_eq!(encode(&vocab, "aba"), ["aba"]);
        assert_eq!(encode(&vocab, "abab"), ["aba", "b"]);
        assert_eq!(encode(&vocab, "aaa"), ["aa", "a"]);
        assert!(encode(&vocab, "").is_empty());
    }

    #[test]
    fn words_are_apart_only_when_no_token_spans_them() {
        let vocab = [("▁", 0.0), ("a", 0.0), ("▁a", -2.0), ("▁▁", -3.0), ("▁▁a", -4.0)];
        assert_eq!(encode(&vocab, "▁a▁▁a"), ["▁a", "▁▁a"]);
        let spanning = [("▁", 0.0), ("a", 0.0), ("▁a", -2.0), ("a▁", -1.0)];
        assert_eq!(encode(&spanning, "▁a▁a"), ["▁", "a▁", "a"]);
    }

    #[test]
    fn unknown_characters_become_bytes_then_unk_then_nothing() {
        assert_eq!(encode(&[("<0xC3>", 0.0), ("<0xA9>", 0.0)], "é"), ["<0xC3>", "<0xA9>"]);
        assert_eq!(encode(&[("<unk>", 0.0)], "é"), ["<unk>", "<unk>"]);
        assert!(encode(&[("x", 0.0)], "é").is_empty());
    }
}
