//! Writing GGUF files, version 3.
//!
//! Everything that describes the file is known before its first byte is written, so that the header is final
//! at once and the tensors stream behind it without being held. The bytes go to `NAME.part-PID-N` beside the
//! target, are synced, and take the target's name last: under that name there is the old file, or the whole
//! new one, never a part.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lutite_kernels::ggml::GgmlType;

use super::bytes::Bytes;
use super::fault::{Fault, GgufError, Place};
use super::gguf::{
    ALIGNMENT_KEY, MAGIC, MAX_KEY_BYTES, MAX_NAME_BYTES, check_alignment, check_name, shape_bytes, sorted,
    tensor_error, value_place,
};
use super::model_file::{ModelFile, TensorPart};
use super::value::ToValue;
use super::value::sealed::{Encode, Scalar};
use crate::error::{Error, Result};
use crate::os::map::Map;

/// Alignment of tensor data where [`GgufWriter::set_alignment`] is not called: a cache line, so that a row of
/// planes never straddles one more than it must.
pub const DEFAULT_ALIGNMENT_BYTES: u32 = 64;

const VERSION: u32 = 3;
const ZEROS: [u8; 4096] = [0; 4096];

/// Collects the metadata and the tensor descriptions of a file; [`begin`](Self::begin) then writes it.
#[derive(Debug)]
pub struct GgufWriter {
    alignment: u32,
    /// Key, and type number with encoded value.
    entries: Vec<(String, Vec<u8>)>,
    tensors: Vec<Planned>,
}

