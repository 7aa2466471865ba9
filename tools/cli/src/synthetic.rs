//! Models of random weights in the shapes of real ones: for measuring speed where no file is at hand. How
//! long a product takes does not depend on the weights' values.

use crate::args::{Bits, Synthetic};
use crate::ui::Progress;
use crate::{interrupt, ui};
use half::f16;
use lutite_kernels::ggml::GgmlType;
use lutite_kernels::pack::p32::TILE_ROWS;
use lutite_kernels::pack::{ParamKind, PlaneShape};
use lutite_runtime::os::memory;
use lutite_runtime::store::{
    ARCH_PREFIX, Bytes, FORMAT_VERSION, GgufStream, GgufWriter, PackedInfo, layout_tag,
};

/// Planes of a synthetic 7B or 8B model where nothing else is said.
const DEFAULT_PLANES: usize = 2;
/// Columns per group where planes are asked for without a group.
const DEFAULT_GROUP: usize = 128;

/// Sizes of a Llama-like model.
#[derive(Debug)]
struct Sizes {
    name: &'static str,
    dim: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    tied: bool,
}

/// From the models' own `config.json`.
const LLAMA2_7B: Sizes = Sizes {
    name: "llama2-7b",
    dim: 4096,
    layers: 32,
    heads: 32,
    kv_heads: 32,
    ffn: 11_008,
    vocab: 32_000,
    context: 4096,
    tied: false,
};
const LLAMA3_8B: Sizes = Sizes {
    name: "llama3-8b",
    dim: 4096,
    layers: 32,
    heads: 32,
    kv_heads: 8,
    ffn: 14_336,
    vocab: 128_256,
    context: 8192,
    tied: false,
};
const SMOLLM2: Sizes = Sizes {
    name: "smollm2",
    dim: 576,
    layers: 30,
    heads: 9,
    kv_heads: 3,
    ffn: 1536,
    vocab: 49_152,
    context: 8192,
    tied: true,
};

/// How a matrix is stored.
#[derive(Clone, Copy, Debug)]
struct Format {
    kind: ParamKind,
    planes: usize,
    group: usize,
}

/// A model that could be made.
#[derive(Debug)]
pub(crate) struct Recipe {
    sizes: &'static Sizes,
    body: Format,
    head: Format,
}

impl Recipe {
    /// `bits` planes with parameters of kind hlq16 everywhere; without `bits` that is 2, and for SmolLM2 what
    /// exact import makes of the file that is pulled.
    ///
    /// # Errors
    /// Options that mean nothing together.
    pub(crate) fn new(which: Synthetic, bits: Option<Bits>, group: Option<u32>) -> anyhow::Result<Recipe> {
        let sizes = match which {
            Synthetic::Llama2_7b => &LLAMA2_7B,
            Synthetic::Llama3_8b => &LLAMA3_8B,
            Synthetic::SmolLm2 => &SMOLLM2,
        };
        let planes = match (which, bits) {
            (_, Some(Bits::Planes(q))) => usize::from(q),
            (Synthetic::SmolLm2, None | Some(Bits::Exact)) => {
                if group.is_some() {
                    anyhow::bail!(
                        "--group needs --bits 1 to 8: the exact formats of smollm2 have their own groups"
                    );
                }
                let format = |kind, planes| Format { kind, planes, group: 32 };
                let (body, head) = (format(ParamKind::Uniform, 4), format(ParamKind::Centered(128), 8));
                return Ok(Recipe { sizes, body, head });
            }
            (_, None) => DEFAULT_PLANES,
            (_, Some(Bits::Exact)) => anyhow::bail!(
                "--bits exact keeps a source's bits, and synthetic {} has no source; give --bits 1 to 8",
                sizes.name
            ),
        };
        let group = group.map_or(DEFAULT_GROUP, |g| g as usize);
        let format = Format { kind: ParamKind::Hlq16, planes, group };
        Ok(Recipe { sizes, body: format, head: format })
    }

    /// As the table of results shall call it.
    pub(crate) fn name(&self) -> String {
        format!("synthetic {}", self.sizes.name)
    }

