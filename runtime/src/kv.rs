//! The cache of keys and values, one slab per layer and KV head.

use crate::os::shared::{AllocError, ReadGuard, RowGuard, SharedMat};
use lutite_kernels::attention::{KvSlice, to_f16};
use lutite_kernels::isa::Isa;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// Half floats: what everybody uses.
    #[default]
    F16,
    /// Floats, for judging.
    F32,
}

impl KvType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            KvType::F16 => 2,
            KvType::F32 => 4,
        }
    }
}

impl std::str::FromStr for KvType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "f16" => Ok(KvType::F16),
            "f32" => Ok(KvType::F32),
            other => Err(format!("unknown KV cache type {other:?}: f16 or f32")),
        }
    }
}

/// Sizes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Transformer layers.
    pub layers: usize,
    /// KV heads per layer.
    pub heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Positions that fit.
    pub context: usize,
    /// Storage.
    pub ty: KvType,
}

impl KvShape {
    /// Bytes of the whole cache, keys and values; saturating.
    pub const fn bytes(self) -> usize {
        let per_position = self.layers.saturating_mul(self.heads).saturating_mul(self.head_dim);
        per_position.saturating_mul(2 * self.ty.bytes()).saturating_mul(self.context)
    }
}

/// Keys and values of all layers.
///
/// A slab holds one head's positions one after another, `[context][head_dim]`, so that attention reads
/// memory in order. Slabs are zeroed by the system when first touched: an empty cache costs address
/// space, not memory.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    /// `[layer][keys, values]`, each `[kv_head][context * head_dim]`.
    slabs: Vec<[Slab; 2]>,
}

#[derive(Debug)]
enum Slab {
    F16(SharedMat<u16>),
    F32(SharedMat<f32>),
}

impl Slab {
    fn new(s: KvShape) -> Result<Slab, AllocError> {
        // Saturated, it is more than any allocation: an error, not a small slab.
        let dim = s.context.saturating_mul(s.head_dim);
        Ok(match s.ty {
            KvType::F16 => Slab::F16(SharedMat::new(s.heads, dim, dim.max(1))?),
            KvType::F32 => Slab::F32(SharedMat::new(s.heads, dim, dim.max(1))?),
        })
    }

    fn read(&self) -> SlabGuard<'_> {
        match self {
            Slab::F16(m) => SlabGuard::F16(m.read()),
            Slab::F32(m) => SlabGuard::F32(m.read()),
        }
    }

    fn write(&self, head: usize) -> HeadGuard<'_> {
        match self {
            Slab::F16(m) => HeadGuard::F16(m.write_row(head)),
            Slab::F32(m) => HeadGuard::F32(m.write_row(head)),
        }
    }
}

impl KvCache {
    /// An empty cache.
    ///
    /// # Errors
    /// When the address space cannot be had.
    pub fn new(shape: KvShape) -> Result<KvCache, AllocError> {
        let slabs = (0..shape.layers)
            .map(|_| Ok([Slab::new(shape)?, Slab::new(shape)?]))
            .collect::<Result<_, _>>()?;
        Ok(KvCache { shape, slabs })
    }

    /// Its sizes.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// One head's keys and values, to add positions to.
    ///
    /// # Panics
    /// If the head is being read or written elsewhere.
    pub fn write(&self, layer: usize, head: usize) -> KvWriter<'_> {
        let [k, v] = &self.slabs[layer];
        KvWriter { keys: k.write(head), values: v.write(head), dim: self.shape.head_dim }
    }

    /// One layer's keys and values, to attend to.
    ///
    /// # Panics
    /// If one of its heads is being written.
    pub fn read(&self, layer: usize) -> KvReader<'_> {
        let [k, v] = &self.slabs[layer];
        KvReader { keys: k.read(), values: v.read(), dim: self.shape.head_dim }
    }
}

#[derive(Debug)]
enum HeadGuard<'a> {
    F16(RowGuard<'a, u16>),
    F32(RowGuard<'a, f32>),
}

impl HeadGuard<'_> {
    fn put(&mut self, isa: Isa, at: usize, x: &[f32]) {
        match self {
            HeadGuard::F16(g) => to_f16(isa, x, &mut g[at..at + x.len()]),
            HeadGuard::F32(g) => g[at..at + x.len()].copy_from_slice(x),
        }
    }
}

/// Writes positions of one head.
#[derive(Debug)]
pub struct KvWriter<'a> {
    keys: HeadGuard<'a>,
    values: HeadGuard<'a>,
    dim: usize,
}

impl KvWriter<'_> {
    /// Stores key and value, `[head_dim]` each, of one position.
    ///
    /// # Panics
    /// If the position is outside of the context.
    pub fn put(&mut self, isa: Isa, position: usize, key: &[f32], value: &[f32]) {
        self.keys.put(isa, position * self.dim, key);
        self.values.put(isa, position * self.dim, value);
    }
}

#[derive(Debug)]
enum SlabGuard<'a> {
    F16(ReadGuard<'a, u16>),
    F32(ReadGuard<'a, f32>),
}

impl SlabGuard<'_> {
    fn head(&self, head: usize, len: usize) -> KvSlice<'_> {
        match self {
            SlabGuard::F16(g) => KvSlice::F16(&g.row(head)[..len]),
            SlabGuard::F32(g) => KvSlice::F32(&g.row(head)[..len]),
        }
    }
}

/// Reads one layer.
#[derive(Debug)]
pub struct KvReader<'a> {
    keys: SlabGuard<'a>,
    values: SlabGuard<'a>,
    dim: usize,
}

impl KvReader<'_> {
    /// One head's keys and values of the first `positions` positions.
    ///
    /// # Panics
    /// If there are not as many positions.
    pub fn head(&self, head: usize, positions: usize) -> (KvSlice<'_>, KvSlice<'_>) {
        let n = positions * self.dim;
        (self.keys.head(head, n), self.values.head(head, n))
    }
}
