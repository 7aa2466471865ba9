//! Finds a model's tensors in its file, in whichever form the chosen path multiplies.

use crate::arch::llama::{Begin, Embedding};
use crate::error::{Error, Result};
use crate::linear::{How, Linear};
use crate::signs::SignShape;
use crate::verify::verify_tensor;
use lutite_kernels::ggml::{GgmlError, GgmlType, dequantize_row};
use lutite_kernels::plain::PlainType;
use lutite_runtime::pool::Pool;
use lutite_runtime::residency::{Home, Host, Piece, Residency, Start};
use lutite_runtime::store::{
    Bytes, Directory, Gguf, Loaded, MatrixInfo, ModelFile, RowOrder, TensorInfo, check_version, is_packed,
};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::OnceLock;

/// How weight matrices are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Path {
    /// Bit planes and look-up tables; the file must be packed.
    #[default]
    Lut,
    /// Plain f32, f16 or bf16 numbers: slow, and what everything else is judged by. Anything quantized is
    /// dequantized to f32 first.
    Plain,
}

/// A model file with the directory of its packed tensors.
pub(crate) struct Weights<'a> {
    gguf: &'a Gguf<'a>,
    file: &'a ModelFile,
    packed: Directory,
    path: Path,
    /// Where packed matrices are to lie and the checksums of all tensors, if not in the file's map.
    home: Option<(Home, Vec<u64>)>,
    /// Matrices that were read and not yet taken.
    read: RefCell<HashMap<String, Loaded>>,
}

impl<'a> Weights<'a> {
    /// Reads the directory and checks that this version can read the packed part.
    pub(crate) fn new(gguf: &'a Gguf<'a>, file: &'a ModelFile, path: Path) -> Result<Weights<'a>> {
        if is_packed(gguf)? {
            check_version(gguf)?;
        }
        Weights::of(gguf, file, path, Directory::read(gguf)?)
    }

    /// As [`Weights::new`] of a file whose directory has been read.
    pub(crate) fn of(
        gguf: &'a Gguf<'a>,
        file: &'a ModelFile,
        path: Path,
        packed: Directory,
    ) -> Result<Weights<'a>> {
        if path == Path::Lut && !is_packed(gguf)? {
            let why = "this file holds no bit planes; pack it first (lutite quantize)".to_owned();
            return Err(lutite_runtime::Error::Packed(why).into());
        }
        Ok(Weights { gguf, file, packed, path, home: None, read: RefCell::default() })
    }