    /// All matrices that a token reads, in file order.
    fn matrices(&self) -> Vec<PackedInfo> {
        let s = self.sizes;
        let kv = s.dim / s.heads * s.kv_heads;
        let info = |name: String, rows, cols, f: Format| PackedInfo {
            name,
            kind: f.kind,
            shape: PlaneShape { rows, cols },
            planes: f.planes,
            group: f.group,
        };
        let mut all = Vec::new();
        for layer in 0..s.layers {
            for (part, rows, cols) in [
                ("attn_q", s.dim, s.dim),
                ("attn_k", kv, s.dim),
                ("attn_v", kv, s.dim),
                ("attn_output", s.dim, s.dim),
                ("ffn_gate", s.ffn, s.dim),
                ("ffn_up", s.ffn, s.dim),
                ("ffn_down", s.dim, s.ffn),
            ] {
                all.push(info(format!("blk.{layer}.{part}"), rows, cols, self.body));
            }
        }
        let head = if s.tied { "token_embd" } else { "output" };
        all.push(info(head.into(), s.vocab, s.dim, self.head));
        all
    }

    /// Bytes of weights that one token reads.
    pub(crate) fn bytes_per_token(&self) -> u64 {
        self.matrices().iter().map(|i| i.bytes().unwrap_or(usize::MAX) as u64).sum()
    }

    /// Makes the model, as a packed file in memory.
    ///
    /// # Errors
    /// When it does not fit into memory; [`ui::Quit::Interrupted`] after Ctrl-C.
    pub(crate) fn build(&self, threads: usize) -> anyhow::Result<Bytes> {
        let s = self.sizes;
        let matrices = self.matrices();
        let mut w = GgufWriter::new();
        w.set("general.architecture", format!("{ARCH_PREFIX}llama"))?;
        w.set("general.name", self.name())?;
        for (key, value) in [
            ("embedding_length", s.dim),
            ("block_count", s.layers),
            ("attention.head_count", s.heads),
            ("attention.head_count_kv", s.kv_heads),
            ("feed_forward_length", s.ffn),
            ("vocab_size", s.vocab),
            ("context_length", s.context),
        ] {
            w.set(&format!("llama.{key}"), value as u32)?;
        }
        w.set("lutite.version", FORMAT_VERSION)?;
        w.set("lutite.layout", layout_tag())?;
        let lines: Vec<String> = matrices.iter().map(PackedInfo::line).collect();
        w.set("lutite.tensors", lines.as_slice())?;

        let table = (!s.tied).then_some("token_embd.weight");
        if let Some(table) = table {
            w.add_tensor(table, GgmlType::Q4_0, &[s.dim as u64, s.vocab as u64])?;
        }
        let norms: Vec<String> = (0..s.layers)
            .flat_map(|i| [format!("blk.{i}.attn_norm.weight"), format!("blk.{i}.ffn_norm.weight")])
            .chain(["output_norm.weight".into()])
            .collect();
        for name in &norms {
            w.add_tensor(name, GgmlType::F32, &[s.dim as u64])?;
        }
        for (name, ty, dims) in matrices.iter().flat_map(PackedInfo::tensors) {
            w.add_tensor(&name, ty, &dims)?;
        }
        self.check_memory(&matrices)?;

        let mut out = w.begin_in_memory()?;
        let mut fill = Fill { threads, seed: 0, scratch: Vec::new() };
        let mut bar = Progress::bytes(&format!("making {}", self.name()), out.total_bytes());
        if let Some(table) = table {
            fill.q4_0(s.dim * s.vocab);
            out.tensor(table, &fill.scratch)?;
        }
        let ones: Vec<u8> = (0..s.dim).flat_map(|_| 1.0_f32.to_le_bytes()).collect();
        for name in &norms {
            out.tensor(name, &ones)?;
        }
        let mut done = fill.scratch.len() as u64;
        for info in &matrices {
            interrupt::check(interrupt::flag())?;
            fill.matrix(info, &mut out)?;
            done += info.bytes().unwrap_or(0) as u64;
            bar.set(done);
        }
        Ok(Bytes::new(out.finish()?))
    }

    /// The file, and beside it one tensor at a time while it is made: the table of token vectors is the
    /// largest.
    fn bytes_in_memory(&self, matrices: &[PackedInfo]) -> u64 {
        let s = self.sizes;
        let table = if s.tied { 0 } else { q4_0_bytes(s.dim * s.vocab) as u64 };
        let planes = matrices.iter().filter_map(largest_part).max().unwrap_or(0) as u64;
        self.bytes_per_token() + table + table.max(planes)
    }

