//! One layer at a time, in plain f32 numbers, with all that goes into its matrices in view: for those who calibrate.
//!
//! A layer's matrices fall into [`GROUPS`] that share their input. A sequence goes through the layer group by group:
//!
//! ```text
//! for each group g:
//!     for each sequence, from position 0 on, in parts:   look at blocks.advance(g, part)
//!     change the group's matrices
//! for each sequence:   blocks.advance(END, part)
//! ```
//!
//! so that what a group sees comes from the changed matrices before it, and no product is computed twice. What a part is
//! between two groups lies in two buffers of the caller's, who may keep them on disk.

use super::layer::{Flow, Layer};
use super::net::{Embedding, NORM, Part};
use crate::attention::{Run, kv_shape};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::input::Input;
use crate::linear::{Ahead, How, Linear};
use crate::weights::{Path, Weights};
use lutite_kernels::ggml::dequantize_row;
use lutite_kernels::isa::Isa;
use lutite_kernels::ops::norm;
use lutite_kernels::ops::rope::Rope;
use lutite_runtime::decode::Phase;
use lutite_runtime::kv::{KvShape, KvType};
use lutite_runtime::pool::{Pool, PoolConfig};
use lutite_runtime::store::{Bytes, Gguf, ModelFile};

/// The matrices of a layer that share an input, in the order of the forward pass, as files call them behind `blk.N.`.
pub const GROUPS: [&[&str]; 4] =
    [&["attn_q", "attn_k", "attn_v"], &["attn_output"], &["ffn_gate", "ffn_up"], &["ffn_down"]];

/// The matrices of a layer, in the same order.
pub fn matrices() -> impl Iterator<Item = &'static str> {
    GROUPS.into_iter().flatten().copied()
}

/// What comes behind the last group.
pub const END: usize = GROUPS.len();

/// Tokens of a part at most.
pub const PART: usize = 64;

/// See the module's head.
pub struct Blocks<'a> {
    config: Config,
    isa: Isa,
    weights: Weights<'a>,
    rope: Rope,
    pool: Pool,
    /// Of the norm behind the last layer, `[dim]`.
    norm: Vec<f32>,
    /// The layer that is loaded.
    block: Option<Block>,
    context: usize,
}

struct Block {
    layer: Layer,
    flow: Flow,
}