#[derive(Debug)]
struct Planned {
    name: String,
    ty: GgmlType,
    shape: Vec<u64>,
    bytes: u64,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl GgufWriter {
    /// A file of no metadata and no tensors.
    pub fn new() -> GgufWriter {
        GgufWriter { alignment: DEFAULT_ALIGNMENT_BYTES, entries: Vec::new(), tensors: Vec::new() }
    }

    /// Aligns the data of every tensor to `bytes`, and says so in `general.alignment`.
    ///
    /// # Errors
    /// [`Fault::Alignment`] where `bytes` is no power of two.
    pub fn set_alignment(&mut self, bytes: u32) -> Result<&mut Self> {
        check_alignment(bytes.into())?;
        self.alignment = bytes;
        Ok(self)
    }

    /// Adds a metadata entry behind those that are there.
    ///
    /// # Errors
    /// A [`Fault`] at the key where it is empty, too long, has control characters, or is `general.alignment`.
    /// Duplicates are found by [`begin`](Self::begin).
    #[expect(clippy::needless_pass_by_value, reason = "so that callers can write `set(key, 32u32)`")]
    pub fn set(&mut self, key: &str, value: impl ToValue) -> Result<&mut Self> {
        let check = if key == ALIGNMENT_KEY { Err(Fault::Reserved) } else { check_name(key, MAX_KEY_BYTES) };
        check.map_err(|fault| GgufError::new(Place::Entry(self.entries.len() as u64), None, fault))?;
        self.put(key, &value);
        Ok(self)
    }

    fn put(&mut self, key: &str, value: &impl Encode) {
        let mut encoded = Vec::new();
        (value.value_type() as u32).put(&mut encoded);
        value.encode(&mut encoded);
        self.entries.push((key.to_owned(), encoded));
    }

    /// Adds a tensor behind those that are there. `shape` is `[columns, rows, ...]`, fastest dimension first.
    ///
    /// # Errors
    /// A [`Fault`] at the tensor where its name is empty, too long or has control characters, or its shape
    /// has no or more than 4 dimensions, is too large, or has rows of no whole blocks of `ty`. Duplicates
    /// are found by [`begin`](Self::begin).
    pub fn add_tensor(&mut self, name: &str, ty: GgmlType, shape: &[u64]) -> Result<&mut Self> {
        check_name(name, MAX_NAME_BYTES)
            .map_err(|fault| GgufError::new(Place::TensorEntry(self.tensors.len() as u64), None, fault))?;
        let bytes = shape_bytes(ty, shape).map_err(|fault| tensor_error(name, None, fault))?;
        self.tensors.push(Planned { name: name.to_owned(), ty, shape: shape.to_vec(), bytes });
        Ok(self)
    }

    /// Bytes of the whole file.
    ///
    /// # Errors
    /// As [`begin`](Self::begin), without those of files.
    pub fn bytes(mut self) -> Result<u64> {
        Ok(self.file_head()?.1)
    }

    /// Creates a temporary file beside `path` and writes everything but the tensors' data to it.
    ///
    /// # Errors
    /// [`Fault::Duplicate`] for a key or name added twice, [`Fault::Shape`] where the file would have more
    /// than 2^63 bytes, [`Error::Io`], [`Error::NoSpace`].
    pub fn begin(mut self, path: impl AsRef<Path>) -> Result<GgufStream> {
        let path = path.as_ref();
        let (head, total) = self.file_head()?;
        let (part, file) = Part::create(path)?;
        let out = Target::File(BufWriter::with_capacity(1 << 20, file), part);
        self.stream(out, path, head, total)
    }

    /// As [`begin`](Self::begin), to memory: [`GgufStream::finish`] returns the bytes.
    ///
    /// # Errors
    /// As [`begin`](Self::begin), without those of files.
    pub fn begin_in_memory(mut self) -> Result<GgufStream> {
        let (head, total) = self.file_head()?;
        self.stream(Target::Memory(Vec::new()), Path::new("(in memory)"), head, total)
    }

    /// The model of these descriptions with its tensors' data in other files: nothing is copied but the head.
    ///
    /// # Errors
    /// As [`begin`](Self::begin), without those of files; [`Error::WriteOrder`] where `parts` are not the tensors' data
    /// in the order of [`add_tensor`](Self::add_tensor).
    pub fn assemble(self, parts: Vec<TensorPart>) -> Result<ModelFile> {
        let (head, _) = self.head()?;
        let order = |expected: String, found: String| {
            Err(Error::WriteOrder { path: "(in memory)".into(), expected, found })
        };
        let end = || "the end of the file".to_owned();
        for at in 0..self.tensors.len().max(parts.len()) {
            let (t, part) = (self.tensors.get(at), parts.get(at));
            let expected = t.map_or_else(end, |t| format!("tensor `{}` of {} bytes", t.name, t.bytes));
            let found = part.map_or_else(end, |part| format!("{} bytes", part.data.len()));
            match (t, part) {
                (Some(t), Some(part)) if t.bytes == part.data.len() as u64 => {
                    let rows: u64 = t.shape[1..].iter().product();
                    if !part.order.fits(rows) {
                        return order(expected, "no heads of an even number of rows".into());
                    }
                }
                _ => return order(expected, found),
            }
        }
        Ok(ModelFile::assembled(Bytes::new(head), parts))
    }

    fn stream(self, out: Target, path: &Path, head: Vec<u8>, total: u64) -> Result<GgufStream> {
        // Where each value starts, behind its type: magic, version, two counts, then the entries.
        let mut at = 24;
        let values = self.entries.iter().map(|(key, value)| {
            let start = at + 8 + key.len() + 4;
            let len = value.len() - 4;
            at = start + len;
            // Every value was encoded behind its type.
            let ty = value.first_chunk().map_or(0, |ty| u32::from_le_bytes(*ty));
            ValueAt { key: key.clone(), ty, start, len }
        });
        let values = values.collect();
        let mut stream = GgufStream {
            out,
            path: path.to_path_buf(),
            alignment: self.alignment.into(),
            left: self.tensors.into_iter(),
            values,
            head: Vec::new(),
            total,
            intact: true,
        };
        stream.write(&head)?;
        stream.head = head;
        Ok(stream)
    }

    /// As [`Self::head`], of a file that says how its data are aligned.
    fn file_head(&mut self) -> Result<(Vec<u8>, u64)> {
        let alignment = self.alignment;
        self.put(ALIGNMENT_KEY, &alignment);
        self.head()
    }

    /// All bytes before the data, and the size of the whole file.
    fn head(&self) -> Result<(Vec<u8>, u64)> {
        let (entries, tensors) = (&self.entries, &self.tensors);
        sorted(entries.len(), |i| &entries[i].0)
            .map_err(|i| GgufError::new(value_place(&entries[i].0), None, Fault::Duplicate))?;
        sorted(tensors.len(), |i| &tensors[i].name)
            .map_err(|i| tensor_error(&tensors[i].name, None, Fault::Duplicate))?;

        let mut head = Vec::new();
        head.extend_from_slice(&MAGIC);
        VERSION.put(&mut head);
        (tensors.len() as u64).put(&mut head);
        (entries.len() as u64).put(&mut head);
        for (key, value) in entries {
            key.put(&mut head);
            head.extend_from_slice(value);
        }
        let alignment = u64::from(self.alignment);
        let mut offset = 0u64;
        for t in tensors {
            t.name.put(&mut head);
            (t.shape.len() as u32).put(&mut head);
            for dim in &t.shape {
                dim.put(&mut head);
            }
            t.ty.id().put(&mut head);
            offset.put(&mut head);
            let next = offset.checked_add(t.bytes).and_then(|end| end.checked_next_multiple_of(alignment));
            // Half of the range is kept, for the head and for readers that count in i64.
            let next = next.filter(|&end| end <= u64::MAX >> 2);
            offset = next.ok_or_else(|| tensor_error(&t.name, None, Fault::Shape(t.shape.clone().into())))?;
        }
        let padded = head.len().next_multiple_of(self.alignment as usize);
        head.resize(padded, 0);
        Ok((head, padded as u64 + offset))
    }
}

/// Where the bytes go.
#[derive(Debug)]
enum Target {
    // The file before its temporary name: Windows removes no open file, and fields are dropped in this order.
    File(BufWriter<File>, Part),
    Memory(Vec<u8>),
}

/// Bytes in memory, lent out for a look.
struct Lent(Arc<Vec<u8>>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A metadata value, and where it lies.
#[derive(Debug)]
struct ValueAt {
    key: String,
    /// The number of its type.
    ty: u32,
    /// Offset in the file, behind the type.
    start: usize,
    /// Bytes.
    len: usize,
}

/// A file being written: takes the tensors' data in the order of [`GgufWriter::add_tensor`]. Dropped before
/// [`finish`](Self::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct GgufStream {
    out: Target,
    path: PathBuf,
    alignment: u64,
    left: std::vec::IntoIter<Planned>,
    values: Vec<ValueAt>,
    /// Everything before the data, as it is in the file.
    head: Vec<u8>,
    total: u64,
    /// False once a write failed: how much of it landed is unknown.
    intact: bool,
}

impl GgufStream {
    /// Size of the finished file in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// All bytes before the tensors' data, as they now are in the file: what a checksum of them is made of.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Writes the data of the next tensor, whole, in the layout of its type.
    ///
    /// # Errors
    /// [`Error::WriteOrder`] where another tensor or another number of bytes is due; the right one can still
    /// follow. [`Error::Io`] or [`Error::NoSpace`], after which the file cannot be finished.
    pub fn tensor(&mut self, name: &str, data: &[u8]) -> Result<()> {
        match self.left.as_slice().first() {
            Some(next) if next.name == name && next.bytes == data.len() as u64 => {}
            _ => return Err(self.order(format!("tensor `{name}` of {} bytes", data.len()))),
        }
        self.tensor_by_portions(name, [Ok(data)])
    }

