//! A model in two parts: the first layers in one place, the others in another.
//!
//! ```text
//! tokens -> Front: embedding, layers 0 .. n -> hidden states -> Back: layers n .., norm, head -> logits
//! ```
//!
//! Each holds keys and values of its own layers only, and each token's numbers are the same bits as in the whole model, as long as the
//! hidden states arrive as they left.

use crate::arch::llama::Part;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::open::{Model, OpenOptions, open_part};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::store::ModelFile;

/// The embedding and the first layers.
#[derive(Debug)]
pub struct Front(Model);

/// The layers behind a [`Front`]'s, and the head.
#[derive(Debug)]
pub struct Back(Model);

/// Tokens of one text in a step of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// Where its keys and values are.
    pub slot: usize,
    /// Position of its first token, behind which it is forgotten.
    pub start: usize,
    /// How many tokens.
    pub tokens: usize,
    /// Whether logits of the last are wanted.
    pub wanted: bool,
}

fn part(file: &ModelFile, o: &OpenOptions, part: Part) -> Result<Model> {
    if o.budget.is_some() {
        let why = "a budget is for whole models; leave it out".to_owned();
        return Err(Error::Config { key: "split".into(), why });
    }
    open_part(file, o, part)
}

impl Front {
    /// Opens the first `layers` layers of a model.
    ///
    /// # Errors
    /// As [`crate::open::open`]; more layers than there are; a budget.
    pub fn open(file: impl Into<ModelFile>, o: &OpenOptions, layers: usize) -> Result<Front> {
        Ok(Front(part(&file.into(), o, Part::Front(layers))?))
    }

    /// Feeds tokens, as [`Decoder::step`] does; what leaves its last layer, `[tokens][dim]`.
    ///
    /// # Errors
    /// As [`Decoder::step`].
    pub fn step(&mut self, tokens: &[u32], phase: Phase) -> Result<&[f32]> {
        self.0.states(tokens, phase)
    }

    /// As [`Decoder::rewind`].
    pub fn rewind(&mut self, position: usize) {
        self.0.rewind(position);
    }

    /// As [`Decoder::position`].
    pub fn position(&self) -> usize {
        self.0.position()
    }

    /// The model's hyperparameters, those of all layers.
    pub fn config(&self) -> &Config {
        self.0.config()
    }
}

impl Back {
    /// Opens all but the first `layers` layers of a model.
    ///
    /// # Errors
    /// As [`Front::open`].
    pub fn open(file: impl Into<ModelFile>, o: &OpenOptions, layers: usize) -> Result<Back> {
        Ok(Back(part(&file.into(), o, Part::Back(layers))?))
    }

    /// Feeds what left a front, `[tokens][dim]`; logits as of [`Decoder::step`].
    ///
    /// # Errors
    /// As [`Decoder::step`]; numbers that are no whole states.
    pub fn step(&mut self, states: &[f32], phase: Phase, logits: Logits) -> Result<&[f32]> {
        self.0.finish(states, phase, logits)
    }

    /// Room for another text beside the first, which has slot 0; its slot.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn add_text(&mut self) -> Result<usize> {
        self.0.add_text()
    }

    /// Forgets a text, and gives its room back.
    pub fn remove_text(&mut self, slot: usize) {
        self.0.remove_text(slot);
    }

    /// Tokens of a step at most.
    pub fn batch(&self) -> usize {
        self.0.batch()
    }

    /// The model's hyperparameters, those of all layers.
    pub fn config(&self) -> &Config {
        self.0.config()
    }

    /// Feeds states of several texts at once, `[tokens][dim]`, weights being read once for all. Logits are those of the last token of each
    /// text that wants some, `[texts][vocab]`, in the bits that the text alone would give.
    ///
    /// # Errors
    /// As [`Decoder::step`]; a text that there is not, or that comes twice; positions outside of the context.
    pub fn step_texts(&mut self, texts: &[Text], states: &[f32], phase: Phase) -> Result<&[f32]> {
        self.0.finish_texts(texts, states, phase)
    }

    /// As [`Decoder::rewind`].
    pub fn rewind(&mut self, position: usize) {
        self.0.rewind(position);
    }

    /// As [`Decoder::position`].
    pub fn position(&self) -> usize {
        self.0.position()
    }
}
