//! Files of reference probabilities, as `llama-perplexity --kl-divergence-base` writes and reads them
//! (llama.cpp, `tools/perplexity/perplexity.cpp`). Little-endian, no alignment:
//!
//! ```text
//! "_logits_"                     8 bytes
//! n_ctx, n_vocab, n_chunk        i32 each
//! tokens                         i32 [n_chunk][n_ctx], no BOS put in
//! rows                           [n_chunk][n_ctx - 1 - n_ctx/2], for the positions from n_ctx/2 on:
//!   scale, min_log_prob          f32 each
//!   steps                        u16 [n_vocab rounded up to even]
//! ```
//!
//! The logarithm of token i's probability is `scale * steps[i] + min_log_prob`.

use super::protocol::{Chunk, Cut, first_scored};
use super::score::log_sum_exp;
use crate::args::Protocol;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"_logits_";
const HEADER: u64 = 20;
/// A logit so far below the largest counts as this far below.
const DEPTH: f32 = 16.0;
/// Steps between the smallest and the largest logit.
const STEPS: f32 = 65_535.0;
/// Logarithms of probabilities are at most 0, and a little more by rounding.
const ROUNDING: f32 = 0.01;

/// Why a base file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The system says no.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not such a file, or one whose counts make no sense.
    #[error(
        "{path} is no file of reference logits: {why}; make one with `lutite perplexity --save-base FILE`"
    )]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The file is shorter or longer than its counts say.
    #[error(
        "{path} has {found} bytes, but its counts ({chunks} chunks of {context} tokens, vocabulary of {vocab}) make {expected}; it was cut short or is damaged, make it again"
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes that it has.
        found: u64,
        /// Bytes that it should have.
        expected: u128,
        /// Its counts.
        chunks: u32,
        /// Its counts.
        context: u32,
        /// Its counts.
        vocab: u32,
    },
    /// Made with another vocabulary.
    #[error(
        "{path} was made with a vocabulary of {found} tokens, the model has {expected}; make it with a model of the same family"
    )]
    Vocab {
        /// The file.
        path: PathBuf,
        /// The file's.
        found: usize,
        /// The model's.
        expected: usize,
    },
    /// A number that no program would have written.
    #[error("{path}, chunk {chunk}: {why}; the file is damaged, make it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The chunk, from 1.
        chunk: usize,
        /// What is wrong.
        why: String,
    },
    /// Logits that cannot be written down.
    #[error("the model computed a number that is not finite; the file of reference logits was not made")]
    NotFinite,
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BaseError {
    let path = path.to_path_buf();
    move |source| BaseError::Io { what, path, source }
}

/// Bytes of a row: two floats, and the steps, padded to whole words.
fn row_bytes(vocab: usize) -> usize {
    2 * (vocab.next_multiple_of(2) + 4)
}

fn rows(context: usize) -> usize {
    context - 1 - first_scored(Protocol::Llama, context)
}

/// A base file that is being read. Holds one row at a time, whatever the file's counts say.
#[derive(Debug)]
pub struct BaseReader {
    file: BufReader<File>,
    path: PathBuf,
    context: usize,
    vocab: usize,
    chunks: usize,
    /// The chunk that is being read.
    chunk: usize,
    row: Vec<u8>,
}