    /// With matrices as the first `blocks` blocks of the stack make them, read from `home`; `sums` are the checksums of the
    /// file's tensors, in listing order.
    pub(crate) fn at(mut self, blocks: usize, home: Home, sums: Vec<u64>) -> Weights<'a> {
        self.packed = self.packed.at(blocks);
        self.home = Some((home, sums));
        self
    }

    /// Reads those of these matrices that come from a home, on all workers, in the order of the file; [`Weights::linear`] takes
    /// them.
    pub(crate) fn read(&self, names: impl Iterator<Item = String>, pool: &mut Pool) -> Result<()> {
        let Some((home, sums)) = &self.home else { return Ok(()) };
        let mut pieces = Vec::new();
        for name in names {
            if let Some(info) = self.packed.get(&name) {
                pieces.push((name, Piece::find(self.gguf, info, sums)?));
            }
        }
        pieces.sort_by_key(|(_, piece)| piece.start());
        let loaded: Vec<OnceLock<_>> = pieces.iter().map(|_| OnceLock::new()).collect();
        pool.each(pieces.len(), |i| _ = loaded[i].set(home.load_in_order(&pieces[i].1)));
        for ((name, _), loaded) in pieces.into_iter().zip(loaded) {
            if let Some(loaded) = loaded.into_inner() {
                self.read.borrow_mut().insert(name, loaded?);
            }
        }
        Ok(())
    }

    /// Holds a tensor against its checksum, if that was not done for the whole file.
    fn verify(&self, t: &TensorInfo<'_>) -> Result<()> {
        let sum = |sums: &Vec<u64>| sums.get(self.gguf.position(t.name)?).copied();
        let sum = self.home.as_ref().and_then(|(_, sums)| sum(sums));
        sum.map_or(Ok(()), |sum| verify_tensor(t, sum))
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &Directory {
        &self.packed
    }

    /// Hands its stack over to `host`, if versions come from a home.
    pub(crate) fn residency(self, begin: &Begin, host: impl Host + 'static) -> Result<Option<Residency>> {
        let Some((home, sums)) = self.home else { return Ok(None) };
        let Begin { blocks, wanted, limit, .. } = *begin;
        let (gguf, stack) = (self.gguf, self.packed.stack());
        let start = Start { gguf, stack, sums: &sums, home, blocks, wanted, limit };
        Ok(Some(Residency::start(start, host)?))
    }

    /// Bytes of the tables that products of levels take at most, as [`SignShape`] has it: those of a layer's matrices, and more
    /// than any of its stages has. Saturating.
    pub(crate) fn sign_bytes(&self) -> u64 {
        if self.path == Path::Plain {
            return 0;
        }
        let stack = self.packed.stack().blocks().iter().map(|b| (b.matrix.as_str(), &b.info));
        let mut matrices: HashMap<&str, u64> = HashMap::new();
        for (name, info) in self.packed.matrices().chain(stack) {
            let bytes = SignShape::of(info).bytes();
            matrices.entry(name).and_modify(|most| *most = bytes.max(*most)).or_insert(bytes);
        }
        let mut layers: HashMap<&str, u64> = HashMap::new();
        for (name, bytes) in matrices {
            let layer = name.rsplit_once('.').map_or(name, |(layer, _)| layer);
            let sum = layers.entry(layer).or_default();
            *sum = sum.saturating_add(bytes);
        }
        layers.into_values().max().unwrap_or(0)
    }

    /// Whether the file has this matrix in either form. `name` has no suffix.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.packed.get(name).is_some() || self.gguf.tensor(&format!("{name}.weight")).is_some()
    }

    /// Checks the matrix `name` and its bias as far as that costs no memory, and returns the bytes that
    /// [`Weights::linear`] will allocate for them.
    pub(crate) fn check_linear(&self, name: &str, rows: usize, cols: usize) -> Result<u64> {
        let numbers = 4 * rows as u64 * cols as u64;
        let bytes = match self.packed.get(name) {
            Some(info) => {
                self.packed(name, info, rows, cols)?;
                if self.path == Path::Lut { 0 } else { numbers }
            }
            None => {
                let t = self.matrix(&format!("{name}.weight"), rows, cols)?;
                match plain_type(t.ty) {
                    None => numbers,
                    Some(_) if t.order == RowOrder::Listed => 0,
                    // A copy with its rows in order.
                    Some(_) => t.data.len() as u64,
                }
            }
        };
        let bias = format!("{name}.bias");
        Ok(bytes + if self.gguf.tensor(&bias).is_some() { self.check_vector(&bias, rows)? } else { 0 })
    }

    /// The matrix `name`, which must be `rows x cols`, with its bias if it has one.
    pub(crate) fn linear(&self, name: &str, rows: usize, cols: usize, how: How) -> Result<Linear> {
        let mut linear = match self.packed.get(name) {
            Some(info) => {
                let packed = self.packed(name, info, rows, cols)?;
                if self.path == Path::Lut {
                    let mut linear = Linear::packed(packed, how).map_err(|e| damaged(info, &e))?;
                    linear.set_versions(self.versions(name));
                    linear
                } else {
                    let view = packed.view().map_err(|e| damaged(info, &e.into()))?;
                    let numbers = floats(name, rows, cols, |r, row| Ok(view.dequantize_row(r, row)?))?;
                    Linear::plain(rows, cols, PlainType::F32, numbers, how)
                }
            }
            None => self.plain(&format!("{name}.weight"), rows, cols, how)?,
        };
        linear.set_bias(self.bias(name, rows)?);
        Ok(linear)
    }

    /// The bias of the matrix `name`, if it has one.
    pub(crate) fn bias(&self, name: &str, rows: usize) -> Result<Option<Vec<f32>>> {
        let bias = format!("{name}.bias");
        if self.gguf.tensor(&bias).is_some() { self.vector(&bias, rows).map(Some) } else { Ok(None) }
    }

    /// Where the packed matrix `name` lies in the file, and the home that it is to be read to.
    pub(crate) fn piece(&self, name: &str) -> Result<Piece> {
        let missing = || Error::Tensor { name: name.to_owned(), why: "is not packed".into() };
        let sums = self.home.as_ref().map_or(&[][..], |(_, sums)| sums);
        Ok(Piece::find(self.gguf, self.packed.get(name).ok_or_else(missing)?, sums)?)
    }

    /// Where packed matrices are read to.
    pub(crate) fn home(&self) -> Option<Home> {
        self.home.as_ref().map(|(home, _)| home.clone())
    }

    /// The table of token vectors, `[vocab][dim]`, of a model whose head is another matrix.
    pub(crate) fn embedding(&self, vocab: usize, dim: usize) -> Result<Embedding> {
        let t = self.matrix("token_embd.weight", vocab, dim)?;
        self.verify(t)?;
        Ok(Embedding::Rows { ty: t.ty, bytes: self.part(t)? })
    }

    /// The vectors of tokens, `[vocab][dim]`, where they lie in the file, for a part of a model without its head.
    pub(crate) fn token_rows(&self, vocab: usize, dim: usize) -> Result<Embedding> {
        let Some(info) = self.packed.get("token_embd") else { return self.embedding(vocab, dim) };
        self.check_shape(info, vocab, dim)?;
        let loaded = self.mapped(info)?;
        info.find(self.gguf)?.into_iter().try_for_each(|t| self.verify(t))?;
        loaded.view().map_err(|e| damaged(info, &e.into()))?;
        Ok(Embedding::Packed(loaded))
    }

    /// As [`Weights::check_linear`], for [`Weights::vector`].
    pub(crate) fn check_vector(&self, name: &str, n: usize) -> Result<u64> {
        let t = self.gguf.require(name)?;
        if t.shape() != [n as u64] {
            return Err(shape_error(name, &n.to_string(), &format!("{:?}", t.shape())));
        }
        Ok(4 * n as u64)
    }

    /// A vector of `n` numbers as f32.
    pub(crate) fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>> {
        self.check_vector(name, n)?;
        let t = self.gguf.require(name)?;
        self.verify(t)?;
        let mut out = vec![0.0; n];
        dequantize_row(t.ty, t.data, &mut out).map_err(|e| unreadable(t, &e))?;
        // One such number in a norm or a bias spoils every token; said here, it has a name.
        match out.iter().position(|x| !x.is_finite()) {
            None => Ok(out),
            Some(i) => {
                let why = format!("value {i} is {}, no finite number; the file is damaged", out[i]);
                Err(Error::Tensor { name: name.to_owned(), why })
            }
        }
    }

    /// The plain tensor of a matrix of `rows x cols`, of a type that can be read.
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<&TensorInfo<'a>> {
        let t = self.gguf.require(name)?;
        if t.shape() != [cols as u64, rows as u64] {
            return Err(shape_error(name, &format!("[{cols}, {rows}]"), &format!("{:?}", t.shape())));
        }
        // Found out on one row now, not at the first token.
        dequantize_row(t.ty, &t.data[..t.data.len() / rows], &mut vec![0.0; cols])
            .map_err(|e| unreadable(t, &e))?;
        Ok(t)
    }

    /// What a stack may bring the matrix to.
    fn versions(&self, name: &str) -> Vec<MatrixInfo> {
        let stack = self.packed.stack();
        let of = stack.blocks().iter().enumerate().filter(|(_, b)| b.matrix == name);
        of.flat_map(|(i, b)| [stack.older(i), Some(&b.info)]).flatten().cloned().collect()
    }

    fn packed(&self, name: &str, info: &MatrixInfo, rows: usize, cols: usize) -> Result<Loaded> {
        self.check_shape(info, rows, cols)?;
        let loaded = match &self.home {
            Some((home, sums)) => match self.read.borrow_mut().remove(name) {
                Some(loaded) => loaded,
                None => home.load(&Piece::find(self.gguf, info, sums)?, None)?,
            },
            None => self.mapped(info)?,
        };
        loaded.view().map_err(|e| damaged(info, &e.into()))?;
        Ok(loaded)
    }

    fn check_shape(&self, info: &MatrixInfo, rows: usize, cols: usize) -> Result<()> {
        let shape = info.shape();
        if (shape.rows, shape.cols) != (rows, cols) {
            let found = format!("[{}, {}]", shape.cols, shape.rows);
            return Err(shape_error(info.name(), &format!("[{cols}, {rows}]"), &found));
        }
        Ok(())
    }

    /// A packed matrix in the file's map.
    fn mapped(&self, info: &MatrixInfo) -> Result<Loaded> {
        let tensors = info.find(self.gguf)?.into_iter().map(|t| self.part(t)).collect::<Result<_>>()?;
        Ok(Loaded { info: info.clone(), tensors })
    }

    fn plain(&self, name: &str, rows: usize, cols: usize, how: How) -> Result<Linear> {
        let t = self.matrix(name, rows, cols)?;
        self.verify(t)?;
        if let Some(ty) = plain_type(t.ty) {
            return Ok(Linear::plain(rows, cols, ty, self.part(t)?, how));
        }
        let numbers =
            floats(name, rows, cols, |r, row| Ok(dequantize_row(t.ty, &t.row_bytes(r..r + 1), row)?))?;
        Ok(Linear::plain(rows, cols, PlainType::F32, numbers, how))
    }

    fn part(&self, t: &TensorInfo<'_>) -> Result<Bytes> {
        self.file
            .tensor_bytes(t)
            .ok_or_else(|| Error::Tensor { name: t.name.to_owned(), why: "lies outside of the file".into() })
    }
}

