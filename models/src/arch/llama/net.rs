//! The network: its weights, and one step through them.

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
use std::ops::Range;

/// Which part of a model runs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it: tokens in, logits out.
    Whole,
    /// So many first layers: tokens in, hidden states out.
    Front(usize),
    /// All but so many first layers: hidden states in, logits out.
    Back(usize),
}

impl Part {
    /// Its layers, of a model of `layers`.
    pub(crate) fn layers(self, layers: usize) -> Range<usize> {
        match self {
            Part::Whole => 0..layers,
            Part::Front(n) => 0..n,
            Part::Back(n) => n..layers,
        }
    }

    pub(super) fn has_head(self) -> bool {
        !matches!(self, Part::Front(_))
    }
}

/// Where token vectors come from.
#[derive(Debug)]
pub(crate) enum Embedding {
    /// Rows of the head: one matrix, stored and resident once.
    Tied,
    /// Rows of a packed matrix in the file's map, whose head is elsewhere.
    Packed(Loaded),
    /// Rows of a table in any readable type.
    Rows {
        /// Its type.
        ty: GgmlType,
        /// `[vocab][dim]`.
        bytes: Bytes,
    },
}

/// The weights of a part.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) eps: f32,
    pub(super) vocab: usize,
    /// A back has none.
    pub(super) embedding: Option<Embedding>,
    /// Which of the model's layers the first one is.
    pub(super) first: usize,
    pub(super) layers: Vec<Layer>,
    /// A front has none.
    pub(super) head: Option<Head>,
    pub(super) rope: Rope,
}

/// What follows the layers.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) norm: Vec<f32>, // [dim]
    pub(super) linear: Linear, // [vocab][dim]
}

/// What goes into a step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Feed<'a> {
    Tokens(&'a [u32]),
    /// Hidden states, `[tokens][dim]`.
    States(&'a [f32]),
}

/// What flows behind the layers: only of the tokens whose logits are asked for.
#[derive(Debug)]
pub(super) struct HeadFlow {
    pub(super) input: Input,           // [dim], normed
    pub(super) logits: SharedMat<f32>, // [vocab]
    /// Which of the step's tokens they are of.
    pub(super) rows: Vec<usize>,
}

/// Checks that every tensor of a part is there, in the right shape and in a type that can be read, and returns the bytes
/// that loading them will allocate beside the file's map, tables of levels included. Allocates nothing of their size.
pub(crate) fn check(c: &Config, w: &Weights<'_>, part: Part) -> Result<u64> {
    let matrix = |name: &str, rows, cols| w.check_linear(name, rows, cols);
    let vector = |name: &str, n| w.check_vector(name, n);
    let mut bytes = w.sign_bytes();
    for i in part.layers(c.layers) {
        bytes = bytes.saturating_add(Layer::find(c, i, &matrix, &vector)?.sum());
    }
    let tied = is_tied(w);
    match part {
        Part::Whole if !tied => _ = w.embedding(c.vocab, c.dim)?,
        Part::Front(_) => _ = w.token_rows(c.vocab, c.dim)?,
        _ => {}
    }
    if part.has_head() {
        let head = matrix(head_name(tied), c.vocab, c.dim)?;
        bytes = bytes.saturating_add(head).saturating_add(vector(NORM, c.dim)?);
    }
    Ok(bytes)
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
        self.layers.iter().flat_map(Layer::linears).chain(self.head.iter().map(|head| &head.linear))
    }

    /// The matrix of that name.
    pub(super) fn linear(&self, matrix: &str) -> Option<&Linear> {
        match place(matrix)? {
            Place::Head => self.head.as_ref().map(|head| &head.linear),
            Place::Layer(i, part) => self.layers.get(i.checked_sub(self.first)?)?.linear(part),
        }
    }

    /// Puts a version of a matrix in the place of the one that it is in.
    pub(super) fn exchange(&mut self, matrix: &str, loaded: Loaded) -> std::result::Result<Loaded, String> {
        let linear = match place(matrix) {
            Some(Place::Head) => self.head.as_mut().map(|head| &mut head.linear),
            Some(Place::Layer(i, part)) => {
                let layer = i.checked_sub(self.first).and_then(|i| self.layers.get_mut(i));
                layer.and_then(|layer| layer.linear_mut(part))
            }
            None => None,
        };
        let linear = linear.ok_or_else(|| format!("the model has no matrix {matrix}"))?;
        linear.exchange(loaded).map_err(|e| e.to_string())
    }

    /// Begins a step: the residual stream of what is fed.
    pub(super) fn enter(&self, feed: Feed<'_>, x: &mut SharedMat<f32>) -> Result<()> {
        match feed {
            Feed::Tokens(tokens) => self.embed(tokens, x),
            Feed::States(states) => {
                x.as_mut_slice().copy_from_slice(states);
                Ok(())
            }
        }
    }

    fn embed(&self, tokens: &[u32], x: &mut SharedMat<f32>) -> Result<()> {
        let (vocab, dim) = (self.vocab, x.dim());
        for (row, token) in x.as_mut_slice().chunks_exact_mut(dim).zip(tokens) {
            let id = *token as usize;
            if id >= vocab {
                return Err(Error::Token { id, vocab });
            }
            match (&self.embedding, &self.head) {
                (Some(Embedding::Tied), Some(head)) => head.linear.row(id, row)?,
                (Some(Embedding::Packed(loaded)), _) => loaded.view()?.dequantize_row(id, row)?,
                (Some(Embedding::Rows { ty, bytes }), _) => {
                    let n = bytes.len() / vocab;
                    dequantize_row(*ty, &bytes[id * n..(id + 1) * n], row)?;
                }
                (None | Some(Embedding::Tied), _) => {
                    let why = "a part that takes hidden states was given tokens".to_owned();
                    return Err(Error::Config { key: "split".into(), why });
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
        head: Option<&HeadFlow>,
        mut streamed: Option<&mut Streamed>,
    ) -> Result<()> {
        let eps = self.eps;
        let last = streamed.as_ref().map_or(0, |s| s.count());
        for i in 0..self.layers.len() + last {
            let l = match &mut streamed {
                Some(streamed) if i >= self.layers.len() => streamed.layer(self.first + i)?,
                _ => &self.layers[i],
            };
            l.norm_attention(pool, step, eps, f);
            l.attend(pool, step, f, i);
            l.add_attention(pool, step, f);
            l.norm_ffn(pool, step, eps, f);
            l.gate(pool, step, f);
            l.add_ffn(pool, step, f);
        }
        if let Some((Head { norm, linear }, to)) = self.head.as_ref().zip(head) {
            let step = &Step { n: to.rows.len(), ..*step };
            if step.n > 0 {
                normalize(pool, step, eps, (&f.x, |t| to.rows[t]), norm, (&to.input, &[linear]));
                multiply(pool, step, &to.input, [linear], [&to.logits]);
            }
        }
        Ok(())
    }
}
