//! A model's hyperparameters, read from GGUF metadata and checked before anything is allocated.

use crate::error::{Error, Result};
use lutite_kernels::attention::MAX_HEAD_DIM;
use lutite_kernels::ggml::dequantize_row;
use lutite_kernels::ops::rope::{RopeConfig, RopeScaling};
use lutite_runtime::store::{ARCH_PREFIX, Gguf, MatrixInfo};

/// Families that [`Config::read`] accepts.
pub const ARCHITECTURES: [&str; 1] = ["llama"];

/// Hyperparameters of a Llama-like decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Family as GGUF names it, without our prefix.
    pub arch: String,
    /// Width of the residual stream.
    pub dim: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub ffn: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Positions that the model was trained for.
    pub context: usize,
    /// Epsilon of the RMS norms.
    pub eps: f32,
    /// Rotary embedding.
    pub rope: RopeConfig,
}

/// Reads one family's keys, with the key in every message.
struct Keys<'a, 'b> {
    gguf: &'a Gguf<'b>,
    arch: String,
}

impl Keys<'_, '_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }
    fn bad(&self, name: &str, why: impl Into<String>) -> Error {
        Error::Config { key: self.key(name), why: why.into() }
    }
    fn opt(&self, name: &str) -> Result<Option<usize>> {
        Ok(self.gguf.u32(&self.key(name))?.map(|v| v as usize))
    }
    /// A size: required, above 0 and below 2^24, so that no product of two overflows.
    fn size(&self, name: &str) -> Result<usize> {
        let v = self.opt(name)?.ok_or_else(|| self.bad(name, "missing from the file's metadata"))?;
        self.check(name, v)
    }
    fn check(&self, name: &str, v: usize) -> Result<usize> {
        if v == 0 || v >= 1 << 24 {
            return Err(self.bad(name, format!("{v} is out of range (1 to 16777215)")));
        }
        Ok(v)
    }
    fn float(&self, name: &str, default: f32) -> Result<f32> {
        let v = self.gguf.f32(&self.key(name))?.unwrap_or(default);
        if !v.is_finite() {
            return Err(self.bad(name, format!("{v} is no finite number")));
        }
        Ok(v)
    }
}

impl Config {
    /// Reads and checks the configuration of a model file, packed or not.
    ///
    /// # Errors
    /// [`Error::Architecture`] for another family, [`Error::Config`] with the key that is wrong.
    pub fn read(gguf: &Gguf<'_>) -> Result<Config> {
        let found = gguf.str("general.architecture")?.unwrap_or("(none)");
        let arch = found.strip_prefix(ARCH_PREFIX).unwrap_or(found).to_owned();
        if !ARCHITECTURES.contains(&arch.as_str()) {
            return Err(Error::Architecture { found: found.to_owned(), supported: ARCHITECTURES.join(", ") });
        }
        let k = Keys { gguf, arch: arch.clone() };
        let dim = k.size("embedding_length")?;
        let heads = k.size("attention.head_count")?;
        let kv_heads =
            k.check("attention.head_count_kv", k.opt("attention.head_count_kv")?.unwrap_or(heads))?;
        let head_dim =
            k.check("attention.key_length", k.opt("attention.key_length")?.unwrap_or(dim / heads))?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(
                k.bad("attention.head_count_kv", format!("{kv_heads} does not divide the {heads} heads"))
            );
        }
        if !head_dim.is_multiple_of(8) || head_dim > MAX_HEAD_DIM {
            let why = format!(
                "a head of {head_dim} dimensions is not supported (a multiple of 8, at most {MAX_HEAD_DIM})"
            );
            return Err(k.bad("attention.key_length", why));
        }
        if k.opt("attention.value_length")?.is_some_and(|v| v != head_dim) {
            return Err(k.bad("attention.value_length", "differs from key_length, which is not supported"));
        }
        if k.opt("expert_count")?.is_some_and(|n| n > 0) {
            return Err(k.bad("expert_count", "mixtures of experts are not supported yet"));
        }
        // So that the widths of q, k and v are sizes like the others; a head has at most 256 dimensions.
        k.check("attention.head_count", heads.saturating_mul(head_dim))?;
        let vocab = k.check("vocab_size", vocab(&k)?)?;
        if let Some(tokens) = gguf.str_array("tokenizer.ggml.tokens")?
            && tokens.len() > vocab
        {
            let why = format!(
                "{} tokens, but the embedding has {vocab} rows; tokenizer and weights are of different models",
                tokens.len()
            );
            return Err(Error::Config { key: "tokenizer.ggml.tokens".into(), why });
        }
        let eps = k.float("attention.layer_norm_rms_epsilon", 1e-5)?;
        if eps <= 0.0 || eps > 1.0 {
            return Err(
                k.bad("attention.layer_norm_rms_epsilon", format!("{eps} is not above 0 and at most 1"))
            );
        }
        let layers = k.size("block_count")?;
        if let Some(t) = gguf.tensors().iter().find(|t| layer_of(t.name).is_some_and(|i| i >= layers)) {
            return Err(k.bad("block_count", format!("{layers}, but the file has the tensor {:?}", t.name)));
        }
        Ok(Config {
            dim,
            layers,
            heads,
            kv_heads,
            head_dim,
            ffn: k.size("feed_forward_length")?,
            vocab,
            context: k.size("context_length")?,
            eps,
            rope: rope(&k, head_dim)?,
            arch,
        })
    }
}

