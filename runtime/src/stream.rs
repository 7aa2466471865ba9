//! From the bytes of tokens to text that is safe to print.
//!
//! A token may end inside a character, and a stop string may begin in one token and end in another. [`TextStream`] holds
//! back exactly what is not yet certain: the bytes of an incomplete character, and the longest end of the text that is
//! the beginning of a stop string. How the bytes are cut into tokens never changes the text.

/// Turns bytes into text, replacing what is no UTF-8 by U+FFFD, up to the first stop string.
///
/// The first is the one whose last byte comes first; of those that end together, the longest. A stop string is never
/// part of the text. An empty stop string never matches.
///
/// ```
/// let mut stream = lutite_runtime::stream::TextStream::new(["</s>"]);
/// let mut text = String::new();
/// assert_eq!(stream.push(b"caf\xC3", &mut text), None);
/// assert_eq!(text, "caf");
/// assert_eq!(stream.push(b"\xA9 </", &mut text), None);
/// assert_eq!(text, "café ");
/// assert_eq!(stream.push(b"s> and more", &mut text), Some(0));
/// assert_eq!(text, "café ");
/// ```
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// An incomplete character: 0 to 3 bytes.
    pending: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
    stops: Vec<Stop>,
    hit: Option<usize>,
}

impl TextStream {
    /// A stream that ends at any of `stops`.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Self {
        let stops = stops.into_iter().map(|text| Stop::new(text.into())).collect();
        Self { stops, ..Self::default() }
    }

    /// Takes the bytes of a token and appends to `out` what has become certain.
    ///
    /// Returns the index of the stop string once one was hit; from then on nothing more is taken.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) -> Option<usize> {
        if self.hit.is_some() {
            return self.hit;
        }
        if self.pending.is_empty() {
            let used = self.decode(bytes);
            self.pending.extend_from_slice(&bytes[used..]);
        } else {
            let mut joined = std::mem::take(&mut self.pending);
            joined.extend_from_slice(bytes);
            let used = self.decode(&joined);
            joined.drain(..used);
            self.pending = joined;
        }
        self.release(out);
        self.hit
    }

    /// Ends the text: appends to `out` what was held back, an incomplete character as U+FFFD.
    ///
    /// Returns the index of the stop string if one was hit, now or before.
    pub fn finish(&mut self, out: &mut String) -> Option<usize> {
        if self.hit.is_none() && !self.pending.is_empty() {
            self.pending.clear();
            self.take(char::REPLACEMENT_CHARACTER);
        }
        out.push_str(&self.held);
        self.reset_text();
        self.hit
    }

    /// The index of the stop string that was hit.
    #[must_use]
    pub fn stopped_by(&self) -> Option<usize> {
        self.hit
    }

    /// Makes the stream ready for another text with the same stop strings.
    pub fn reset(&mut self) {
        self.reset_text();
        self.hit = None;
    }

    fn reset_text(&mut self) {
        self.pending.clear();
        self.held.clear();
        for stop in &mut self.stops {
            stop.matched = 0;
        }
    }

    /// Takes the characters of `bytes` and returns how many bytes are settled; the rest may become a character.
    ///
    /// What is replaced, and by how many U+FFFD, is `String::from_utf8_lossy`'s choice: one for each maximal part
    /// of a character (the Unicode Standard, section 3.9, "U+FFFD Substitution of Maximal Subparts").
    fn decode(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while self.hit.is_none() {
            let rest = &bytes[used..];
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.take_all(text);
                    return bytes.len();
                }
                Err(error) => error,
            };
            let (valid, _) = rest.split_at(error.valid_up_to());
            // Valid by the line above, so this borrows.
            self.take_all(&String::from_utf8_lossy(valid));
            used += valid.len();
            let Some(invalid) = error.error_len() else { return used };
            self.take(char::REPLACEMENT_CHARACTER);
            used += invalid;
        }
        bytes.len()
    }

    fn take_all(&mut self, text: &str) {
        if self.stops.is_empty() {
            self.held.push_str(text);
        } else {
            text.chars().for_each(|c| self.take(c));
        }
    }

    fn take(&mut self, c: char) {
        if self.hit.is_some() {
            return;
        }
        self.held.push(c);
        let mut longest = 0;
        for (index, stop) in self.stops.iter_mut().enumerate() {
            let complete = c.encode_utf8(&mut [0; 4]).bytes().fold(false, |_, byte| stop.step(byte));
            if complete && stop.text.len() > longest {
                longest = stop.text.len();
                self.hit = Some(index);
            }
        }
        // What a stop string has matched was held back when it came, so all of it is here to be removed.
        self.held.truncate(self.held.len() - longest);
    }

    /// Moves to `out` all text that no stop string can reach back into.
    fn release(&mut self, out: &mut String) {
        let keep =
            if self.hit.is_some() { 0 } else { self.stops.iter().map(|s| s.matched).max().unwrap_or(0) };
        // A character boundary: the kept end is the beginning of a stop string.
        out.extend(self.held.drain(..self.held.len() - keep));
    }
}

/// One stop string and how far the end of the text has matched it, by Knuth, Morris and Pratt's automaton: a step costs
/// O(1) on average however the text and the string repeat themselves.
#[derive(Clone, Debug)]
struct Stop {
    text: String,
    /// `border[i]`: length of the longest proper prefix of the text that is a suffix of its first `i + 1` bytes.
    border: Vec<usize>,
    /// The longest beginning of the text, short of the whole, that the stream ends with.
    matched: usize,
}

