//! Activation functions.

use crate::isa::Isa;
use crate::simd::{Kernel, Simd, blocks, exp, load_tail, store_tail};

/// SwiGLU's elementwise part: `out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]`, over the shortest of the
/// three slices.
pub fn silu_mul(isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    isa.run(SiluMul { gate, up, out });
}

/// `out[i] = a[i] + b[i]`, over the shortest of the three slices.
pub fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
        *o = a + b;
    }
}

struct SiluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (g, g_tail) = blocks(self.gate);
        let (u, u_tail) = blocks(self.up);
        let (o, o_tail) = self.out.as_chunks_mut();
        for ((o, g), u) in o.iter_mut().zip(g).zip(u) {
            let v = silu(s, s.load(g), s.load(u));
            s.store(v, o);
        }
        if !o_tail.is_empty() && g_tail.len() == o_tail.len() && u_tail.len() == o_tail.len() {
            let v = silu(s, load_tail(s, g_tail, 0.0), load_tail(s, u_tail, 0.0));
            store_tail(s, v, o_tail);
        }
    }
}

#[inline(always)]
fn silu<S: Simd>(s: S, g: S::F, u: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), g));
    s.mul(s.div(g, s.add(s.splat(1.0), e)), u)
}
