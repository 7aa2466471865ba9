//! The flags of each verb.

use super::{Bits, BitsPerWeight, EngineArgs, Levels, Limit, ModelArgs, SamplingArgs, SignLevels, Size};
use crate::catalog;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use std::num::NonZeroU32;
use std::path::PathBuf;

/// `lutite run`
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The prompt
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Read the prompt from this file
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// What the two kinds of talk share.
    #[command(flatten)]
    pub talk: TalkArgs,
    /// How it is held and run.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// `lutite chat`
#[derive(Args, Clone, Debug)]
pub struct ChatArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// What the two kinds of talk share.
    #[command(flatten)]
    pub talk: TalkArgs,
    /// How it is held and run.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// What `run` and `chat` share.
#[derive(Args, Clone, Debug)]
pub struct TalkArgs {
    /// The system message (-sys)
    #[arg(long, alias = "system-prompt", value_name = "TEXT")]
    pub system: Option<String>,
    /// Chat template: chatml, llama3 and the like, a file, or `none` to give the prompt as it is [default: the model's]
    #[arg(long, value_name = "TEMPLATE")]
    pub chat_template: Option<String>,
    /// Most tokens of an answer; -1 is until the model ends it
    #[arg(short = 'n', long, alias = "n-predict", value_name = "N", default_value = "-1")]
    #[arg(allow_negative_numbers = true)]
    pub predict: Limit,
    /// Tokens of context; 0 is all the model was trained for [default: the same, 4096 at most]
    #[arg(short, long, value_name = "N")]
    pub ctx_size: Option<u32>,
    /// End the answer where this text would come; may be given several times
    #[arg(short, long, alias = "stop", value_name = "TEXT")]
    pub reverse_prompt: Vec<String>,
}

/// `lutite pull`
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Of a hub's repository comes the named GGUF file, or the one of the named quantization; without either \
                  Q4_K_M, else Q8_0, else Q4_0, else the only one there is. A repository without GGUF gives its \
                  safetensors, as does the word `safetensors` after the colon.\n\n\
                  The hub is $HF_ENDPOINT (https://huggingface.co). Private and gated models need $HF_TOKEN. Files lie \
                  where the official client has them: $HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub."
)]
pub struct PullArgs {
    /// A name of the catalog, or a model of a hub.
    #[arg(
        value_name = "NAME",
        default_value = catalog::DEFAULT,
        help = "Name in the catalog, or owner/repo[:file-or-quant][@revision] of a hub"
    )]
    pub name: String,
}

/// `lutite list`
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Form of the list
    #[arg(short, long, default_value = "table")]
    pub output: ListFormat,
}

/// Form of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `lutite rm`
#[derive(Args, Clone, Debug)]
pub struct RmArgs {
    /// What to remove, as `lutite list` names it
    #[arg(value_name = "NAME", required_unless_present = "packed")]
    pub names: Vec<String>,
    /// All packed files; they are made again when they are needed
    #[arg(long)]
    pub packed: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Say what would be removed, and remove nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// `lutite verify`
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// What to check: names as `lutite list` has them, or files [default: all of the list]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Threads [default: one for each big core]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<NonZeroU32>,
}

