//! Plain multiplication by f32, f16 or bf16 weights: the path by which the others are judged.

use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::mem::bytes_of;
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

/// Rows and tokens whose products are summed up together: as many sums as hide the latency of an addition, and few
/// enough that they, the activations and a weight stay in the 16 registers of AVX2.
const ROWS: usize = 4;
const TOKENS: usize = 3;

/// `y[t][r] = W[r] . x[t]` for some rows and all tokens.
///
/// `weights` holds `rows x cols` little-endian numbers of type `ty`, no alignment asked for; `x` is
/// `[tokens][cols]` and is read once for each 4 rows, so it should fit into L2. `put(token, row, values)` receives the
/// products of consecutive rows. Every product is one 8-lane f32 reduction, whatever the number of rows and tokens.
///
/// # Errors
/// [`Error::Length`] where `weights` or `x` are no whole number of rows.
pub fn gemm(
    isa: Isa,
    ty: PlainType,
    weights: &[u8],
    cols: usize,
    x: &[f32],
    put: &mut dyn FnMut(usize, usize, &mut [f32]),
) -> Result<()> {
    let row = cols * ty.bytes();
    for (what, len, unit) in [("plain weights", weights.len(), row), ("activations", x.len(), cols)] {
        if unit == 0 || !len.is_multiple_of(unit) {
            return Err(Error::Length { what: what.into(), expected: unit, found: len });
        }
    }
    match ty {
        PlainType::F32 => isa.run(Gemm::<32> { load: 0, weights, cols, x, put }),
        PlainType::F16 => isa.run(Gemm::<16> { load: 0, weights, cols, x, put }),
        PlainType::Bf16 => isa.run(Gemm::<16> { load: 1, weights, cols, x, put }),
    }
    Ok(())
}

/// [`gemm`] with weights that are numbers in memory: `put(t, r, values)` receives `a[r] . x[t]` of consecutive rows, of
/// `a` `[rows][cols]` and `x` `[tokens][cols]`. For symmetric matrices this is the usual product too.
///
/// # Errors
/// As [`gemm`].
pub fn dots_of(
    isa: Isa,
    a: &[f32],
    cols: usize,
    x: &[f32],
    put: &mut dyn FnMut(usize, usize, &mut [f32]),
) -> Result<()> {
    gemm(isa, PlainType::F32, bytes_of(a), cols, x, put)
}

/// Weights of which `BYTES` hold 8; `load` tells f16 (0) from bf16 (1).
struct Gemm<'a, const BYTES: usize> {
    load: u8,
    weights: &'a [u8],
    cols: usize,
    x: &'a [f32],
    put: &'a mut dyn FnMut(usize, usize, &mut [f32]),
}

impl<const BYTES: usize> Kernel for Gemm<'_, BYTES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let bytes = self.cols * BYTES / LANES;
        for (i, w) in self.weights.chunks(ROWS * bytes).enumerate() {
            let row = i * ROWS;
            for (j, x) in self.x.chunks(TOKENS * self.cols).enumerate() {
                let token = j * TOKENS;
                if w.len() == ROWS * bytes && x.len() == TOKENS * self.cols {
                    let mut y = [[0.0; ROWS]; TOKENS];
                    dots::<S, BYTES, ROWS, TOKENS>(s, self.load, w, x, self.cols, &mut y);
                    for (t, y) in y.iter_mut().enumerate() {
                        (self.put)(token + t, row, y);
                    }
                } else if w.len() == ROWS * bytes {
                    for (t, x) in x.chunks_exact(self.cols).enumerate() {
                        let mut y = [[0.0; ROWS]];
                        dots::<S, BYTES, ROWS, 1>(s, self.load, w, x, self.cols, &mut y);
                        (self.put)(token + t, row, &mut y[0]);
                    }
                } else {
                    for (r, w) in w.chunks_exact(bytes).enumerate() {
                        for (t, x) in x.chunks_exact(self.cols).enumerate() {
                            let mut y = [[0.0]];
                            dots::<S, BYTES, 1, 1>(s, self.load, w, x, self.cols, &mut y);
                            (self.put)(token + t, row + r, &mut y[0]);
                        }
                    }
                }
            }
        }
    }
}

/// `R` rows of weights against `T` tokens.
#[inline(always)]
fn dots<S: Simd, const BYTES: usize, const R: usize, const T: usize>(
    s: S,
    load: u8,
    w: &[u8],
    x: &[f32],
    cols: usize,
    y: &mut [[f32; R]; T],
) {
    // Slices of one length, so that the loop has nothing to check.
    let (whole, bytes) = (cols / LANES, cols * BYTES / LANES);
    let mut xs: [&[[f32; LANES]]; T] = [&[]; T];
    let mut ws: [&[[u8; BYTES]]; R] = [&[]; R];
    for t in 0..T {
        xs[t] = &x[t * cols..(t + 1) * cols].as_chunks().0[..whole];
    }
    for r in 0..R {
        ws[r] = &w[r * bytes..(r + 1) * bytes].as_chunks().0[..whole];
    }
    let mut acc = [[s.splat(0.0); T]; R];
    for i in 0..whole {
        let mut v = [s.splat(0.0); T];
        for t in 0..T {
            v[t] = s.load(&xs[t][i]);
        }
        for r in 0..R {
            let w = weights8::<S, BYTES>(s, load, &ws[r][i]);
            for t in 0..T {
                acc[r][t] = s.fma(w, v[t], acc[r][t]);
            }
        }
    }
    if !cols.is_multiple_of(LANES) {
        for t in 0..T {
            let mut last = [0.0; LANES];
            let rest = x[t * cols..(t + 1) * cols].as_chunks::<LANES>().1;
            last[..rest.len()].copy_from_slice(rest);
            let last = s.load(&last);
            for r in 0..R {
                let mut padded = [0; BYTES];
                let rest = w[r * bytes..(r + 1) * bytes].as_chunks::<BYTES>().1;
                padded[..rest.len()].copy_from_slice(rest);
                acc[r][t] = s.fma(weights8::<S, BYTES>(s, load, &padded), last, acc[r][t]);
            }
        }
    }
    for t in 0..T {
        for r in 0..R {
            y[t][r] = s.sum(acc[r][t]);
        }
    }
}

/// 8 weights.
#[inline(always)]
fn weights8<S: Simd, const BYTES: usize>(s: S, load: u8, b: &[u8; BYTES]) -> S::F {
    if BYTES == 4 * LANES {
        let mut v = [0.0; LANES];
        for (v, b) in v.iter_mut().zip(b.as_chunks::<4>().0) {
            *v = f32::from_le_bytes(*b);
        }
        return s.load(&v);
    }
    let half = b.first_chunk().unwrap_or(&[0; 16]);
    if load == 0 { s.load_f16(half) } else { s.load_bf16(half) }
}
