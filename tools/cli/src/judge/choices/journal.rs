//! What a long evaluation has done so far, in a file: killed, it goes on where it stopped.
//!
//! Lines of JSON. The first is the header: all that the numbers depend on. Each other line is a [`Record`], written when it
//! is known, so that only the last line can be torn; it is cut off. Nothing is synced to the disk: a process that is
//! killed loses nothing by it, and a machine that loses power some of the last lines.

use super::lines::Lines;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The header's key that says what file it is; its value is the version of the form.
pub const MAGIC: &str = "lutite_eval";

/// The log-probabilities of all answers to one question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Which of the tasks, from 0.
    pub task: usize,
    /// Which of the task's documents, in order, from 0.
    pub document: usize,
    /// Whether they are those without the question.
    pub uncond: bool,
    /// In the order of the answers.
    pub log_probs: Vec<f64>,
}

/// A journal that is written on. No two processes can have it open.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens a journal, or begins one where there is none, and gives `take` the records that it has. `header` is an object
    /// with [`MAGIC`].
    ///
    /// # Errors
    /// A file that is no journal or has another header, which is left as it is; a record that is none or that `take` says no
    /// to; the system's.
    pub fn open(
        path: &Path,
        header: &Value,
        mut take: impl FnMut(Record) -> Result<(), String>,
    ) -> anyhow::Result<Journal> {
        let cannot = |what: &str| format!("cannot {what} the journal {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| cannot("open"))?;
        // Some network file systems have no locks; then it is on the person.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            bail!("another process writes the journal {}; wait for it, or name another", path.display());
        }
        let mut lines = Lines::new(path, BufReader::new(file.try_clone().with_context(|| cannot("open"))?));
        let text = format!("{header}\n");
        let mut whole = match lines.next_line()? {
            Some(first) if !text.as_bytes().starts_with(first) => {
                let found = serde_json::from_slice(first).unwrap_or_default();
                if let Some(why) = difference(&found, header) {
                    bail!("{} {why}; name another file, or remove it", path.display());
                }
                first.len()
            }
            Some(first) if first.len() == text.len() => first.len(),
            // Nothing, or torn.
            _ => 0,
        } as u64;
        if whole > 0 {
            while let Some(line) = lines.next_line()? {
                if !line.ends_with(b"\n") {
                    break;
                }
                let bytes = line.len() as u64;
                match serde_json::from_slice(line) {
                    Ok(record) => take(record).map_err(|why| lines.bad(why))?,
                    Err(error) => return Err(lines.no_json(&error)),
                }
                whole += bytes;
            }
        }
        file.set_len(whole)
            .and_then(|()| file.seek(SeekFrom::Start(whole)))
            .with_context(|| cannot("write"))?;
        let mut journal = Journal { file, path: path.to_path_buf() };
        if whole == 0 {
            journal.write(&text)?;
        }
        Ok(journal)
    }

    /// Writes down what is known now.
    ///
    /// # Errors
    /// The system's.
    pub fn push(&mut self, record: &Record) -> anyhow::Result<()> {
        self.write(&(serde_json::to_string(record)? + "\n"))
    }

    fn write(&mut self, text: &str) -> anyhow::Result<()> {
        let written = self.file.write_all(text.as_bytes());
        written.with_context(|| format!("cannot write the journal {}", self.path.display()))
    }
}

/// What is wrong with a file that has `found` in its first line, and not `header`; `None` if they say the same.
fn difference(found: &Value, header: &Value) -> Option<String> {
    if found.get(MAGIC).is_none() {
        return Some("is no journal of `lutite eval`".into());
    }
    let differs = |key: &String| found.get(key) != header.get(key);
    let key = header.as_object()?.keys().find(|key| differs(key))?;
    Some(match key.as_str() {
        "model" => "is the journal of another model".into(),
        "tasks" => "is the journal of other tasks, or of these in another order".into(),
        _ => {
            let value = |header: &Value| header.get(key).map_or("nothing".into(), Value::to_string);
            format!("is a journal with {key} {}, not {}", value(found), value(header))
        }
    })
}
