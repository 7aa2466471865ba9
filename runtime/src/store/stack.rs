//! The residual part of a packed file: what makes the model better, block by block.
//!
//! Without it the file is the model at its least, each matrix in version 0. A *block* is a further version of one matrix,
//! which takes the place of the one before: version 1 of `blk.3.ffn_up` is the packed matrix `blk.3.ffn_up.v1`. Of a matrix of
//! levels it has more of them than the one before, and its own tensors are only those of the levels that came to it. Blocks lie
//! behind everything else, in the order of what they bring for their bytes, so that the first N bytes of the file are the
//! best model of N bytes: a file that was cut off among its blocks is a smaller model. What a number of blocks is worth was
//! measured when the file was made.
//!
//! | key | |
//! |---|---|
//! | `lutite.features` | has `stack` |
//! | `lutite.stack.blocks` | a line as in `lutite.tensors` for each block, in their order |
//! | `lutite.stack.curve.blocks`, `.kl`, `.kl_error` | KL divergence with the first so many blocks, and its standard error |

use super::fault::GgufError;
use super::gguf::{Gguf, TensorInfo};
use super::levels::level_of;
use super::matrix::MatrixInfo;
use super::write::{GgufStream, GgufWriter};
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// The feature that a reader of stacked files has.
pub(super) const FEATURE: &str = "stack";

const FEATURES_KEY: &str = "lutite.features";
const BLOCKS_KEY: &str = "lutite.stack.blocks";
const CURVE_KEYS: [&str; 3] =
    ["lutite.stack.curve.blocks", "lutite.stack.curve.kl", "lutite.stack.curve.kl_error"];

/// The name of version `version` of a matrix in a file.
pub fn version_name(matrix: &str, version: usize) -> String {
    match version {
        0 => matrix.to_owned(),
        v => format!("{matrix}.v{v}"),
    }
}

/// One version of one matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The matrix, without a suffix.
    pub matrix: String,
    /// 1 or more.
    pub version: usize,
    /// What it is, under its [`version_name`].
    pub info: MatrixInfo,
    /// How many of its tensors, the first ones, are those of the version before; the others are its own.
    pub shared: usize,
    /// Where its own tensors lie in the file, in bytes.
    pub range: Range<u64>,
    /// Bytes of its own tensors.
    pub bytes: u64,
    /// Bytes of the version that it takes the place of; 0 where it shares that one's.
    pub replaces: u64,
    /// The block with that version, or none where that is the least.
    pub before: Option<usize>,
    /// Whether the file has it.
    pub present: bool,
}

impl Block {
    /// Names of its own tensors.
    pub fn tensor_names(&self) -> impl Iterator<Item = String> {
        self.info.tensors().into_iter().skip(self.shared).map(|(name, _, _)| name)
    }
}

/// The loss of a model with its first blocks, in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// How many blocks.
    pub blocks: usize,
    /// Mean KL divergence to the unquantized model.
    pub kl: f32,
    /// Its standard error.
    pub error: f32,
}

/// The residual part of a file; empty for files that have none.
#[derive(Clone, Debug, Default)]
pub struct Stack {
    blocks: Vec<Block>,
    curve: Vec<Point>,
    /// Version 0 of the matrices that blocks speak of.
    first: HashMap<String, MatrixInfo>,
    /// Bytes of data with the first so many blocks.
    resident: Vec<u64>,
    /// Where the data end without any.
    end: u64,
}

impl Stack {
    /// How long a stacked file is without any block, as its first bytes tell; `None` if it is not stacked. So much of a file
    /// that is arriving is a model.
    ///
    /// # Errors
    /// What is wrong with the head: where `bytes` end within it, [`Fault::Truncated`](super::Fault::Truncated) or
    /// [`Fault::Count`](super::Fault::Count).
    pub fn least_bytes(bytes: &[u8]) -> Result<Option<u64>, GgufError> {
        let (gguf, head) = Gguf::parse_head(bytes)?;
        let blocks = Optional::read(&gguf)?;
        if blocks.versions.is_empty() {
            return Ok(None);
        }
        let data = head.next_multiple_of(gguf.alignment());
        let end = |t: &TensorInfo<'_>| data.saturating_add(t.offset).saturating_add(t.bytes());
        Ok(gguf.tensors().iter().filter(|t| !blocks.has(t.name)).map(end).max())
    }

