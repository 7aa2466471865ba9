//! What the benchmarks multiply. They live in `benches/`; `examples/repeat.rs` is for counting instructions.

use lutite_kernels::dot::{self, Block, TOGETHER, Tokens};
use lutite_kernels::isa::Isa;
use lutite_kernels::lut::{TableShape, Tables, gemv, table};
use lutite_kernels::pack::{Packed, ParamKind, PlaneShape};
use std::ops::Range;

/// A packed matrix, and the activations to multiply it with.
///
/// Bits and parameters are the same everywhere: a product takes as long whatever the weights are, so long as no
/// number is denormal.
#[derive(Debug)]
pub struct Product {
    shape: PlaneShape,
    group: usize,
    kind: ParamKind,
    planes: usize,
    parts: Vec<Vec<u8>>,
    params: Vec<u8>,
    row_scales: Vec<u8>,
    tables: TableShape,
    x: Vec<f32>,
    /// What the kinds of planes are multiplied with.
    entries: Vec<u8>,
    scales: Vec<f32>,
    /// What the kinds of codes are multiplied with.
    one: Vec<Block<1>>,
    many: Vec<Block<TOGETHER>>,
    tokens: usize,
}

impl Product {
    /// A matrix of `q` planes, or codes of as many bits.
    ///
    /// # Panics
    /// When the kernels know no such shape, or for rows that are no whole tiles of 32.
    pub fn new(rows: usize, cols: usize, q: usize, group: usize, kind: ParamKind) -> Product {
        assert!(rows.is_multiple_of(32), "whole tiles");
        let shape = PlaneShape { rows, cols };
        let bytes = |n: Option<usize>| n.expect("a benchmark's matrix fits into memory");
        let tables = TableShape { cols, group };
        let part = |width: &usize| vec![0x5a; bytes(kind.part_bytes(shape, *width))];
        Product {
            shape,
            group,
            kind,
            planes: q,
            parts: kind.widths(q).iter().map(part).collect(),
            params: vec![0x11; bytes(kind.set_bytes(shape, q, group))],
            row_scales: vec![0x11; kind.row_scale_bytes(shape, q)],
            tables,
            x: activations(cols),
            entries: vec![0; tables.entries_len()],
            scales: vec![0.0; tables.scales_len()],
            one: vec![],
            many: vec![],
            tokens: 1,
        }
    }

    /// Rows, columns, planes, columns of a group, kind of parameters.
    pub fn name(&self) -> String {
        let PlaneShape { rows, cols } = self.shape;
        format!("{rows}x{cols} q={} g={} {}", self.planes, self.group, self.kind.name())
    }

    /// Tiles of 32 rows.
    pub fn tiles(&self) -> usize {
        self.shape.tiles()
    }

    /// Weights of the matrix.
    pub fn weights(&self) -> usize {
        self.shape.rows * self.shape.cols
    }

    /// Its bytes in memory: planes and parameters.
    pub fn bytes(&self) -> usize {
        self.streams().map(<[u8]>::len).sum()
    }

    /// What a product reads of it.
    pub fn streams(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().chain([&self.params, &self.row_scales]).map(Vec::as_slice)
    }

    /// Brings the activations into the form that the matrix's kind is multiplied with: tables, or blocks of integers.
    /// Products of all matrices of a layer share it.
    pub fn prepare(&mut self, isa: Isa) {
        match self.kind.is_uniform() {
            true => {
                self.tokens = 1;
                self.one = vec![Block::default(); self.shape.cols.div_ceil(32)];
                dot::quantize(isa, [&self.x[..]], &mut self.one)
            }
            false => table::build(isa, self.tables, &self.x, &mut self.entries, &mut self.scales),
        }
        .expect("lengths follow from the shape");
    }

    /// As [`Product::prepare`], for several tokens and kinds of codes.
    pub fn prepare_tokens(&mut self, isa: Isa, tokens: usize) {
        let (cols, blocks) = (self.shape.cols, self.shape.cols.div_ceil(32));
        self.tokens = tokens;
        self.many = vec![Block::default(); tokens.div_ceil(TOGETHER) * blocks];
        let x = activations(tokens * cols);
        for (x, out) in x.chunks(TOGETHER * cols).zip(self.many.chunks_mut(blocks)) {
            let mut together = [[].as_slice(); TOGETHER];
            together.iter_mut().zip(x.chunks(cols)).for_each(|(t, x)| *t = x);
            dot::quantize(isa, together, out).expect("lengths follow from the shape");
        }
    }

    /// Rows of some tiles; `y` has all of theirs, for each token that was prepared: `[token][tile]`.
    ///
    /// # Panics
    /// When `y` has another length.
    pub fn multiply(&self, isa: Isa, tiles: Range<usize>, y: &mut [[f32; 32]]) {
        let parts: Vec<&[u8]> = self.parts.iter().map(Vec::as_slice).collect();
        let w = Packed::new(
            self.shape,
            self.group,
            self.kind,
            self.planes,
            &parts,
            &self.params,
            &self.row_scales,
        )
        .expect("lengths follow from the shape");
        // As the first token of a step asks for its weights.
        match self.kind.is_uniform() {
            true => {
                let x = match self.tokens {
                    1 => Tokens::One(&self.one),
                    n => Tokens::Many(&self.many, n),
                };
                dot::product(isa, &w, x, tiles, dot::product::AHEAD, y)
            }
            false => {
                let t = Tables::new(self.tables, &self.entries, &self.scales);
                gemv(isa, &w, &[t.expect("lengths follow from the shape")], tiles, gemv::AHEAD, y)
            }
        }
        .expect("y has the tiles' rows");
    }
}

/// Laplace distributed: like a model's, a few are far above the others.
pub fn activations(n: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 + 0.5) / (1 << 24) as f32
    };
    (0..n).map(|_| uniform().ln() * if uniform() < 0.5 { -1.0 } else { 1.0 }).collect()
}
