//! `config.json`: what the model is, in GGUF's keys.

use super::{fault, ids, json_fault};
use crate::error::{Error, Result};
use lutite_runtime::json::{JsonError, Object, Text};
use lutite_runtime::store::GgufWriter;

const FILE: &str = "config.json";

/// Families whose forward pass is Llama's, as `architectures` and `model_type` name them.
const FAMILIES: [(&str, &str); 2] = [("LlamaForCausalLM", "llama"), ("MistralForCausalLM", "mistral")];

/// A configuration, checked as far as shapes of tensors depend on it; the rest is checked as any GGUF file's.
#[derive(Debug)]
pub(super) struct HfConfig {
    pub(super) dim: u64,
    pub(super) layers: u64,
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    pub(super) head_dim: u64,
    pub(super) ffn: u64,
    pub(super) vocab: u64,
    /// The embedding is the head as well.
    pub(super) tied: bool,
    pub(super) bos: Option<u32>,
    pub(super) eos: Vec<u32>,
    /// Divisors of the rotary frequencies, one per pair; empty for none.
    pub(super) rope_factors: Vec<f32>,
    context: u64,
    eps: f64,
    rope_base: f64,
    scaling: Scaling,
}

/// Scaling of positions that is said in metadata.
#[derive(Debug, PartialEq)]
enum Scaling {
    None,
    Linear { factor: f64 },
    Yarn { factor: f64, original: u64, beta_fast: f64, beta_slow: f64, attention: f64 },
}

impl HfConfig {
    /// Reads and checks the text of a `config.json`.
    pub(super) fn read(text: &str, warnings: &mut Vec<String>) -> Result<HfConfig> {
        let o = Object::parse(text).map_err(json_fault(FILE))?;
        family(&o)?;
        not_quantized(&o)?;
        let c = Reader { o: &o };
        let (dim, heads) = (c.size("hidden_size")?, c.size("num_attention_heads")?);
        let kv_heads = c.optional_size("num_key_value_heads")?.unwrap_or(heads);
        let head_dim = c.optional_size("head_dim")?.unwrap_or(dim / heads);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(c.bad("head_dim", format!("is {head_dim}, not an even number")));
        }
        if !matches!(c.text("hidden_act")?.as_deref(), None | Some("silu" | "swish")) {
            return Err(c.bad("hidden_act", "only \"silu\" is supported"));
        }
        if c.number("partial_rotary_factor")?.is_some_and(|x| x != 1.0) {
            return Err(c.bad("partial_rotary_factor", "heads that are rotated in part are not supported"));
        }
        let mut context = c.size("max_position_embeddings")?;
        // Up to the window's length attention with and without it are the same.
        if let Some(window) = c.optional_size("sliding_window")?.filter(|&w| w < context) {
            warnings.push(format!(
                "{FILE}: attention slides over a window of {window} positions, which is not supported: the context ends \
                 there"
            ));
            context = window;
        }
        // transformers 5 keeps base and scaling in one object, before there were a number and an object or null.
        let (new, old): (Option<Object<'_>>, Option<Object<'_>>) =
            (c.get("rope_parameters")?, c.get("rope_scaling")?);
        let base = match &new {
            Some(new) => {
                new.get::<f64>("rope_theta").map_err(|e| json_fault(FILE)(e.within("rope_parameters")))?
            }
            None => None,
        };
        let rope_base = base.or(c.number("rope_theta")?).unwrap_or(10_000.0);
        let (key, rope) = if new.is_some() { ("rope_parameters", new) } else { ("rope_scaling", old) };
        let rope = Rope { key, o: rope.unwrap_or_default(), context, base: rope_base, head_dim };
        let (scaling, rope_factors) = rope.read()?;
        Ok(HfConfig {
            dim,
            layers: c.size("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            ffn: c.size("intermediate_size")?,
            vocab: c.size("vocab_size")?,
            tied: c.get("tie_word_embeddings")?.unwrap_or(false),
            bos: ids(&o, "bos_token_id").map_err(json_fault(FILE))?.first().copied(),
            eos: ids(&o, "eos_token_id").map_err(json_fault(FILE))?,
            rope_factors,
            context,
            eps: c.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_base,
            scaling,
        })
    }

