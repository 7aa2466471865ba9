//! Lines of JSON, one at a time, from files that may be compressed.

use anyhow::{Context, anyhow};
use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;
use std::fmt::{self, Debug, Display};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Longest line. A compressed file of a few bytes could else be a line that fills the memory.
pub const MAX_LINE_BYTES: u64 = 1 << 20;

/// What a file compressed by gzip begins with; JSON does not.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A file's lines. Holds one of them.
pub struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    line: Vec<u8>,
    number: u64,
    hash: Xxh3,
}

impl Lines {
    /// Opens a file, plain or compressed by gzip, whatever its name.
    ///
    /// # Errors
    /// If the system says no.
    pub fn open(path: &Path) -> anyhow::Result<Lines> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut file = BufReader::new(file);
        let start = file.fill_buf().with_context(|| format!("cannot read {}", path.display()))?;
        let packed = start.starts_with(&GZIP);
        Ok(if packed {
            Lines::new(path, BufReader::new(MultiGzDecoder::new(file)))
        } else {
            Lines::new(path, file)
        })
    }

    /// The lines that `reader` has; `path` is for messages.
    #[must_use]
    pub fn new(path: &Path, reader: impl BufRead + 'static) -> Lines {
        let path = path.to_path_buf();
        Lines { path, reader: Box::new(reader), line: Vec::new(), number: 0, hash: Xxh3::new() }
    }

    /// The next line with the line feed at its end, which only the last one may lack.
    ///
    /// # Errors
    /// A line that is too long, damaged compression, or the system's.
    pub fn next_line(&mut self) -> anyhow::Result<Option<&[u8]>> {
        self.number += 1;
        self.line.clear();
        let mut reader = self.reader.by_ref().take(MAX_LINE_BYTES + 1);
        if let Err(error) = reader.read_until(b'\n', &mut self.line) {
            return Err(anyhow::Error::new(error).context(self.bad("cannot be read")));
        }
        if self.line.len() as u64 > MAX_LINE_BYTES {
            return Err(self.bad(format_args!("longer than {MAX_LINE_BYTES} bytes")));
        }
        self.hash.update(&self.line);
        Ok((!self.line.is_empty()).then_some(&self.line))
    }

    /// xxh3-64 of what was read so far, as it is uncompressed.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash.digest()
    }

    /// The number of the line that was read last, from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The error for what is wrong with the line that was read last.
    pub fn bad(&self, why: impl Display) -> anyhow::Error {
        anyhow!("{}: {why}", self.place())
    }

    /// Where the line is that was read last.
    #[must_use]
    pub fn place(&self) -> String {
        place(&self.path, self.number)
    }

    /// As [`Lines::bad`], for a line that is no JSON of the shape that it should have.
    pub fn no_json(&self, error: &serde_json::Error) -> anyhow::Error {
        // There is one line to serde_json, whose number would contradict ours.
        self.bad(error.to_string().replace(" at line 1 column ", ", at column "))
    }
}

impl Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines")
            .field("path", &self.path)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// A line, for people.
pub(super) fn place(path: &Path, line: u64) -> String {
    format!("{}, line {line}", path.display())
}

/// One answer to one question. Other fields that a line may have are not looked at.
#[derive(Clone, Debug, Deserialize)]
pub struct Request {
    /// The question; its number says nothing but which requests belong together.
    pub doc_id: u64,
    /// Whether this is the answer without the question, whose likelihood the answer's is measured by.
    #[serde(default)]
    pub uncond: bool,
    /// The answer's number, from 0.
    pub idx: usize,
    /// What the model reads.
    pub context: String,
    /// What it is to find probable.
    pub continuation: String,
    /// The number of the right answer.
    pub label: usize,
}

impl Request {
    /// The next request of a file, past empty lines.
    ///
    /// # Errors
    /// A line that is none, with its number.
    pub fn next(lines: &mut Lines) -> anyhow::Result<Option<Request>> {
        while let Some(line) = lines.next_line()? {
            if line.trim_ascii().is_empty() {
                continue;
            }
            return match serde_json::from_slice(line) {
                Ok(request) => Ok(Some(request)),
                Err(error) => Err(lines.no_json(&error)),
            };
        }
        Ok(None)
    }
}