    fn check_memory(&self, matrices: &[PackedInfo]) -> anyhow::Result<()> {
        let needed = self.bytes_in_memory(matrices);
        match memory::available() {
            Some(m) if m.bytes < needed => anyhow::bail!(
                "{} needs {}, and {} has {} left; give fewer --bits or a smaller model",
                self.name(),
                ui::megabytes(needed),
                m.bound_by,
                ui::megabytes(m.bytes)
            ),
            _ => Ok(()),
        }
    }
}

/// Bytes of the largest plane or field of a matrix.
fn largest_part(i: &PackedInfo) -> Option<usize> {
    i.kind.part_bytes(i.shape, *i.kind.widths(i.planes).iter().max()?)
}

/// ggml's blocks of 32 weights: an f16 and 16 bytes of codes.
const Q4_0_BLOCK: usize = 18;

fn q4_0_bytes(weights: usize) -> usize {
    weights / 32 * Q4_0_BLOCK
}

/// Makes the data of one tensor after another.
struct Fill {
    threads: usize,
    seed: u64,
    scratch: Vec<u8>,
}

impl Fill {
    /// One matrix: random codes, and scales for which a product of unit inputs has about unit variance, so
    /// that all numbers stay in range through any number of layers.
    fn matrix(&mut self, info: &PackedInfo, out: &mut GgufStream) -> anyhow::Result<()> {
        let parameters = parameters(info);
        let parts = info.part_names().len();
        for (i, (name, ty, dims)) in info.tensors().iter().enumerate() {
            let values = dims.iter().product::<u64>() as usize;
            match (i < parts, ty) {
                (true, _) => self.random(values),
                (false, GgmlType::I8) => {
                    self.scratch.clear();
                    self.scratch.resize(values, INT8_CODE.cast_unsigned());
                }
                (false, _) => {
                    self.scratch.resize(2 * values, 0);
                    let blocks = self.scratch.chunks_exact_mut(parameters.len());
                    blocks.for_each(|b| b.copy_from_slice(&parameters));
                }
            }
            out.tensor(name, &self.scratch)?;
        }
        Ok(())
    }

    /// A table of weights in type `Q4_0`.
    fn q4_0(&mut self, weights: usize) {
        self.random(q4_0_bytes(weights));
        // Codes less 8 have a deviation of 4.6: token vectors get one of about 1.
        let d = f16::from_f32(1.0 / 4.6).to_le_bytes();
        self.scratch.chunks_exact_mut(Q4_0_BLOCK).for_each(|block| block[..2].copy_from_slice(&d));
    }

    /// `len` random bytes.
    fn random(&mut self, len: usize) {
        // Below this, starting a thread costs more than the thread saves.
        let part = len.div_ceil(self.threads).max(1 << 18).next_multiple_of(8);
        self.scratch.resize(len, 0);
        std::thread::scope(|scope| {
            for (i, part) in self.scratch.chunks_mut(part).enumerate() {
                let mut random = Random::new(self.seed + i as u64);
                scope.spawn(move || {
                    for word in part.chunks_mut(8) {
                        word.copy_from_slice(&random.next().to_le_bytes()[..word.len()]);
                    }
                });
            }
        });
        self.seed += self.threads as u64;
    }
}

/// Every int8 parameter; the f16 scales make the value.
const INT8_CODE: i8 = 127;

/// The f16 parameters of one group (int8 kinds: the scales of one tile or superblock), `[coefficient][32]`.
fn parameters(info: &PackedInfo) -> Vec<u8> {
    let codes = (1_u32 << info.planes) as f32;
    let deviation = ((codes * codes - 1.0) / 12.0).sqrt();
    let step = 1.0 / ((info.shape.cols as f32).sqrt() * deviation);
    let middle = -step * (codes - 1.0) / 2.0;
    let scales = (0..info.planes).map(|p| step * (1_u32 << p) as f32);
    let values: Vec<f32> = match info.kind {
        ParamKind::Hlq16 | ParamKind::Hlq8 => scales.chain([middle]).collect(),
        ParamKind::Uniform | ParamKind::UniformK => vec![step, middle],
        ParamKind::Centered(_) | ParamKind::CenteredK(_) => vec![step],
    };
    let unit = if info.kind.coefficient_bytes() == 1 { 1.0 / f32::from(INT8_CODE) } else { 1.0 };
    values.iter().flat_map(|v| [f16::from_f32(v * unit).to_le_bytes(); TILE_ROWS]).flatten().collect()
}

