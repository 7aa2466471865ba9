//! How large the inputs of matrices are: a first look at what a text makes of them, in one pass and next to no memory.

use crate::error::{Error, Result};
use crate::imatrix::Imatrix;
use lutite_kernels::isa::Isa;
use lutite_models::Blocks;
use lutite_models::blocks::{END, GROUPS, PART};
use lutite_runtime::store::{Gguf, ModelFile};
use std::sync::atomic::{AtomicBool, Ordering};

/// Mean squares of what goes into each matrix of the layers and into the head, over all tokens of some short sequences. They
/// stay in memory: a thousand tokens say enough.
///
/// # Errors
/// A model that cannot be read; [`Error::Interrupted`].
pub fn importance(
    source: &Gguf<'_>,
    file: &ModelFile,
    sequences: &[Vec<u32>],
    isa: Isa,
    threads: usize,
    cancel: &AtomicBool,
) -> Result<Imatrix> {
    let context = sequences.iter().map(Vec::len).max().unwrap_or(0);
    if context == 0 {
        return Err(Error::Options("no text to calibrate with; name one with --calib".into()));
    }
    let mut blocks = Blocks::new(source, file, isa, threads, context)?;
    let (dim, layers) = (blocks.config().dim, blocks.config().layers);
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    let mut all = Vec::new();
    for tokens in sequences {
        let mut x = vec![0.0; tokens.len() * dim];
        blocks.embed(tokens, &mut x)?;
        all.push(x);
    }
    let mut entries = Vec::new();
    for layer in 0..layers {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        blocks.load(layer)?;
        let mut sums: Vec<Vec<f64>> = (0..END).map(|group| vec![0.0; blocks.width(group)]).collect();
        for x in &mut all {
            let mut aux = vec![0.0; x.len() / dim * blocks.aux_width()];
            let width = PART * blocks.aux_width();
            for group in 0..=END {
                for (i, (x, aux)) in x.chunks_mut(PART * dim).zip(aux.chunks_mut(width)).enumerate() {
                    let inputs = blocks.advance(group, i * PART, x, aux);
                    if let Some(sums) = sums.get_mut(group) {
                        add(sums, inputs);
                    }
                }
            }
        }
        for (parts, sums) in GROUPS.iter().zip(&sums) {
            for part in *parts {
                entries.push((format!("blk.{layer}.{part}.weight"), means(sums, tokens)));
            }
        }
    }
    let mut sums = vec![0.0; dim];
    for x in &mut all {
        blocks.normalize(x);
        add(&mut sums, x);
    }
    for name in ["output.weight", "token_embd.weight"] {
        entries.push((name.to_owned(), means(&sums, tokens)));
    }
    Imatrix::of(entries)
}

/// Adds the squares of `[tokens][n]`.
fn add(sums: &mut [f64], x: &[f32]) {
    for x in x.chunks_exact(sums.len()) {
        sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(*x).powi(2));
    }
}

fn means(sums: &[f64], tokens: usize) -> Vec<f32> {
    sums.iter().map(|sum| (sum / tokens as f64) as f32).collect()
}
