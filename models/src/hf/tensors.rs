//! The weights: from names in the index to data in mapped shards.

use super::config::HfConfig;
use super::names::{Wanted, ignored, wanted};
use super::{Folder, fault, json_fault, text_of};
use crate::error::Result;
use lutite_kernels::ggml::{GgmlType, dequantize_row};
use lutite_runtime::json::{Object, Text};
use lutite_runtime::store::{Bytes, Dtype, GgufWriter, RowOrder, Safetensors, TensorPart, TensorView};
use std::collections::{BTreeMap, BTreeSet};

/// A model in one file.
const SINGLE: &str = "model.safetensors";
/// The list of a model's files.
const INDEX: &str = "model.safetensors.index.json";

/// Which of a model's tensors are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// All, and there may be no others.
    All,
    /// All but the matrices of layers, whatever stands in their place.
    Rest,
}

/// Where a tensor is.
pub(super) struct Found<'a> {
    pub(super) shard: &'a str,
    pub(super) file: &'a Bytes,
    pub(super) view: TensorView<'a>,
}

/// Adds the descriptions of all tensors to `w`, or of all but the matrices of layers, and returns where their data is, in the
/// same order.
pub(super) fn add(
    folder: &mut Folder<'_>,
    c: &HfConfig,
    what: What,
    w: &mut GgufWriter,
) -> Result<Vec<TensorPart>> {
    let shards = Shards::open(folder)?;
    let mut found = shards.tensors()?;
    let place = shards.place();
    let mut parts = Vec::with_capacity(found.len());
    for t in wanted(c).filter(|t| what == What::All || !t.is_layers_matrix()) {
        match found.remove(&t.hf) {
            Some(f) => parts.push(part(&t, &f, c, w)?),
            None if t.optional => {}
            None => {
                let why = format!(
                    "has no tensor {}; the download is incomplete, or config.json is another model's",
                    t.hf
                );
                return Err(fault(place, why));
            }
        }
    }
    found.retain(|name, _| !ignored(name, c));
    if let Some((name, f)) = found.first_key_value().filter(|_| what == What::All) {
        let (name, rest) = (name.chars().take(100).collect::<String>(), found.len() - 1);
        let why = format!(
            "has the tensor {name} ({rest} more like it), which no Llama has; config.json is another model's, or the weights are \
             not those of a whole plain model (adapters have to be merged first)"
        );
        return Err(fault(f.shard, why));
    }
    if !c.rope_factors.is_empty() {
        w.add_tensor("rope_freqs.weight", GgmlType::F32, &[c.rope_factors.len() as u64])?;
        let data = c.rope_factors.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        parts.push(TensorPart { data: Bytes::new(data), order: RowOrder::Listed });
    }
    Ok(parts)
}

/// The files with weights.
pub(super) struct Shards {
    /// By name.
    pub(super) files: Vec<(String, Bytes)>,
    /// Which of them each tensor is in, where there is an index.
    index: Option<BTreeMap<String, String>>,
}

impl Shards {
    pub(super) fn open(folder: &mut Folder<'_>) -> Result<Shards> {
        if let Some(file) = folder.read(SINGLE)? {
            return Ok(Shards { files: vec![(SINGLE.to_owned(), file)], index: None });
        }
        let what_to_do = format!(
            "and so is {SINGLE}: the folder has no weights in safetensors (other formats are not read); fetch it again"
        );
        let text = folder.require(INDEX, &what_to_do)?;
        let index = weight_map(text_of(INDEX, &text)?)?;
        let names: BTreeSet<&String> = index.values().collect();
        let mut files = Vec::new();
        for name in names {
            let file = folder.require(name, &format!("but {INDEX} names it; fetch it again"))?;
            files.push((name.clone(), file));
        }
        Ok(Shards { files, index: Some(index) })
    }

