//! The questions of one file, the scores of their answers, and the accuracies.

use super::journal::Record;
use super::lines::{self, Lines, Request};
use super::pair::Pairing;
use crate::interrupt;
use crate::judge::stats::Mean;
use anyhow::{anyhow, bail};
use serde::Serialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A file of questions. Of each it holds some numbers, and no text.
#[derive(Debug)]
pub struct Task {
    path: PathBuf,
    name: String,
    hash: u64,
    documents: Vec<Document>,
    /// Where a `doc_id` is among the documents.
    places: HashMap<u64, usize>,
    /// The first so many documents are asked.
    asked: usize,
    longest: usize,
    cut: usize,
}

/// A question.
#[derive(Debug)]
struct Document {
    label: usize,
    /// The line of its first request.
    line: u64,
    /// Characters of each answer.
    lengths: Vec<u32>,
    /// Its answers after the question, and without it.
    blocks: [Block; 2],
}

/// Requests that are scored together.
#[derive(Debug, Default)]
struct Block {
    requests: usize,
    /// Tokens to be computed.
    work: u64,
    log_probs: Vec<f64>,
}

impl Task {
    /// Reads a file once, for all that can be wrong with it, and for what there is to do for `limit` documents at most.
    ///
    /// # Errors
    /// A request that makes no sense, with its line.
    pub fn scan(path: &Path, limit: usize, pairing: &Pairing<'_>) -> anyhow::Result<Task> {
        let mut lines = Lines::open(path)?;
        let mut task = Task {
            path: path.to_path_buf(),
            name: name(path),
            hash: 0,
            documents: Vec::new(),
            places: HashMap::new(),
            asked: 0,
            longest: 0,
            cut: 0,
        };
        while let Some(request) = Request::next(&mut lines)? {
            interrupt::check(interrupt::flag())?;
            let place = *task.places.entry(request.doc_id).or_insert(task.documents.len());
            if place == task.documents.len() {
                task.documents.push(Document::new(&request, lines.number()));
            }
            let document = &mut task.documents[place];
            document.add(&request).map_err(|why| lines.bad(why))?;
            if place < limit {
                let pair = pairing.pair(&request.context, &request.continuation);
                let pair = pair.map_err(|why| lines.bad(why))?;
                let (context, continuation) = (pair.context.len(), pair.continuation.len());
                // All answers of a question mostly share its tokens.
                let fed = if request.idx == 0 { context } else { 0 } + continuation;
                document.blocks[usize::from(request.uncond)].work += fed as u64;
                task.longest = task.longest.max(context + continuation - 1);
                task.cut += usize::from(pair.cut);
            }
        }
        task.check()?;
        task.hash = lines.hash();
        task.asked = task.documents.len().min(limit);
        Ok(task)
    }

    /// What only the whole file tells.
    fn check(&self) -> anyhow::Result<()> {
        let Some(first) = self.documents.first() else {
            bail!("{} has no requests", self.path.display());
        };
        for document in &self.documents {
            let [answers, uncond] = document.blocks.each_ref().map(|block| block.requests);
            let bad = |why: String| Err(anyhow!("{}: {why}", lines::place(&self.path, document.line)));
            if answers < 2 {
                return bad(format!("a document with {answers} choices; 2 at least are one"));
            }
            if document.label >= answers {
                return bad(format!("label {} of a document with {answers} choices", document.label));
            }
            if uncond != 0 && uncond != answers {
                return bad(format!("a document with {answers} choices and {uncond} `uncond` requests"));
            }
            if (uncond == 0) != (first.blocks[1].requests == 0) {
                return bad("only some documents of this file have `uncond` requests".into());
            }
        }
        Ok(())
    }

    /// The file's name without what says its form.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// xxh3-64 of the uncompressed file.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many documents are asked.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// How many documents there are.
    #[must_use]
    pub fn documents(&self) -> usize {
        self.documents.len()
    }

    /// Positions that the longest request takes.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Requests whose contexts were cut to fit in the model.
    #[must_use]
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// About how many tokens there still are to compute.
    #[must_use]
    pub fn work(&self) -> u64 {
        let blocks = self.documents[..self.asked].iter().flat_map(|d| &d.blocks);
        blocks.filter(|b| b.log_probs.len() < b.requests).map(|b| b.work).sum()
    }

