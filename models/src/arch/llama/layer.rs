//! One layer's weights, what flows through it, and its stages.

use super::blocks::matrices;
use crate::attention::{Attention, Run};
use crate::config::Config;
use crate::error::Result;
use crate::input::Input;
use crate::linear::{Linear, Step, multiply, multiply_add};
use crate::signs::SignBufs;
use lutite_kernels::isa::Isa;
use lutite_kernels::ops::{act, norm};
use lutite_kernels::pack::p32::TILE_ROWS;
use lutite_runtime::decode::Phase;
use lutite_runtime::kv::KvShape;
use lutite_runtime::os::shared::{ALIGN_BYTES, SharedMat};
use lutite_runtime::pool::Pool;

/// One transformer layer's weights, or what is said of each.
#[derive(Debug)]
pub(super) struct Layer<M = Linear, V = Vec<f32>> {
    attn_norm: V, // [dim]
    q: M,         // [heads * head_dim][dim]
    k: M,         // [kv_heads * head_dim][dim]
    v: M,         // [kv_heads * head_dim][dim]
    o: M,         // [dim][heads * head_dim]
    ffn_norm: V,  // [dim]
    gate: M,      // [ffn][dim]
    up: M,        // [ffn][dim]
    down: M,      // [dim][ffn]
}

impl<M, V> Layer<M, V> {
    /// Layer `i` of what `matrix(name, rows, columns)` and `vector(name, length)` make of each tensor.
    pub(super) fn find(
        c: &Config,
        i: usize,
        matrix: &impl Fn(&str, usize, usize) -> Result<M>,
        vector: &impl Fn(&str, usize) -> Result<V>,
    ) -> Result<Self> {
        let name = |part: &str| format!("blk.{i}.{part}");
        let (dim, ffn) = (c.dim, c.ffn);
        let (q_dim, kv_dim) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        Ok(Layer {
            attn_norm: vector(&name("attn_norm.weight"), dim)?,
            q: matrix(&name("attn_q"), q_dim, dim)?,
            k: matrix(&name("attn_k"), kv_dim, dim)?,
            v: matrix(&name("attn_v"), kv_dim, dim)?,
            o: matrix(&name("attn_output"), dim, q_dim)?,
            ffn_norm: vector(&name("ffn_norm.weight"), dim)?,
            gate: matrix(&name("ffn_gate"), ffn, dim)?,
            up: matrix(&name("ffn_up"), ffn, dim)?,
            down: matrix(&name("ffn_down"), dim, ffn)?,
        })
    }
}

impl Layer<u64, u64> {
    pub(super) fn sum(&self) -> u64 {
        let matrices = [self.q, self.k, self.v, self.o, self.gate, self.up, self.down];
        matrices.iter().sum::<u64>() + self.attn_norm + self.ffn_norm
    }
}

/// What flows through a layer; every first dimension is tokens.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) x: SharedMat<f32>,    // [dim], the residual stream
    pub(super) attn_in: Input,       // [dim], normed
    pub(super) attention: Attention, // q, k, v, and all positions so far
    pub(super) att_in: Input,        // [heads * head_dim]
    pub(super) ffn_in: Input,        // [dim], normed
    gate: SharedMat<f32>,            // [ffn]
    up: SharedMat<f32>,              // [ffn]
    pub(super) mid: Input,           // [ffn]
    scratch: SharedMat<u8>,          // [workers][bytes], what a worker makes of weights on the way
    signs: SignBufs,                 // tables of levels, of one token
}

impl Flow {
    /// Room for steps of `batch` tokens through any of `layers`, and behind them through the head if there is one.
    pub(super) fn new(
        c: &Config,
        layers: &[&Layer],
        head: Option<&Linear>,
        kv: KvShape,
        rope_dims: usize,
        batch: usize,
        workers: usize,
    ) -> Result<Flow> {
        let all = |pick: fn(&Layer) -> Vec<&Linear>| layers.iter().flat_map(|l| pick(l)).collect::<Vec<_>>();
        let tiled = |dim| SharedMat::new(batch, dim, TILE_ROWS);
        let scratch = layers.iter().flat_map(|l| l.linears()).map(Linear::scratch_bytes).max().unwrap_or(0);
        let signs = SignBufs::new(layers.iter().flat_map(|l| l.groups()).chain(head.map(|head| vec![head])))?;
        Ok(Flow {
            x: tiled(c.dim)?,
            attn_in: Input::new(batch, &all(|l| vec![&l.q, &l.k, &l.v]))?,
            attention: Attention::new(c, kv, rope_dims, batch, workers)?,
            att_in: Input::new(batch, &all(|l| vec![&l.o]))?,
            ffn_in: Input::new(batch, &all(|l| vec![&l.gate, &l.up]))?,
            gate: tiled(c.ffn)?,
            up: tiled(c.ffn)?,
            mid: Input::new(batch, &all(|l| vec![&l.down]))?,
            scratch: SharedMat::new(workers, scratch, ALIGN_BYTES)?,
            signs,
        })
    }

