//! A part of a file in memory that keeps the whole alive: what loaded tensors are made of.

use std::ops::{Deref, Range};
use std::sync::Arc;

/// Some bytes of a shared whole, usually of a memory map; cloning copies nothing.
#[derive(Clone)]
pub struct Bytes {
    whole: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// All of `whole`.
    pub fn new(whole: impl AsRef<[u8]> + Send + Sync + 'static) -> Bytes {
        let range = 0..whole.as_ref().len();
        Bytes { whole: Arc::new(whole), range }
    }

    /// No bytes.
    pub fn empty() -> Bytes {
        Bytes::new([])
    }

    /// The bytes of `range`; `None` where there are none.
    pub fn range(&self, range: Range<usize>) -> Option<Bytes> {
        self.get(range.clone())?;
        let base = self.range.start;
        Some(Bytes { whole: self.whole.clone(), range: base + range.start..base + range.end })
    }

    /// The part of these bytes that `part` borrows; `None` if it lies elsewhere.
    pub fn part(&self, part: &[u8]) -> Option<Bytes> {
        let start = (part.as_ptr() as usize).checked_sub(self.as_ptr() as usize)?;
        let end = start.checked_add(part.len()).filter(|e| *e <= self.len())?;
        let base = self.range.start;
        Some(Bytes { whole: self.whole.clone(), range: base + start..base + end })
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.whole).as_ref()[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({:?})", self.range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_parts_and_strangers() {
        let all = Bytes::new(vec![1u8, 2, 3, 4, 5]);
        let tail = all.part(&all[2..]).unwrap();
        assert_eq!(&*tail, &[3, 4, 5]);
        assert_eq!(&*tail.part(&tail[1..2]).unwrap(), &[4]);
        assert!(tail.part(&all[..3]).is_none());
        assert!(all.part(&[9u8; 9]).is_none());
    }
}