fn damaged(info: &MatrixInfo, e: &Error) -> Error {
    Error::Tensor { name: info.name().to_owned(), why: format!("{e}; the file is damaged") }
}

/// The types that are multiplied as they lie in the file.
fn plain_type(ty: GgmlType) -> Option<PlainType> {
    match ty {
        GgmlType::F32 => Some(PlainType::F32),
        GgmlType::F16 => Some(PlainType::F16),
        GgmlType::BF16 => Some(PlainType::Bf16),
        _ => None,
    }
}

/// `rows x cols` numbers as bytes of f32; `row(r, out)` writes one row.
fn floats(
    name: &str,
    rows: usize,
    cols: usize,
    row: impl Fn(usize, &mut [f32]) -> Result<()>,
) -> Result<Bytes> {
    let mut all: Vec<u8> = Vec::new();
    let size = rows.checked_mul(cols).and_then(|n| n.checked_mul(4));
    if size.is_none_or(|size| all.try_reserve_exact(size).is_err()) {
        let why = format!("{rows} x {cols} numbers of 4 bytes cannot be allocated");
        return Err(Error::Tensor { name: name.to_owned(), why });
    }
    let mut numbers = vec![0.0; cols];
    for r in 0..rows {
        row(r, &mut numbers)?;
        all.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
    }
    Ok(Bytes::new(all))
}

fn unreadable(t: &TensorInfo<'_>, e: &GgmlError) -> Error {
    Error::Tensor { name: t.name.to_owned(), why: e.to_string() }
}

fn shape_error(name: &str, expected: &str, found: &str) -> Error {
    let why = format!("has shape {found}, the model's configuration asks for {expected}");
    Error::Tensor { name: name.to_owned(), why }
}
