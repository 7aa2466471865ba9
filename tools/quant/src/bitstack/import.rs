//! BitStack's own checkpoints (<https://github.com/xinghaow99/BitStack>): a Hugging Face folder whose layers' matrices are levels.
//!
//! For the matrix of module `M`, `[m][n]`, and each level `i` from 0 on, in safetensors files:
//!
//! ```text
//! M.qweight_i   U8   [ceil(m n / 8)]   signs of the whole matrix, row after row, 8 to a byte, the first in the highest bit; 1 is +
//! M.u_i         F16  [m, k]
//! M.vt_i        F16  [k, n]            k alike in all levels of a matrix
//! W = sum over i of  S_i o (u_i vt_i)
//! ```
//!
//! That is what the paper's program writes (`pack_sign`, `BitStackLinear.decompose_weight`), and what a [`Level`] is but for the
//! order of bits and numbers:
//!
//! ```text
//! row r here is row p(r) there         p: q's and k's rows as GGUF has them, else as they are
//! signs bit (r, c) = bit p(r) n + c      in layout P32
//! u[i][r] = u_l[p(r), i]    v = vt_l
//! ```
//!
//! Nothing is rounded. The scales of inputs that the signs were chosen under are in the folder's norms, and in the rows of up and
//! perhaps v: the matrices are those of that folder's norms, and of no other. (That program sums in f16, kernels here in f32.)
//!
//! `compression_config.json` lists models of growing size: `[{"memory": BYTES, "layers": {"layer.0.self_attn.q_proj": LEVELS, ...}},
//! ...]`. What an entry has and the one before it has not are the next blocks of the ranking. Entries of that program raise one
//! matrix by one level; where one raises more, lower levels come first, and then matrices in the model's order.
//!
//! A checkpoint is a stranger's. Reading it takes memory in proportion to its files' heads and the list; a level is made when it
//! is asked for, from the map.

use half::f16;
use lutite_kernels::pack::p32::{self, TILE_ROWS};
use lutite_kernels::pack::{MAX_LEVELS, PlaneShape, RANKS};
use lutite_models::hf::{OpenFile, Outline, Stored, Weight};
use lutite_runtime::json::{self, JsonError, Object};
use lutite_runtime::store::{Bytes, RowOrder};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Level;
use crate::error::{Error, Result};

/// The list of models of growing size; a folder that has it is a checkpoint.
pub const LIST: &str = "compression_config.json";

/// Longest list: that of 80 layers with 16 levels has some 210 MB.
const MAX_LIST_BYTES: usize = 512 << 20;

/// How the modules of layers are called, and what stands for it in [`LIST`].
const MODULE: &str = "model.layers.";
const LISTED: &str = "layer.";

/// A checkpoint: what is in it, and its levels one by one.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    matrices: Vec<Stacked>,
    ranking: Vec<Block>,
    least: usize,
}

/// A level of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Index in [`Checkpoint::matrices`].
    pub matrix: usize,
    /// The level, from 0 on.
    pub level: usize,
}

/// A matrix of a [`Checkpoint`], its levels unread.
#[derive(Clone, Debug)]
pub struct Stacked {
    name: String,
    module: String,
    shape: PlaneShape,
    rank: usize,
    order: RowOrder,
    levels: Vec<Parts>,
}

/// A level's data, as it lies in the files.
#[derive(Clone, Debug)]
struct Parts {
    signs: Bytes,
    u: Halves,
    v: Halves,
}

/// Half floats, and where they are from.
#[derive(Clone, Debug)]
struct Halves {
    file: Arc<str>,
    data: Bytes,
}