/// xorshift64* (Marsaglia 2003, Vigna 2016): fast, and random enough for weights and prompts nobody looks at.
pub(crate) struct Random(u64);

impl Random {
    /// Any seed will do.
    pub(crate) fn new(seed: u64) -> Random {
        // Spreads small seeds over all bits; the state must not be 0.
        Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 random bits.
    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The measurement that the project promises on a small machine.
    #[test]
    fn seven_billion_weights_of_two_bits_fit_into_4_gib() {
        let recipe = Recipe::new(Synthetic::Llama2_7b, Some(Bits::Planes(2)), Some(128)).unwrap();
        let bytes = recipe.bytes_in_memory(&recipe.matrices());
        assert!((1_900_000_000..2_400_000_000).contains(&bytes), "{bytes}");
        // 2 planes, and 3 f16 for 128 weights.
        let weights: usize = recipe.matrices().iter().map(|i| i.shape.rows * i.shape.cols).sum();
        assert_eq!(recipe.bytes_per_token(), weights as u64 * 19 / 64);
    }

    #[test]
    fn logits_are_finite_and_differ() {
        use lutite_models::{OpenOptions, open};
        use lutite_runtime::decode::{Decoder, Logits, Phase};
        let recipe = Recipe::new(Synthetic::SmolLm2, Some(Bits::Planes(1)), Some(64)).unwrap();
        // Random weights carry no checksums.
        let isa = lutite_kernels::isa::Isa::detect();
        let options = OpenOptions { context: Some(8), verify: false, ..OpenOptions::new(isa) };
        let mut model = open::open(&recipe.build(2).unwrap(), &options).unwrap();
        let logits = model.step(&[1, 2, 3, 4], Phase::Prompt, Logits::Last).unwrap();
        assert!(logits.iter().all(|x| x.is_finite()));
        assert!(logits.iter().any(|x| (x - logits[0]).abs() > 0.1));
    }

    #[test]
    fn options_without_meaning_are_refused() {
        let why = |which, bits, group| Recipe::new(which, bits, group).unwrap_err().to_string();
        assert!(why(Synthetic::Llama2_7b, Some(Bits::Exact), None).contains("no source"));
        assert!(why(Synthetic::SmolLm2, None, Some(64)).contains("--group needs --bits"));
    }

    /// A weight's variance times the inputs' number is 1 for every kind.
    #[test]
    fn parameters_keep_unit_variance() {
        for (kind, planes) in [
            (ParamKind::Hlq16, 2),
            (ParamKind::Hlq8, 3),
            (ParamKind::Uniform, 4),
            (ParamKind::Centered(128), 8),
            (ParamKind::UniformK, 4),
            (ParamKind::CenteredK(32), 6),
        ] {
            let shape = PlaneShape { rows: 64, cols: 256 };
            let info = PackedInfo { name: "x".into(), kind, shape, planes, group: 64 };
            let mut writer = GgufWriter::new();
            for (name, ty, dims) in info.tensors() {
                writer.add_tensor(&name, ty, &dims).unwrap();
            }
            let mut out = writer.begin_in_memory().unwrap();
            let mut fill = Fill { threads: 2, seed: 0, scratch: Vec::new() };
            fill.matrix(&info, &mut out).unwrap();
            let file = out.finish().unwrap();
            let gguf = lutite_runtime::store::Gguf::parse(&file).unwrap();
            let packed = info.view(gguf.tensors().iter().map(|t| t.data)).unwrap();
            let mut row = vec![0.0; shape.cols];
            packed.dequantize_row(40, &mut row).unwrap();
            let variance = row.iter().map(|w| w * w).sum::<f32>();
            assert!((0.6..1.5).contains(&variance), "{kind:?}: {variance}");
        }
    }
}