    /// Reads the stack of a file whose least matrices are `base`.
    pub(super) fn read(gguf: &Gguf<'_>, base: &HashMap<String, MatrixInfo>) -> Result<Stack> {
        let bad = |why: String| Error::Packed(format!("{why}; the file is damaged"));
        let lines = gguf.str_array(BLOCKS_KEY)?.into_iter().flatten();
        // Version in use so far, and its block.
        let mut now: HashMap<&str, (usize, Option<usize>)> = HashMap::new();
        let mut blocks: Vec<Block> = Vec::new();
        for line in lines {
            let info = MatrixInfo::parse(line).map_err(Error::Packed)?;
            let name =
                info.name().rsplit_once(".v").and_then(|(name, v)| Some((name, v.parse::<usize>().ok()?)));
            let Some((first, (name, version))) =
                name.and_then(|(name, version)| Some((base.get(name)?, (name, version))))
            else {
                return Err(bad(format!("block {:?} is no version of a matrix", info.name())));
            };
            let key = first.name();
            let (last, before) = now.get(key).copied().unwrap_or((0, None));
            let older = before.map_or(first, |i| &blocks[i].info);
            if version != last + 1 || info.name() != version_name(name, version) {
                return Err(bad(format!("block {:?} follows version {last}", info.name())));
            }
            info.check_behind(older).map_err(|why| bad(format!("block {:?} {why}", info.name())))?;
            let shared = info.shared(older);
            let replaces = if shared > 0 { 0 } else { older.bytes().unwrap_or(usize::MAX) as u64 };
            let below = if shared > 0 { older.bytes().unwrap_or(usize::MAX) } else { 0 };
            now.insert(key, (version, Some(blocks.len())));
            let tensors = info.find(gguf)?.split_off(shared);
            let (Some(start), Some(end)) =
                (tensors.first().map(|t| t.offset), tensors.last().map(|t| t.offset + t.bytes()))
            else {
                continue;
            };
            let matrix = name.to_owned();
            let sizes = tensors.iter().map(|t| t.bytes()).sum::<u64>();
            if Some(sizes) != info.bytes().and_then(|n| n.checked_sub(below)).map(|n| n as u64)
                || !tensors.windows(2).all(|t| t[0].offset < t[1].offset)
            {
                return Err(bad(format!(
                    "the tensors of block {:?} have other sizes or another order",
                    info.name()
                )));
            }
            let present = tensors.iter().all(|t| !t.is_absent());
            let range = start..end;
            blocks.push(Block {
                matrix,
                version,
                info,
                shared,
                range,
                bytes: sizes,
                replaces,
                before,
                present,
            });
        }
        let of_blocks: HashSet<String> = blocks.iter().flat_map(Block::tensor_names).collect();
        let first =
            blocks.iter().filter_map(|b| Some((b.matrix.clone(), base.get(&b.matrix)?.clone()))).collect();
        let (mut least, mut end) = (0, gguf.data_offset());
        for t in gguf.tensors().iter().filter(|t| !of_blocks.contains(t.name)) {
            least += t.bytes();
            end = end.max(t.offset + t.bytes());
        }
        let mut behind = end;
        for block in &blocks {
            if block.range.start < behind {
                return Err(bad(format!(
                    "block {:?} does not lie behind what comes before it",
                    block.info.name()
                )));
            }
            behind = block.range.end;
        }
        let curve = curve(gguf, blocks.len())?;
        // Of blocks that are not there no size was held against a file.
        let with = |bytes: &mut u64, b: &Block| {
            *bytes = bytes.saturating_add(b.bytes).saturating_sub(b.replaces);
            Some(*bytes)
        };
        let resident = [least].into_iter().chain(blocks.iter().scan(least, with)).collect();
        Ok(Stack { blocks, curve, first, resident, end })
    }

    /// All blocks, in their order.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// How many of them, from the first on, the file has.
    pub fn present(&self) -> usize {
        self.blocks.iter().take_while(|b| b.present).count()
    }

    /// What was measured, by ascending numbers of blocks.
    pub fn curve(&self) -> &[Point] {
        &self.curve
    }

    /// Bytes of the tensors that a model with the first `blocks` blocks, or all of them, is made of.
    pub fn resident_bytes(&self, blocks: usize) -> u64 {
        self.resident.get(blocks).or(self.resident.last()).copied().unwrap_or(0)
    }

    /// Where the first `blocks` blocks end in the file.
    pub fn file_bytes(&self, blocks: usize) -> u64 {
        self.blocks[..blocks].last().map_or(self.end, |b| b.range.end)
    }

    /// The loss with the first `blocks` blocks: what was measured, and between that, in proportion to the bytes.
    pub fn kl(&self, blocks: usize) -> Option<f32> {
        let next = self.curve.iter().position(|p| p.blocks >= blocks)?;
        let b = self.curve[next];
        let Some(a) = next.checked_sub(1).map(|i| self.curve[i]).filter(|_| b.blocks > blocks) else {
            return (b.blocks == blocks).then_some(b.kl);
        };
        let at = |n| self.file_bytes(n) as f32;
        let share = (at(blocks) - at(a.blocks)) / (at(b.blocks) - at(a.blocks)).max(1.0);
        Some(a.kl + share * (b.kl - a.kl))
    }

