//! One weight matrix, and its products as stages of the forward program.

use crate::error::{Error, Result};
use crate::input::{BlocksGuard, Form, Input, InputGuard};
use crate::signs::{LevelTables, SignBufs, SignGuard, SignShape};
use lutite_kernels::dot::{
    self, MAX_TOKENS, TOGETHER, Tokens, expand, expanded_bytes, rebuild, rebuilt_bytes,
};
use lutite_kernels::ggml::{self, GgmlType};
use lutite_kernels::isa::Isa;
use lutite_kernels::lut::{TableShape, gemv, sign_lut};
use lutite_kernels::pack::c32::BLOCK_COLS;
use lutite_kernels::pack::p32::TILE_ROWS;
use lutite_kernels::pack::{GROUPS, Packed, SignLevels};
use lutite_kernels::plain::{self, PlainType};
use lutite_runtime::decode::Phase;
use lutite_runtime::os::shared::SharedMat;
use lutite_runtime::pool::Pool;
use lutite_runtime::store::{Bytes, LevelsInfo, Loaded, MatrixInfo, PackedInfo, View};
use std::ops::Range;

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
    /// Other versions that it may come to be in.
    versions: Vec<MatrixInfo>,
    how: How,
    /// Rows that are claimed at a time; a multiple of a tile.
    chunk_rows: usize,
}

/// How matrices are multiplied in a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// Instruction set.
    pub(crate) isa: Isa,
    /// Workers of the pool.
    pub(crate) workers: usize,
    /// How far ahead weights are asked for.
    pub(crate) ahead: Ahead,
    /// Whether prompts are to be multiplied exactly as answers are.
    pub(crate) exact: bool,
}

impl How {
    /// Whether a prompt's products are made of whole codes, though the weights are planes.
    fn expands(&self, info: &PackedInfo) -> bool {
        !info.kind.is_uniform() && !self.exact && expand::pays(self.isa, info.planes)
    }

    /// Whether a prompt's products are made of whole codes, though the weights are levels.
    fn rebuilds(&self, info: &LevelsInfo) -> bool {
        !self.exact && rebuild::pays(info.rank)
    }

    /// The form that a matrix takes activations in.
    fn form(&self, info: &MatrixInfo, phase: Phase) -> Form {
        let prompt = phase == Phase::Prompt;
        match info {
            MatrixInfo::Levels(info) if prompt && self.rebuilds(info) => Form::Blocks,
            MatrixInfo::Levels(_) => Form::Signs,
            MatrixInfo::Packed(info) if info.kind.is_uniform() || prompt && self.expands(info) => {
                Form::Blocks
            }
            MatrixInfo::Packed(info) => Form::Tables(TableShape { cols: info.shape.cols, group: info.group }),
        }
    }

    /// Bytes that a worker needs for whole codes of some tiles.
    fn scratch_bytes(&self, info: &MatrixInfo) -> usize {
        match info {
            MatrixInfo::Packed(info) if self.expands(info) => {
                expanded_bytes(MADE_TILES, info.shape.cols, info.group)
            }
            MatrixInfo::Levels(info) if self.rebuilds(info) => rebuilt_bytes(MADE_TILES, info.shape.cols),
            _ => 0,
        }
    }
}

#[derive(Debug)]
enum Weights {
    Packed(Loaded),
    Plain { ty: PlainType, bytes: Bytes },
}

impl Linear {
    /// Packed weights.
    ///
    /// # Errors
    /// When the buffers do not fit the shape.
    pub(crate) fn packed(w: Loaded, how: How) -> Result<Linear> {
        let shape = w.view()?.shape();
        Ok(Linear::new(shape.rows, shape.cols, Weights::Packed(w), how))
    }

    /// Plain numbers, `rows * cols` of type `ty`.
    pub(crate) fn plain(rows: usize, cols: usize, ty: PlainType, bytes: Bytes, how: How) -> Linear {
        Linear::new(rows, cols, Weights::Plain { ty, bytes }, how)
    }

    fn new(rows: usize, cols: usize, weights: Weights, how: How) -> Linear {
        let mut l =
            Linear { rows, cols, weights, bias: None, versions: Vec::new(), how, chunk_rows: TILE_ROWS };
        l.cut();
        l
    }

    /// Another version, in place of the one that it is in, which is returned.
    ///
    /// # Errors
    /// When it is none of a packed matrix, has another shape, or its buffers do not fit; nothing has changed then.
    pub(crate) fn exchange(&mut self, w: Loaded) -> Result<Loaded> {
        let shape = w.view()?.shape();
        let failed = |why: &str| Error::Tensor { name: w.info.name().to_owned(), why: why.into() };
        match &mut self.weights {
            _ if (shape.rows, shape.cols) != (self.rows, self.cols) => Err(failed("has another shape")),
            Weights::Plain { .. } => Err(failed("is to replace plain numbers")),
            Weights::Packed(now) => {
                let before = std::mem::replace(now, w);
                self.cut();
                Ok(before)
            }
        }
    }

