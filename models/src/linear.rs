//! One weight matrix, and the activations that it multiplies, as stages of the forward program.

use crate::error::{Error, Result};
use lutite_kernels::dot::{self, Block, MAX_TOKENS, TOGETHER, Tokens};
use lutite_kernels::ggml::{self, GgmlType};
use lutite_kernels::isa::Isa;
use lutite_kernels::lut::table::PAIR_BYTES;
use lutite_kernels::lut::{TableShape, Tables, gemv, table};
use lutite_kernels::pack::c32::BLOCK_COLS;
use lutite_kernels::pack::p32::{PAIR_COLS, TILE_ROWS};
use lutite_kernels::pack::{MAX_PLANES, Packed};
use lutite_kernels::plain::{self, PlainType};
use lutite_runtime::os::shared::{ReadGuard, SharedMat};
use lutite_runtime::pool::Pool;
use lutite_runtime::store::{Bytes, PackedInfo};
use std::ops::Range;

/// Columns that one worker prepares at a time when there is only one token: a multiple of every group.
const SEGMENT: usize = 256;

/// Weight bytes that are worth claiming as a chunk: some 10 us of reading, small enough for L2.
const CHUNK_BYTES: usize = 512 << 10;

/// Chunks per worker that a matrix is cut into at least, so that all finish at about the same time.
const CHUNKS_PER_WORKER: usize = 2;

/// How many bytes ahead of their use weights are asked for: a matter of the machine, without influence on results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Of each bit plane.
    pub planes: usize,
    /// Of the codes of uniform kinds.
    pub codes: usize,
}

impl Default for Ahead {
    /// What was best where it was measured first.
    fn default() -> Ahead {
        Ahead { planes: gemv::AHEAD, codes: dot::product::AHEAD }
    }
}

/// A matrix `[rows][cols]` of weights, in one of its two forms.
#[derive(Debug)]
pub(crate) struct Linear {
    rows: usize,
    cols: usize,
    weights: Weights,
    bias: Option<Vec<f32>>,
    /// Rows that are claimed at a time; a multiple of a tile.
    chunk_rows: usize,
    /// How many bytes ahead of their use weights are asked for.
    ahead: usize,
}

#[derive(Debug)]
enum Weights {
    Packed(PackedWeights),
    Plain { ty: PlainType, bytes: Bytes },
}

/// Planes or codes and their parameters, wherever they lie.
#[derive(Debug)]
pub(crate) struct PackedWeights {
    /// Shape and kind.
    pub(crate) info: PackedInfo,
    /// Planes or fields, lowest bits first.
    pub(crate) parts: Vec<Bytes>,
    /// The parameter set for all of these.
    pub(crate) params: Bytes,
    /// f16 row scales; empty for kinds without them.
    pub(crate) row_scales: Bytes,
}

impl PackedWeights {
    /// The tables that it takes; `None` for the uniform kinds, which take [`Block`]s.
    fn table_shape(&self) -> Option<TableShape> {
        let PackedInfo { shape, group, kind, .. } = self.info;
        (!kind.is_uniform()).then_some(TableShape { cols: shape.cols, group })
    }

    fn view(&self) -> lutite_kernels::Result<Packed<'_>> {
        let mut parts: [&[u8]; MAX_PLANES] = [&[]; MAX_PLANES];
        for (p, part) in parts.iter_mut().zip(&self.parts) {
            *p = part;
        }
        let PackedInfo { shape, group, kind, planes, .. } = self.info;
        let parts = &parts[..self.parts.len().min(MAX_PLANES)];
        Packed::new(shape, group, kind, planes, parts, &self.params, &self.row_scales)
    }
}

impl Linear {
    /// Packed weights.
    ///
    /// # Errors
    /// When the buffers do not fit the shape.
    pub(crate) fn packed(w: PackedWeights) -> Result<Linear> {
        w.view()?;
        Ok(Linear {
            rows: w.info.shape.rows,
            cols: w.info.shape.cols,
            weights: Weights::Packed(w),
            bias: None,
            chunk_rows: TILE_ROWS,
            ahead: 0,
        })
    }

    /// Plain numbers, `rows * cols` of type `ty`.
    pub(crate) fn plain(rows: usize, cols: usize, ty: PlainType, bytes: Bytes) -> Linear {
        Linear {
            rows,
            cols,
            weights: Weights::Plain { ty, bytes },
            bias: None,
            chunk_rows: TILE_ROWS,
            ahead: 0,
        }
    }

