//! Flags that several verbs have.

use super::Mem;
use crate::{catalog, hub};
use clap::{Args, ValueEnum};
use lutite_models::sampling::SamplingDefaults;
use lutite_runtime::kv::KvType;
use lutite_runtime::sample::{SampleError, Sampler, SamplerConfig};
use std::hash::{BuildHasher, Hasher};
use std::num::NonZeroU32;
use std::str::FromStr;

/// Which model.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// A model file or folder, a name of the catalog, or a model of a hub.
    #[arg(
        id = "name",
        value_name = "MODEL",
        help = "Model file, folder of safetensors, name of the catalog, or owner/repo[:quant] of a hub [default: smollm2]"
    )]
    pub name: Option<String>,
    /// The same, as a flag
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<String>,
    /// A model of a hub, never a file (-hf, -hfr)
    #[arg(id = "hf-repo", long = "hf-repo", value_name = "OWNER/REPO[:QUANT]", value_parser = hub_name)]
    pub hf_repo: Option<String>,
}

/// With the prefix that makes it a hub's name whatever files there are.
fn hub_name(text: &str) -> Result<String, String> {
    text.parse().map(|name: hub::Name| format!("{}{name}", hub::PREFIX))
}

impl ModelArgs {
    /// What was named: a path, a name of the catalog or a model of a hub.
    #[must_use]
    pub fn named(&self) -> &str {
        let named = self.name.as_deref().or(self.model.as_deref()).or(self.hf_repo.as_deref());
        named.unwrap_or(catalog::DEFAULT)
    }
}

/// How a model is held and run.
#[derive(Args, Clone, Debug)]
pub struct EngineArgs {
    /// Threads [default: one for each big core]
    #[arg(short, long, value_name = "N", value_parser = threads)]
    pub threads: Option<NonZeroU32>,
    /// Tokens that are computed at once while the prompt is read
    #[arg(short, long, value_name = "N", default_value = "64")]
    pub batch_size: NonZeroU32,
    /// Number format of the keys in the cache (-ctk)
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_k: CacheType,
    /// Number format of the values in the cache (-ctv)
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_v: CacheType,
    /// Read prompts by the kernels that write answers, bit for bit; slower with 3 to 5 bit planes
    #[arg(long)]
    pub exact_prompts: bool,
    /// Bit planes of a model that is not packed: `exact` for its own, or 1 to 8
    #[arg(long, value_name = "BITS", default_value = "exact")]
    pub bits: Bits,
    /// Do not measure what fewer bits lost
    #[arg(long)]
    pub no_measure: bool,
    /// Pack the weights in memory; leave nothing in the cache folder
    #[arg(long)]
    pub no_cache: bool,
    /// Memory that the program may take, e.g. 300M, 1.5GiB, 70% of what the machine has, or auto: what is free, and as it
    /// changes [default: auto for stacked files, which hold as many of their blocks as fit; else no limit]
    #[arg(long, value_name = "SIZE", conflicts_with = "no_cache")]
    pub mem: Option<Mem>,
    /// Begin with a stacked file's least weights and become better while answering, instead of reading first what fits
    #[arg(long)]
    pub at_once: bool,
}

/// More threads than any CPU has; as many stacks and barriers as that only take time.
const THREADS_MAX: u32 = 1024;

fn threads(text: &str) -> Result<NonZeroU32, String> {
    let n = text.parse().ok().filter(|n: &NonZeroU32| n.get() <= THREADS_MAX);
    n.ok_or_else(|| format!("a number of threads from 1 to {THREADS_MAX}"))
}

/// How the next token is chosen; the steps are in the order of the flags.
///
/// Without a flag the model's own recommendation counts (`general.sampling.*`, `generation_config.json`), and where there
/// is none, llama.cpp's default, which is [`SamplerConfig`]'s.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling (defaults where the model's authors recommend nothing)")]
pub struct SamplingArgs {
    /// Divide the logits of recent tokens by this; 1 is off [default: 1.0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// How many tokens are recent; 0 is none, -1 the whole context [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub repeat_last_n: Option<Limit>,
    /// Keep the K best tokens; 0 is all [default: 40]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub top_k: Option<i32>,
    /// Keep the best tokens that have this probability together; 1 is off [default: 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Keep the tokens that have this share of the best one's probability; 0 is off [default: 0.05]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// 0 always takes the best token, 1 is the model's own distribution [default: 0.8]
    #[arg(long, alias = "temperature", value_name = "T", allow_negative_numbers = true)]
    pub temp: Option<f32>,
    /// Key of the random numbers; -1 is a new one each time
    #[arg(short, long, value_name = "N", default_value = "-1", allow_negative_numbers = true)]
    pub seed: Seed,
}

