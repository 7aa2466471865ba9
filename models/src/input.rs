//! Activations on their way into matrices, in the forms that these take.

use crate::error::Result;
use crate::linear::{Linear, Step};
use lutite_kernels::dot::{self, Block, TOGETHER};
use lutite_kernels::isa::Isa;
use lutite_kernels::lut::table::PAIR_BYTES;
use lutite_kernels::lut::{TableShape, Tables, table};
use lutite_kernels::pack::c32::BLOCK_COLS;
use lutite_kernels::pack::p32::PAIR_COLS;
use lutite_runtime::os::shared::{ReadGuard, SharedMat};
use lutite_runtime::pool::Pool;
use std::ops::Range;

/// Columns that one worker prepares at a time when there is only one token: a multiple of every group.
const SEGMENT: usize = 256;

/// Activations on their way into one or more matrices: the numbers, and every form of them that those matrices use.
#[derive(Debug)]
pub(crate) struct Input {
    x: SharedMat<f32>,
    tables: Vec<TableBuf>,
    blocks: Option<BlockBufs>,
}

/// A form that a matrix takes its activations in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As they are.
    Floats,
    /// Look-up tables.
    Tables(TableShape),
    /// Integers.
    Blocks,
    /// Tables that are a level's own, made of the numbers as they are ([`crate::signs`]).
    Signs,
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

impl BlockBufs {
    fn new(tokens: usize, cols: usize) -> Result<BlockBufs> {
        let (blocks, segment) = (cols.div_ceil(BLOCK_COLS), SEGMENT / BLOCK_COLS);
        let together = if tokens > 1 { tokens.div_ceil(TOGETHER) } else { 0 };
        Ok(BlockBufs {
            one: SharedMat::new(1, blocks, segment)?,
            many: SharedMat::new(together, blocks, segment)?,
        })
    }
}

impl TableBuf {
    fn new(tokens: usize, shape: TableShape) -> Result<TableBuf> {
        let per_segment = SEGMENT / shape.group * shape.scales_per_group();
        Ok(TableBuf {
            shape,
            entries: SharedMat::new(tokens, shape.entries_len(), SEGMENT / PAIR_COLS * PAIR_BYTES)?,
            scales: SharedMat::new(tokens, shape.scales_len(), per_segment)?,
        })
    }
}

impl Input {
    /// Room for `tokens` inputs of `mats`, all of which have the same width, in whatever version these will be.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub(crate) fn new(tokens: usize, mats: &[&Linear]) -> Result<Input> {
        let cols = mats.first().map_or(0, |m| m.cols());
        let (mut tables, mut blocks): (Vec<TableBuf>, Option<BlockBufs>) = (Vec::new(), None);
        for form in mats.iter().flat_map(|m| m.forms()) {
            match form {
                Form::Floats | Form::Signs => {}
                Form::Tables(shape) if tables.iter().any(|t| t.shape == shape) => {}
                Form::Tables(shape) => tables.push(TableBuf::new(tokens, shape)?),
                Form::Blocks if blocks.is_some() => {}
                Form::Blocks => blocks = Some(BlockBufs::new(tokens, cols)?),
            }
        }
        Ok(Input { x: SharedMat::new(tokens, cols, SEGMENT)?, tables, blocks })
    }

    /// Sets the number of tokens in use.
    pub(crate) fn set_rows(&mut self, n: usize) {
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

    /// A stage: fills the activations and makes those of their other forms that `mats` take in this step.
    /// `make(token, columns, out)` computes some columns of one token: a whole row where there are several tokens, segments
    /// where there is one.
    pub(crate) fn fill(
        &self,
        pool: &mut Pool,
        step: &Step<'_>,
        mats: &[&Linear],
        make: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    ) {
        let (isa, n) = (step.isa, step.n);
        let wanted = |form: Form| mats.iter().any(|m| m.form(step.phase) == form);
        let blocks = self.blocks.as_ref().filter(|_| wanted(Form::Blocks));
        let mut tables = [None; MAX_TABLES];
        let in_use = self.tables.iter().filter(|t| wanted(Form::Tables(t.shape)));
        tables.iter_mut().zip(in_use).for_each(|(to, t)| *to = Some(t));
        let tables = || tables.iter().flatten();
        if n == 1 {
            pool.each(self.x.chunks(), |c| {
                let mut x = self.x.write_chunk(c);
                let cols = x.cols();
                make(0, cols.clone(), x.row_mut(0));
                for t in tables() {
                    let shape = TableShape { cols: cols.len(), ..t.shape };
                    let (mut e, mut s) = (t.entries.write_chunk(c), t.scales.write_chunk(c));
                    build(isa, shape, x.row(0), e.row_mut(0), s.row_mut(0));
                }
                if let Some(b) = blocks {
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
                    for t in tables() {
                        let (mut e, mut s) = (t.entries.write_row(token), t.scales.write_row(token));
                        build(isa, t.shape, x, &mut e, &mut s);
                    }
                }
                if let Some(b) = blocks {
                    let xs = xs.each_ref().map(|x| x.as_deref().unwrap_or_default());
                    quantize(isa, xs, &mut b.many.write_row(together));
                }
            });
        }
    }

    /// The numbers of all tokens in use: `[tokens][cols]`.
    pub(crate) fn numbers(&mut self) -> &[f32] {
        self.x.as_mut_slice()
    }

    /// All of it.
    pub(crate) fn read(&self) -> InputGuard<'_> {
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
pub(crate) struct InputGuard<'a> {
    pub(crate) x: ReadGuard<'a, f32>,
    tables: [Option<TableGuard<'a>>; MAX_TABLES],
    pub(crate) blocks: Option<BlocksGuard<'a>>,
}

/// Of one token, or of several.
pub(crate) enum BlocksGuard<'a> {
    One(ReadGuard<'a, Block<1>>),
    Many(ReadGuard<'a, Block<TOGETHER>>),
}

impl InputGuard<'_> {
    /// The tables of a token.
    pub(crate) fn tables(&self, token: usize, shape: TableShape) -> lutite_kernels::Result<Tables<'_>> {
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