/// The layer that a tensor of this name belongs to.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Rows of the embedding, wherever they are: plain, packed, or only told of.
fn vocab(k: &Keys<'_, '_>) -> Result<usize> {
    if let Some(t) = k.gguf.tensor("token_embd.weight") {
        return Ok(usize::try_from(t.rows()).unwrap_or(usize::MAX));
    }
    for line in k.gguf.str_array("lutite.tensors")?.into_iter().flatten() {
        if line.starts_with("token_embd ") {
            return Ok(MatrixInfo::parse(line).map_err(lutite_runtime::Error::Packed)?.shape().rows);
        }
    }
    Ok(k.opt("vocab_size")?.unwrap_or(0))
}

fn rope(k: &Keys<'_, '_>, head_dim: usize) -> Result<RopeConfig> {
    let dims = k.opt("rope.dimension_count")?.unwrap_or(head_dim);
    if dims > head_dim || !dims.is_multiple_of(2) || dims == 0 {
        return Err(k.bad("rope.dimension_count", format!("{dims} is no even number up to {head_dim}")));
    }
    let base = f64::from(k.float("rope.freq_base", 10_000.0)?);
    if base <= 1.0 {
        return Err(k.bad("rope.freq_base", format!("{base} is not above 1")));
    }
    let kind = k.gguf.str(&k.key("rope.scaling.type"))?;
    // Files from before `rope.scaling.*` carry a linear factor alone.
    let old = k.float("rope.scale_linear", 1.0)?;
    let positive = |name: &str, default: f32| match k.float(name, default)? {
        x if x > 0.0 => Ok(f64::from(x)),
        x => Err(k.bad(name, format!("{x} is not above 0"))),
    };
    let factor = positive("rope.scaling.factor", old)?;
    let scaling = match kind {
        None if factor != 1.0 => RopeScaling::Linear { factor },
        None | Some("none") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor },
        Some("yarn") => RopeScaling::Yarn {
            factor,
            original_context: k.size("rope.scaling.original_context_length")? as f64,
            beta_fast: positive("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: positive("rope.scaling.yarn_beta_slow", 1.0)?,
            attention: positive("rope.scaling.attn_factor", 1.0)?,
        },
        Some(other) => {
            return Err(
                k.bad("rope.scaling.type", format!("{other:?} is not supported (none, linear, yarn)"))
            );
        }
    };
    let factors = match k.gguf.tensor("rope_freqs.weight") {
        None => Vec::new(),
        Some(t) => {
            let mut f = vec![0.0; dims / 2];
            let bad = |why: String| Error::Tensor { name: t.name.to_owned(), why };
            dequantize_row(t.ty, t.data, &mut f).map_err(|e| bad(e.to_string()))?;
            // Frequencies are divided by them.
            if let Some(x) = f.iter().find(|x| !x.is_finite() || **x <= 0.0) {
                return Err(bad(format!("has the factor {x}, which is not above 0; the file is damaged")));
            }
            f
        }
    };
    Ok(RopeConfig { dims, base, factors, scaling })
}
