//! Finds a model's tensors in its file, in whichever form the chosen path multiplies.

use crate::arch::llama::Embedding;
use crate::error::{Error, Result};
use crate::linear::{Linear, PackedWeights};
use lutite_kernels::ggml::{GgmlType, dequantize_row};
use lutite_kernels::plain::PlainType;
use lutite_runtime::store::{ARCH_PREFIX, Bytes, FORMAT_VERSION, Gguf, PackedInfo, TensorInfo, layout_tag};
use std::collections::HashMap;

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
    bytes: &'a Bytes,
    packed: HashMap<String, PackedInfo>,
    path: Path,
}

impl<'a> Weights<'a> {
    /// Reads the directory and checks that this version can read the packed part.
    pub(crate) fn new(gguf: &'a Gguf<'a>, bytes: &'a Bytes, path: Path) -> Result<Weights<'a>> {
        let is_packed = gguf.str("general.architecture")?.is_some_and(|a| a.starts_with(ARCH_PREFIX));
        let mut packed = HashMap::new();
        if is_packed {
            check_version(gguf)?;
            for line in gguf.str_array("lutite.tensors")?.into_iter().flatten() {
                let info = PackedInfo::parse(line).map_err(Error::Packed)?;
                packed.insert(info.name.clone(), info);
            }
        } else if path == Path::Lut {
            return Err(Error::Packed(
                "this file holds no bit planes; pack it first (lutite quantize)".into(),
            ));
        }
        Ok(Weights { gguf, bytes, packed, path })
    }

    /// Whether the file has this matrix in either form. `name` has no suffix.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.packed.contains_key(name) || self.gguf.tensor(&format!("{name}.weight")).is_some()
    }

    /// The matrix `name`, which must be `rows x cols`, with its bias if it has one.
    pub(crate) fn linear(&self, name: &str, rows: usize, cols: usize) -> Result<Linear> {
        let linear = match self.packed.get(name) {
            Some(info) => {
                if (info.shape.rows, info.shape.cols) != (rows, cols) {
                    let found = format!("{} x {}", info.shape.rows, info.shape.cols);
                    return Err(shape_error(name, &format!("{rows} x {cols}"), &found));
                }
                let packed = self.packed(info)?;
                if self.path == Path::Lut { packed } else { plain_from(&packed)? }
            }
            None => self.plain(&format!("{name}.weight"), rows, cols)?,
        };
        let bias = format!("{name}.bias");
        let bias = if self.gguf.tensor(&bias).is_some() { Some(self.vector(&bias, rows)?) } else { None };
        Ok(linear.with_bias(bias))
    }

    /// The table of token vectors, `[vocab][dim]`, of a model whose head is another matrix.
    pub(crate) fn embedding(&self, vocab: usize, dim: usize) -> Result<Embedding> {
        let t = self.gguf.require("token_embd.weight")?;
        if t.shape() != [dim as u64, vocab as u64] {
            return Err(shape_error(t.name, &format!("{dim} x {vocab}"), &format!("{:?}", t.shape())));
        }
        // Found out now, not at the first token.
        dequantize_row(t.ty, &t.data[..t.data.len() / vocab], &mut vec![0.0; dim])?;
        Ok(Embedding::Rows { ty: t.ty, bytes: self.part(t)? })
    }

    /// A vector of `n` numbers as f32.
    pub(crate) fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>> {
        let t = self.gguf.require(name)?;
        if t.shape() != [n as u64] {
            return Err(shape_error(name, &n.to_string(), &format!("{:?}", t.shape())));
        }
        let mut out = vec![0.0; n];
        dequantize_row(t.ty, t.data, &mut out)?;
        Ok(out)
    }

    fn packed(&self, info: &PackedInfo) -> Result<Linear> {
        let get = |name: &str, ty: GgmlType| -> Result<Bytes> {
            let t = self.gguf.require(name)?;
            if t.ty != ty {
                let why = format!("has type {}, expected {}", t.ty.name(), ty.name());
                return Err(Error::Tensor { name: name.to_owned(), why });
            }
            self.part(t)
        };
        let mut parts =
            info.tensors().into_iter().map(|(name, ty, _)| get(&name, ty)).collect::<Result<Vec<_>>>()?;
        let row_scales = match info.row_scales_name() {
            Some(_) => parts.pop(),
            None => None,
        };
        let params = parts.pop();
        let w = PackedWeights {
            info: info.clone(),
            planes: parts,
            params: params.unwrap_or_else(Bytes::empty),
            row_scales: row_scales.unwrap_or_else(Bytes::empty),
        };
        Linear::packed(w)
            .map_err(|e| Error::Tensor { name: info.name.clone(), why: format!("{e}; the file is damaged") })
    }

    fn plain(&self, name: &str, rows: usize, cols: usize) -> Result<Linear> {
        let t = self.gguf.require(name)?;
        if t.shape() != [cols as u64, rows as u64] {
            return Err(shape_error(name, &format!("{cols} x {rows}"), &format!("{:?}", t.shape())));
        }
        let ty = match t.ty {
            GgmlType::F32 => PlainType::F32,
            GgmlType::F16 => PlainType::F16,
            GgmlType::BF16 => PlainType::Bf16,
            _ => {
                let mut out = vec![0.0; rows * cols];
                dequantize_row(t.ty, t.data, &mut out)?;
                return Ok(Linear::plain(rows, cols, PlainType::F32, floats(&out)));
            }
        };
        Ok(Linear::plain(rows, cols, ty, self.part(t)?))
    }

    fn part(&self, t: &TensorInfo<'_>) -> Result<Bytes> {
        self.bytes
            .part(t.data)
            .ok_or_else(|| Error::Tensor { name: t.name.to_owned(), why: "lies outside of the file".into() })
    }
}

/// Dequantizes bit planes to f32.
fn plain_from(packed: &Linear) -> Result<Linear> {
    let (rows, cols) = (packed.rows(), packed.cols());
    let mut out = vec![0.0; rows * cols];
    for (r, row) in out.chunks_exact_mut(cols).enumerate() {
        packed.row(r, row)?;
    }
    Ok(Linear::plain(rows, cols, PlainType::F32, floats(&out)))
}

fn floats(x: &[f32]) -> Bytes {
    Bytes::new(x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

fn shape_error(name: &str, expected: &str, found: &str) -> Error {
    let why = format!("has shape {found}, the model's configuration asks for {expected}");
    Error::Tensor { name: name.to_owned(), why }
}

fn check_version(gguf: &Gguf<'_>) -> Result<()> {
    let version = gguf.u32("lutite.version")?.unwrap_or(0);
    if version == 0 || version > FORMAT_VERSION {
        let why = format!(
            "format version {version}, this program reads 1 to {FORMAT_VERSION}; update it or pack again"
        );
        return Err(Error::Packed(why));
    }
    if let Some(feature) = gguf.str_array("lutite.features")?.into_iter().flatten().next() {
        return Err(Error::Packed(format!(
            "it needs the feature {feature:?}, which this program does not have"
        )));
    }
    let layout = gguf.str("lutite.layout")?.unwrap_or("(none)");
    if layout != layout_tag() {
        let why = format!("layout {layout}, this program reads {}; pack the source file again", layout_tag());
        return Err(Error::Packed(why));
    }
    Ok(())
}