    /// Writes the hyperparameters' keys.
    pub(super) fn write(&self, w: &mut GgufWriter) -> Result<()> {
        for (key, value) in [
            ("vocab_size", self.vocab),
            ("context_length", self.context),
            ("embedding_length", self.dim),
            ("block_count", self.layers),
            ("feed_forward_length", self.ffn),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.head_dim),
        ] {
            // Sizes are below 2^24.
            w.set(&format!("llama.{key}"), value as u32)?;
        }
        w.set("llama.attention.layer_norm_rms_epsilon", self.eps as f32)?;
        w.set("llama.rope.freq_base", self.rope_base as f32)?;
        match self.scaling {
            Scaling::None => {}
            Scaling::Linear { factor } => {
                w.set("llama.rope.scaling.type", "linear")?;
                w.set("llama.rope.scaling.factor", factor as f32)?;
            }
            Scaling::Yarn { factor, original, beta_fast, beta_slow, attention } => {
                w.set("llama.rope.scaling.type", "yarn")?;
                w.set("llama.rope.scaling.factor", factor as f32)?;
                w.set("llama.rope.scaling.original_context_length", original as u32)?;
                w.set("llama.rope.scaling.yarn_beta_fast", beta_fast as f32)?;
                w.set("llama.rope.scaling.yarn_beta_slow", beta_slow as f32)?;
                w.set("llama.rope.scaling.attn_factor", attention as f32)?;
            }
        }
        Ok(())
    }
}

/// Checks that the family is one whose forward pass there is.
fn family(o: &Object<'_>) -> Result<()> {
    let kind = o.get::<Text<'_>>("model_type").map_err(json_fault(FILE))?;
    let names = o.get::<Vec<Text<'_>>>("architectures").map_err(json_fault(FILE))?.unwrap_or_default();
    let known = match names.first() {
        Some(name) => FAMILIES.iter().any(|(arch, _)| **arch == **name),
        None => kind.as_ref().is_some_and(|kind| FAMILIES.iter().any(|(_, known)| **known == **kind)),
    };
    if known {
        return Ok(());
    }
    let found = names.first().or(kind.as_ref()).map_or("(none)", |name| name);
    let supported: Vec<&str> = FAMILIES.iter().map(|(arch, _)| *arch).collect();
    Err(Error::Architecture { found: found.chars().take(100).collect(), supported: supported.join(", ") })
}

/// Refuses weights that another program has quantized, by the method's name.
fn not_quantized(o: &Object<'_>) -> Result<()> {
    let key = "quantization_config";
    let Some(q) = o.get::<Object<'_>>(key).map_err(json_fault(FILE))? else { return Ok(()) };
    let method = q.get::<Text<'_>>("quant_method").map_err(|e| json_fault(FILE)(e.within(key)))?;
    let method: String = method.as_deref().unwrap_or("a method without a name").chars().take(100).collect();
    Err(fault(
        FILE,
        format!(
            "{key}: the weights are quantized by {method}, which cannot be read; use the model it was made from (F32, F16 \
             or BF16; `lutite quantize` makes it small), or a GGUF file of it"
        ),
    ))
}

/// Fields of `config.json`, with their names in messages.
struct Reader<'a, 'b> {
    o: &'a Object<'b>,
}

impl<'b> Reader<'_, 'b> {
    fn get<T: serde::Deserialize<'b>>(&self, key: &str) -> Result<Option<T>> {
        self.o.get(key).map_err(json_fault(FILE))
    }
    fn bad(&self, key: &str, why: impl Into<String>) -> Error {
        fault(FILE, format!("{key}: {}", why.into()))
    }
    fn text(&self, key: &str) -> Result<Option<Text<'b>>> {
        self.get(key)
    }
    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key)
    }
    /// A size from 1 to 2^24 - 1, as [`crate::config::Config`] allows.
    fn optional_size(&self, key: &str) -> Result<Option<u64>> {
        match self.get::<u64>(key)? {
            Some(v) if v == 0 || v >= 1 << 24 => {
                Err(self.bad(key, format!("{v} is out of range (1 to 16777215); the file is damaged")))
            }
            v => Ok(v),
        }
    }
    fn size(&self, key: &str) -> Result<u64> {
        self.optional_size(key)?.ok_or_else(|| self.bad(key, "is missing; fetch the file again"))
    }
}

/// `rope_scaling` or `rope_parameters`.
struct Rope<'a> {
    key: &'static str,
    o: Object<'a>,
    context: u64,
    base: f64,
    head_dim: u64,
}