    /// Other weights, f32 in number as before, with the bias that there is.
    pub(crate) fn set_numbers(&mut self, bytes: Bytes) {
        self.weights = Weights::Plain { ty: PlainType::F32, bytes };
        self.cut();
    }

    /// Versions that it may come to be in.
    pub(crate) fn set_versions(&mut self, versions: Vec<MatrixInfo>) {
        self.versions = versions;
    }

    /// A bias of `rows` numbers, added to every product.
    pub(crate) fn set_bias(&mut self, bias: Option<Vec<f32>>) {
        self.bias = bias;
    }

    /// Decides how many rows are claimed at a time.
    fn cut(&mut self) {
        let tiles = self.rows.div_ceil(TILE_ROWS).max(1);
        let by_bytes = CHUNK_BYTES / (self.bytes() / tiles).max(1);
        let by_workers = tiles / (CHUNKS_PER_WORKER * self.how.workers);
        self.chunk_rows = by_bytes.min(by_workers).max(1) * TILE_ROWS;
    }

    /// How many bytes ahead of their use weights are asked for.
    fn ahead(&self, info: &MatrixInfo) -> usize {
        match info {
            MatrixInfo::Packed(info) if info.kind.is_uniform() => self.how.ahead.codes,
            _ => self.how.ahead.planes,
        }
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
            Weights::Packed(w) => w.tensors.iter().map(|t| t.len()).sum(),
            Weights::Plain { bytes, .. } => bytes.len(),
        }
    }
    /// The form that it takes activations in.
    pub(crate) fn form(&self, phase: Phase) -> Form {
        match &self.weights {
            Weights::Plain { .. } => Form::Floats,
            Weights::Packed(w) => self.how.form(&w.info, phase),
        }
    }
    /// All forms that it may take activations in, in any version.
    pub(crate) fn forms(&self) -> impl Iterator<Item = Form> {
        let versions = self.infos().flat_map(|i| [Phase::Prompt, Phase::Answer].map(|p| self.how.form(i, p)));
        versions.chain([self.form(Phase::Answer)])
    }
    /// Bytes that a worker needs for whole codes of some tiles, in any version.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.infos().map(|info| self.how.scratch_bytes(info)).max().unwrap_or(0)
    }
    /// All versions that it may be in.
    pub(crate) fn infos(&self) -> impl Iterator<Item = &MatrixInfo> {
        let now = match &self.weights {
            Weights::Packed(w) => Some(&w.info),
            Weights::Plain { .. } => None,
        };
        self.versions.iter().chain(now)
    }
    /// What it is packed as, with its data.
    pub(crate) fn loaded(&self) -> Option<&Loaded> {
        match &self.weights {
            Weights::Packed(w) => Some(w),
            Weights::Plain { .. } => None,
        }
    }
    /// What the tables of its levels take; nothing if it has none.
    pub(crate) fn sign_shape(&self) -> SignShape {
        self.loaded().map(|w| SignShape::of(&w.info)).unwrap_or_default()
    }
    /// Hands its levels to `f`.
    ///
    /// # Panics
    /// If it has none, or `f` fails: mistakes of the model's code, not of its file.
    pub(crate) fn with_levels(&self, f: impl FnOnce(&SignLevels<'_>) -> lutite_kernels::Result<()>) {
        let done = match self.loaded().map(Loaded::view) {
            Some(Ok(View::Levels(levels))) => f(&levels),
            Some(Err(e)) => Err(e),
            _ => panic!("a {} x {} matrix has no levels", self.rows, self.cols),
        };
        if let Err(e) = done {
            panic!("levels of a {} x {} matrix: {e}", self.rows, self.cols);
        }
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

    /// The products of `rows`, which start at a tile, with tokens `0..n` of `x`, or with the one whose `signs` are given where
    /// the form is [`Form::Signs`]. `put(token, row, values)` receives consecutive rows, bias included.
    ///
    /// # Panics
    /// If `x` was not made for this matrix: a mistake of the model's code, not of its file.
    fn products(
        &self,
        step: &Step<'_>,
        worker: usize,
        x: &InputGuard<'_>,
        signs: Option<(usize, LevelTables<'_>)>,
        rows: Range<usize>,
        put: &mut dyn FnMut(usize, usize, &[f32]),
    ) {
        let Step { isa, phase, n, .. } = *step;
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
                let ahead = self.ahead(&w.info);
                let view = match (&view, signs) {
                    (View::Packed(view), _) => view,
                    (View::Levels(levels), Some((token, tables))) => {
                        return sign_products(isa, levels, &tables, tiles, ahead, &mut |at, y| {
                            put(token, at, y);
                        });
                    }
                    (View::Levels(levels), None) => {
                        return made_products(
                            step,
                            worker,
                            |tiles, to| rebuild(isa, levels.as_slice(), tiles, to),
                            x,
                            tiles,
                            &mut put,
                        );
                    }
                };
                match (self.form(phase), view.kind().is_uniform(), n) {
                    (Form::Tables(shape), ..) => table_products(step, view, x, shape, tiles, ahead, &mut put),
                    (_, false, _) => made_products(
                        step,
                        worker,
                        |tiles, to| expand(isa, view, tiles, to),
                        x,
                        tiles,
                        &mut put,
                    ),
                    (.., 1) => dot_products::<ALONE>(step, view, x, tiles, ahead, &mut put),
                    _ => dot_products::<PRODUCTS>(step, view, x, tiles, ahead, &mut put),
                }
            }),
            Weights::Plain { ty, bytes } => {
                let row = bytes.len() / self.rows;
                let part = &bytes[rows.start * row..rows.end * row];
                plain::gemm(isa, *ty, part, self.cols, &x.x[..n * self.cols], &mut |token, r, y| {
                    bias(rows.start + r, y);
                    put(token, rows.start + r, y);
                })
            }
        };
        if let Err(e) = done {
            panic!("product with a {} x {} matrix: {e}", self.rows, self.cols);
        }
    }
}

