//! Writes a model as an ordinary GGUF file, which other programs read: packed matrices become floats again, everything
//! else stays as it is.
//!
//! Rows are read and written by portions, so that memory does not grow with the model.

use crate::error::{Error, Result};
use crate::pack::copy_metadata;
use half::f16;
use lutite_kernels::ggml::GgmlType;
use lutite_runtime::store::{
    ARCH_PREFIX, Directory, Gguf, GgufWriter, Part, TensorInfo, View, check_version, is_packed,
};
use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// What packed weights become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// The nearest number of 16 bits.
    F16,
    /// The same number.
    F32,
}

impl FloatType {
    fn ggml(self) -> GgmlType {
        match self {
            FloatType::F16 => GgmlType::F16,
            FloatType::F32 => GgmlType::F32,
        }
    }

    /// `LLAMA_FTYPE_MOSTLY_F16` and `LLAMA_FTYPE_ALL_F32` of llama.cpp's `llama.h`.
    fn file_type(self) -> u32 {
        match self {
            FloatType::F16 => 1,
            FloatType::F32 => 0,
        }
    }

    /// As it is stored; infinite where it is beyond the range.
    fn round(self, x: f32) -> f32 {
        match self {
            FloatType::F16 => f16::from_f32(x).to_f32(),
            FloatType::F32 => x,
        }
    }
}

const FILE_TYPE_KEY: &str = "general.file_type";
const BLOCKS_VERSION_KEY: &str = "general.quantization_version";

/// `GGML_QNT_VERSION` of ggml's `ggml.h`: converters write it whatever the types are.
const BLOCKS_VERSION: u32 = 2;

/// Bytes that are held at a time, if a row has no more.
const PORTION_BYTES: usize = 1 << 20;

/// A tensor of the result.
#[derive(Debug)]
enum Step<'a> {
    Dequantize { name: String, matrix: Box<View<'a>> },
    Copy(TensorInfo<'a>),
}

/// The export of a model: decided and checked before anything is written.
#[derive(Debug)]
pub struct Export<'a> {
    source: &'a Gguf<'a>,
    ty: FloatType,
    steps: Vec<Step<'a>>,
}