    /// Begins a step of `n` tokens, which are those of these texts one after the other.
    pub(super) fn set_step(&mut self, runs: &[Run], n: usize) {
        for m in [&mut self.x, &mut self.gate, &mut self.up] {
            m.set_rows(n);
        }
        self.attention.set_step(runs, n);
        for i in [&mut self.attn_in, &mut self.att_in, &mut self.ffn_in, &mut self.mid] {
            i.set_rows(n);
        }
    }

    /// What its stages have in common in a step of `n` tokens.
    pub(super) fn step(&self, isa: Isa, phase: Phase, n: usize) -> Step<'_> {
        Step { isa, phase, n, scratch: &self.scratch, signs: &self.signs }
    }
}

/// The layer's stages, in their order; `f` is what the step flows in.
impl Layer {
    pub(super) fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// Those that share an input.
    fn groups(&self) -> [Vec<&Linear>; 4] {
        [vec![&self.q, &self.k, &self.v], vec![&self.o], vec![&self.gate, &self.up], vec![&self.down]]
    }

    /// Other norms, of the same lengths.
    pub(super) fn set_norms(&mut self, attn: &[f32], ffn: &[f32]) {
        self.attn_norm.copy_from_slice(attn);
        self.ffn_norm.copy_from_slice(ffn);
    }

    /// The matrix behind attention.
    pub(super) fn output(&self) -> &Linear {
        &self.o
    }

    /// The matrix behind the activation function.
    pub(super) fn down(&self) -> &Linear {
        &self.down
    }

    /// The matrix that files call `blk.N.PART`.
    pub(super) fn linear(&self, part: &str) -> Option<&Linear> {
        self.linears().into_iter().nth(place(part)?)
    }

    /// As [`Layer::linear`].
    pub(super) fn linear_mut(&mut self, part: &str) -> Option<&mut Linear> {
        let Layer { q, k, v, o, gate, up, down, .. } = self;
        [q, k, v, o, gate, up, down].into_iter().nth(place(part)?)
    }

    /// `attn_in = norm(x)`
    pub(super) fn norm_attention(&self, pool: &mut Pool, step: &Step<'_>, eps: f32, f: &Flow) {
        let to = (&f.attn_in, &[&self.q, &self.k, &self.v][..]);
        normalize(pool, step, eps, (&f.x, |t| t), &self.attn_norm, to);
    }

    /// `att_in = attention(Wq attn_in, Wk attn_in, Wv attn_in)`, with the keys and values of layer `i` of the cache.
    pub(super) fn attend(&self, pool: &mut Pool, step: &Step<'_>, f: &Flow, i: usize) {
        let to = &f.attention.input;
        multiply(pool, step, &f.attn_in, [&self.q, &self.k, &self.v], [&to.q, &to.k, &to.v]);
        f.attention.attend(pool, step.isa, i);
        f.att_in.fill(pool, step, &[&self.o], |t, cols, out| f.attention.output(step.isa, t, cols, out));
    }

    /// `x = x + Wo att_in`
    pub(super) fn add_attention(&self, pool: &mut Pool, step: &Step<'_>, f: &Flow) {
        multiply_add(pool, step, &f.att_in, &self.o, &f.x);
    }

    /// `ffn_in = norm(x)`
    pub(super) fn norm_ffn(&self, pool: &mut Pool, step: &Step<'_>, eps: f32, f: &Flow) {
        let to = (&f.ffn_in, &[&self.gate, &self.up][..]);
        normalize(pool, step, eps, (&f.x, |t| t), &self.ffn_norm, to);
    }

    /// `mid = silu(Wgate ffn_in) * Wup ffn_in`
    pub(super) fn gate(&self, pool: &mut Pool, step: &Step<'_>, f: &Flow) {
        multiply(pool, step, &f.ffn_in, [&self.gate, &self.up], [&f.gate, &f.up]);
        let (gate, up) = (f.gate.read(), f.up.read());
        f.mid.fill(pool, step, &[&self.down], |t, cols, out| {
            act::silu_mul(step.isa, &gate.row(t)[cols.clone()], &up.row(t)[cols], out);
        });
    }

    /// `x = x + Wdown mid`
    pub(super) fn add_ffn(&self, pool: &mut Pool, step: &Step<'_>, f: &Flow) {
        multiply_add(pool, step, &f.mid, &self.down, &f.x);
    }
}

/// Where a matrix is in [`Layer::linears`].
fn place(part: &str) -> Option<usize> {
    matrices().position(|name| name == part)
}

/// A stage: norms tokens of the residual stream, of which `row` says where the step's are, and brings them into the forms that
/// matrices take. A token's factor is worked out anew for each part of it: cheaper than another stage.
pub(super) fn normalize(
    pool: &mut Pool,
    step: &Step<'_>,
    eps: f32,
    (x, row): (&SharedMat<f32>, impl Fn(usize) -> usize + Sync),
    weight: &[f32],
    (out, mats): (&Input, &[&Linear]),
) {
    let x = x.read();
    out.fill(pool, step, mats, |t, cols, out| {
        let x = x.row(row(t));
        let factor = norm::inverse_rms(step.isa, x, eps);
        norm::apply(&x[cols.clone()], factor, &weight[cols], out);
    });
}
