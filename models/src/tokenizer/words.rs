//! Words seen within one call of `encode`: most of a text is the same few thousand words, and looking one up costs a
//! tenth of merging it again.

use foldhash::fast::RandomState;
use hashbrown::HashMap;

/// The most words remembered, and the longest one worth it: bounds the memory to about 2 MiB.
const MAX_WORDS: usize = 16 * 1024;
const MAX_WORD_BYTES: usize = 32;

/// The tokens of words.
#[derive(Debug, Default)]
pub(super) struct WordCache {
    /// Where in `ids` a word's tokens are: start and length.
    places: HashMap<Box<str>, (u32, u32), RandomState>,
    ids: Vec<u32>,
}

impl WordCache {
    /// Appends the tokens of `word` to `out`, from memory or by `encode`, which must append the same ones for the same
    /// word each time.
    pub(super) fn encode(&mut self, word: &str, out: &mut Vec<u32>, encode: impl FnOnce(&mut Vec<u32>)) {
        if let Some(&(start, len)) = self.places.get(word) {
            out.extend_from_slice(&self.ids[start as usize..][..len as usize]);
            return;
        }
        let before = out.len();
        encode(out);
        if word.len() <= MAX_WORD_BYTES && self.places.len() < MAX_WORDS {
            // At most MAX_WORDS * MAX_WORD_BYTES tokens: fits u32.
            let start = self.ids.len() as u32;
            self.ids.extend_from_slice(&out[before..]);
            self.places.insert(word.into(), (start, (out.len() - before) as u32));
        }
    }
}
