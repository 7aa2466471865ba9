//! What a packed file is made of: which of its tensors are one packed matrix, and which are as in any GGUF file.

use std::collections::{HashMap, HashSet};

use super::fault::GgufError;
use super::gguf::{Gguf, TensorInfo};
use super::matrix::MatrixInfo;
use super::packed::{ARCH_PREFIX, FORMAT_VERSION, layout_tag};
use super::stack::{self, Stack};
use crate::error::{Error, Result};

/// Whether the file says that it holds packed matrices.
///
/// # Errors
/// An architecture that is no text.
pub fn is_packed(gguf: &Gguf<'_>) -> Result<bool, GgufError> {
    Ok(gguf.str("general.architecture")?.is_some_and(|a| a.starts_with(ARCH_PREFIX)))
}

/// Checks that this version can read a packed file.
///
/// # Errors
/// [`Error::Packed`] with what is unknown here.
pub fn check_version(gguf: &Gguf<'_>) -> Result<()> {
    let version = gguf.u32("lutite.version")?.unwrap_or(0);
    if version != FORMAT_VERSION {
        let why = format!(
            "format version {version}, this program reads {FORMAT_VERSION}; pack the source file again"
        );
        return Err(Error::Packed(why));
    }
    let mut features = gguf.str_array("lutite.features")?.into_iter().flatten();
    if let Some(feature) = features.find(|feature| *feature != stack::FEATURE) {
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

/// The packed matrices that a file says it has, by name; of a stacked file, each in one of its versions.
#[derive(Clone, Debug)]
pub struct Directory {
    matrices: HashMap<String, MatrixInfo>,
    stack: Stack,
}

/// A matrix or vector of a model, however many tensors of the file it is made of.
#[derive(Clone, Copy, Debug)]
pub enum Part<'d, 'a> {
    /// A matrix, whose name has no suffix: planes or fields, and parameters; or levels.
    Packed(&'d str, &'d MatrixInfo),
    /// One tensor.
    Plain(&'d TensorInfo<'a>),
}

impl Directory {
    /// Reads `lutite.tensors`; a file that is not packed has nothing in it. Matrices are in the best version that is there.
    ///
    /// # Errors
    /// [`Error::Packed`] for a line that means nothing, a name that has two, or a stack that is none.
    pub fn read(gguf: &Gguf<'_>) -> Result<Directory> {
        let base = Directory::base(gguf)?;
        let present = base.stack.present();
        Ok(base.at(present))
    }

    /// As [`read`](Self::read), with matrices in their least versions.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn base(gguf: &Gguf<'_>) -> Result<Directory> {
        let mut all = HashMap::new();
        if !is_packed(gguf)? {
            return Ok(Directory { matrices: all, stack: Stack::default() });
        }
        for line in gguf.str_array("lutite.tensors")?.into_iter().flatten() {
            let info = MatrixInfo::parse(line).map_err(Error::Packed)?;
            if let MatrixInfo::Levels(levels) = &info {
                if levels.matrix() != levels.name {
                    let why =
                        format!("{:?} is named as a version, and is none; the file is damaged", levels.name);
                    return Err(Error::Packed(why));
                }
                // A short line may speak of many tensors.
                info.find(gguf)?;
            }
            if let Some(twice) = all.insert(info.name().to_owned(), info) {
                let why =
                    format!("lutite.tensors has two entries for {:?}; the file is damaged", twice.name());
                return Err(Error::Packed(why));
            }
        }
        let stack = Stack::read(gguf, &all)?;
        Ok(Directory { matrices: all, stack })
    }

    /// With matrices as the first `blocks` blocks of the stack make them.
    pub fn at(mut self, blocks: usize) -> Directory {
        self.matrices.extend(self.stack.least().map(|(name, info)| (name.to_owned(), info.clone())));
        for block in self.stack.blocks().iter().take(blocks) {
            self.matrices.insert(block.matrix.clone(), block.info.clone());
        }
        self
    }

    /// The residual part; empty for most files.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Bytes and number of the weights of all packed matrices, in the versions that they are in.
    pub fn size(&self) -> (u64, u64) {
        let one = |i: &MatrixInfo| {
            (i.bytes().unwrap_or(usize::MAX) as u64, i.shape().rows as u64 * i.shape().cols as u64)
        };
        self.matrices.values().map(one).fold((0, 0), |a, b| (a.0.saturating_add(b.0), a.1 + b.1))
    }

    /// The matrix of that name, which has no suffix.
    pub fn get(&self, name: &str) -> Option<&MatrixInfo> {
        self.matrices.get(name)
    }

    /// All packed matrices, each in the version that it is in.
    pub fn matrices(&self) -> impl Iterator<Item = (&str, &MatrixInfo)> {
        self.matrices.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// All parts of the model in the order of the file; a packed matrix stands where its first tensor does. Versions of a
    /// matrix that are not in use are left out.
    ///
    /// # Errors
    /// A packed matrix whose first tensor is missing.
    pub fn parts<'d, 'a>(&'d self, gguf: &'d Gguf<'a>) -> Result<Vec<Part<'d, 'a>>, GgufError> {
        let mut first = HashMap::new();
        let mut rest = HashSet::new();
        for (matrix, info) in &self.matrices {
            let mut names = info.tensors().into_iter().map(|(name, _, _)| name);
            if let Some(name) = names.next() {
                gguf.require(&name)?;
                rest.extend(names);
                first.insert(name, (matrix, info));
            }
        }
        let idle = self.stack.idle(&self.matrices);
        let used = |t: &&TensorInfo<'_>| !rest.contains(t.name) && !idle.contains(t.name);
        let parts = gguf.tensors().iter().filter(used);
        let part = |t: &'d TensorInfo<'a>| match first.get(t.name) {
            Some((name, info)) => Part::Packed(name, info),
            None => Part::Plain(t),
        };
        Ok(parts.map(part).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::GgufWriter;
    use super::*;
    use lutite_kernels::ggml::GgmlType;

    const LINES: [&str; 2] =
        ["b kind=uniform rows=2 cols=3 planes=2 group=32", "a kind=hlq8 rows=2 cols=3 planes=2 group=32"];

    /// A file of the matrices of [`LINES`] and two vectors, with tensors as `change` leaves them.
    fn file(change: impl Fn(&mut Vec<(String, GgmlType, Vec<u64>)>)) -> Vec<u8> {
        let mut tensors = Vec::new();
        for (line, vector) in LINES.iter().zip(["z", "y"]) {
            tensors.extend(MatrixInfo::parse(line).unwrap().tensors());
            tensors.push((vector.to_owned(), GgmlType::F32, vec![1]));
        }
        change(&mut tensors);
        let mut w = GgufWriter::new();
        w.set("general.architecture", "lut-x").unwrap().set("lutite.tensors", &LINES[..]).unwrap();
        tensors.iter().for_each(|(name, ty, dims)| {
            w.add_tensor(name, *ty, dims).unwrap();
        });
        let mut out = w.begin_in_memory().unwrap();
        for (name, ty, dims) in &tensors {
            let row = ty.row_bytes(dims[0] as usize).unwrap();
            out.tensor(name, &vec![0; row * dims[1..].iter().product::<u64>() as usize]).unwrap();
        }
        out.finish().unwrap()
    }

    #[test]
    fn parts_are_in_the_order_of_the_file() {
        let bytes = file(|_| ());
        let gguf = Gguf::parse(&bytes).unwrap();
        let directory = Directory::read(&gguf).unwrap();
        let names = directory.parts(&gguf).unwrap().into_iter().map(|part| match part {
            Part::Packed(name, _) => format!("packed {name}"),
            Part::Plain(t) => t.name.to_owned(),
        });
        assert_eq!(names.collect::<Vec<_>>(), ["packed b", "z", "packed a", "y"]);
        for name in ["a", "b"] {
            let info = directory.get(name).unwrap();
            let mut row = [1.0; 3];
            let view = info.view(info.find(&gguf).unwrap().iter().map(|t| t.data)).unwrap();
            view.dequantize_row(1, &mut row).unwrap();
            assert_eq!(row, [0.0; 3]);
            // Too little data is an error, not a fault of the program.
            assert!(info.view(info.find(&gguf).unwrap().iter().skip(1).map(|t| t.data)).is_err());
        }
        assert!(directory.get("z").is_none());
    }

    #[test]
    fn what_is_missing_is_named() {
        let bytes = file(|all| all.retain(|t| t.0 != "a.p0"));
        let gguf = Gguf::parse(&bytes).unwrap();
        let directory = Directory::read(&gguf).unwrap();
        assert!(directory.parts(&gguf).unwrap_err().to_string().contains("tensor `a.p0`: is missing"));
        let bytes = file(|all| all.iter_mut().filter(|t| t.0 == "a.r2").for_each(|t| t.1 = GgmlType::BF16));
        let gguf = Gguf::parse(&bytes).unwrap();
        let message = directory.get("a").unwrap().find(&gguf).unwrap_err().to_string();
        assert!(message.contains("tensor \"a.r2\" has type BF16, expected F16"), "{message}");
    }
}
