//! Models whose matrices are levels of noise, in a stacked file or in an ordinary one.

use super::edit::Rng;
use lutite_kernels::ggml::GgmlType;
use lutite_kernels::pack::PlaneShape;
use lutite_runtime::store::{
    FORMAT_VERSION, Gguf, GgufWriter, LevelsInfo, MatrixInfo, Stack, layout_tag, version_name,
};
use std::collections::HashSet;

/// `seed` with all of its matrices, but for an untied table of tokens' vectors, as so many levels of noise; the first of
/// `levels` are those of the least versions, and each further number is that of a block for each matrix.
pub(crate) fn with_levels(seed: &[u8], levels: &[usize], rank: usize) -> Vec<u8> {
    let gguf = Gguf::parse(seed).unwrap();
    let tied = gguf.tensor("output.weight").is_none();
    let is_matrix = |name: &str, dims: usize| dims == 2 && (tied || name != "token_embd.weight");
    let matrices: Vec<(&str, PlaneShape)> = (gguf.tensors().iter())
        .filter(|t| is_matrix(t.name, t.n_dims()))
        .map(|t| {
            let shape = PlaneShape { rows: t.shape()[1] as usize, cols: t.shape()[0] as usize };
            (t.name.strip_suffix(".weight").unwrap(), shape)
        })
        .collect();
    let version = |v: usize| {
        let info = |(name, shape): &(&str, PlaneShape)| -> MatrixInfo {
            LevelsInfo { name: version_name(name, v), shape: *shape, levels: levels[v], rank }.into()
        };
        matrices.iter().map(info).collect::<Vec<_>>()
    };
    let blocks: Vec<MatrixInfo> = (1..levels.len()).flat_map(version).collect();
    let lines: Vec<String> = version(0).iter().map(MatrixInfo::line).collect();
    let mut w = GgufWriter::new();
    let of_file = ["general.architecture", "general.alignment"];
    for (key, value) in gguf.metadata().iter().filter(|(key, _)| !of_file.contains(key)) {
        w.set(key, *value).unwrap();
    }
    w.set("general.architecture", "lut-llama").unwrap();
    w.set("lutite.version", FORMAT_VERSION).unwrap();
    w.set("lutite.layout", layout_tag()).unwrap();
    w.set("lutite.tensors", lines.as_slice()).unwrap();
    if !blocks.is_empty() {
        Stack::announce(&mut w, &blocks, &[]).unwrap();
    }
    let mut rng = Rng(7);
    let mut tensors: Vec<(String, GgmlType, Vec<u64>, Vec<u8>)> = (gguf.tensors().iter())
        .filter(|t| !is_matrix(t.name, t.n_dims()))
        .map(|t| (t.name.to_owned(), t.ty, t.shape().to_vec(), t.data.to_vec()))
        .collect();
    let mut seen = HashSet::new();
    for info in version(0).iter().chain(&blocks) {
        for (name, ty, dims) in info.tensors() {
            if seen.insert(name.clone()) {
                let values: u64 = dims.iter().product();
                let data = match ty {
                    // Of either sign, between 1/16 and 1/8.
                    GgmlType::F16 => (0..values)
                        .flat_map(|_| (rng.next() as u16 & 0x83ff | 0x2c00).to_le_bytes())
                        .collect(),
                    _ => (0..values).map(|_| rng.next() as u8).collect(),
                };
                tensors.push((name, ty, dims, data));
            }
        }
    }
    for (name, ty, dims, _) in &tensors {
        w.add_tensor(name, *ty, dims).unwrap();
    }
    let mut out = w.begin_in_memory().unwrap();
    for (name, _, _, data) in &tensors {
        out.tensor(name, data).unwrap();
    }
    out.finish().unwrap()
}