impl SamplingArgs {
    /// The sampler's settings for a context of `context` tokens: the flags', else the `model`'s, else our own. A random
    /// seed is drawn here, so call it once and say the seed.
    #[must_use]
    pub fn config(&self, model: &SamplingDefaults, context: usize) -> SamplerConfig {
        let own = SamplerConfig::default();
        // llama.cpp: 0 and below are all.
        let top_k = self.top_k.or(model.top_k).map(|k| usize::try_from(k).unwrap_or(0));
        let last_n = self.repeat_last_n.map(|n| n.or(context));
        let model_last_n = model.repeat_last_n.map(|n| usize::try_from(n).unwrap_or(context));
        SamplerConfig {
            temperature: self.temp.or(model.temperature).unwrap_or(own.temperature),
            top_k: top_k.unwrap_or(own.top_k),
            top_p: self.top_p.or(model.top_p).unwrap_or(own.top_p),
            min_p: self.min_p.or(model.min_p).unwrap_or(own.min_p),
            repeat_penalty: self.repeat_penalty.or(model.repeat_penalty).unwrap_or(own.repeat_penalty),
            repeat_last_n: last_n.or(model_last_n).unwrap_or(own.repeat_last_n),
            seed: self.seed.value(),
        }
    }

    /// Which of the settings are the model's, as flags.
    #[must_use]
    pub fn taken_from(&self, model: &SamplingDefaults) -> String {
        let said = |flag: &str, own: bool, model: Option<String>| {
            model.filter(|_| !own).map(|value| format!("--{flag} {value}"))
        };
        let float = |x: Option<f32>| x.map(|x| x.to_string());
        let whole = |x: Option<i32>| x.map(|x| x.to_string());
        [
            said("temp", self.temp.is_some(), float(model.temperature)),
            said("top-k", self.top_k.is_some(), whole(model.top_k)),
            said("top-p", self.top_p.is_some(), float(model.top_p)),
            said("min-p", self.min_p.is_some(), float(model.min_p)),
            said("repeat-penalty", self.repeat_penalty.is_some(), float(model.repeat_penalty)),
            said("repeat-last-n", self.repeat_last_n.is_some(), whole(model.repeat_last_n)),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" ")
    }

    pub(super) fn check(&self) -> Result<(), SampleError> {
        Sampler::new(self.config(&SamplingDefaults::default(), 0)).map(|_| ())
    }
}

/// A count, or -1 for no limit, as llama.cpp writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<u32>);

impl Limit {
    /// The count, or `all` if there is no limit.
    #[must_use]
    pub fn or(self, all: usize) -> usize {
        self.0.map_or(all, |count| usize::try_from(count).unwrap_or(usize::MAX))
    }
}

impl FromStr for Limit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "-1" {
            return Ok(Self(None));
        }
        text.parse().map(|count| Self(Some(count))).map_err(|_| "a count, or -1 for no limit")
    }
}

/// A seed, or -1 for a random one, as llama.cpp writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub Option<u64>);

impl Seed {
    /// The seed; a random one differs from call to call.
    #[must_use]
    pub fn value(self) -> u64 {
        // The standard library keys its hash tables from the system's randomness; here the empty hash is that key's.
        self.0.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish())
    }
}

impl FromStr for Seed {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "-1" {
            return Ok(Self(None));
        }
        text.parse()
            .map(|seed| Self(Some(seed)))
            .map_err(|_| "a whole number from 0 up, or -1 for a random one")
    }
}

/// Bit planes of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// As many as the source's own format has: no weight changes.
    Exact,
    /// 1 to 8.
    Planes(u8),
}

impl FromStr for Bits {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "exact" {
            return Ok(Self::Exact);
        }
        let planes = text.parse().ok().filter(|planes| (1..=8).contains(planes));
        planes.map(Self::Planes).ok_or("`exact`, or 1 to 8")
    }
}

/// Number format of the key and value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheType {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// 8 bits and a scale per 32 numbers; 8.5 in all.
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits and a scale per 32 numbers; 4.5 in all.
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<CacheType> for KvType {
    fn from(ty: CacheType) -> KvType {
        match ty {
            CacheType::F32 => KvType::F32,
            CacheType::F16 => KvType::F16,
            CacheType::Q8_0 => KvType::Q8_0,
            CacheType::Q4_0 => KvType::Q4_0,
        }
    }
}