    /// With a bias of `rows` numbers added to every product.
    pub(crate) fn with_bias(mut self, bias: Option<Vec<f32>>) -> Linear {
        self.bias = bias;
        self
    }

    /// Decides how many rows are claimed at a time, and how far ahead weights are asked for.
    pub(crate) fn prepare(&mut self, workers: usize, ahead: Ahead) {
        self.ahead = if self.takes_blocks() { ahead.codes } else { ahead.planes };
        let tiles = self.rows.div_ceil(TILE_ROWS).max(1);
        let by_bytes = CHUNK_BYTES / (self.bytes() / tiles).max(1);
        let by_workers = tiles / (CHUNKS_PER_WORKER * workers);
        self.chunk_rows = by_bytes.min(by_workers).max(1) * TILE_ROWS;
    }

    /// Outputs.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }
    /// Inputs.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }
    /// Number of chunks that the rows are claimed in.
    fn chunks(&self) -> usize {
        self.rows.div_ceil(self.chunk_rows)
    }
    /// The rows of a chunk: whole tiles, but for the last.
    fn chunk_range(&self, chunk: usize) -> Range<usize> {
        chunk * self.chunk_rows..((chunk + 1) * self.chunk_rows).min(self.rows)
    }
    /// Bytes that one product reads.
    pub(crate) fn bytes(&self) -> usize {
        match &self.weights {
            Weights::Packed(w) => {
                w.parts.iter().map(|p| p.len()).sum::<usize>() + w.params.len() + w.row_scales.len()
            }
            Weights::Plain { bytes, .. } => bytes.len(),
        }
    }
    /// The tables that this matrix needs, if it takes tables.
    fn table_shape(&self) -> Option<TableShape> {
        match &self.weights {
            Weights::Packed(w) => w.table_shape(),
            Weights::Plain { .. } => None,
        }
    }
    /// Whether it takes activations as [`Block`]s.
    fn takes_blocks(&self) -> bool {
        matches!(&self.weights, Weights::Packed(w) if w.info.kind.is_uniform())
    }
    /// Its format in a few words, e.g. `uniform q=4 g=32` or `f16`.
    pub(crate) fn format(&self) -> String {
        match &self.weights {
            Weights::Packed(w) => w.info.format(),
            Weights::Plain { ty, .. } => format!("{ty:?}").to_lowercase(),
        }
    }

