//! The work folder: what is finished survives a kill at any moment.
//!
//! ```text
//! job            what is being done; a folder of another job is emptied
//! x.N            what goes into layer N, for every token
//! layer.N.gguf   the finished layer: packed tensors, and in its metadata the hash of x.N+1; the head comes behind the last
//! work, aux      within a layer
//! reference-*    x.N, work and aux of the model as it was
//! ```
//!
//! A layer is finished once its file is there, which is written whole before it gets its name, and after `x.N+1`. `x.N` is
//! not changed once it is written.

use super::stream::{Stream, failed};
use crate::error::{Error, Result};
use lutite_runtime::os::map::Map;
use lutite_runtime::store::{
    Bytes, Gguf, GgufWriter, MatrixInfo, Value, announce_checksums, seal_checksums, tensor_checksums,
};
use std::fs;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

const NEXT_KEY: &str = "lutite.calibration.next";
const NAMES_KEY: &str = "lutite.calibration.matrices";
const ERRORS_KEY: &str = "lutite.calibration.errors";

pub(super) struct Journal {
    folder: PathBuf,
}

/// A fitted matrix, packed.
pub(super) struct Finished {
    pub(super) info: MatrixInfo,
    /// In the order of [`MatrixInfo::tensors`].
    pub(super) parts: Vec<Vec<u8>>,
    /// Error of its outputs, relative to them; of levels with the first of them, the first two, and so on.
    pub(super) errors: Vec<f32>,
}

/// Finished layers, mapped.
#[derive(Debug, Default)]
pub struct Fits {
    /// How they were fitted.
    pub(super) method: String,
    files: Vec<Bytes>,
}

impl Fits {
    /// Number of layers, the head counted as one.
    pub(super) fn layers(&self) -> usize {
        self.files.len()
    }

    /// The name of the method, as metadata and file names have it.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Relative error of each fitted matrix' outputs, `tr((Q - W) H (Q - W)^T) / tr(W H W^T)`, where `W` is what was aimed at. A
    /// matrix of levels is there once for each number of them, in ascending order.
    ///
    /// # Errors
    /// A file that was changed in the meantime.
    pub fn errors(&self) -> Result<Vec<(String, f32)>> {
        let mut all = Vec::new();
        for file in &self.files {
            let gguf = Gguf::parse(file)?;
            let names = gguf.str_array(NAMES_KEY)?.into_iter().flatten();
            let errors = match gguf.get(ERRORS_KEY) {
                Some(Value::Array(errors)) => errors.f32s(),
                _ => None,
            };
            all.extend(names.map(str::to_owned).zip(errors.into_iter().flatten()));
        }
        Ok(all)
    }

    /// The tensors of a matrix, in the order of [`MatrixInfo::tensors`]; `None` if it is in no layer.
    pub(crate) fn tensors(&self, info: &MatrixInfo) -> Result<Option<Vec<Vec<u8>>>> {
        let layer =
            info.name().strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
        // What belongs to no layer is the head.
        let file = layer.map_or(self.files.last(), |layer| self.files.get(layer));
        let Some(file) = file else { return Ok(None) };
        let gguf = Gguf::parse(file)?;
        let found = info.tensors().into_iter().map(|(name, _, _)| Some(gguf.tensor(&name)?.data.to_vec()));
        Ok(found.collect())
    }
}

impl Journal {
    /// The folder, whatever is in it.
    pub(super) fn at(folder: &Path) -> Journal {
        Journal { folder: folder.to_owned() }
    }

