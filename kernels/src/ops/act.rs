//! Activation functions.

use crate::isa::Isa;
use crate::simd::{Kernel, Simd, WIDE, exp, first_wide};

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
        let (g, g_tail) = self.gate.as_chunks();
        let (u, u_tail) = self.up.as_chunks();
        let (o, o_tail) = self.out.as_chunks_mut();
        for ((o, g), u) in o.iter_mut().zip(g).zip(u) {
            let v = silu(s, s.wide_load(g), s.wide_load(u));
            s.wide_store(v, o);
        }
        if !o_tail.is_empty() && g_tail.len() == o_tail.len() && u_tail.len() == o_tail.len() {
            let mut v = [0.0; WIDE];
            s.wide_store(silu(s, s.wide_load(&first_wide(g_tail)), s.wide_load(&first_wide(u_tail))), &mut v);
            o_tail.copy_from_slice(&v[..o_tail.len()]);
        }
    }
}

#[inline(always)]
fn silu<S: Simd>(s: S, g: S::W, u: S::W) -> S::W {
    let e = exp(s, s.wide_sub(s.wide_splat(0.0), g));
    s.wide_mul(s.wide_div(g, s.wide_add(s.wide_splat(1.0), e)), u)
}