/// `lutite quantize`
#[derive(Args, Clone, Debug)]
pub struct QuantizeArgs {
    /// Model file or folder to read, or a name of the catalog
    #[arg(value_name = "SRC")]
    pub source: String,
    /// Packed model to write
    #[arg(short, long, value_name = "OUT")]
    pub out_file: PathBuf,
    /// Bit planes: `exact` for the source's own, or 1 to 8
    #[arg(long, value_name = "BITS", default_value = "exact")]
    pub bits: Bits,
    /// Size of the file at most, e.g. 60M or 1.5GiB: bits are shared out among matrices by what each costs, the output layer
    /// included
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["bits", "head_bits", "target_bpw"])]
    pub target_size: Option<Size>,
    /// The same by bits per weight, over all matrices
    #[arg(long, value_name = "BITS", conflicts_with_all = ["bits", "head_bits"])]
    pub target_bpw: Option<BitsPerWeight>,
    /// One file for all sizes: the model with the first of these numbers of planes, and blocks that bring it up to the last,
    /// the most useful first
    #[arg(long, value_name = "BITS,..", num_args = 0..=1, default_missing_value = "2,3,4,exact",
        require_equals = true, conflicts_with_all = ["bits", "head_bits", "target_size", "target_bpw", "method", "imatrix", "keep"])]
    pub stack: Option<Levels>,
    /// One file for all sizes of levels of signs with magnitudes of rank 1, 2, 4, 8 or 16, as BitStack has them [rank: as large as
    /// costs a tenth of a bit]; of a folder that is BitStack's checkpoint its own, so many or `all`
    #[arg(long, value_name = "[LEAST-]LEVELS[:RANK]",
        conflicts_with_all = ["stack", "bits", "head_bits", "target_size", "target_bpw", "method", "imatrix", "keep", "group", "params"])]
    pub bitstack: Option<SignLevels>,
    /// Keep the result though it lost much more than was predicted for its size
    #[arg(long)]
    pub keep: bool,
    /// Weights that share a set of scales
    #[arg(long, value_name = "N", default_value = "64", value_parser = group_parser())]
    pub group: u32,
    /// How the scales are stored
    #[arg(long, value_name = "KIND", default_value = "hlq8")]
    pub params: Params,
    /// Bit planes of the output layer [default: the source's own if it is quantized, else --bits, 4 at least]
    #[arg(long, value_name = "BITS")]
    pub head_bits: Option<Bits>,
    /// How planes are fitted [default: cd for 1 to 3 bits, als for more]
    #[arg(long, value_name = "METHOD")]
    pub method: Option<Method>,
    /// Text to calibrate with [default: what the model itself writes]
    #[arg(long, value_name = "FILE")]
    pub calib: Option<PathBuf>,
    /// Tokens to calibrate with
    #[arg(long, value_name = "N", default_value = "16384")]
    pub calib_tokens: NonZeroU32,
    /// Folder for what is finished, to go on after an interruption [default: OUT.work]
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Importance of inputs for als, as llama-imatrix writes it
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Do not measure what fewer bits lost
    #[arg(long)]
    pub no_measure: bool,
    /// Threads [default: one for each core]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<NonZeroU32>,
}

fn group_parser() -> impl TypedValueParser<Value = u32> {
    PossibleValuesParser::new(["32", "64", "128", "256"]).try_map(|text| text.parse::<u32>())
}

/// How planes are fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Alternating least squares on the weights alone: seconds.
    Als,
    /// Coordinate descent on the errors of outputs, with text: minutes, and much better below 4 bits.
    Cd,
}

/// How the scales of a group are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Params {
    /// One byte each, under one f16 for the row.
    Hlq8,
    /// f16 each.
    Hlq16,
}

/// `lutite export`
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// Model file or folder to read, or a name of the catalog
    #[arg(value_name = "SRC")]
    pub source: String,
    /// GGUF file to write
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
    /// What packed weights become; f32 rounds nothing
    #[arg(long = "type", value_name = "TYPE", default_value = "f16")]
    pub float_type: FloatType,
}

/// What packed weights become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FloatType {
    /// 16 bits, rounded to the nearest.
    F16,
    /// 32 bits.
    F32,
}

/// `lutite inspect`
#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Draw the curve of a stacked file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// `lutite plan`
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Positions of the context; 0 is the model's own [default: the model's own, 4096 at most]
    #[arg(short, long, value_name = "N")]
    pub ctx_size: Option<u32>,
    /// How to hold and run it.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Do not measure how fast it would be
    #[arg(long)]
    pub no_speed: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `lutite trim`
#[derive(Args, Clone, Debug)]
pub struct TrimArgs {
    /// Stacked file to read
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Size of the result at most, e.g. 300M
    #[arg(long, value_name = "SIZE")]
    pub size: Size,
    /// File to write
    #[arg(short, long, value_name = "OUT")]
    pub out_file: PathBuf,
}

