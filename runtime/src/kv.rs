//! The cache of keys and values.

use crate::os::shared::{AllocError, ReadGuard, RowGuard, SharedMat};
use lutite_kernels::attention::{Head, KvLayout};
use lutite_kernels::isa::Isa;

pub use lutite_kernels::attention::KvType;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvTypes {
    /// Of keys.
    pub keys: KvType,
    /// Of values.
    pub values: KvType,
}

impl From<KvType> for KvTypes {
    fn from(both: KvType) -> KvTypes {
        KvTypes { keys: both, values: both }
    }
}

/// Sizes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Transformer layers.
    pub layers: usize,
    /// KV heads per layer.
    pub heads: usize,
    /// Dimensions of a head, and how keys and values are stored.
    pub layout: KvLayout,
    /// Positions that fit.
    pub context: usize,
}

impl KvShape {
    /// Bytes of the whole cache, keys and values; saturating.
    pub const fn bytes(self) -> usize {
        let keys = self.layout.key_bytes(self.context);
        let head = keys.saturating_add(self.layout.value_bytes(self.context));
        self.layers.saturating_mul(self.heads).saturating_mul(head)
    }
}

/// Keys and values of all layers.
///
/// Each head has its own two slabs, so that attention reads memory in order, and so that one worker may store and
/// read a head while others are at theirs. Slabs are zeroed by the system when first touched: an empty cache costs
/// address space, not memory.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    slabs: Vec<Slabs>, // [layers][heads]
}

/// What one head has stored; see [`KvLayout`].
#[derive(Debug)]
struct Slabs {
    keys: SharedMat<u8>,
    values: SharedMat<u8>,
}

impl KvCache {
    /// An empty cache.
    ///
    /// # Errors
    /// When the address space cannot be had.
    pub fn new(shape: KvShape) -> Result<KvCache, AllocError> {
        // Saturated, sizes are more than any allocation: an error, not a small slab.
        let slab = |bytes: usize| SharedMat::new(1, bytes, bytes.max(1));
        let (keys, values) = (shape.layout.key_bytes(shape.context), shape.layout.value_bytes(shape.context));
        let slabs = (0..shape.layers * shape.heads)
            .map(|_| Ok(Slabs { keys: slab(keys)?, values: slab(values)? }))
            .collect::<Result<_, _>>()?;
        Ok(KvCache { shape, slabs })
    }

    /// Its sizes.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    fn slabs(&self, layer: usize, head: usize) -> &Slabs {
        &self.slabs[layer * self.shape.heads + head]
    }

    /// One head's keys and values, to add positions to.
    ///
    /// # Panics
    /// If the head is being read or written elsewhere.
    pub fn write(&self, layer: usize, head: usize) -> KvWriter<'_> {
        let s = self.slabs(layer, head);
        KvWriter { layout: self.shape.layout, keys: s.keys.write_row(0), values: s.values.write_row(0) }
    }

    /// One head's keys and values, to attend to.
    ///
    /// # Panics
    /// If the head is being written.
    pub fn read(&self, layer: usize, head: usize) -> KvReader<'_> {
        let s = self.slabs(layer, head);
        KvReader { layout: self.shape.layout, keys: s.keys.read(), values: s.values.read() }
    }
}

/// Writes positions of one head.
#[derive(Debug)]
pub struct KvWriter<'a> {
    layout: KvLayout,
    keys: RowGuard<'a, u8>,
    values: RowGuard<'a, u8>,
}

impl KvWriter<'_> {
    /// Stores key and value, `[head_dim]` each, of one position.
    ///
    /// # Panics
    /// If the position is outside of the context.
    pub fn put(&mut self, isa: Isa, position: usize, key: &[f32], value: &[f32]) {
        self.layout.put_key(isa, &mut self.keys, position, key);
        self.layout.put_value(isa, &mut self.values, position, value);
    }
}

/// Reads one head.
#[derive(Debug)]
pub struct KvReader<'a> {
    layout: KvLayout,
    keys: ReadGuard<'a, u8>,
    values: ReadGuard<'a, u8>,
}

impl KvReader<'_> {
    /// Its keys and values.
    pub fn head(&self) -> Head<'_> {
        Head { layout: self.layout, keys: &self.keys, values: &self.values }
    }
}