impl Checkpoint {
    /// Reads what the folder has, and takes `levels` of each matrix, or all that there are. The list may rank more.
    ///
    /// # Errors
    /// [`Error::Model`] with the file, its tensor or entry, and what to do: for what [`Outline::read`] refuses, tensors that are
    /// missing, of another type or shape, or no part of such a model; ranks that no kernel knows or that differ within a matrix;
    /// less than `levels`, or more than kernels know; and a list that names other matrices than the model's, starts without one of
    /// them, or shrinks. [`Error::Setting`] for no levels.
    pub fn read(open: OpenFile<'_>, levels: Option<usize>) -> Result<Checkpoint> {
        if levels == Some(0) {
            return Err(Error::Setting { what: "number of levels", found: "0".into(), allowed: "1 or more" });
        }
        let mut outline = Outline::read(&mut *open)?;
        let mut tensors = std::mem::take(&mut outline.tensors);
        let mut matrices = Vec::new();
        for weight in outline.weights() {
            if weight.shape.len() == 2 && weight.module.starts_with(MODULE) {
                matrices.push(stacked(&weight, &mut tensors, levels, outline.listed_in)?);
            } else {
                tensors.remove(&format!("{}.weight", weight.module));
            }
        }
        if let Some((name, stored)) = tensors.first_key_value() {
            return Err(foreign(name, stored));
        }
        let (ranking, least) = ranked(&list(open)?, &matrices)?;
        Ok(Checkpoint { matrices, ranking, least })
    }

    /// The layers' matrices, in the model's order.
    pub fn matrices(&self) -> &[Stacked] {
        &self.matrices
    }

    /// Blocks in the order in which they bring the model up. A level of a matrix comes after those below it. Levels that the list
    /// has no place for are not among them.
    pub fn ranking(&self) -> &[Block] {
        &self.ranking
    }

    /// How many blocks, the first of [`Self::ranking`], make the least model of the list; each matrix has one of them at least.
    pub fn least(&self) -> usize {
        self.least
    }
}

impl Stacked {
    /// Its name in GGUF without `.weight`, such as `blk.3.ffn_up`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows and columns.
    pub fn shape(&self) -> PlaneShape {
        self.shape
    }

    /// Rank of the magnitudes: one of [`RANKS`].
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of levels.
    pub fn levels(&self) -> usize {
        self.levels.len()
    }

    /// Makes a level, from 0 on; its rows are in GGUF's order. Nobody knows its error, which is NaN.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a level that there is not, [`Error::Model`] for numbers that are none.
    pub fn level(&self, level: usize) -> Result<Level> {
        let Some(parts) = self.levels.get(level) else {
            let why =
                format!("has {} levels, counted from 0; there is none of number {level}", self.levels.len());
            return Err(Error::Tensor { name: self.name.clone(), why });
        };
        self.finite(&parts.u, "u", level)?;
        self.finite(&parts.v, "vt", level)?;
        let PlaneShape { rows, .. } = self.shape;
        let mut u = Vec::with_capacity(parts.u.data.len());
        for i in 0..self.rank {
            for row in 0..rows {
                let at = 2 * (self.order.place(row) * self.rank + i);
                u.extend_from_slice(&parts.u.data[at..at + 2]);
            }
        }
        Ok(Level { signs: self.plane(&parts.signs)?, u, v: parts.v.data.to_vec(), error: f64::NAN })
    }

    /// Checks that all are numbers: one that is not would spoil every product.
    fn finite(&self, halves: &Halves, part: &str, level: usize) -> Result<()> {
        let values = halves.data.as_chunks::<2>().0.iter().map(|half| f16::from_le_bytes(*half));
        match values.enumerate().find(|(_, value)| !value.is_finite()) {
            None => Ok(()),
            Some((i, value)) => {
                let tensor = tensor_name(&self.module, part, level);
                let why = format!("value {i} is {value}; fetch the file again, or decompose the model anew");
                Err(at_tensor(&halves.file, &tensor, &why))
            }
        }
    }

    /// Signs of the whole matrix, row after row, as a plane.
    fn plane(&self, signs: &[u8]) -> Result<Vec<u8>> {
        let PlaneShape { rows, cols } = self.shape;
        let bytes = self.shape.tile_bytes();
        let mut plane = vec![0; self.shape.tiles() * bytes];
        plane.par_chunks_exact_mut(bytes).enumerate().try_for_each(|(tile, out)| {
            let from = tile * TILE_ROWS;
            let mut codes = Vec::with_capacity(TILE_ROWS * cols);
            for row in from..rows.min(from + TILE_ROWS) {
                let first = self.order.place(row) * cols;
                codes.extend((first..first + cols).map(|bit| signs[bit / 8] >> (7 - bit % 8) & 1));
            }
            p32::pack_tile(self.shape, &codes, &mut [out])
        })?;
        Ok(plane)
    }
}