    /// Takes what an earlier run has found, for documents that are not asked this time as well.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn restore(&mut self, record: Record) -> Result<(), String> {
        let Some(document) = self.documents.get_mut(record.document) else {
            return Err(format!("there is no document {}", record.document));
        };
        let block = &mut document.blocks[usize::from(record.uncond)];
        if !block.log_probs.is_empty() || block.requests != record.log_probs.len() {
            return Err(format!("document {} does not want these", record.document));
        }
        block.log_probs = record.log_probs;
        Ok(())
    }

    /// Reads the file again, and computes what is missing by `log_prob`, which also hears where the request is. `done` gets
    /// the document's number, whether it is the part without the question, the log-probabilities of all its answers, and
    /// about how many tokens they were.
    ///
    /// # Errors
    /// Those of `log_prob` and `done`, and a file that is no longer what it was.
    pub fn run(
        &mut self,
        mut log_prob: impl FnMut(&Request, &Lines) -> anyhow::Result<f64>,
        mut done: impl FnMut(usize, bool, &[f64], u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let changed = || anyhow!("{} has changed while it was read", self.path.display());
        let mut lines = Lines::open(&self.path)?;
        while let Some(request) = Request::next(&mut lines)? {
            let place = *self.places.get(&request.doc_id).ok_or_else(changed)?;
            let block = &mut self.documents[place].blocks[usize::from(request.uncond)];
            if place >= self.asked || request.idx < block.log_probs.len() {
                continue;
            }
            if request.idx > block.log_probs.len() || request.idx >= block.requests {
                return Err(changed());
            }
            block.log_probs.push(log_prob(&request, &lines)?);
            if block.log_probs.len() == block.requests {
                done(place, request.uncond, &block.log_probs, block.work)?;
            }
        }
        if lines.hash() == self.hash { Ok(()) } else { Err(changed()) }
    }

    /// The figures, once all is computed.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let documents = &self.documents[..self.asked];
        let accuracy = |right: fn(&Document) -> bool| {
            // Not `Mean`, whose rounding depends on the order: as many right ones are to be the same number.
            let (n, right) = (documents.len() as f64, documents.iter().filter(|d| right(d)).count() as f64);
            let share = right / n;
            (share, (share * (1.0 - share) / (n - 1.0).max(1.0)).sqrt())
        };
        let (acc, acc_error) = accuracy(|d| d.is_right(|_, log_prob| log_prob));
        let (acc_norm, acc_norm_error) =
            accuracy(|d| d.is_right(|i, log_prob| log_prob / f64::from(d.lengths[i])));
        let uncond = documents.iter().all(|d| d.blocks[1].requests > 0);
        let uncond =
            uncond.then(|| accuracy(|d| d.is_right(|i, log_prob| log_prob - d.blocks[1].log_probs[i])));
        Figures {
            task: self.name.clone(),
            documents: self.asked,
            chance: documents.iter().map(|d| 1.0 / d.lengths.len() as f64).collect::<Mean>().mean(),
            acc,
            acc_error,
            acc_norm,
            acc_norm_error,
            acc_uncond: uncond.map(|u| u.0),
            acc_uncond_error: uncond.map(|u| u.1),
        }
    }
}

impl Document {
    fn new(first: &Request, line: u64) -> Document {
        Document { label: first.label, line, lengths: Vec::new(), blocks: Default::default() }
    }

    fn add(&mut self, request: &Request) -> Result<(), String> {
        let block = &mut self.blocks[usize::from(request.uncond)];
        if request.label != self.label {
            return Err(format!(
                "label {}, but {} in line {}, which has the same doc_id",
                request.label, self.label, self.line
            ));
        }
        if request.idx != block.requests {
            return Err(format!(
                "idx {}, but the next choice of doc_id {} is {}",
                request.idx, request.doc_id, block.requests
            ));
        }
        let own = request.continuation.trim_start();
        if own.is_empty() {
            return Err("the continuation is empty".into());
        }
        block.requests += 1;
        if !request.uncond {
            self.lengths.push(own.chars().count() as u32);
        }
        Ok(())
    }

    /// Whether the right answer is the one with the highest `score` of its number and its log-probability; the first of
    /// equals, as numpy has it.
    fn is_right(&self, score: impl Fn(usize, f64) -> f64) -> bool {
        let mut best = (0, f64::NEG_INFINITY);
        for (i, log_prob) in self.blocks[0].log_probs.iter().enumerate() {
            let score = score(i, *log_prob);
            if score > best.1 {
                best = (i, score);
            }
        }
        best.0 == self.label
    }
}

/// `arc_easy` of `data/arc_easy.jsonl.gz`.
fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.strip_suffix(".jsonl").unwrap_or(name).to_owned()
}

/// The accuracies of a task, or of several. From 0 to 1; `_error` is a standard error.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Its name.
    pub task: String,
    /// Questions.
    pub documents: usize,
    /// What guessing reaches.
    pub chance: f64,
    /// Taking the answer of the highest probability.
    pub acc: f64,
    #[allow(missing_docs, reason = "said above")]
    pub acc_error: f64,
    /// Taking the highest log-probability per character. White space at the answer's start does not count.
    pub acc_norm: f64,
    #[allow(missing_docs, reason = "said above")]
    pub acc_norm_error: f64,
    /// Taking the answer whose probability the question raises most, where the file has what it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_uncond: Option<f64>,
    #[allow(missing_docs, reason = "said above")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_uncond_error: Option<f64>,
}

impl Figures {
    /// The mean over tasks, each counting the same however many questions it has. Of what not all have there is none.
    #[must_use]
    pub fn average(tasks: &[Figures]) -> Figures {
        let mean = |f: fn(&Figures) -> f64| tasks.iter().map(f).collect::<Mean>().mean();
        // The tasks are independent.
        let error = |f: fn(&Figures) -> f64| {
            tasks.iter().map(|t| f(t).powi(2)).sum::<f64>().sqrt() / tasks.len() as f64
        };
        let uncond = tasks.iter().all(|t| t.acc_uncond.is_some());
        Figures {
            task: "average".into(),
            documents: tasks.iter().map(|t| t.documents).sum(),
            chance: mean(|t| t.chance),
            acc: mean(|t| t.acc),
            acc_error: error(|t| t.acc_error),
            acc_norm: mean(|t| t.acc_norm),
            acc_norm_error: error(|t| t.acc_norm_error),
            acc_uncond: uncond.then(|| mean(|t| t.acc_uncond.unwrap_or_default())),
            acc_uncond_error: uncond.then(|| error(|t| t.acc_uncond_error.unwrap_or_default())),
        }
    }
}
