//! Layers that do not fit into memory: read for every step, while the layer before is computed.
//!
//! ```text
//! reader:  for ever, for each streamed layer:  read its matrices, check them, hand them over     (one waits, one is read)
//! step:    for each streamed layer:  take what was handed over, put it in the place of the layer before, compute
//! ```
//!
//! So three layers' matrices are in memory at a time, whatever the number of layers, and a step takes as long as reading them
//! all. Norms and biases stay in memory.

use super::blocks::matrices;
use super::layer::Layer;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::linear::How;
use crate::weights::Weights;
use lutite_runtime::residency::{Home, Piece};
use lutite_runtime::store::Loaded;
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

/// Layers in memory at a time: in use, waiting, and being read.
pub(crate) const AT_ONCE: u64 = 3;

/// A layer that was read: which, and its matrices in the order of [`matrices`].
type Arrived = (usize, lutite_runtime::Result<Vec<Loaded>>);

/// What stays in memory of a streamed layer.
#[derive(Debug)]
struct Rest {
    attn_norm: Vec<f32>,
    ffn_norm: Vec<f32>,
    /// In the order of [`matrices`].
    biases: Vec<Option<Vec<f32>>>,
}

/// Layers from `first` on.
#[derive(Debug)]
pub(super) struct Streamed {
    first: usize,
    rest: Vec<Rest>,
    /// The layer in use.
    slot: Layer,
    bytes: u64,
    weights: usize,
    arrived: Option<Receiver<Arrived>>,
    reader: Option<JoinHandle<()>>,
}

impl Streamed {
    /// Takes over these layers, of which there is at least one, and begins to read.
    pub(super) fn start(
        c: &Config,
        w: &Weights<'_>,
        home: Home,
        layers: Range<usize>,
        how: How,
    ) -> Result<Streamed> {
        let first = layers.start;
        let load = |name: &str, rows, cols| w.linear(name, rows, cols, how);
        let vector = |name: &str, n| w.vector(name, n);
        let mut pieces = Vec::new();
        let mut rest = Vec::new();
        let mut infos = vec![Vec::new(); matrices().count()];
        for layer in layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let own: Vec<Piece> = matrices().map(|part| w.piece(&name(part))).collect::<Result<_>>()?;
            own.iter().zip(&mut infos).for_each(|(piece, infos)| infos.push(piece.info.clone()));
            rest.push(Rest {
                attn_norm: w.vector(&name("attn_norm.weight"), c.dim)?,
                ffn_norm: w.vector(&name("ffn_norm.weight"), c.dim)?,
                biases: own
                    .iter()
                    .map(|p| w.bias(p.info.name(), p.info.shape().rows))
                    .collect::<Result<_>>()?,
            });
            pieces.push(own);
        }
        let mut slot = Layer::find(c, first, &load, &vector)?;
        for (part, infos) in matrices().zip(infos) {
            if let Some(linear) = slot.linear_mut(part) {
                linear.set_versions(infos);
            }
        }
        let all = pieces.iter().flatten();
        let bytes = all.clone().map(|p| p.info.bytes().unwrap_or(usize::MAX) as u64).sum();
        let weights = all.map(|p| p.info.shape()).map(|shape| shape.rows * shape.cols).sum();
        let (hand_over, arrived) = sync_channel(1);
        let read = move || {
            for (i, own) in pieces.iter().enumerate().cycle() {
                let loaded = own.iter().map(|piece| home.load(piece, None)).collect();
                // Nobody takes it any more: the model is gone.
                if hand_over.send((first + i, loaded)).is_err() {
                    return;
                }
            }
        };
        let failed =
            |e| lutite_runtime::Error::Io { path: "lutite-layers".into(), what: "start thread", source: e };
        let reader = thread::Builder::new().name("lutite-layers".into()).spawn(read).map_err(failed)?;
        Ok(Streamed { first, rest, slot, bytes, weights, arrived: Some(arrived), reader: Some(reader) })
    }

    /// How many they are.
    pub(super) fn count(&self) -> usize {
        self.rest.len()
    }

    /// Bytes that are read in a step.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Their number of weights.
    pub(super) fn weights(&self) -> usize {
        self.weights
    }

    /// The layer in use; for its shapes.
    pub(super) fn slot(&self) -> &Layer {
        &self.slot
    }

    /// Layer `i`, as soon as it is there.
    ///
    /// # Errors
    /// A version that cannot be read or is damaged: it is tried again with the next step.
    pub(super) fn layer(&mut self, i: usize) -> Result<&Layer> {
        let gone = || Error::Damaged("can no longer be read".into());
        let arrived = self.arrived.as_ref().ok_or_else(gone)?;
        // After a step that ended early others come first.
        let loaded = loop {
            let (layer, loaded) = arrived.recv().map_err(|_| gone())?;
            if layer == i {
                break loaded?;
            }
        };
        let rest = &self.rest[i - self.first];
        for ((part, loaded), bias) in matrices().zip(loaded).zip(&rest.biases) {
            if let Some(linear) = self.slot.linear_mut(part) {
                linear.exchange(loaded)?;
                linear.set_bias(bias.clone());
            }
        }
        self.slot.set_norms(&rest.attn_norm, &rest.ffn_norm);
        Ok(&self.slot)
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        // What waits to be taken goes, and with it the reader.
        drop(self.arrived.take());
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