    /// As [`tensor`](Self::tensor), of data that is never held whole: the portions follow one another.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), and the first of the portions'. Once a portion was taken, the file cannot be
    /// finished after an error.
    pub fn tensor_by_portions<P: AsRef<[u8]>, E: From<Error>>(
        &mut self,
        name: &str,
        portions: impl IntoIterator<Item = Result<P, E>>,
    ) -> Result<(), E> {
        let due = match self.left.as_slice().first() {
            Some(next) if next.name == name => next.bytes,
            _ => return Err(self.order(format!("tensor `{name}`")).into()),
        };
        let mut len = 0;
        for portion in portions {
            let written = portion.and_then(|portion| {
                len += portion.as_ref().len() as u64;
                Ok(self.write(portion.as_ref())?)
            });
            if let Err(e) = written {
                self.intact = false;
                return Err(e);
            }
        }
        if len != due {
            let e = self.order(format!("tensor `{name}` of {len} bytes"));
            self.intact = false;
            return Err(e.into());
        }
        self.left.next();
        let mut padding = (len.next_multiple_of(self.alignment) - len) as usize;
        while padding > 0 {
            let run = padding.min(ZEROS.len());
            self.write(&ZEROS[..run])?;
            padding -= run;
        }
        Ok(())
    }

    /// Replaces a metadata value by one of the same type and size: for what is only known when the tensors have been
    /// written, such as their checksums.
    ///
    /// # Errors
    /// [`Error::WriteOrder`] where no such value was announced. [`Error::Io`], after which the file cannot be finished.
    #[expect(clippy::needless_pass_by_value, reason = "so that callers can write `patch(key, 0.5f32)`")]
    pub fn patch(&mut self, key: &str, value: impl ToValue) -> Result<()> {
        let ty = value.value_type();
        let mut encoded = Vec::new();
        value.encode(&mut encoded);
        let place = self.values.iter().find(|v| v.key == key && v.ty == ty as u32 && v.len == encoded.len());
        let Some(at) = place.map(|v| v.start) else {
            let expected = format!("metadata value {key}, {} of {} bytes", ty.name(), encoded.len());
            return Err(Error::WriteOrder { path: self.path.clone(), expected, found: "none such".into() });
        };
        self.head[at..at + encoded.len()].copy_from_slice(&encoded);
        let done = match &mut self.out {
            Target::Memory(bytes) => {
                bytes[at..at + encoded.len()].copy_from_slice(&encoded);
                Ok(())
            }
            Target::File(out, _) => out
                .seek(SeekFrom::Start(at as u64))
                .and_then(|_| out.write_all(&encoded))
                .and_then(|()| out.seek(SeekFrom::End(0)))
                .map(|_| ()),
        };
        done.map_err(|source| {
            self.intact = false;
            write_error(&self.path, self.total, source)
        })
    }