impl<'a> Export<'a> {
    /// Plans the export of `source`, packed or not, its packed matrices as `ty`.
    ///
    /// # Errors
    /// A packed file of another version, or one whose directory does not match its tensors.
    pub fn new(source: &'a Gguf<'a>, ty: FloatType) -> Result<Export<'a>> {
        if is_packed(source)? {
            check_version(source)?;
        }
        let step = |part: Part<'_, 'a>| match part {
            Part::Plain(t) => Ok(Step::Copy(*t)),
            Part::Packed(name, info) => {
                let matrix = info.view(info.find(source)?.iter().map(|t| t.data));
                let name = format!("{name}.weight");
                match matrix {
                    Ok(matrix) => Ok(Step::Dequantize { name, matrix: Box::new(matrix) }),
                    Err(e) => Err(Error::Tensor { name, why: format!("{e}; the file is damaged") }),
                }
            }
        };
        let steps = Directory::read(source)?.parts(source)?.into_iter().map(step).collect::<Result<_>>()?;
        Ok(Export { source, ty, steps })
    }

    /// Matrices that are packed in the source.
    pub fn dequantized(&self) -> usize {
        self.steps.iter().filter(|s| matches!(s, Step::Dequantize { .. })).count()
    }

    /// Tensors that are copied.
    pub fn copied(&self) -> usize {
        self.steps.len() - self.dequantized()
    }

    /// Bytes of tensor data in the result.
    pub fn bytes(&self) -> u64 {
        self.steps.iter().map(|step| (self.rows(step) * self.row_bytes(step)) as u64).sum()
    }

    /// Writes the file: under its temporary name until it is whole. `progress` is called with the bytes of tensor data that
    /// are done; `cancel` is set from elsewhere to stop early.
    ///
    /// # Errors
    /// A weight beyond the type's range, a disk that is full, an interruption; nothing is left behind then.
    pub fn to_file(&self, path: &Path, progress: &mut dyn FnMut(u64), cancel: &AtomicBool) -> Result<()> {
        let mut out = self.header()?.begin(path)?;
        let mut done = 0;
        for step in &self.steps {
            let rows = self.rows(step);
            let at_once = (PORTION_BYTES / self.row_bytes(step)).max(1);
            let portion = |from: usize| {
                if cancel.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                let data = self.data(step, from..(from + at_once).min(rows))?;
                done += data.len() as u64;
                progress(done);
                Ok(data)
            };
            out.tensor_by_portions(step.name(), (0..rows).step_by(at_once).map(portion))?;
        }
        out.finish()?;
        Ok(())
    }

    /// Metadata and tensor descriptions.
    fn header(&self) -> Result<GgufWriter> {
        let mut w = GgufWriter::new();
        if let Some(arch) = self.source.str("general.architecture")? {
            w.set("general.architecture", arch.strip_prefix(ARCH_PREFIX).unwrap_or(arch))?;
        }
        if self.dequantized() > 0 {
            // The copied one would speak of the file that was packed.
            copy_metadata(self.source, &mut w, &[FILE_TYPE_KEY])?;
            w.set(FILE_TYPE_KEY, self.ty.file_type())?;
        } else {
            copy_metadata(self.source, &mut w, &[])?;
        }
        if self.source.get(BLOCKS_VERSION_KEY).is_none() {
            w.set(BLOCKS_VERSION_KEY, BLOCKS_VERSION)?;
        }
        for step in &self.steps {
            match step {
                Step::Copy(t) => w.add_tensor(t.name, t.ty, t.shape())?,
                Step::Dequantize { name, matrix } => {
                    let shape = matrix.shape();
                    w.add_tensor(name, self.ty.ggml(), &[shape.cols as u64, shape.rows as u64])?
                }
            };
        }
        Ok(w)
    }

    fn rows(&self, step: &Step<'_>) -> usize {
        match step {
            Step::Copy(t) => t.rows() as usize,
            Step::Dequantize { matrix, .. } => matrix.shape().rows,
        }
    }

    fn row_bytes(&self, step: &Step<'_>) -> usize {
        match step {
            Step::Copy(t) => t.data.len() / t.rows() as usize,
            Step::Dequantize { matrix, .. } => matrix.shape().cols * self.ty.ggml().block_bytes(),
        }
    }

    /// Some rows, as they are stored in the result.
    fn data(&self, step: &Step<'a>, rows: Range<usize>) -> Result<Cow<'a, [u8]>> {
        let (name, matrix) = match step {
            Step::Copy(t) => return Ok(t.row_bytes(rows)),
            Step::Dequantize { name, matrix } => (name, matrix),
        };
        let mut out = Vec::with_capacity(rows.len() * self.row_bytes(step));
        let mut numbers = vec![0.0; matrix.shape().cols];
        for row in rows {
            matrix.dequantize_row(row, &mut numbers)?;
            if let Some(col) = numbers.iter().position(|x| !self.ty.round(*x).is_finite()) {
                let x = numbers[col];
                let why = match x.is_finite() {
                    true => "beyond the 65504 of f16; use --type f32",
                    false => "no finite number; the file is damaged",
                };
                let why = format!("row {row}, column {col} is {x}, {why}");
                return Err(Error::Tensor { name: name.clone(), why });
            }
            match self.ty {
                FloatType::F16 => out.extend(numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes())),
                FloatType::F32 => out.extend(numbers.iter().flat_map(|x| x.to_le_bytes())),
            }
        }
        Ok(Cow::Owned(out))
    }
}

impl Step<'_> {
    /// The tensor's name.
    fn name(&self) -> &str {
        match self {
            Step::Copy(t) => t.name,
            Step::Dequantize { name, .. } => name,
        }
    }
}