/// `lutite perplexity`
#[derive(Args, Clone, Debug)]
pub struct PerplexityArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Which text, and how it is cut.
    #[command(flatten)]
    pub text: TextArgs,
    /// Kernels to compute with
    #[arg(long, default_value = "lut")]
    pub path: KernelPath,
    /// Also write a file of reference logits, for `kl --base` and llama-perplexity
    #[arg(long, alias = "kl-divergence-base", alias = "save-all-logits", value_name = "FILE")]
    pub save_base: Option<PathBuf>,
    /// How it is held and run.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `lutite kl`
#[derive(Args, Clone, Debug)]
pub struct KlArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Reference: another model, or `plain` for this one by the plain kernels
    #[arg(long, value_name = "MODEL", default_value = "plain")]
    pub reference: String,
    /// Reference: a file of logits, as llama-perplexity writes it
    #[arg(long, alias = "kl-divergence-base", value_name = "FILE")]
    pub base: Option<PathBuf>,
    /// Which text, and how it is cut.
    #[command(flatten)]
    pub text: TextArgs,
    /// How it is held and run.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `lutite eval`
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "A task is a file of JSON lines, plain or compressed by gzip, with an answer to a question in each:\n\n  \
                  {\"doc_id\": 0, \"uncond\": false, \"idx\": 0, \"context\": \"Question: ...\\nAnswer:\", \
                  \"continuation\": \" a star\", \"label\": 0}\n\n\
                  doc_id says which lines belong together, idx numbers the answers from 0, and label is the right one. \
                  Lines with \"uncond\": true are the same answers without the question.\n\n\
                  Of the answers counts the one with the highest log-probability (acc), with the highest per character \
                  (acc_norm), or with the highest less that without the question (acc_uncond; lm-evaluation-harness's \
                  acc_mutual_info). Tokens, cuts and errors are as lm-evaluation-harness has them."
)]
pub struct EvalArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// A file of multiple-choice questions; may be given several times
    #[arg(long = "task", id = "task", value_name = "FILE", required = true)]
    pub tasks: Vec<PathBuf>,
    /// Most documents of each task; -1 is all
    #[arg(long, value_name = "N", default_value = "-1", allow_negative_numbers = true)]
    pub limit: Limit,
    /// Keep what is done in this file, and go on from it if it is there
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// Tokens of a question and its answer that the model reads at most [default: all it was trained for]
    #[arg(short, long, value_name = "N")]
    pub ctx_size: Option<NonZeroU32>,
    /// Kernels to compute with
    #[arg(long, default_value = "lut")]
    pub path: KernelPath,
    /// How it is held and run.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The text to measure on. The two protocols' numbers are not to be compared.
#[derive(Args, Clone, Debug)]
pub struct TextArgs {
    /// The text
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// `llama`: the second half of each chunk is scored, as llama-perplexity does; `papers`: all of each chunk
    #[arg(long, default_value = "llama")]
    pub protocol: Protocol,
    /// Tokens of a chunk [default: 512 for llama, 2048 for papers]
    #[arg(short, long, value_name = "N")]
    pub ctx_size: Option<NonZeroU32>,
    /// Most chunks; -1 is all
    #[arg(long, value_name = "N", default_value = "-1", allow_negative_numbers = true)]
    pub chunks: Limit,
    /// Most tokens to be scored; -1 is all
    #[arg(long, value_name = "N", default_value = "-1", allow_negative_numbers = true)]
    pub positions: Limit,
}

impl PerplexityArgs {
    /// What makes no sense together.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        self.text.check()?;
        if self.save_base.is_some() && self.text.protocol != Protocol::Llama {
            return Err(
                "--save-base goes with --protocol llama: the file holds the second half of each chunk",
            );
        }
        if self.save_base.is_some() && self.text.positions != Limit(None) {
            return Err(
                "--save-base cannot be used with --positions: the file holds whole chunks; use --chunks",
            );
        }
        Ok(())
    }
}