    /// Lets `look` read the file as it is now, before it has its name: to judge what was written and
    /// [`patch`](Self::patch) the verdict into it.
    ///
    /// # Errors
    /// [`Error::WriteOrder`] where tensors are missing, or where `look` kept a part of the bytes. [`Error::Io`].
    pub fn look<T>(&mut self, look: impl FnOnce(Bytes) -> T) -> Result<T> {
        if !self.intact || self.left.len() > 0 {
            return Err(self.order("a look at the whole file".to_owned()));
        }
        match &mut self.out {
            Target::File(out, part) => {
                out.flush().map_err(|source| write_error(&self.path, self.total, source))?;
                Ok(look(Bytes::new(Map::open(&part.path)?)))
            }
            Target::Memory(bytes) => {
                let lent = Arc::new(std::mem::take(bytes));
                let seen = look(Bytes::new(Lent(lent.clone())));
                match Arc::try_unwrap(lent) {
                    Ok(back) => {
                        *bytes = back;
                        Ok(seen)
                    }
                    Err(_) => {
                        self.intact = false;
                        Err(self.order("bytes that are still in use".to_owned()))
                    }
                }
            }
        }
    }

    /// Syncs the file to the disk and gives it its name, in place of a file that may have it. Returns the bytes
    /// where they were written to memory, else nothing.
    ///
    /// # Errors
    /// [`Error::WriteOrder`] where tensors are missing, [`Error::Io`], [`Error::NoSpace`]. The old file, if any, is then
    /// untouched and the new one removed.
    pub fn finish(self) -> Result<Vec<u8>> {
        if !self.intact || self.left.len() > 0 {
            return Err(self.order("the end of the file".to_owned()));
        }
        let GgufStream { out, path, total, .. } = self;
        match out {
            Target::Memory(bytes) => Ok(bytes),
            Target::File(mut out, part) => {
                let synced = out.flush().and_then(|()| out.get_ref().sync_all());
                synced.map_err(|source| write_error(&path, total, source))?;
                drop(out);
                part.rename(&path)?;
                Ok(Vec::new())
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let done = match &mut self.out {
            Target::File(out, _) => out.write_all(bytes),
            // The first write finds the vector empty and reserves for the whole file, once.
            Target::Memory(out) => {
                let room = if out.is_empty() { self.total as usize } else { bytes.len() };
                out.try_reserve_exact(room).map_err(Into::into).map(|()| out.extend_from_slice(bytes))
            }
        };
        done.map_err(|source| {
            self.intact = false;
            write_error(&self.path, self.total, source)
        })
    }

    fn order(&self, found: String) -> Error {
        let expected = match self.left.as_slice().first() {
            _ if !self.intact => "nothing more after a failed write".to_owned(),
            Some(next) => format!("tensor `{}` of {} bytes", next.name, next.bytes),
            None => "the end of the file".to_owned(),
        };
        Error::WriteOrder { path: self.path.clone(), expected, found }
    }
}

fn write_error(path: &Path, need_bytes: u64, source: io::Error) -> Error {
    match source.kind() {
        // The disk, the user's share of it, or (as on FAT32, 4 GiB) one file is full.
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Error::NoSpace { path: path.to_path_buf(), need_bytes, source }
        }
        _ => Error::io(path, "write")(source),
    }
}

/// A temporary file, removed on drop unless it was renamed.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    renamed: bool,
}

impl Part {
    fn create(target: &Path) -> Result<(Part, File)> {
        // Two writers of one process get two names; a name left behind by a killed process is not taken over.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".part-{}-{n}", std::process::id()));
        let path = target.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io(&path, "create"))?;
        Ok((Part { path, renamed: false }, file))
    }

