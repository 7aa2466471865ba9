//! Plain multiplication by f32, f16 or bf16 weights: the path by which the others are judged.

use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::simd::{Kernel, LANES, Simd};

/// Storage type of plain weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

impl PlainType {
    /// Bytes per weight.
    pub const fn bytes(self) -> usize {
        match self {
            PlainType::F32 => 4,
            PlainType::F16 | PlainType::Bf16 => 2,
        }
    }
}

/// Tokens whose products share one reading of the weights.
const TOKENS: usize = 4;

/// `y[t][r] = W[r] . x[t]` for some rows and all tokens.
///
/// `weights` holds `rows x cols` little-endian numbers of type `ty`, no alignment asked for; `x` is
/// `[tokens][cols]`. `put(token, row, value)` receives each product. Every product is one 8-lane f32
/// reduction, whatever the number of tokens.
///
/// # Errors
/// [`Error::Length`] where `weights` or `x` are no whole number of rows.
pub fn gemm(
    isa: Isa,
    ty: PlainType,
    weights: &[u8],
    cols: usize,
    x: &[f32],
    put: &mut dyn FnMut(usize, usize, f32),
) -> Result<()> {
    let row = cols * ty.bytes();
    for (what, len, unit) in [("plain weights", weights.len(), row), ("activations", x.len(), cols)] {
        if unit == 0 || !len.is_multiple_of(unit) {
            return Err(Error::Length { what: what.into(), expected: unit, found: len });
        }
    }
    match ty {
        PlainType::F32 => isa.run(Gemm::<4> { load: 0, weights, cols, x, put }),
        PlainType::F16 => isa.run(Gemm::<2> { load: 0, weights, cols, x, put }),
        PlainType::Bf16 => isa.run(Gemm::<2> { load: 1, weights, cols, x, put }),
    }
    Ok(())
}

/// `BYTES` per weight; `load` tells f16 (0) from bf16 (1).
struct Gemm<'a, const BYTES: usize> {
    load: u8,
    weights: &'a [u8],
    cols: usize,
    x: &'a [f32],
    put: &'a mut dyn FnMut(usize, usize, f32),
}

impl<const BYTES: usize> Kernel for Gemm<'_, BYTES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (r, w) in self.weights.chunks_exact(self.cols * BYTES).enumerate() {
            for (t, x) in self.x.chunks(TOKENS * self.cols).enumerate() {
                let mut y = [0.0; TOKENS];
                let n = x.len() / self.cols;
                if n == TOKENS {
                    dot::<S, BYTES, TOKENS>(s, self.load, w, x, self.cols, &mut y);
                } else {
                    for (x, y) in x.chunks_exact(self.cols).zip(&mut y) {
                        let mut one = [0.0];
                        dot::<S, BYTES, 1>(s, self.load, w, x, self.cols, &mut one);
                        *y = one[0];
                    }
                }
                for (i, y) in y.iter().enumerate().take(n) {
                    (self.put)(t * TOKENS + i, r, *y);
                }
            }
        }
    }
}

/// One row of weights against `N` tokens.
#[inline(always)]
fn dot<S: Simd, const BYTES: usize, const N: usize>(
    s: S,
    load: u8,
    w: &[u8],
    x: &[f32],
    cols: usize,
    y: &mut [f32; N],
) {
    let whole = cols / LANES;
    let mut acc = [s.splat(0.0); N];
    for i in 0..whole {
        let v = weights8::<S, BYTES>(s, load, &w[i * LANES * BYTES..(i + 1) * LANES * BYTES]);
        for t in 0..N {
            let at = t * cols + i * LANES;
            acc[t] =
                s.fma(v, s.load(x[at..at + LANES].as_chunks().0.first().unwrap_or(&[0.0; LANES])), acc[t]);
        }
    }
    if !cols.is_multiple_of(LANES) {
        let mut bytes = [0u8; 32];
        let rest = &w[whole * LANES * BYTES..];
        bytes[..rest.len()].copy_from_slice(rest);
        let v = weights8::<S, BYTES>(s, load, &bytes[..LANES * BYTES]);
        for t in 0..N {
            let mut xs = [0.0; LANES];
            let rest = &x[t * cols + whole * LANES..(t + 1) * cols];
            xs[..rest.len()].copy_from_slice(rest);
            acc[t] = s.fma(v, s.load(&xs), acc[t]);
        }
    }
    for t in 0..N {
        y[t] = s.sum(acc[t]);
    }
}

/// 8 weights from `8 * BYTES` bytes.
#[inline(always)]
fn weights8<S: Simd, const BYTES: usize>(s: S, load: u8, b: &[u8]) -> S::F {
    if BYTES == 4 {
        let mut v = [0.0; LANES];
        for (v, b) in v.iter_mut().zip(b.as_chunks::<4>().0) {
            *v = f32::from_le_bytes(*b);
        }
        return s.load(&v);
    }
    let mut half = [0; 16];
    half.copy_from_slice(&b[..16]);
    if load == 0 { s.load_f16(&half) } else { s.load_bf16(&half) }
}