    /// Takes a folder for `job`, making it if there is none, and emptying it of what another job left.
    pub(super) fn open(folder: &Path, job: &str) -> Result<Journal> {
        let journal = Journal::at(folder);
        let file = journal.path("job");
        if fs::read_to_string(&file).is_ok_and(|found| found == job) {
            return Ok(journal);
        }
        if folder.exists() && !file.exists() && fs::read_dir(folder).is_ok_and(|mut d| d.next().is_some()) {
            let why = "is there, and nothing that a calibration left; name another, or remove it".to_owned();
            return Err(Error::Work { path: folder.to_owned(), why });
        }
        journal.remove()?;
        fs::create_dir_all(folder).and_then(|()| fs::write(&file, job)).map_err(|e| failed(&file, &e))?;
        Ok(journal)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn input(&self, layer: usize) -> PathBuf {
        self.path(&format!("x.{layer}"))
    }

    pub(super) fn reference(&self, layer: usize) -> PathBuf {
        self.path(&format!("reference-x.{layer}"))
    }

    fn layer(&self, layer: usize) -> PathBuf {
        self.path(&format!("layer.{layer}.gguf"))
    }

    /// The finished layers of `all`, from the first on; as many as the input of the next one is whole for.
    pub(super) fn finished(&self, all: usize, width: usize) -> Result<Fits> {
        let mut fits = Fits::default();
        let mut next = None;
        for i in 0..all {
            let Ok(file) = Map::open(self.layer(i)) else { break };
            let file = Bytes::new(file);
            let Some(hash) = whole(&file) else { break };
            fits.files.push(file);
            next = Some(hash);
        }
        let done = fits.files.len();
        if done < all
            && let Some(expected) = next
            && self.hash(done, width) != Some(expected)
        {
            return Ok(Fits::default());
        }
        Ok(fits)
    }

    /// The hash of a layer's input.
    fn hash(&self, layer: usize, width: usize) -> Option<u64> {
        let hash = |path: PathBuf| Stream::open(&path, width).and_then(|mut x| x.hash()).ok();
        let reference = self.reference(layer);
        let beside = if reference.exists() { hash(reference)? } else { 0 };
        Some(hash(self.input(layer))? ^ beside.rotate_left(1))
    }

    /// Keeps a finished layer; `next` is the hash of the next one's input.
    pub(super) fn finish(
        &self,
        layer: usize,
        matrices: &[Finished],
        next: u64,
        fits: &mut Fits,
    ) -> Result<()> {
        let mut w = GgufWriter::new();
        w.set("general.architecture", "lutite-calibration")?;
        w.set(NEXT_KEY, next)?;
        let names = matrices.iter().flat_map(|m| m.errors.iter().map(|_| m.info.name().to_owned()));
        w.set(NAMES_KEY, names.collect::<Vec<_>>().as_slice())?;
        w.set(ERRORS_KEY, matrices.iter().flat_map(|m| m.errors.clone()).collect::<Vec<_>>().as_slice())?;
        let tensors = || matrices.iter().flat_map(|m| m.info.tensors().into_iter().zip(&m.parts));
        for ((name, ty, dims), _) in tensors() {
            w.add_tensor(&name, ty, &dims)?;
        }
        announce_checksums(&mut w, tensors().count())?;
        let path = self.layer(layer);
        let mut out = w.begin(&path)?;
        let mut sums = Vec::new();
        for ((name, _, _), data) in tensors() {
            out.tensor(&name, data)?;
            sums.push(xxh3_64(data));
        }
        seal_checksums(&mut out, &sums)?;
        out.finish()?;
        fits.files.push(Bytes::new(Map::open(&path)?));
        // Of no more use; if it stays, it does no harm.
        let _ = fs::remove_file(self.input(layer));
        let _ = fs::remove_file(self.reference(layer));
        Ok(())
    }

    /// Removes the folder with all that a calibration keeps in it.
    pub(super) fn remove(&self) -> Result<()> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(&self.folder, &e)),
        };
        // The job last: without it the folder would be nobody's.
        let ours = |name: &str| {
            ["work", "aux"].contains(&name)
                || ["x.", "layer.", "reference-"].iter().any(|p| name.starts_with(p))
        };
        for entry in entries.flatten().filter(|e| e.file_name().to_str().is_some_and(ours)) {
            fs::remove_file(entry.path()).map_err(|e| failed(&entry.path(), &e))?;
        }
        let _ = fs::remove_file(self.path("job"));
        let _ = fs::remove_dir(&self.folder);
        Ok(())
    }
}

/// The hash of the next layer's input, if the file of a layer is as it was written.
fn whole(file: &Bytes) -> Option<u64> {
    let gguf = Gguf::parse(file).ok()?;
    let sums = tensor_checksums(&gguf, file).ok()?;
    let same = gguf.tensors().iter().zip(sums).all(|(t, sum)| xxh3_64(t.data) == sum);
    gguf.u64(NEXT_KEY).ok().flatten().filter(|_| same)
}