impl Stop {
    fn new(text: String) -> Self {
        let bytes = text.as_bytes();
        let mut border = vec![0; bytes.len()];
        let mut length = 0;
        for i in 1..bytes.len() {
            while length > 0 && bytes[i] != bytes[length] {
                length = border[length - 1];
            }
            length += usize::from(bytes[i] == bytes[length]);
            border[i] = length;
        }
        Self { text, border, matched: 0 }
    }

    /// Takes a byte; true if the stream now ends with the whole text.
    fn step(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        if bytes.is_empty() {
            return false;
        }
        while self.matched > 0 && bytes[self.matched] != byte {
            self.matched = self.border[self.matched - 1];
        }
        self.matched += usize::from(bytes[self.matched] == byte);
        if self.matched < bytes.len() {
            return false;
        }
        self.matched = self.border[self.matched - 1];
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds the chunks; the text, the stop hit, and the text that was out before `finish`.
    fn run(stops: &[String], chunks: &[&[u8]]) -> (String, Option<usize>, String) {
        let mut stream = TextStream::new(stops.to_vec());
        let mut text = String::new();
        for chunk in chunks {
            stream.push(chunk, &mut text);
        }
        let early = text.clone();
        let hit = stream.finish(&mut text);
        assert_eq!(hit, stream.stopped_by());
        (text, hit, early)
    }

    /// All at once: the earliest end of a stop string, then the longest.
    fn twin(stops: &[String], bytes: &[u8]) -> (String, Option<usize>) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let ends = stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = ends.filter_map(|(i, stop)| text.find(stop.as_str()).map(|at| (at + stop.len(), at, i)));
        match found.min() {
            Some((_, at, index)) => (text[..at].to_owned(), Some(index)),
            None => (text, None),
        }
    }

    fn stops_of(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&s| s.to_owned()).collect()
    }

    #[test]
    fn incomplete_characters_wait() {
        assert_eq!(run(&[], &[b"\xF0\x9F", b"\x98", b"\x80!"]), ("😀!".into(), None, "😀!".into()));
        assert_eq!(run(&[], &[b"a\xF0\x9F\x98"]), ("a\u{FFFD}".into(), None, "a".into()));
        // E2 28: the second byte settles that the first is wrong, and is a character itself.
        assert_eq!(run(&[], &[b"\xE2", b"\x28"]).2, "\u{FFFD}(");
        assert_eq!(run(&[], &[b"\xFF\xC0\x80"]).2, "\u{FFFD}\u{FFFD}\u{FFFD}");
    }

    #[test]
    fn stops_work_across_tokens() {
        let stops = stops_of(&["</s>", "User:"]);
        assert_eq!(run(&stops, &[b"hi <", b"/s", b">x"]), ("hi ".into(), Some(0), "hi ".into()));
        assert_eq!(run(&stops, &[b"hi <", b"/b> Use"]), ("hi </b> Use".into(), None, "hi </b> ".into()));
        assert_eq!(run(&stops, &[b"a\nUs", b"er", b":"]), ("a\n".into(), Some(1), "a\n".into()));
    }

    #[test]
    fn overlapping_stops() {
        let stops = stops_of(&["b", "abc", "ab", ""]);
        assert_eq!(run(&stops, &[b"xa", b"bc"]).0, "x");
        assert_eq!(run(&stops, &[b"xabc"]).1, Some(2), "`ab` and `b` end together: the longest");
        assert_eq!(run(&stops_of(&["aab"]), &[b"aaab"]).0, "a");
    }

    #[test]
    fn after_a_stop_nothing_is_taken_until_reset() {
        let mut stream = TextStream::new(["."]);
        let mut out = String::new();
        assert_eq!(stream.push(b"one. two", &mut out), Some(0));
        assert_eq!(stream.push(b" three", &mut out), Some(0));
        assert_eq!(stream.finish(&mut out), Some(0));
        assert_eq!(out, "one");
        stream.reset();
        assert_eq!(stream.push(b" two", &mut out), None);
        assert_eq!(out, "one two");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn chunks_do_not_matter(
            // An alphabet of letters, parts of é, ⅓ and 😀, and a byte that is never valid: many near-matches.
            bytes in prop::collection::vec(
                prop::sample::select(b"aaabbc\xC3\xA9\xE2\x85\x93\xF0\x9F\x98\x80\xFF".to_vec()), 0..60),
            stops in prop::collection::vec("[abcé⅓😀\u{FFFD}]{0,5}", 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let (text, hit, early) = run(&stops, &chunks);
            let (want, want_hit) = twin(&stops, &bytes);
            prop_assert_eq!(&text, &want);
            prop_assert_eq!(hit.map(|i| &stops[i]), want_hit.map(|i| &stops[i]));
            prop_assert!(text.starts_with(&early));
            // Nothing is held back longer than it must be.
            let longest = stops.iter().map(String::len).max().unwrap_or(0).max(1) - 1;
            prop_assert!(text.len() - early.len() <= longest + char::REPLACEMENT_CHARACTER.len_utf8());
        }
    }
}