/// [`gemv()`] by portions of tiles, or where there are several tokens by tiles, whose planes stay in a cache while
/// the tokens' tables pass by; `put(token, row, values)` receives all rows of some tiles.
fn table_products(
    step: &Step<'_>,
    view: &Packed<'_>,
    x: &InputGuard<'_>,
    shape: TableShape,
    tiles: Range<usize>,
    ahead: usize,
    put: &mut dyn FnMut(usize, usize, &mut [f32]),
) -> lutite_kernels::Result<()> {
    let (isa, n) = (step.isa, step.n);
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
            let ahead = if first == 0 { ahead } else { 0 };
            gemv(isa, view, &tables[..tokens.len()], tiles.clone(), ahead, y)?;
            for (token, y) in tokens.zip(y.chunks_mut(tiles.len())) {
                put(token, from * TILE_ROWS, y.as_flattened_mut());
            }
        }
    }
    Ok(())
}

/// [`sign_lut`] by portions of tiles, of all levels; `put(row, values)` receives all rows of some tiles.
fn sign_products(
    isa: Isa,
    levels: &SignLevels<'_>,
    tables: &LevelTables<'_>,
    tiles: Range<usize>,
    ahead: usize,
    put: &mut dyn FnMut(usize, &mut [f32]),
) -> lutite_kernels::Result<()> {
    let mut y = [[0.0; TILE_ROWS]; SIGN_TILES];
    for from in tiles.clone().step_by(SIGN_TILES) {
        let tiles = from..(from + SIGN_TILES).min(tiles.end);
        let y = &mut y[..tiles.len()];
        y.as_flattened_mut().fill(0.0);
        for (i, level) in levels.as_slice().iter().enumerate() {
            sign_lut(isa, level, &tables.level(i)?, tiles.clone(), ahead, y)?;
        }
        put(from * TILE_ROWS, y.as_flattened_mut());
    }
    Ok(())
}

/// [`dot_products`] of whole codes that `make` makes of some tiles of planes or levels, one after the other.
fn made_products(
    step: &Step<'_>,
    worker: usize,
    make: impl for<'a> Fn(Range<usize>, &'a mut [u8]) -> lutite_kernels::Result<Packed<'a>>,
    x: &InputGuard<'_>,
    tiles: Range<usize>,
    put: &mut dyn FnMut(usize, usize, &mut [f32]),
) -> lutite_kernels::Result<()> {
    let mut scratch = step.scratch.write_row(worker);
    for from in tiles.clone().step_by(MADE_TILES) {
        let tiles = from..(from + MADE_TILES).min(tiles.end);
        let codes = make(tiles.clone(), &mut scratch)?;
        dot_products::<PRODUCTS>(step, &codes, x, 0..tiles.len(), 0, &mut |token, at, y| {
            put(token, tiles.start * TILE_ROWS + at, y);
        })?;
    }
    Ok(())
}