impl BaseReader {
    /// Opens a file and checks its length against its counts.
    ///
    /// # Errors
    /// [`BaseError`]; nothing that depends on the counts has been allocated then.
    pub fn open(path: &Path) -> Result<BaseReader, BaseError> {
        let file = File::open(path).map_err(io_error("open", path))?;
        let found = file.metadata().map_err(io_error("read", path))?.len();
        let header = |why: String| BaseError::Header { path: path.to_path_buf(), why };
        if found < HEADER {
            return Err(header(format!("it has only {found} bytes")));
        }
        let mut file = BufReader::new(file);
        let mut magic = [0; 8];
        file.read_exact(&mut magic).map_err(io_error("read", path))?;
        if &magic != MAGIC {
            return Err(header("it does not begin with `_logits_`".into()));
        }
        let mut count = |name: &str, least: u32| {
            let mut bytes = [0; 4];
            file.read_exact(&mut bytes).map_err(io_error("read", path))?;
            match u32::from_le_bytes(bytes) {
                n if n >= least && i32::try_from(n).is_ok() => Ok(n),
                n => Err(header(format!("{name} is {n}"))),
            }
        };
        let (context, vocab, chunks) = (count("n_ctx", 3)?, count("n_vocab", 1)?, count("n_chunk", 1)?);
        // Three numbers below 2^31: no overflow in 128 bits.
        let per_chunk =
            4 * u128::from(context) + rows(context as usize) as u128 * row_bytes(vocab as usize) as u128;
        let expected = u128::from(HEADER) + u128::from(chunks) * per_chunk;
        if expected != u128::from(found) {
            let path = path.to_path_buf();
            return Err(BaseError::Size { path, found, expected, chunks, context, vocab });
        }
        Ok(BaseReader {
            file,
            path: path.to_path_buf(),
            context: context as usize,
            vocab: vocab as usize,
            chunks: chunks as usize,
            chunk: 0,
            row: Vec::new(),
        })
    }

    /// Checks that the file was made with a vocabulary of this size.
    ///
    /// # Errors
    /// [`BaseError::Vocab`].
    pub fn expect_vocab(&self, expected: usize) -> Result<(), BaseError> {
        if self.vocab == expected {
            return Ok(());
        }
        Err(BaseError::Vocab { path: self.path.clone(), found: self.vocab, expected })
    }

    /// Tokens of a chunk.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }

    /// Number of chunks.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Scored positions of all chunks.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.chunks * rows(self.context)
    }

    /// Goes to chunk `i`, one of [`BaseReader::chunks`], and returns it; its rows come next. `bos` is the token
    /// that the model wants at the beginning of a text, if it wants one.
    ///
    /// # Errors
    /// [`BaseError`].
    pub fn chunk(&mut self, i: usize, bos: Option<u32>) -> Result<Chunk, BaseError> {
        self.chunk = i;
        let tokens_bytes = 4 * self.context as u64;
        self.seek(HEADER + i as u64 * tokens_bytes)?;
        let mut bytes = vec![0; 4 * self.context];
        self.file.read_exact(&mut bytes).map_err(io_error("read", &self.path))?;
        let tokens: Vec<u32> = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        if let Some(odd) = tokens.iter().find(|t| **t as usize >= self.vocab) {
            return Err(self.damaged(format!("token {odd} is outside of the vocabulary of {}", self.vocab)));
        }
        let rows_bytes = (rows(self.context) * row_bytes(self.vocab)) as u64;
        self.seek(HEADER + self.chunks as u64 * tokens_bytes + i as u64 * rows_bytes)?;
        Ok(Chunk::new(&tokens, first_scored(Protocol::Llama, self.context), bos))
    }

    /// Reads the chunk's next row: the logarithms of all tokens' probabilities.
    ///
    /// # Errors
    /// [`BaseError`].
    ///
    /// # Panics
    /// If `out` is not as long as the file's vocabulary.
    pub fn row(&mut self, out: &mut [f32]) -> Result<(), BaseError> {
        assert_eq!(out.len(), self.vocab, "checked by expect_vocab");
        self.row.resize(row_bytes(self.vocab), 0);
        self.file.read_exact(&mut self.row).map_err(io_error("read", &self.path))?;
        let (head, steps) = self.row.split_at(8);
        let float = |at: usize| f32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (scale, min) = (float(0), float(4));
        // Also refuses NaN.
        if !(scale >= 0.0 && min.is_finite() && scale * STEPS + min <= ROUNDING) {
            return Err(self.damaged(format!("scale {scale} and minimum {min} make no probabilities")));
        }
        for (out, step) in out.iter_mut().zip(steps.as_chunks().0) {
            *out = scale * f32::from(u16::from_le_bytes(*step)) + min;
        }
        Ok(())
    }

    fn seek(&mut self, to: u64) -> Result<(), BaseError> {
        self.file.seek(SeekFrom::Start(to)).map(|_| ()).map_err(io_error("read", &self.path))
    }

    fn damaged(&self, why: String) -> BaseError {
        BaseError::Damaged { path: self.path.clone(), chunk: self.chunk + 1, why }
    }
}