/// Takes a matrix' levels out of `tensors`, `most` at most, and checks them.
fn stacked(
    weight: &Weight,
    tensors: &mut BTreeMap<String, Stored>,
    most: Option<usize>,
    listed_in: &str,
) -> Result<Stacked> {
    let module = &weight.module;
    let size = |dim: usize| weight.shape.get(dim).and_then(|n| usize::try_from(*n).ok());
    let sizes = size(0).zip(size(1)).map(|(rows, cols)| PlaneShape { rows, cols });
    let fits = sizes.filter(|s| s.plane_bytes().is_some() && s.rows.checked_mul(s.cols).is_some());
    let Some(shape) = fits else {
        let why = format!("asks for {module} of shape {:?}, which is larger than any memory", weight.shape);
        return Err(fault("config.json", why));
    };
    let mut levels = Vec::new();
    let mut rank = None;
    loop {
        let i = levels.len();
        let names = ["qweight", "u", "vt"].map(|part| tensor_name(module, part, i));
        let [signs, u, v] = names.each_ref().map(|name| tensors.remove(name));
        let (signs, u, v) = match (signs, u, v) {
            (Some(signs), Some(u), Some(v)) => (signs, u, v),
            (None, None, None) => break,
            (signs, u, v) => {
                let parts = [signs, u, v];
                let at = |there: bool| parts.iter().position(|part| part.is_some() == there).unwrap_or(0);
                let (missing, there) = (&names[at(false)], &names[at(true)]);
                let why = format!(
                    "has no tensor {missing}, though there is {there}; the download is incomplete, or the model was decomposed \
                     with --no_avd, without which it has to be"
                );
                return Err(fault(listed_in, why));
            }
        };
        let found = u.shape.get(1).copied().unwrap_or(0);
        let rank = *rank.get_or_insert(found);
        if found != rank {
            let why = format!(
                "has rank {found}, level 0 has {rank}; files of two models are mixed, fetch them again"
            );
            return Err(at_tensor(&u.file, &names[1], &why));
        }
        // Bits of a matrix that fits into memory fit into a u64, and so do numbers in a file.
        let bits = (shape.rows * shape.cols) as u64;
        expect(&signs, &names[0], "U8", &[bits.div_ceil(8)])?;
        expect(&u, &names[1], "F16", &[shape.rows as u64, rank])?;
        expect(&v, &names[2], "F16", &[rank, shape.cols as u64])?;
        let halves = |stored: Stored| Halves { file: stored.file, data: stored.data };
        levels.push(Parts { signs: signs.data, u: halves(u), v: halves(v) });
    }
    let asked = most.unwrap_or(1);
    if levels.len() < asked {
        let next = tensor_name(module, "qweight", levels.len());
        let why = format!(
            "has no tensor {next} (levels needed of each matrix: {asked}); the download is incomplete, or the model has no more levels, or \
             config.json is another model's"
        );
        return Err(fault(listed_in, why));
    }
    let rank = rank.and_then(|rank| usize::try_from(rank).ok()).unwrap_or(0);
    if !RANKS.contains(&rank) {
        let why = format!("has rank {rank}; decompose the model with --k 1, 2, 4, 8 or 16");
        return Err(at_tensor(&levels[0].u.file, &tensor_name(module, "u", 0), &why));
    }
    levels.truncate(most.unwrap_or(usize::MAX));
    if levels.len() > MAX_LEVELS {
        let why =
            format!("has {} levels of {module}; take {MAX_LEVELS} of each matrix at most", levels.len());
        return Err(fault(listed_in, why));
    }
    Ok(Stacked {
        name: weight.gguf.clone(),
        module: module.clone(),
        shape,
        rank,
        order: weight.order,
        levels,
    })
}

fn tensor_name(module: &str, part: &str, level: usize) -> String {
    format!("{module}.{part}_{level}")
}

/// Checks a tensor's type and shape, and so its length.
fn expect(stored: &Stored, name: &str, dtype: &str, shape: &[u64]) -> Result<()> {
    if stored.dtype == dtype && stored.shape == shape {
        return Ok(());
    }
    let why = format!(
        "is {} of shape {:?}, not {dtype} of shape {shape:?} as BitStack's is for this config.json; fetch the folder again",
        stored.dtype, stored.shape
    );
    Err(at_tensor(&stored.file, name, &why))
}