impl<'a> Blocks<'a> {
    /// Takes a model apart, for sequences of `context` tokens at most. Loads nothing yet.
    ///
    /// # Errors
    /// When the file is damaged or of an unknown family.
    pub fn new(
        gguf: &'a Gguf<'a>,
        file: &'a ModelFile,
        isa: Isa,
        threads: usize,
        context: usize,
    ) -> Result<Blocks<'a>> {
        let config = Config::read(gguf)?;
        let weights = Weights::new(gguf, file, Path::Plain)?;
        super::check(&config, &weights, Part::Whole)?;
        let pool = Pool::new(&PoolConfig { workers: threads, ..PoolConfig::default() })?;
        let norm = weights.vector(NORM, config.dim)?;
        Ok(Blocks { rope: Rope::new(&config.rope), config, isa, weights, pool, norm, block: None, context })
    }

    /// Its hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Numbers that go into the matrices of a group, for each token.
    pub fn width(&self, group: usize) -> usize {
        let c = &self.config;
        [c.dim, c.heads * c.head_dim, c.dim, c.ffn, 0][group.min(END)]
    }

    /// Numbers of a token's second buffer: what [`Blocks::advance`] needs of the group before beside `x`.
    pub fn aux_width(&self) -> usize {
        self.width(1).max(self.width(3))
    }

    /// The vectors of some tokens: `[tokens][dim]`.
    ///
    /// # Errors
    /// A token outside of the vocabulary, a table that cannot be read.
    pub fn embed(&self, tokens: &[u32], x: &mut [f32]) -> Result<()> {
        let (vocab, dim) = (self.config.vocab, self.config.dim);
        let Embedding::Rows { ty, bytes } = self.weights.embedding(vocab, dim)? else { return Ok(()) };
        let n = bytes.len() / vocab;
        for (token, x) in tokens.iter().zip(x.chunks_exact_mut(dim)) {
            let id = *token as usize;
            let row = bytes.get(id * n..(id + 1) * n).ok_or(Error::Token { id, vocab })?;
            dequantize_row(ty, row, x)?;
        }
        Ok(())
    }

    /// What goes into the head for tokens that left the last layer as `x`, `[tokens][dim]`, in their place.
    pub fn normalize(&self, x: &mut [f32]) {
        for x in x.chunks_exact_mut(self.config.dim) {
            let factor = norm::inverse_rms(self.isa, x, self.config.eps);
            let before = x.to_vec();
            norm::apply(&before, factor, &self.norm, x);
        }
    }

    /// Loads layer `i`, and forgets the one before.
    ///
    /// # Errors
    /// Tensors that cannot be read, memory that cannot be had.
    pub fn load(&mut self, i: usize) -> Result<()> {
        self.block = None;
        let (w, c) = (&self.weights, &self.config);
        let vector = |name: &str, n| w.vector(name, n);
        let how = How { isa: self.isa, workers: self.pool.workers(), ahead: Ahead::default(), exact: true };
        let matrix = |name: &str, rows, cols| w.linear(name, rows, cols, how);
        let layers = [Layer::find(c, i, &matrix, &vector)?];
        let kv = KvShape { layers: 1, ..kv_shape(c, KvType::F32.into(), self.context)? };
        let flow = Flow::new(c, &layers.each_ref(), None, kv, self.rope.dims(), PART, self.pool.workers())?;
        let [layer] = layers;
        self.block = Some(Block { layer, flow });
        Ok(())
    }

    /// The loaded layer's matrix `part`, `[rows][cols]`.
    ///
    /// # Errors
    /// A part that there is not.
    pub fn matrix(&mut self, part: &str) -> Result<Vec<f32>> {
        let l = self.linear(part)?;
        let mut w = vec![0.0; l.rows() * l.cols()];
        w.chunks_exact_mut(l.cols()).enumerate().try_for_each(|(r, row)| l.row(r, row))?;
        Ok(w)
    }

    /// Changes the loaded layer's matrix `part`.
    ///
    /// # Errors
    /// A part that there is not, or weights of another shape.
    pub fn replace(&mut self, part: &str, w: &[f32]) -> Result<()> {
        let l = self.linear(part)?;
        if w.len() != l.rows() * l.cols() {
            let why = format!("{} weights for a matrix of {} x {}", w.len(), l.rows(), l.cols());
            return Err(Error::Tensor { name: part.to_owned(), why });
        }
        let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
        l.set_numbers(Bytes::new(bytes));
        Ok(())
    }

    fn linear(&mut self, part: &str) -> Result<&mut Linear> {
        let found = self.block.as_mut().and_then(|b| b.layer.linear_mut(part));
        found.ok_or_else(|| Error::Tensor { name: part.to_owned(), why: "is not in the loaded layer".into() })
    }

    /// Takes some tokens of a sequence from the input of the group before to that of `group`, and returns the latter,
    /// `[tokens][width(group)]`. The tokens are those from position `start` on, at most [`PART`]; `x` is `[tokens][dim]`
    /// and `aux` `[tokens][aux_width()]`, as the call for the group before left them.
    ///
    /// # Panics
    /// Without a loaded layer, or with buffers of other lengths: mistakes of the calling code.
    pub fn advance(&mut self, group: usize, start: usize, x: &mut [f32], aux: &mut [f32]) -> &[f32] {
        let (dim, eps) = (self.config.dim, self.config.eps);
        let n = x.len() / dim;
        let (before, after) = (self.width(group.wrapping_sub(1)), self.width(group));
        let aux_width = self.aux_width();
        let Blocks { isa, rope, pool, block: Some(Block { layer, flow }), .. } = self else {
            panic!("no layer is loaded");
        };
        flow.set_step(&[Run { slot: 0, start, rows: 0..n }], n);
        flow.x.as_mut_slice().copy_from_slice(x);
        flow.attention.set_angles(rope);
        let step = flow.step(*isa, Phase::Prompt, n);
        let restore = |pool: &mut Pool, to: &Input, mat: &Linear| {
            to.fill(pool, &step, &[mat], |t, cols, out| {
                out.copy_from_slice(&aux[t * aux_width..][..before][cols]);
            });
        };
        match group {
            0 => layer.norm_attention(pool, &step, eps, flow),
            1 => {
                layer.norm_attention(pool, &step, eps, flow);
                layer.attend(pool, &step, flow, 0);
            }
            2 => {
                restore(pool, &flow.att_in, layer.output());
                layer.add_attention(pool, &step, flow);
                layer.norm_ffn(pool, &step, eps, flow);
            }
            3 => {
                layer.norm_ffn(pool, &step, eps, flow);
                layer.gate(pool, &step, flow);
            }
            _ => {
                restore(pool, &flow.mid, layer.down());
                layer.add_ffn(pool, &step, flow);
            }
        }
        x.copy_from_slice(flow.x.as_mut_slice());
        let inputs = [&mut flow.attn_in, &mut flow.att_in, &mut flow.ffn_in, &mut flow.mid];
        let Some(input) = inputs.into_iter().nth(group) else { return &[] };
        let input = input.numbers();
        if matches!(group, 1 | 3) {
            for (aux, input) in aux.chunks_exact_mut(aux_width).zip(input.chunks_exact(after)) {
                aux[..after].copy_from_slice(input);
            }
        }
        input
    }
}