    fn rename(mut self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).map_err(Error::io(target, "replace"))?;
        self.renamed = true;
        // So that the new name survives a power cut. Some file systems refuse to sync a folder; the file
        // itself is whole and synced under one name or the other, so that this is no reason to fail.
        #[cfg(unix)]
        if let Some(folder) = target.parent() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.renamed {
            // Nothing can be done about a failure here, and the cause of the drop is being reported already.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_how_much_was_needed() {
        let path = Path::new("out/m.gguf");
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge] {
            let message = write_error(path, 5_000_000_000, kind.into()).to_string();
            let shown = path.display();
            assert!(
                message.starts_with(&format!("no room for {shown}: it needs 5000000000 bytes")),
                "{message}"
            );
            assert!(message.ends_with("; free some there or write to another disk"), "{message}");
        }
    }

    /// Checksums and verdicts are only known at the end: in a file and in memory they land in the header alike.
    #[test]
    fn announced_values_can_be_patched_after_a_look() {
        let mut heads = Vec::new();
        let mut write = |begin: &dyn Fn(GgufWriter) -> GgufStream| {
            let mut writer = GgufWriter::new();
            writer
                .set("first", "text")
                .unwrap()
                .set("sums", &[0u64; 3][..])
                .unwrap()
                .set("loss", 0f32)
                .unwrap();
            writer.add_tensor("x", GgmlType::I8, &[100]).unwrap();
            let mut stream = begin(writer);
            assert!(stream.look(|_| ()).is_err());
            stream.tensor("x", &[7; 100]).unwrap();
            assert!(stream.patch("sums", [1u64].as_slice()).is_err());
            assert!(stream.patch("other", [1u64, 2, 3].as_slice()).is_err());
            assert!(stream.patch("loss", 1u32).is_err());
            stream.patch("sums", [1u64, 2, u64::MAX].as_slice()).unwrap();
            let seen = stream.look(|bytes| bytes.to_vec()).unwrap();
            assert_eq!(crate::store::Gguf::parse(&seen).unwrap().tensor("x").unwrap().data, [7; 100]);
            stream.patch("loss", 0.25f32).unwrap();
            heads.push(stream.head().to_vec());
            stream.finish().unwrap()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        write(&|w| w.begin(&path).unwrap());
        let bytes = write(&|w| w.begin_in_memory().unwrap());
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(heads[0], bytes[..heads[0].len()]);
        assert_eq!(heads[1], heads[0]);
        let gguf = crate::store::Gguf::parse(&bytes).unwrap();
        let sums: Vec<u64> = gguf.u64_array("sums").unwrap().unwrap().collect();
        assert_eq!(sums, [1, 2, u64::MAX]);
        assert_eq!(gguf.f32("loss").unwrap(), Some(0.25));
        assert_eq!(gguf.tensor("x").unwrap().data, [7; 100]);
    }

    #[test]
    fn bytes_kept_after_a_look_are_an_error() {
        let mut stream = GgufWriter::new().begin_in_memory().unwrap();
        let mut kept = None;
        assert!(stream.look(|bytes| kept = Some(bytes)).is_err());
        assert!(stream.finish().is_err());
    }

    #[test]
    fn after_a_failed_write_nothing_can_be_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let mut writer = GgufWriter::new();
        writer.add_tensor("x", GgmlType::I8, &[4 << 20]).unwrap();
        let mut stream = writer.begin(&path).unwrap();
        // A file opened for reading refuses what is larger than the buffer at once.
        let Target::File(out, part) = &mut stream.out else { panic!("begun in a file") };
        out.flush().unwrap();
        *out = BufWriter::new(File::open(&part.path).unwrap());
        let message = stream.tensor("x", &vec![0; 4 << 20]).unwrap_err().to_string();
        assert!(message.starts_with("cannot write "), "{message}");
        let message = stream.finish().unwrap_err().to_string();
        assert!(message.contains("expected nothing more after a failed write"), "{message}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