    /// The tensors that count, by name.
    pub(super) fn tensors(&self) -> Result<BTreeMap<String, Found<'_>>> {
        let mut found: BTreeMap<String, Found<'_>> = BTreeMap::new();
        for (shard, file) in &self.files {
            let parsed = Safetensors::parse(file).map_err(|e| fault(shard, e.to_string()))?;
            for view in parsed.tensors() {
                // Shards of another saving may lie beside these: the index says which one counts.
                let of_this =
                    self.index.as_ref().is_none_or(|map| map.get(view.name.as_ref()) == Some(shard));
                if of_this {
                    found.insert(view.name.to_string(), Found { shard, file, view: view.clone() });
                }
            }
        }
        match self.index.iter().flatten().find(|(name, _)| !found.contains_key(*name)) {
            None => Ok(found),
            Some((name, shard)) => {
                let name: String = name.chars().take(100).collect();
                let why = format!("has no tensor {name}, which {INDEX} says it has; fetch both again");
                Err(fault(shard, why))
            }
        }
    }

    /// The file that lists the tensors.
    pub(super) fn place(&self) -> &'static str {
        if self.index.is_some() { INDEX } else { SINGLE }
    }
}

/// Which file each tensor is in.
fn weight_map(text: &str) -> Result<BTreeMap<String, String>> {
    let o = Object::parse(text).map_err(json_fault(INDEX))?;
    let map = o.get::<Object<'_>>("weight_map").map_err(json_fault(INDEX))?;
    let map = map.ok_or_else(|| fault(INDEX, "weight_map: is missing; fetch the file again"))?;
    let mut files = BTreeMap::new();
    for (tensor, _) in map.fields() {
        let file = map.get::<Text<'_>>(tensor).map_err(|e| json_fault(INDEX)(e.within("weight_map")))?;
        let file = file.unwrap_or_default();
        if !is_file_name(&file) {
            let shown: String = file.chars().take(100).collect();
            let why = format!(
                "weight_map: {shown:?} is not the name of a .safetensors file in the same folder; do not trust it"
            );
            return Err(fault(INDEX, why));
        }
        files.insert(tensor.to_string(), file.0.into_owned());
    }
    Ok(files)
}

/// A name and no path, on any system.
fn is_file_name(name: &str) -> bool {
    name.ends_with(".safetensors")
        && !name.starts_with('.')
        && !name.chars().any(|c| matches!(c, '/' | '\\' | ':') || c.is_control())
}

/// Where GGUF's rows of a tensor lie in the file.
pub(super) fn row_order(t: &Wanted, c: &HfConfig) -> RowOrder {
    if t.rotary { RowOrder::EvenOdd { head: c.head_dim as usize } } else { RowOrder::Listed }
}

/// Describes one tensor to `w`.
fn part(t: &Wanted, f: &Found<'_>, c: &HfConfig, w: &mut GgufWriter) -> Result<TensorPart> {
    let bad = |why: String| fault(f.shard, format!("tensor {}: {why}", t.hf));
    if f.view.shape != t.shape {
        return Err(bad(format!("has shape {:?}, config.json asks for {:?}", f.view.shape, t.shape)));
    }
    let ty = match &f.view.dtype {
        Dtype::F32 => GgmlType::F32,
        Dtype::F16 => GgmlType::F16,
        Dtype::BF16 => GgmlType::BF16,
        other => {
            return Err(bad(format!(
                "its numbers are {other}, which cannot be read (F32, F16, BF16 can); save the model in one of these"
            )));
        }
    };
    let data = f.view.bytes(f.file);
    let order = row_order(t, c);
    let columns_first: Vec<u64> = t.shape.iter().rev().copied().collect();
    if t.shape.len() == 1 && t.rotary {
        // A bias is one row to GGUF, so that its numbers are put in order here.
        let data = ordered_bias(ty, &data, order).map_err(bad)?;
        w.add_tensor(&t.gguf, GgmlType::F32, &columns_first)?;
        return Ok(TensorPart { data, order: RowOrder::Listed });
    }
    w.add_tensor(&t.gguf, ty, &columns_first)?;
    Ok(TensorPart { data, order })
}

/// The numbers of q's or k's bias in the order of the rows they are added to, as f32.
fn ordered_bias(ty: GgmlType, data: &[u8], order: RowOrder) -> std::result::Result<Bytes, String> {
    let n = data.len() * ty.block_len() / ty.block_bytes();
    let mut x = vec![0.0f32; n];
    dequantize_row(ty, data, &mut x).map_err(|e| e.to_string())?;
    let ordered = (0..n).flat_map(|row| x[order.place(row)].to_le_bytes());
    Ok(Bytes::new(ordered.collect::<Vec<u8>>()))
}
