//! A string table: every token text once, in one buffer, with a hash index of 4-byte ids.
//!
//! A `HashMap<String, u32>` of a 128k vocabulary costs one allocation and some 60 bytes per token; this costs none and
//! about nine, and the index stays in the L2 cache, which is what makes loading 280k merges fast.

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// Texts with dense ids `0..len`, and the way back from a text to its id.
#[derive(Debug, Clone)]
pub(super) struct Strings {
    /// All texts, one after another.
    text: String,
    /// End of text `i` in `text`; its start is the end of `i - 1`.
    ends: Vec<u32>,
    index: HashTable<u32>,
    // Seeded per process: a hostile file cannot prepare collisions.
    hasher: RandomState,
    /// Length in bytes of the longest text: no longer key can be found.
    longest: usize,
}

impl Strings {
    /// An empty table with room for `count` texts of `bytes` bytes in all.
    pub(super) fn with_capacity(count: usize, bytes: usize) -> Strings {
        Strings {
            text: String::with_capacity(bytes),
            ends: Vec::with_capacity(count),
            index: HashTable::with_capacity(count),
            hasher: RandomState::default(),
            longest: 0,
        }
    }

    /// The number of texts.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The text of `id`, or `None` when there is no such id.
    pub(super) fn get(&self, id: u32) -> Option<&str> {
        let end = *self.ends.get(id as usize)?;
        Some(&self.text[start(&self.ends, id) as usize..end as usize])
    }

    /// The id of `text`.
    pub(super) fn find(&self, text: &str) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        let hash = self.hasher.hash_one(text.as_bytes());
        self.index.find(hash, |&id| self.get(id) == Some(text)).copied()
    }

    /// Adds `text`; `Err` with the older id when it is there already. The total must stay below 4 GiB (checked by the
    /// caller, who knows the file).
    pub(super) fn insert(&mut self, text: &str) -> Result<u32, u32> {
        if let Some(id) = self.find(text) {
            return Err(id);
        }
        let id = self.ends.len() as u32;
        self.text.push_str(text);
        self.ends.push(self.text.len() as u32);
        self.longest = self.longest.max(text.len());
        let Strings { text: all, ends, index, hasher, .. } = self;
        let hash_of =
            |id: u32| hasher.hash_one(&all.as_bytes()[start(ends, id) as usize..ends[id as usize] as usize]);
        index.insert_unique(hash_of(id), id, |&other| hash_of(other));
        Ok(id)
    }

    /// The id of `text`, adding it when it is new.
    pub(super) fn intern(&mut self, text: &str) -> u32 {
        self.insert(text).unwrap_or_else(|older| older)
    }
}

fn start(ends: &[u32], id: u32) -> u32 {
    if id == 0 { 0 } else { ends[id as usize - 1] }
}

#[cfg(test)]
mod tests {
    use super::Strings;

    #[test]
    fn texts_and_ids_go_both_ways() {
        let mut s = Strings::with_capacity(0, 0);
        assert_eq!(s.insert("a"), Ok(0));
        assert_eq!(s.insert("▁b"), Ok(1));
        assert_eq!(s.insert("a"), Err(0));
        assert_eq!(s.intern("▁b"), 1);
        assert_eq!((s.find("▁b"), s.find("b"), s.find("longer than any")), (Some(1), None, None));
        assert_eq!((s.get(0), s.get(1), s.get(2), s.len()), (Some("a"), Some("▁b"), None, 2));
    }

    #[test]
    fn the_index_survives_growth() {
        let mut s = Strings::with_capacity(0, 0);
        for i in 0..5000 {
            assert_eq!(s.insert(&format!("token{i}")), Ok(i));
        }
        assert!((0..5000).all(|i| s.find(&format!("token{i}")) == Some(i)));
    }
}