/// A base file that is being written, under a name of its own until it is whole. Dropping it earlier removes it.
#[derive(Debug)]
pub struct BaseWriter {
    /// `None` once it has been closed.
    file: Option<BufWriter<File>>,
    part: PathBuf,
    path: PathBuf,
    vocab: usize,
    rows_left: usize,
    row: Vec<u8>,
}

impl BaseWriter {
    /// Begins the file for a text cut by the llama protocol.
    ///
    /// # Errors
    /// [`BaseError`].
    pub fn create(path: &Path, cut: &Cut, vocab: usize) -> Result<BaseWriter, BaseError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".part-{}", std::process::id()));
        let part = path.with_file_name(name);
        let file = File::create(&part).map_err(io_error("create", &part))?;
        let mut writer = BaseWriter {
            file: Some(BufWriter::with_capacity(1 << 20, file)),
            part,
            path: path.to_path_buf(),
            vocab,
            rows_left: cut.chunks() * rows(cut.context()),
            row: Vec::new(),
        };
        let too_large = |_| BaseError::Header {
            path: path.to_path_buf(),
            why: "it would need counts of 2^31 and more".into(),
        };
        let mut bytes = MAGIC.to_vec();
        for n in [cut.context(), vocab, cut.chunks()] {
            bytes.extend_from_slice(&i32::try_from(n).map_err(too_large)?.to_le_bytes());
        }
        bytes.extend(cut.tokens().iter().flat_map(|t| t.to_le_bytes()));
        writer.write(&bytes)?;
        Ok(writer)
    }

    /// Writes the logits of the next position.
    ///
    /// # Errors
    /// [`BaseError`].
    pub fn row(&mut self, logits: &[f32]) -> Result<(), BaseError> {
        debug_assert!(logits.len() == self.vocab && self.rows_left > 0);
        let norm = log_sum_exp(logits).ok_or(BaseError::NotFinite)?;
        let fold = |from, f: fn(f32, f32) -> f32| logits.iter().copied().fold(from, f);
        let max = fold(f32::NEG_INFINITY, f32::max);
        let min = fold(f32::INFINITY, f32::min).max(max - DEPTH);
        let scale = (max - min) / STEPS;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let mut row = std::mem::take(&mut self.row);
        row.clear();
        row.extend_from_slice(&scale.to_le_bytes());
        row.extend_from_slice(&((f64::from(min) - norm) as f32).to_le_bytes());
        // `as` sends what is below the minimum to 0.
        row.extend(
            logits.iter().flat_map(|x| ((inverse * (x - min)).round_ties_even() as u16).to_le_bytes()),
        );
        row.resize(row_bytes(self.vocab), 0);
        self.write(&row)?;
        self.row = row;
        self.rows_left = self.rows_left.saturating_sub(1);
        Ok(())
    }

    /// Syncs the file and gives it its name.
    ///
    /// # Errors
    /// [`BaseError`]; an older file of that name is then untouched.
    ///
    /// # Panics
    /// If rows are missing.
    pub fn finish(mut self) -> Result<(), BaseError> {
        assert_eq!(self.rows_left, 0, "rows are missing");
        if let Some(file) = self.file.take() {
            let synced = file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|f| f.sync_all());
            synced.map_err(io_error("write", &self.part))?;
        }
        fs::rename(&self.part, &self.path).map_err(io_error("replace", &self.path))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BaseError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(bytes).map_err(io_error("write", &self.part))
    }
}

impl Drop for BaseWriter {
    fn drop(&mut self) {
        // Once it has its name there is nothing to remove; a failure's cause is being reported already.
        let _ = fs::remove_file(&self.part);
    }
}