impl KlArgs {
    /// What makes no sense together.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.base.is_some() { Ok(()) } else { self.text.check() }
    }
}

impl TextArgs {
    fn check(&self) -> Result<(), &'static str> {
        if self.file.is_none() { Err("no text; give one with -f FILE") } else { Ok(()) }
    }

    /// Tokens of a chunk.
    #[must_use]
    pub fn context(&self) -> u32 {
        self.ctx_size.map_or(self.protocol.context(), NonZeroU32::get)
    }
}

/// How a text is cut and which of its tokens are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// llama.cpp's.
    Llama,
    /// That of the papers on quantization.
    Papers,
}

impl Protocol {
    /// Tokens of a chunk where nothing else is said.
    #[must_use]
    pub fn context(self) -> u32 {
        match self {
            Self::Llama => 512,
            Self::Papers => 2048,
        }
    }
}

/// Which kernels compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KernelPath {
    /// Table look-up, as in use.
    Lut,
    /// Weights decoded to floats and multiplied: slow and obvious.
    Plain,
}

/// `lutite bench`
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// No file: random weights in the shapes of this model
    #[arg(long, value_name = "SHAPE")]
    pub synthetic: Option<Synthetic>,
    /// Prompt lengths to read; 0 is no such test
    #[arg(short = 'p', long, value_name = "N,...", default_value = "512", value_delimiter = ',')]
    pub n_prompt: Vec<u32>,
    /// Answer lengths to write; 0 is no such test
    #[arg(short = 'n', long, value_name = "N,...", default_value = "128", value_delimiter = ',')]
    pub n_gen: Vec<u32>,
    /// Tokens that the cache holds before a test
    #[arg(short = 'd', long, value_name = "N,...", default_value = "0", value_delimiter = ',')]
    pub n_depth: Vec<u32>,
    /// Times each test is run
    #[arg(short, long, value_name = "N", default_value = "5")]
    pub repetitions: NonZeroU32,
    /// Thread counts to test [default: one for each big core]
    #[arg(short, long, value_name = "N,...", value_delimiter = ',')]
    pub threads: Vec<NonZeroU32>,
    /// Bit planes to pack a plain or synthetic model with
    #[arg(long, value_name = "BITS")]
    pub bits: Option<Bits>,
    /// Weights that share a set of scales: 16, 32, 64, 128 or 256
    #[arg(long, value_name = "N", value_parser = group_parser())]
    pub group: Option<u32>,
    /// Form of the result
    #[arg(short, long, default_value = "md")]
    pub output: BenchFormat,
    /// Tokens that are computed at once while the prompt is read
    #[arg(short, long, value_name = "N", default_value = "512")]
    pub batch_size: NonZeroU32,
    /// Number format of the keys in the cache (-ctk)
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_k: super::CacheType,
    /// Number format of the values in the cache (-ctv)
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_v: super::CacheType,
    /// Read prompts by the kernels that write answers, bit for bit; slower with 3 to 5 bit planes
    #[arg(long)]
    pub exact_prompts: bool,
    /// Pack the weights in memory; leave nothing in the cache folder
    #[arg(long)]
    pub no_cache: bool,
}

/// Shapes for a benchmark without a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Synthetic {
    /// Llama 2, 7 billion weights.
    #[value(name = "llama2-7b")]
    Llama2_7b,
    /// Llama 3, 8 billion weights.
    #[value(name = "llama3-8b")]
    Llama3_8b,
    /// SmolLM2, 135 million weights.
    #[value(name = "smollm2")]
    SmolLm2,
}

/// Form of a benchmark's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchFormat {
    /// llama-bench's table.
    Md,
    /// Every repetition.
    Json,
    /// A line for each test.
    Csv,
}

/// `lutite doctor`
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// A model (a file or a name) whose speed to foretell as well; packs it if that was not done yet
    pub model: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