    /// Dequantizes one row into `out`, `[cols]`: how a tied head serves the embedding.
    ///
    /// # Errors
    /// When the row does not exist or `out` has another length.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        match &self.weights {
            Weights::Packed(w) => w.view()?.dequantize_row(row, out)?,
            Weights::Plain { ty, bytes } => {
                let ty = match ty {
                    PlainType::F32 => GgmlType::F32,
                    PlainType::F16 => GgmlType::F16,
                    PlainType::Bf16 => GgmlType::BF16,
                };
                let n = bytes.len() / self.rows.max(1);
                let b =
                    bytes.get(row * n..(row + 1) * n).ok_or(Error::Token { id: row, vocab: self.rows })?;
                ggml::dequantize_row(ty, b, out)?;
            }
        }
        Ok(())
    }

    /// The products of `rows`, which start at a tile, with tokens `0..n` of `x`. `put(token, row, values)`
    /// receives consecutive rows, bias included.
    ///
    /// # Panics
    /// If `x` was not made for this matrix: a mistake of the model's code, not of its file.
    fn products(
        &self,
        isa: Isa,
        x: &InputGuard<'_>,
        n: usize,
        rows: Range<usize>,
        put: &mut dyn FnMut(usize, usize, &[f32]),
    ) {
        let bias = |at: usize, y: &mut [f32]| {
            if let Some(b) = &self.bias {
                y.iter_mut().zip(&b[at..]).for_each(|(y, b)| *y += b);
            }
        };
        let done = match &self.weights {
            Weights::Packed(w) => w.view().and_then(|view| {
                let tiles = rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS);
                let mut put = |token, at: usize, y: &mut [f32]| {
                    let count = y.len().min(rows.end - at);
                    let y = &mut y[..count];
                    bias(at, y);
                    put(token, at, y);
                };
                match (w.table_shape(), n) {
                    (Some(shape), _) => self.table_products(isa, &view, x, shape, n, tiles, &mut put),
                    (None, 1) => self.dot_products::<ALONE>(isa, &view, x, n, tiles, &mut put),
                    (None, _) => self.dot_products::<PRODUCTS>(isa, &view, x, n, tiles, &mut put),
                }
            }),
            Weights::Plain { ty, bytes } => {
                let row = bytes.len() / self.rows;
                let part = &bytes[rows.start * row..rows.end * row];
                plain::gemm(isa, *ty, part, self.cols, &x.x[..n * self.cols], &mut |token, r, y| {
                    let mut y = [y];
                    bias(rows.start + r, &mut y);
                    put(token, rows.start + r, &y);
                })
            }
        };
        if let Err(e) = done {
            panic!("product with a {} x {} matrix: {e}", self.rows, self.cols);
        }
    }

    /// [`gemv()`] by portions of tiles, or where there are several tokens by tiles, whose planes stay in a cache while
    /// the tokens' tables pass by; `put(token, row, values)` receives all rows of some tiles.
    #[expect(clippy::too_many_arguments, reason = "those of the product, and what it is made from")]
    fn table_products(
        &self,
        isa: Isa,
        view: &Packed<'_>,
        x: &InputGuard<'_>,
        shape: TableShape,
        n: usize,
        tiles: Range<usize>,
        put: &mut dyn FnMut(usize, usize, &mut [f32]),
    ) -> lutite_kernels::Result<()> {
        let mut y = [[0.0; TILE_ROWS]; ALONE];
        let at_once = if n == 1 { ALONE } else { 1 };
        for from in tiles.clone().step_by(at_once) {
            let tiles = from..(from + at_once).min(tiles.end);
            for first in (0..n).step_by(gemv::MAX_TOKENS) {
                let tokens = first..(first + gemv::MAX_TOKENS).min(n);
                let mut tables = [x.tables(first, shape)?; gemv::MAX_TOKENS];
                for (table, token) in tables.iter_mut().zip(tokens.clone()) {
                    *table = x.tables(token, shape)?;
                }
                let y = &mut y[..tiles.len() * tokens.len()];
                let ahead = if first == 0 { self.ahead } else { 0 };
                gemv(isa, view, &tables[..tokens.len()], tiles.clone(), ahead, y)?;
                for (token, y) in tokens.zip(y.chunks_mut(tiles.len())) {
                    put(token, from * TILE_ROWS, y.as_flattened_mut());
                }
            }
        }
        Ok(())
    }

    /// [`dot::product`] by portions of tokens and tiles that keep their products in L1; `put(token, row, values)`
    /// receives all rows of some tiles. A portion is `P` tiles times tokens, so that no more is cleared than is needed.
    fn dot_products<const P: usize>(
        &self,
        isa: Isa,
        view: &Packed<'_>,
        x: &InputGuard<'_>,
        n: usize,
        tiles: Range<usize>,
        put: &mut dyn FnMut(usize, usize, &mut [f32]),
    ) -> lutite_kernels::Result<()> {
        let blocks = self.cols.div_ceil(BLOCK_COLS);
        let mut y = [[0.0; TILE_ROWS]; P];
        let at_once = P / n.clamp(1, MAX_TOKENS);
        for from in tiles.clone().step_by(at_once) {
            let tiles = from..(from + at_once).min(tiles.end);
            for first in (0..n).step_by(MAX_TOKENS) {
                let tokens = first..(first + MAX_TOKENS).min(n);
                let x = match &x.blocks {
                    Some(BlocksGuard::One(x)) => Tokens::One(x),
                    Some(BlocksGuard::Many(x)) => {
                        let together = tokens.start / TOGETHER..tokens.end.div_ceil(TOGETHER);
                        Tokens::Many(&x[together.start * blocks..together.end * blocks], tokens.len())
                    }
                    None => Tokens::One(&[]),
                };
                let y = &mut y[..tiles.len() * tokens.len()];
                let ahead = if first == 0 { self.ahead } else { 0 };
                dot::product(isa, view, x, tiles.clone(), ahead, y)?;
                for (token, y) in tokens.zip(y.chunks_mut(tiles.len())) {
                    put(token, tiles.start * TILE_ROWS, y.as_flattened_mut());
                }
            }
        }
        Ok(())
    }
}

