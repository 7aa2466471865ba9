//! The network: all weights, and one step through them.

use super::layer::{Flow, Layer, normalize};
use super::streamed::Streamed;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::input::Input;
use crate::linear::{Linear, Step, multiply};
use crate::weights::Weights;
use lutite_kernels::ggml::{GgmlType, dequantize_row};
use lutite_kernels::ops::rope::Rope;
use lutite_runtime::os::shared::SharedMat;
use lutite_runtime::pool::Pool;
use lutite_runtime::store::{Bytes, Loaded};

/// Where token vectors come from.
#[derive(Debug)]
pub(crate) enum Embedding {
    /// Rows of the head: one matrix, stored and resident once.
    Tied,
    /// Rows of a table in any readable type.
    Rows {
        /// Its type.
        ty: GgmlType,
        /// `[vocab][dim]`.
        bytes: Bytes,
    },
}

/// All weights.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) eps: f32,
    pub(super) embedding: Embedding,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Vec<f32>, // [dim]
    pub(super) head: Linear,   // [vocab][dim]
    pub(super) rope: Rope,
}

/// What flows behind the layers: only of the tokens whose logits are asked for.
#[derive(Debug)]
pub(super) struct HeadFlow {
    pub(super) input: Input,           // [dim], normed
    pub(super) logits: SharedMat<f32>, // [vocab]
}

/// Checks that every tensor is there, in the right shape and in a type that can be read, and returns the bytes
/// that loading them will allocate beside the file's map, tables of levels included. Allocates nothing of their size.
pub(crate) fn check(c: &Config, w: &Weights<'_>) -> Result<u64> {
    let matrix = |name: &str, rows, cols| w.check_linear(name, rows, cols);
    let vector = |name: &str, n| w.check_vector(name, n);
    let mut bytes = w.sign_bytes();
    for i in 0..c.layers {
        bytes = bytes.saturating_add(Layer::find(c, i, &matrix, &vector)?.sum());
    }
    let tied = is_tied(w);
    if !tied {
        w.embedding(c.vocab, c.dim)?;
    }
    let head = matrix(head_name(tied), c.vocab, c.dim)?;
    Ok(bytes.saturating_add(head).saturating_add(vector(NORM, c.dim)?))
}

pub(super) const NORM: &str = "output_norm.weight";

/// Whether the embedding is the head as well.
pub(super) fn is_tied(w: &Weights<'_>) -> bool {
    !w.has("output")
}

pub(super) fn head_name(tied: bool) -> &'static str {
    if tied { "token_embd" } else { "output" }
}

/// Where a matrix is.
enum Place<'a> {
    Head,
    /// Which layer, and which of its matrices.
    Layer(usize, &'a str),
}

/// Where the matrix is that files call by this name, if such a network can have it.
fn place(matrix: &str) -> Option<Place<'_>> {
    if matrix == "output" || matrix == "token_embd" {
        return Some(Place::Head);
    }
    let (layer, part) = matrix.strip_prefix("blk.")?.split_once('.')?;
    Some(Place::Layer(layer.parse().ok()?, part))
}

impl Net {
    /// All matrices.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(Layer::linears).chain([&self.head])
    }

    /// The matrix of that name.
    pub(super) fn linear(&self, matrix: &str) -> Option<&Linear> {
        match place(matrix)? {
            Place::Head => Some(&self.head),
            Place::Layer(i, part) => self.layers.get(i)?.linear(part),
        }
    }

    /// Puts a version of a matrix in the place of the one that it is in.
    pub(super) fn exchange(&mut self, matrix: &str, loaded: Loaded) -> std::result::Result<Loaded, String> {
        let linear = match place(matrix) {
            Some(Place::Head) => Some(&mut self.head),
            Some(Place::Layer(i, part)) => self.layers.get_mut(i).and_then(|layer| layer.linear_mut(part)),
            None => None,
        };
        let linear = linear.ok_or_else(|| format!("the model has no matrix {matrix}"))?;
        linear.exchange(loaded).map_err(|e| e.to_string())
    }

    pub(super) fn embed(&self, tokens: &[u32], x: &mut SharedMat<f32>) -> Result<()> {
        let vocab = self.head.rows();
        for (row, token) in x.as_mut_slice().chunks_exact_mut(self.head.cols()).zip(tokens) {
            let id = *token as usize;
            if id >= vocab {
                return Err(Error::Token { id, vocab });
            }
            match &self.embedding {
                Embedding::Tied => self.head.row(id, row)?,
                Embedding::Rows { ty, bytes } => {
                    let n = bytes.len() / vocab;
                    dequantize_row(*ty, &bytes[id * n..(id + 1) * n], row)?;
                }
            }
        }
        Ok(())
    }

    /// One step.
    pub(super) fn forward(
        &self,
        pool: &mut Pool,
        step: &Step<'_>,
        f: &Flow,
        head: &HeadFlow,
        mut streamed: Option<&mut Streamed>,
    ) -> Result<()> {
        let eps = self.eps;
        let last = streamed.as_ref().map_or(0, |s| s.count());
        for i in 0..self.layers.len() + last {
            let l = match &mut streamed {
                Some(streamed) if i >= self.layers.len() => streamed.layer(i)?,
                _ => &self.layers[i],
            };
            l.norm_attention(pool, step, eps, f);
            l.attend(pool, step, f, i);
            l.add_attention(pool, step, f);
            l.norm_ffn(pool, step, eps, f);
            l.gate(pool, step, f);
            l.add_ffn(pool, step, f);
        }
        let wanted = head.logits.rows();
        let first = step.n - wanted;
        let step = &Step { n: wanted, ..*step };
        normalize(pool, step, eps, &f.x, first, &self.norm, (&head.input, &[&self.head]));
        multiply(pool, step, &head.input, [&self.head], [&head.logits]);
        Ok(())
    }
}