    /// The least version of each matrix that blocks speak of.
    pub(super) fn least(&self) -> impl Iterator<Item = (&str, &MatrixInfo)> {
        self.first.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// What block `i` takes the place of.
    pub fn older(&self, i: usize) -> Option<&MatrixInfo> {
        let block = &self.blocks[i];
        block.before.map_or_else(|| self.first.get(&block.matrix), |i| Some(&self.blocks[i].info))
    }

    /// Tensors of all versions of matrices but those in `used`.
    pub(super) fn idle(&self, used: &HashMap<String, MatrixInfo>) -> HashSet<String> {
        let all = self.first.values().chain(self.blocks.iter().map(|b| &b.info));
        let mut idle: HashSet<String> = all.flat_map(MatrixInfo::tensors).map(|(name, _, _)| name).collect();
        for info in self.first.keys().filter_map(|matrix| used.get(matrix)) {
            info.tensors().iter().for_each(|(name, _, _)| {
                idle.remove(name);
            });
        }
        idle
    }

    /// Announces a stack in a file that is being written: its blocks, whose tensors are to come behind all others, and room
    /// for a curve with so many points.
    ///
    /// # Errors
    /// As [`GgufWriter::set`].
    pub fn announce(writer: &mut GgufWriter, blocks: &[MatrixInfo], points: &[usize]) -> Result<()> {
        let lines: Vec<String> = blocks.iter().map(MatrixInfo::line).collect();
        let points: Vec<u32> = points.iter().map(|p| *p as u32).collect();
        let none = vec![f32::NAN; points.len()];
        writer.set(FEATURES_KEY, [FEATURE.to_owned()].as_slice())?;
        writer.set(BLOCKS_KEY, lines.as_slice())?;
        writer.set(CURVE_KEYS[0], points.as_slice())?;
        writer.set(CURVE_KEYS[1], none.as_slice())?;
        writer.set(CURVE_KEYS[2], none.as_slice())?;
        Ok(())
    }

    /// Writes what was measured into the room made by [`announce`](Self::announce), before checksums are sealed.
    ///
    /// # Errors
    /// As [`GgufStream::patch`].
    pub fn store_curve(out: &mut GgufStream, curve: &[Point]) -> Result<()> {
        out.patch(CURVE_KEYS[1], curve.iter().map(|p| p.kl).collect::<Vec<_>>().as_slice())?;
        out.patch(CURVE_KEYS[2], curve.iter().map(|p| p.error).collect::<Vec<_>>().as_slice())
    }
}

/// The measured points, those that are finite.
fn curve(gguf: &Gguf<'_>, blocks: usize) -> Result<Vec<Point>> {
    let numbers =
        |key| -> Result<Vec<f32>, GgufError> { Ok(gguf.f32_array(key)?.into_iter().flatten().collect()) };
    let at: Vec<u32> = gguf.u32_array(CURVE_KEYS[0])?.into_iter().flatten().collect();
    let (kl, error) = (numbers(CURVE_KEYS[1])?, numbers(CURVE_KEYS[2])?);
    let ascending = at.is_sorted_by(|a, b| a < b) && at.last().is_none_or(|last| *last as usize <= blocks);
    if !ascending || kl.len() != at.len() || error.len() != at.len() {
        return Err(Error::Packed("the curve of its stack is none; the file is damaged".into()));
    }
    let points =
        at.iter().zip(kl).zip(error).map(|((at, kl), error)| Point { blocks: *at as usize, kl, error });
    Ok(points.filter(|p| p.kl.is_finite() && p.error.is_finite()).collect())
}

/// The tensors of a file's blocks, which may be missing.
#[derive(Debug, Default)]
pub(super) struct Optional<'a> {
    /// Names of versions, sorted.
    versions: Vec<&'a str>,
    /// Of matrices of levels: those that are optional.
    levels: HashMap<String, Range<usize>>,
}

impl<'a> Optional<'a> {
    /// Lines that mean nothing are for the directory to find.
    pub(super) fn read(gguf: &Gguf<'a>) -> Result<Optional<'a>, GgufError> {
        let lines: Vec<&str> = gguf.str_array(BLOCKS_KEY)?.into_iter().flatten().collect();
        let mut versions: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
        versions.sort_unstable();
        let mut levels = HashMap::new();
        let of_levels = |line: &str| match MatrixInfo::parse(line) {
            Ok(MatrixInfo::Levels(info)) => Some((info.matrix().to_owned(), info.levels)),
            _ => None,
        };
        if !lines.is_empty() {
            let least = gguf.str_array("lutite.tensors")?.into_iter().flatten();
            levels.extend(least.filter_map(of_levels).map(|(matrix, least)| (matrix, least..least)));
        }
        for (matrix, most) in lines.iter().filter_map(|line| of_levels(line)) {
            levels.entry(matrix).and_modify(|range| range.end = range.end.max(most));
        }
        Ok(Optional { versions, levels })
    }

    /// Whether this tensor may be missing.
    pub(super) fn has(&self, tensor: &str) -> bool {
        let of_level =
            |(matrix, i): (&str, usize)| self.levels.get(matrix).is_some_and(|all| all.contains(&i));
        level_of(tensor).is_some_and(of_level)
            || tensor.rsplit_once('.').is_some_and(|(name, _)| self.versions.binary_search(&name).is_ok())
    }
}