/// Tiles times tokens whose products are worked out at once: 16 KiB of them.
const PRODUCTS: usize = 4 * MAX_TOKENS;

/// Tiles at once where there is one token: 2 KiB.
const ALONE: usize = 16;

/// A stage: `out[m] = w[m] x` for several matrices that share their input, claimed as one list of chunks.
/// `outs[m]` is `[tokens][rows of w[m]]`, cut into tiles.
pub(crate) fn multiply<const M: usize>(
    pool: &mut Pool,
    isa: Isa,
    n: usize,
    x: &Input,
    mats: [&Linear; M],
    outs: [&SharedMat<f32>; M],
) {
    stage(pool, isa, n, x, mats, outs, |y, out| out.copy_from_slice(y));
}

/// A stage: `out = out + w x`, the residual connection.
pub(crate) fn multiply_add(
    pool: &mut Pool,
    isa: Isa,
    n: usize,
    x: &Input,
    mat: &Linear,
    out: &SharedMat<f32>,
) {
    stage(pool, isa, n, x, [mat], [out], |y, out| out.iter_mut().zip(y).for_each(|(o, y)| *o += y));
}

/// Claims the chunks of all matrices; `store` puts consecutive products where they belong.
fn stage<const M: usize>(
    pool: &mut Pool,
    isa: Isa,
    n: usize,
    x: &Input,
    mats: [&Linear; M],
    outs: [&SharedMat<f32>; M],
    store: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    let input = x.read();
    pool.each(mats.iter().map(|m| m.chunks()).sum(), |mut chunk| {
        let mut m = 0;
        while chunk >= mats[m].chunks() {
            chunk -= mats[m].chunks();
            m += 1;
        }
        let rows = mats[m].chunk_range(chunk);
        let mut out = outs[m].write_cols(rows.clone());
        mats[m].products(isa, &input, n, rows.clone(), &mut |token, row, y| {
            let at = row - rows.start;
            store(y, &mut out.row_mut(token)[at..at + y.len()]);
        });
    });
}

/// Activations on their way into one or more matrices: the numbers, and every form of them that those matrices use.
#[derive(Debug)]
pub(crate) struct Input {
    x: SharedMat<f32>,
    tables: Vec<TableBuf>,
    blocks: Option<BlockBufs>,
}

/// Activations as integers.
#[derive(Debug)]
struct BlockBufs {
    /// Of one token.
    one: SharedMat<Block<1>>,
    /// Of several, `[tokens / TOGETHER][block]`.
    many: SharedMat<Block<TOGETHER>>,
}

#[derive(Debug)]
struct TableBuf {
    shape: TableShape,
    entries: SharedMat<u8>,
    scales: SharedMat<f32>,
}

