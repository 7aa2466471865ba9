//! A model with some matrices from one file and the others from another, to see what single ones cost.

use crate::error::{Error, Result};
use crate::pack::begin;
use lutite_runtime::store::{
    Directory, Gguf, GgufWriter, LevelsInfo, MatrixInfo, ModelFile, Part, TensorInfo, TensorPart,
};

/// A file, parsed, and its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Opened<'a> {
    /// The former.
    pub gguf: &'a Gguf<'a>,
    /// The latter.
    pub file: &'a ModelFile,
}

/// The model of `packed`, with the matrices that `take` names, and those of `source` instead of the others. Both are of one
/// model; `source` may be packed or not. Nothing but the head is copied.
///
/// # Errors
/// A matrix that `source` does not have.
pub fn mix(source: Opened<'_>, packed: Opened<'_>, take: impl Fn(&str) -> bool) -> Result<ModelFile> {
    let mut w = begin(packed.gguf)?;
    let (ours, theirs) = (Directory::read(source.gguf)?, Directory::read(packed.gguf)?);
    let (mut lines, mut parts) = (Vec::new(), Vec::new());
    for part in theirs.parts(packed.gguf)? {
        match part {
            Part::Plain(t) => add(&mut w, &mut parts, packed, t)?,
            Part::Packed(name, info) => {
                let (from, info) = match ours.get(name) {
                    _ if take(name) => (packed, info),
                    Some(info) => (source, info),
                    None => {
                        let t = source.gguf.require(&format!("{name}.weight"))?;
                        add(&mut w, &mut parts, source, t)?;
                        continue;
                    }
                };
                lines.push(info.line());
                for t in info.find(from.gguf)? {
                    add(&mut w, &mut parts, from, t)?;
                }
            }
        }
    }
    w.set("lutite.tensors", lines.as_slice())?;
    Ok(w.assemble(parts)?)
}

/// The model of `packed` with the first `levels` levels of its matrices, of those that have more. Nothing but the head is copied.
///
/// # Errors
/// A file that is damaged.
pub fn first_levels(packed: Opened<'_>, levels: usize) -> Result<ModelFile> {
    let mut w = begin(packed.gguf)?;
    let (mut lines, mut parts) = (Vec::new(), Vec::new());
    for part in Directory::read(packed.gguf)?.parts(packed.gguf)? {
        match part {
            Part::Plain(t) => add(&mut w, &mut parts, packed, t)?,
            Part::Packed(_, info) => {
                let info = match info {
                    MatrixInfo::Levels(all) => {
                        LevelsInfo { levels: all.levels.min(levels), ..all.clone() }.into()
                    }
                    MatrixInfo::Packed(_) => info.clone(),
                };
                lines.push(info.line());
                for t in info.find(packed.gguf)? {
                    add(&mut w, &mut parts, packed, t)?;
                }
            }
        }
    }
    w.set("lutite.tensors", lines.as_slice())?;
    Ok(w.assemble(parts)?)
}

fn add(w: &mut GgufWriter, parts: &mut Vec<TensorPart>, from: Opened<'_>, t: &TensorInfo<'_>) -> Result<()> {
    w.add_tensor(t.name, t.ty, t.shape())?;
    let data = from.file.tensor_bytes(t);
    let missing = || Error::Tensor { name: t.name.to_owned(), why: "lies outside of the file".into() };
    parts.push(TensorPart { data: data.ok_or_else(missing)?, order: t.order });
    Ok(())
}
