//! BitStack's checkpoints, made of a model in the published layout. Also included by the tests of `tools/cli`.

use super::folder::{Files, HfTensor, folder_of, hf_tensors, safetensors};
use half::f16;
use lutite_runtime::store::Gguf;
use serde_json::{Value, json};

/// A checkpoint, and what it is made of.
pub(crate) struct Made {
    /// Its files: of one with so many levels of rank 1.
    pub(crate) files: Files,
    /// Names of the layers' matrices with `.weight`, in the model's order.
    pub(crate) matrices: Vec<String>,
    /// Levels of each matrix, by the entries of the list.
    pub(crate) entries: Vec<Vec<usize>>,
    tensors: Vec<HfTensor>,
}

/// Which matrix has a level more than the others in the list's first entry.
pub(crate) const AHEAD: usize = 3;

impl Made {
    /// Of a Llama in GGUF with weights in F32.
    pub(crate) fn of(gguf: &Gguf<'_>, levels: usize) -> Made {
        let (mut tensors, mut matrices) = (Vec::new(), Vec::new());
        for t in hf_tensors(gguf) {
            let (name, dtype, shape, data) = &t;
            if !(name.starts_with("model.layers.") && shape.len() == 2) {
                tensors.push(t);
                continue;
            }
            assert_eq!(*dtype, "F32");
            let weights = data.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
            let module = name.strip_suffix(".weight").unwrap();
            tensors.extend(decompose(module, weights, shape[1] as usize, levels));
            matrices.push(name.clone());
        }
        // The last matrix is raised first, level after level.
        let count = matrices.len();
        let mut entries: Vec<Vec<usize>> = vec![(0..count).map(|i| 1 + usize::from(i == AHEAD)).collect()];
        let raised = (1..levels).flat_map(|level| (0..count).rev().map(move |matrix| (level, matrix)));
        for (_, matrix) in raised.filter(|raise| *raise != (1, AHEAD)) {
            let mut entry = entries[entries.len() - 1].clone();
            entry[matrix] += 1;
            entries.push(entry);
        }
        let mut files = folder_of(gguf);
        files.insert("model.safetensors".into(), safetensors(&tensors));
        files.insert("compression_config.json".into(), list(&matrices, &entries).to_string().into_bytes());
        Made { files, matrices, entries, tensors }
    }

    /// Blocks behind the list's first entry.
    pub(crate) fn blocks(&self) -> usize {
        self.entries.len() - 1
    }

    /// The same model with plain weights: `sum over i of S_i o (u_i vt_i)` of so many levels of each matrix, in f32.
    pub(crate) fn plain(&self, levels: &[usize]) -> Files {
        let find = |name: String| self.tensors.iter().find(|t| t.0 == name).unwrap();
        let mut tensors: Vec<HfTensor> =
            self.tensors.iter().filter(|t| t.0.ends_with(".weight")).cloned().collect();
        for (name, levels) in self.matrices.iter().zip(levels) {
            let module = name.strip_suffix(".weight").unwrap();
            let (m, n) =
                (find(format!("{module}.u_0")).2[0] as usize, find(format!("{module}.vt_0")).2[1] as usize);
            let mut w = vec![0.0f32; m * n];
            for i in 0..*levels {
                let [signs, u, vt] =
                    ["qweight", "u", "vt"].map(|part| &find(format!("{module}.{part}_{i}")).3);
                let half =
                    |data: &[u8], i: usize| f16::from_le_bytes([data[2 * i], data[2 * i + 1]]).to_f32();
                for (at, w) in w.iter_mut().enumerate() {
                    let magnitude = half(u, at / n) * half(vt, at % n);
                    *w += if signs[at / 8] << (at % 8) & 128 > 0 { magnitude } else { -magnitude };
                }
            }
            let data = w.iter().flat_map(|w| w.to_le_bytes()).collect();
            tensors.push((name.clone(), "F32", vec![m as u64, n as u64], data));
        }
        let mut files = self.files.clone();
        files.remove("compression_config.json");
        files.insert("model.safetensors".into(), safetensors(&tensors));
        files
    }
}

/// Levels of rank 1: of what is left, signs, and means of magnitudes along rows and columns.
fn decompose(module: &str, mut left: Vec<f32>, n: usize, levels: usize) -> Vec<HfTensor> {
    let m = left.len() / n;
    let mut tensors = Vec::new();
    for i in 0..levels {
        let mean = |of: &mut dyn Iterator<Item = &f32>, count: usize| {
            of.map(|x| x.abs()).sum::<f32>() / count as f32
        };
        let all = mean(&mut left.iter(), m * n);
        let u: Vec<f16> = left.chunks(n).map(|row| f16::from_f32(mean(&mut row.iter(), n))).collect();
        let vt = |c: usize| mean(&mut left.iter().skip(c).step_by(n), m) / all;
        let vt: Vec<f16> = (0..n).map(|c| f16::from_f32(vt(c))).collect();
        let mut signs = vec![0; (m * n).div_ceil(8)];
        for (at, x) in left.iter_mut().enumerate() {
            let magnitude = u[at / n].to_f32() * vt[at % n].to_f32();
            if *x >= 0.0 {
                signs[at / 8] |= 128 >> (at % 8);
                *x -= magnitude;
            } else {
                *x += magnitude;
            }
        }
        let halves = |x: &[f16]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let (m, n) = (m as u64, n as u64);
        tensors.push((format!("{module}.qweight_{i}"), "U8", vec![signs.len() as u64], signs));
        tensors.push((format!("{module}.u_{i}"), "F16", vec![m, 1], halves(&u)));
        tensors.push((format!("{module}.vt_{i}"), "F16", vec![1, n], halves(&vt)));
    }
    tensors
}

/// `compression_config.json`.
fn list(matrices: &[String], entries: &[Vec<usize>]) -> Value {
    let name = |m: &String| m.replacen("model.layers.", "layer.", 1).replace(".weight", "");
    let names: Vec<String> = matrices.iter().map(name).collect();
    let entry = |levels: &Vec<usize>| {
        let layers = names.iter().cloned().zip(levels.iter().map(|n| json!(n)));
        let layers: serde_json::Map<String, Value> = layers.collect();
        json!({ "memory": 1000 * levels.iter().sum::<usize>(), "layers": layers })
    };
    entries.iter().map(entry).collect()
}