impl Input {
    /// Room for `tokens` inputs of `mats`, all of which have the same width.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub(crate) fn new(tokens: usize, mats: &[&Linear]) -> Result<Input> {
        let cols = mats.first().map_or(0, |m| m.cols());
        let mut tables: Vec<TableBuf> = Vec::new();
        for shape in mats.iter().filter_map(|m| m.table_shape()) {
            if !tables.iter().any(|t| t.shape == shape) {
                let per_segment = SEGMENT / shape.group * shape.scales_per_group();
                tables.push(TableBuf {
                    shape,
                    entries: SharedMat::new(tokens, shape.entries_len(), SEGMENT / PAIR_COLS * PAIR_BYTES)?,
                    scales: SharedMat::new(tokens, shape.scales_len(), per_segment)?,
                });
            }
        }
        let blocks = match mats.iter().any(|m| m.takes_blocks()) {
            true => {
                let (blocks, segment) = (cols.div_ceil(BLOCK_COLS), SEGMENT / BLOCK_COLS);
                let together = if tokens > 1 { tokens.div_ceil(TOGETHER) } else { 0 };
                Some(BlockBufs {
                    one: SharedMat::new(1, blocks, segment)?,
                    many: SharedMat::new(together, blocks, segment)?,
                })
            }
            false => None,
        };
        Ok(Input { x: SharedMat::new(tokens, cols, SEGMENT)?, tables, blocks })
    }

    /// Sets the number of tokens in use.
    pub(crate) fn set_tokens(&mut self, n: usize) {
        self.x.set_rows(n);
        for t in &mut self.tables {
            t.entries.set_rows(n);
            t.scales.set_rows(n);
        }
        if let Some(b) = &mut self.blocks
            && n > 1
        {
            b.many.set_rows(n.div_ceil(TOGETHER));
        }
    }

    /// A stage: fills the activations and makes their other forms. `make(token, columns, out)` computes some
    /// columns of one token: a whole row where there are several tokens, segments where there is one.
    pub(crate) fn fill(
        &self,
        pool: &mut Pool,
        isa: Isa,
        n: usize,
        make: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    ) {
        if n == 1 {
            pool.each(self.x.chunks(), |c| {
                let mut x = self.x.write_chunk(c);
                let cols = x.cols();
                make(0, cols.clone(), x.row_mut(0));
                for t in &self.tables {
                    let shape = TableShape { cols: cols.len(), ..t.shape };
                    let (mut e, mut s) = (t.entries.write_chunk(c), t.scales.write_chunk(c));
                    build(isa, shape, x.row(0), e.row_mut(0), s.row_mut(0));
                }
                if let Some(b) = &self.blocks {
                    quantize(isa, [x.row(0)], b.one.write_chunk(c).row_mut(0));
                }
            });
        } else {
            pool.each(n.div_ceil(TOGETHER), |together| {
                let first = together * TOGETHER;
                let mut xs = [const { None }; TOGETHER];
                for (token, row) in (first..n).zip(&mut xs) {
                    let x = row.insert(self.x.write_row(token));
                    make(token, 0..x.len(), x);
                    for t in &self.tables {
                        let (mut e, mut s) = (t.entries.write_row(token), t.scales.write_row(token));
                        build(isa, t.shape, x, &mut e, &mut s);
                    }
                }
                if let Some(b) = &self.blocks {
                    let xs = xs.each_ref().map(|x| x.as_deref().unwrap_or_default());
                    quantize(isa, xs, &mut b.many.write_row(together));
                }
            });
        }
    }

    fn read(&self) -> InputGuard<'_> {
        let mut tables = [const { None }; MAX_TABLES];
        for (g, t) in tables.iter_mut().zip(&self.tables) {
            *g = Some((t.shape, t.entries.read(), t.scales.read()));
        }
        let blocks = self.blocks.as_ref().map(|b| match self.x.rows() {
            1 => BlocksGuard::One(b.one.read()),
            _ => BlocksGuard::Many(b.many.read()),
        });
        InputGuard { x: self.x.read(), tables, blocks }
    }
}

/// As many kinds of tables as there are: one for each size of group.
const MAX_TABLES: usize = lutite_kernels::pack::GROUPS.len();

type TableGuard<'a> = (TableShape, ReadGuard<'a, u8>, ReadGuard<'a, f32>);

/// All of an [`Input`], to read.
struct InputGuard<'a> {
    x: ReadGuard<'a, f32>,
    tables: [Option<TableGuard<'a>>; MAX_TABLES],
    blocks: Option<BlocksGuard<'a>>,
}

/// Of one token, or of several.
enum BlocksGuard<'a> {
    One(ReadGuard<'a, Block<1>>),
    Many(ReadGuard<'a, Block<TOGETHER>>),
}

impl InputGuard<'_> {
    fn tables(&self, token: usize, shape: TableShape) -> lutite_kernels::Result<Tables<'_>> {
        let found = self.tables.iter().flatten().find(|t| t.0 == shape);
        let (shape, entries, scales) = found.ok_or(lutite_kernels::Error::Shape {
            what: "group",
            found: shape.group,
            allowed: "one that the input was made for",
        })?;
        Tables::new(*shape, entries.row(token), scales.row(token))
    }
}

fn build(isa: Isa, shape: TableShape, x: &[f32], entries: &mut [u8], scales: &mut [f32]) {
    if let Err(e) = table::build(isa, shape, x, entries, scales) {
        panic!("tables of {} activations: {e}", x.len());
    }
}

fn quantize<const T: usize>(isa: Isa, x: [&[f32]; T], blocks: &mut [Block<T>]) {
    if let Err(e) = dot::quantize(isa, x, blocks) {
        panic!("{} blocks of activations: {e}", blocks.len());
    }
}