/// A tensor that is left over.
fn foreign(name: &str, stored: &Stored) -> Error {
    let kind = name.rsplit('.').next().unwrap_or_default();
    let why = match kind {
        "scales" => {
            "holds scales of inputs on their own; decompose the model without --no_fuse_scale, so that the norms have them"
        }
        "weight" | "bias" => "is of no Llama whose matrices are all levels; config.json is another model's",
        _ => {
            "is no part of a level whose lower levels are all there, of a matrix of this model; fetch the folder again, or \
             config.json is another model's"
        }
    };
    at_tensor(&stored.file, name, why)
}

/// The list, as it lies in its file.
fn list(open: OpenFile<'_>) -> Result<Bytes> {
    let bytes = open(LIST).map_err(|e| fault(LIST, format!("cannot be read: {e}")))?;
    let bytes = bytes.ok_or_else(|| {
        fault(LIST, "is missing; fetch it, or make it with BitStack's --generate_compression_configs".into())
    })?;
    if bytes.len() > MAX_LIST_BYTES {
        let (found, most) = (bytes.len() >> 20, MAX_LIST_BYTES >> 20);
        return Err(fault(LIST, format!("has {found} MiB, at most {most} are read; this is no such file")));
    }
    Ok(bytes)
}

/// The ranking that the list implies, and how many blocks its first entry has.
fn ranked(list: &[u8], matrices: &[Stacked]) -> Result<(Vec<Block>, usize)> {
    let text = std::str::from_utf8(list).map_err(|e| {
        fault(LIST, format!("is not UTF-8 from its byte {} on; fetch it again", e.valid_up_to()))
    })?;
    let names: Vec<String> = matrices.iter().map(|m| m.module.replacen(MODULE, LISTED, 1)).collect();
    let known: BTreeMap<&str, usize> = names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let entries = json::list(text).map_err(|e| fault(LIST, format!("{e}; fetch it again")))?;
    if entries.is_empty() {
        return Err(fault(LIST, "has no entry; fetch it again".into()));
    }
    let mut ranking: Vec<Block> = Vec::new();
    let (mut least, mut memory_before) = (0, 0);
    let mut held = vec![0; matrices.len()];
    for (number, entry) in entries.iter().enumerate() {
        let bad = |why: String| fault(LIST, format!("entry {number}, counted from 0: {why}; fetch it again"));
        let wrong = |e: JsonError| bad(e.to_string());
        let missing = |key: &str| bad(format!("{key} is missing"));
        let entry = Object::parse(entry).map_err(wrong)?;
        let memory = entry.get::<u64>("memory").map_err(wrong)?.ok_or_else(|| missing("memory"))?;
        if memory < memory_before {
            return Err(bad(format!("memory shrinks from {memory_before} to {memory}")));
        }
        memory_before = memory;
        let layers = entry.get::<Object<'_>>("layers").map_err(wrong)?.ok_or_else(|| missing("layers"))?;
        if let Some((name, _)) = layers.fields().iter().find(|(name, _)| !known.contains_key(name.as_ref())) {
            let name: String = name.chars().take(100).collect();
            return Err(bad(format!("{name:?} is no matrix of this model's layers")));
        }
        let from = ranking.len();
        for (matrix, name) in names.iter().enumerate() {
            let levels = layers.get::<u64>(name).map_err(|e| wrong(e.within("layers")))?;
            let levels = levels.ok_or_else(|| missing(name))?;
            let before = held[matrix];
            if levels < before {
                return Err(bad(format!("{name} shrinks from {before} to {levels} levels")));
            }
            if levels == 0 {
                return Err(bad(format!("{name} has no level, but each needs one at least")));
            }
            let there =
                |levels: u64| usize::try_from(levels).unwrap_or(usize::MAX).min(matrices[matrix].levels());
            ranking.extend((there(before)..there(levels)).map(|level| Block { matrix, level }));
            held[matrix] = levels;
        }
        ranking[from..].sort_unstable_by_key(|block| (block.level, block.matrix));
        if number == 0 {
            least = ranking.len();
        }
    }
    Ok((ranking, least))
}

/// A fault of one file.
fn fault(file: &str, why: String) -> Error {
    Error::Model(lutite_models::Error::Folder { file: file.chars().take(200).collect(), why })
}

/// A fault of a tensor.
fn at_tensor(file: &str, tensor: &str, why: &str) -> Error {
    fault(file, format!("tensor {}: {why}", tensor.chars().take(100).collect::<String>()))
}