/// [`dot::product`] by portions of tokens and tiles that keep their products in L1; `put(token, row, values)`
/// receives all rows of some tiles. A portion is `P` tiles times tokens, so that no more is cleared than is needed.
fn dot_products<const P: usize>(
    step: &Step<'_>,
    w: &Packed<'_>,
    x: &InputGuard<'_>,
    tiles: Range<usize>,
    ahead: usize,
    put: &mut dyn FnMut(usize, usize, &mut [f32]),
) -> lutite_kernels::Result<()> {
    let Step { isa, n, .. } = *step;
    let blocks = w.shape().cols.div_ceil(BLOCK_COLS);
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
            let ahead = if first == 0 { ahead } else { 0 };
            dot::product(isa, w, x, tiles.clone(), ahead, y)?;
            for (token, y) in tokens.zip(y.chunks_mut(tiles.len())) {
                put(token, tiles.start * TILE_ROWS, y.as_flattened_mut());
            }
        }
    }
    Ok(())
}

/// Tiles times tokens whose products are worked out at once: 16 KiB of them.
const PRODUCTS: usize = 4 * MAX_TOKENS;

/// Tiles whose planes or levels are made whole codes at once: as many as are multiplied together.
const MADE_TILES: usize = PRODUCTS / MAX_TOKENS;

/// Tiles that are multiplied with one level's tables after the other: 8 KiB of products.
const SIGN_TILES: usize = 64;

/// [`Linear::scratch_bytes`] of any matrix of `cols` columns at most.
pub(crate) const fn most_scratch_bytes(cols: usize) -> usize {
    let (expanded, rebuilt) = (expanded_bytes(MADE_TILES, cols, GROUPS[0]), rebuilt_bytes(MADE_TILES, cols));
    if expanded > rebuilt { expanded } else { rebuilt }
}

/// Tiles at once where there is one token: 2 KiB.
const ALONE: usize = 16;

/// What the stages of one step have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'a> {
    /// Instruction set.
    pub(crate) isa: Isa,
    /// What the tokens are.
    pub(crate) phase: Phase,
    /// How many there are.
    pub(crate) n: usize,
    /// A row for each worker, of [`Linear::scratch_bytes`] at least.
    pub(crate) scratch: &'a SharedMat<u8>,
    /// Tables of levels, with room for any matrices that share an input.
    pub(crate) signs: &'a SignBufs,
}

/// A stage: `out[m] = w[m] x` for several matrices that share their input, claimed as one list of chunks.
/// `outs[m]` is `[tokens][rows of w[m]]`, cut into tiles.
pub(crate) fn multiply<const M: usize>(
    pool: &mut Pool,
    step: &Step<'_>,
    x: &Input,
    mats: [&Linear; M],
    outs: [&SharedMat<f32>; M],
) {
    stage(pool, step, x, mats, outs, |y, out| out.copy_from_slice(y));
}

/// A stage: `out = out + w x`, the residual connection.
pub(crate) fn multiply_add(pool: &mut Pool, step: &Step<'_>, x: &Input, mat: &Linear, out: &SharedMat<f32>) {
    stage(pool, step, x, [mat], [out], |y, out| out.iter_mut().zip(y).for_each(|(o, y)| *o += y));
}

/// All matrices' products; `store` puts consecutive ones where they belong. Those that take tables of levels come behind
/// the others, token by token.
fn stage<const M: usize>(
    pool: &mut Pool,
    step: &Step<'_>,
    x: &Input,
    mats: [&Linear; M],
    outs: [&SharedMat<f32>; M],
    store: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    let input = x.read();
    let by_signs = mats.map(|m| m.form(step.phase) == Form::Signs);
    let claim = |chosen: [bool; M], signs: Option<(usize, &SignGuard<'_, M>)>, pool: &mut Pool| {
        let chunks = |m: usize| if chosen[m] { mats[m].chunks() } else { 0 };
        pool.each_by((0..M).map(chunks).sum(), |worker, mut chunk| {
            let mut m = 0;
            while chunk >= chunks(m) {
                chunk -= chunks(m);
                m += 1;
            }
            let rows = mats[m].chunk_range(chunk);
            let mut out = outs[m].write_cols(rows.clone());
            let signs = signs.map(|(token, signs)| (token, signs.of(m)));
            mats[m].products(step, worker, &input, signs, rows.clone(), &mut |token, row, y| {
                let at = row - rows.start;
                store(y, &mut out.row_mut(token)[at..at + y.len()]);
            });
        });
    };
    if by_signs.contains(&false) {
        claim(by_signs.map(|signs| !signs), None, pool);
    }
    if by_signs.contains(&true) {
        for token in 0..step.n {
            step.signs.build(pool, step.isa, input.x.row(token), mats, by_signs);
            let signs = step.signs.read(mats, by_signs);
            claim(by_signs, Some((token, &signs)), pool);
        }
    }
}