impl Rope<'_> {
    fn bad(&self, key: &str, why: impl Into<String>) -> Error {
        fault(FILE, format!("{}.{key}: {}", self.key, why.into()))
    }
    fn json(&self, e: JsonError) -> Error {
        json_fault(FILE)(e.within(self.key))
    }
    fn optional(&self, key: &str) -> Result<Option<f64>> {
        match self.o.get::<f64>(key).map_err(|e| self.json(e))? {
            Some(x) if x <= 0.0 => Err(self.bad(key, format!("is {x}, not above 0"))),
            x => Ok(x),
        }
    }
    fn number(&self, key: &str) -> Result<f64> {
        self.optional(key)?.ok_or_else(|| self.bad(key, "is missing; fetch the file again"))
    }
    /// Positions of the original training.
    fn original(&self) -> Result<Option<f64>> {
        match self.optional("original_max_position_embeddings")? {
            Some(x) if x.fract() != 0.0 || x >= f64::from(1 << 24) => {
                Err(self.bad("original_max_position_embeddings", format!("is {x}, no number of positions")))
            }
            x => Ok(x),
        }
    }

    /// The scaling, and divisors of the frequencies.
    fn read(&self) -> Result<(Scaling, Vec<f32>)> {
        let text = |key| self.o.get::<Text<'_>>(key).map_err(|e| self.json(e));
        let kind = text("rope_type")?.or(text("type")?);
        match kind.as_deref() {
            None | Some("default") => Ok((Scaling::None, Vec::new())),
            Some("linear") => Ok((Scaling::Linear { factor: self.number("factor")? }, Vec::new())),
            Some("llama3") => Ok((Scaling::None, self.llama3()?)),
            Some("yarn") => Ok((self.yarn()?, Vec::new())),
            Some(other) => {
                let other: String = other.chars().take(40).collect();
                let why = format!("{other:?} is not supported (default, linear, llama3, yarn)");
                Err(self.bad("rope_type", why))
            }
        }
    }

    /// transformers multiplies by `attention_factor`, or by `1 + 0.1 ln factor` without one; GGUF's factor goes on top
    /// of the latter.
    fn yarn(&self) -> Result<Scaling> {
        let factor = self.number("factor")?;
        for key in ["mscale", "mscale_all_dim"] {
            if self.optional(key)?.is_some() {
                return Err(self.bad(key, "is not supported"));
            }
        }
        let own = 1.0 + 0.1 * factor.max(1.0).ln();
        Ok(Scaling::Yarn {
            factor,
            original: self.original()?.unwrap_or(self.context as f64) as u64,
            beta_fast: self.optional("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.optional("beta_slow")?.unwrap_or(1.0),
            attention: self.optional("attention_factor")?.map_or(1.0, |x| x / own),
        })
    }

    /// Llama 3.1's divisors: 1 for short waves, `factor` for long ones, a ramp between (`rope_freqs` of
    /// `convert_hf_to_gguf.py`; `_compute_llama3_parameters` of transformers).
    fn llama3(&self) -> Result<Vec<f32>> {
        let factor = self.number("factor")?;
        let (low, high) = (self.number("low_freq_factor")?, self.number("high_freq_factor")?);
        if low >= high {
            return Err(self.bad("low_freq_factor", format!("is {low}, not below high_freq_factor, {high}")));
        }
        let original = self.original()?.ok_or_else(|| {
            self.bad("original_max_position_embeddings", "is missing; fetch the file again")
        })?;
        let divisor = |pair: u64| {
            let wave = std::f64::consts::TAU * self.base.powf(2.0 * pair as f64 / self.head_dim as f64);
            let turns = original / wave;
            if turns > high {
                1.0
            } else if turns < low {
                factor
            } else {
                let smooth = (turns - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        Ok((0..self.head_dim / 2).map(|pair| divisor(pair) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#""architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 8,
        "num_hidden_layers": 2, "intermediate_size": 172, "vocab_size": 512, "max_position_embeddings": 512"#;

    fn read(more: &str) -> Result<(HfConfig, Vec<String>)> {
        let mut warnings = Vec::new();
        let comma = if more.is_empty() { "" } else { "," };
        HfConfig::read(&format!("{{{BASE}{comma} {more}}}"), &mut warnings).map(|c| (c, warnings))
    }

    fn message(more: &str) -> String {
        read(more).expect_err(more).to_string()
    }

    #[test]
    fn what_is_not_said_is_as_in_transformers() {
        let (c, warnings) = read("").unwrap();
        assert_eq!((c.kv_heads, c.head_dim, c.tied, c.bos, c.eos.len()), (8, 8, false, None, 0));
        assert_eq!((c.eps, c.rope_base, &c.scaling), (1e-6, 10_000.0, &Scaling::None));
        assert!(warnings.is_empty() && c.rope_factors.is_empty());
        let (c, _) =
            read(r#""eos_token_id": [3, 4], "bos_token_id": 1, "head_dim": 16, "rope_scaling": null"#)
                .unwrap();
        assert_eq!((c.bos, &c.eos[..], c.head_dim), (Some(1), &[3, 4][..], 16));
        let (c, warnings) = read(r#""sliding_window": 128"#).unwrap();
        assert_eq!(c.context, 128);
        assert!(warnings[0].contains("128 positions"));
        assert!(read(r#""sliding_window": 512"#).unwrap().1.is_empty());
    }

    #[test]
    fn rotary_scaling_in_all_its_spellings() {
        let scaling = |more: &str| read(more).unwrap().0.scaling;
        assert_eq!(
            scaling(r#""rope_scaling": {"type": "linear", "factor": 4}"#),
            Scaling::Linear { factor: 4.0 }
        );
        let (c, _) = read(r#""rope_parameters": {"rope_type": "default", "rope_theta": 5e5}"#).unwrap();
        assert_eq!((c.scaling, c.rope_base), (Scaling::None, 5e5));
        let yarn =
            r#""rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64"#;
        let expected = |attention| Scaling::Yarn {
            factor: 8.0,
            original: 64,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention,
        };
        assert_eq!(scaling(&format!("{yarn}}}")), expected(1.0));
        // What the reader multiplies with in the end is what the file says.
        match scaling(&format!("{yarn}, \"attention_factor\": 1.5}}")) {
            Scaling::Yarn { attention, .. } => {
                assert!((attention * (1.0 + 0.1 * 8f64.ln()) - 1.5).abs() < 1e-12);
            }
            other => panic!("{other:?}"),
        }
        let llama3 = r#""head_dim": 64, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#;
        let (c, _) = read(llama3).unwrap();
        // Llama-3.2-1B, by convert_hf_to_gguf.py's formula.
        assert_eq!((c.scaling, c.rope_factors.len()), (Scaling::None, 32));
        for (pair, &found) in c.rope_factors.iter().enumerate() {
            let expected = match pair {
                ..15 => 1.0,
                15 => 1.651_329_2,
                16 => 3.292_262_6,
                17 => 9.666_73,
                _ => 32.0,
            };
            assert!((found - expected).abs() < 1e-5 * expected, "{pair}: {found}");
        }
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        for (more, why) in [
            (r#""hidden_act": "gelu""#, "hidden_act: only \"silu\""),
            (
                r#""rope_scaling": {"type": "dynamic", "factor": 2}"#,
                "\"dynamic\" is not supported (default, linear",
            ),
            (r#""rope_scaling": {"type": "linear"}"#, "rope_scaling.factor: is missing"),
            (r#""rope_scaling": {"type": "linear", "factor": -1}"#, "is -1, not above 0"),
            (r#""rope_scaling": {"type": "linear", "factor": "x"}"#, "rope_scaling.factor: invalid type"),
            (r#""rope_scaling": {"type": "yarn", "factor": 2, "mscale": 1}"#, "mscale: is not supported"),
            (r#""partial_rotary_factor": 0.5"#, "rotated in part"),
            (r#""num_key_value_heads": 0"#, "num_key_value_heads: 0 is out of range"),
            (r#""num_key_value_heads": "four""#, "num_key_value_heads: invalid type: string"),
            (r#""head_dim": 7"#, "not an even number"),
            (r#""eos_token_id": "x""#, "eos_token_id: invalid type"),
            (
                r#""quantization_config": {"quant_method": "gptq", "bits": 4}"#,
                "quantized by gptq, which cannot be read",
            ),
            (r#""quantization_config": {"bits": 4}"#, "quantized by a method without a name"),
            (r#""vocab_size": 5"#, "the field \"vocab_size\" appears twice"),
        ] {
            let found = message(more);
            assert!(found.starts_with("config.json: ") && found.contains(why), "{more}: {found}");
        }
        let other =
            HfConfig::read(r#"{"architectures": ["Qwen2ForCausalLM"]}"#, &mut Vec::new()).unwrap_err();
        assert_eq!(
            other.to_string(),
            "model architecture \"Qwen2ForCausalLM\" is not supported; this build reads: LlamaForCausalLM, MistralForCausalLM"
        );
        assert!(HfConfig::read("{}", &mut Vec::new()).unwrap_err().to_string().contains("(none)"));
        let missing = HfConfig::read(r#"{"model_type": "llama"}"#, &mut Vec::new()).unwrap_err().to_string();
        assert_eq!(missing, "config.json: hidden_size: is missing; fetch the file again");
    }
}
