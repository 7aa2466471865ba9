//! Tensors' names: Hugging Face's Llama and GGUF's.

use super::config::HfConfig;

/// A tensor that the model is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// In the safetensors files.
    pub(super) hf: String,
    /// In GGUF.
    pub(super) gguf: String,
    /// Slowest dimension first, as safetensors has it.
    pub(super) shape: Vec<u64>,
    /// Whether its rows are those of heads that get rotated.
    pub(super) rotary: bool,
    /// Whether a model may lack it.
    pub(super) optional: bool,
}

impl Wanted {
    /// Whether it is a layer's matrix: what a reader of another form has in a form of its own.
    pub(super) fn is_layers_matrix(&self) -> bool {
        self.shape.len() == 2 && self.gguf.starts_with("blk.")
    }
}

/// Parts of a layer that are vectors.
const NORMS: [(&str, &str); 2] = [("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")];

/// Parts of a layer that are matrices.
const MATRICES: [(&str, &str); 7] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// All tensors of a model, in the order of llama.cpp's files, one by one: the number of layers is the file's word.
pub(super) fn wanted(c: &HfConfig) -> impl Iterator<Item = Wanted> + '_ {
    let plain = |hf: String, gguf: String, shape: Vec<u64>| Wanted {
        hf,
        gguf,
        shape,
        rotary: false,
        optional: false,
    };
    let first = plain("model.embed_tokens.weight".into(), "token_embd.weight".into(), vec![c.vocab, c.dim]);
    let layers = (0..c.layers).flat_map(move |i| {
        let norms = NORMS.map(|(hf, gguf)| {
            plain(format!("model.layers.{i}.{hf}.weight"), format!("blk.{i}.{gguf}.weight"), vec![c.dim])
        });
        let matrices = MATRICES.into_iter().flat_map(move |(hf, gguf)| {
            let (rows, cols) = sides(c, gguf);
            let rotary = matches!(gguf, "attn_q" | "attn_k");
            let name = |suffix: &str| {
                (format!("model.layers.{i}.{hf}.{suffix}"), format!("blk.{i}.{gguf}.{suffix}"))
            };
            let (weight, bias) = (name("weight"), name("bias"));
            [
                Wanted { rotary, ..plain(weight.0, weight.1, vec![rows, cols]) },
                Wanted { rotary, optional: true, ..plain(bias.0, bias.1, vec![rows]) },
            ]
        });
        norms.into_iter().chain(matrices)
    });
    let norm = plain("model.norm.weight".into(), "output_norm.weight".into(), vec![c.dim]);
    let head = plain("lm_head.weight".into(), "output.weight".into(), vec![c.vocab, c.dim]);
    std::iter::once(first).chain(layers).chain([norm]).chain((!c.tied).then_some(head))
}

/// Rows and columns of a layer's matrix.
fn sides(c: &HfConfig, gguf: &str) -> (u64, u64) {
    // Sizes are below 2^24.
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    match gguf {
        "attn_q" => (q, c.dim),
        "attn_k" | "attn_v" => (kv, c.dim),
        "attn_output" => (c.dim, q),
        "ffn_down" => (c.dim, c.ffn),
        _ => (c.ffn, c.dim),
    }
}

/// Whether a tensor that is not wanted may be passed over: frequencies that old files carry and that follow from the
/// configuration, and the copy of a tied embedding.
pub(super) fn ignored(name: &str, c: &HfConfig) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (c.tied && name == "lm_head.weight")
}
