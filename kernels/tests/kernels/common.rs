//! Random packed matrices and activations, from a seed.

use half::f16;
use lutite_kernels::pack::{Packed, ParamKind, PlaneShape, SignLevel, c32, p32};

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, good enough for test data.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// Roughly normal, mean 0, variance 1.
    pub(crate) fn normal(&mut self) -> f32 {
        let sum: f32 = (0..12).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32).sum();
        sum - 6.0
    }
}

/// A packed matrix that owns its buffers.
pub(crate) struct Matrix {
    pub(crate) shape: PlaneShape,
    pub(crate) group: usize,
    pub(crate) kind: ParamKind,
    pub(crate) planes: usize,
    /// Planes or fields.
    pub(crate) parts: Vec<Vec<u8>>,
    pub(crate) params: Vec<u8>,
    pub(crate) row_scales: Vec<u8>,
}

impl Matrix {
    pub(crate) fn random(
        rng: &mut Rng,
        rows: usize,
        cols: usize,
        q: usize,
        group: usize,
        kind: ParamKind,
    ) -> Matrix {
        let shape = PlaneShape { rows, cols };
        let bytes = |width: &usize| kind.part_bytes(shape, *width).unwrap();
        let mut all: Vec<_> = kind.widths(q).iter().map(|w| vec![0u8; bytes(w)]).collect();
        for tile in 0..shape.tiles() {
            let n = (rows - 32 * tile).min(32);
            let codes: Vec<u8> = (0..n * cols).map(|_| rng.next() as u8).collect();
            let mut parts: Vec<&mut [u8]> = all
                .iter_mut()
                .map(|p| {
                    let bytes = p.len() / shape.tiles();
                    &mut p[tile * bytes..(tile + 1) * bytes]
                })
                .collect();
            if kind.is_uniform() {
                c32::pack_tile(shape, &codes, q, &mut parts).unwrap();
            } else {
                p32::pack_tile(shape, &codes, &mut parts).unwrap();
            }
        }
        let halves = |rng: &mut Rng, bytes: usize| -> Vec<u8> {
            (0..bytes / 2).flat_map(|_| f16::from_f32(rng.normal() * 0.05).to_le_bytes()).collect()
        };
        let set = kind.set_bytes(shape, q, group).unwrap();
        let params = match kind {
            ParamKind::Hlq8 | ParamKind::UniformK | ParamKind::CenteredK(_) => {
                (0..set).map(|_| rng.next() as u8).collect()
            }
            _ => halves(rng, set),
        };
        let row_scales = halves(rng, kind.row_scale_bytes(shape, q));
        Matrix { shape, group, kind, planes: q, parts: all, params, row_scales }
    }

    pub(crate) fn view(&self) -> Packed<'_> {
        let parts: Vec<&[u8]> = self.parts.iter().map(Vec::as_slice).collect();
        let Matrix { shape, group, kind, planes, .. } = *self;
        Packed::new(shape, group, kind, planes, &parts, &self.params, &self.row_scales).unwrap()
    }
}

/// A level of signs that owns its buffers.
pub(crate) struct Signs {
    pub(crate) shape: PlaneShape,
    pub(crate) rank: usize,
    pub(crate) signs: Vec<u8>,
    pub(crate) u: Vec<u8>,
    pub(crate) v: Vec<u8>,
}

impl Signs {
    pub(crate) fn random(rng: &mut Rng, rows: usize, cols: usize, rank: usize) -> Signs {
        let m = Matrix::random(rng, rows, cols, 1, 32, ParamKind::Hlq16);
        let mut halves =
            |n: usize| (0..n).flat_map(|_| f16::from_f32(rng.normal() * 0.05).to_le_bytes()).collect();
        let (u, v) = (halves(rank * rows), halves(rank * cols));
        let [signs] = m.parts.try_into().unwrap();
        Signs { shape: m.shape, rank, signs, u, v }
    }

    pub(crate) fn view(&self) -> SignLevel<'_> {
        SignLevel::new(self.shape, self.rank, &self.signs, &self.u, &self.v).unwrap()
    }
}

pub(crate) const HLQ: [ParamKind; 2] = [ParamKind::Hlq16, ParamKind::Hlq8];

pub(crate) const UNIFORM: [ParamKind; 5] = [
    ParamKind::Uniform,
    ParamKind::Centered(8),
    ParamKind::Centered(128),
    ParamKind::UniformK,
    ParamKind::CenteredK(32),
];

/// Equal bits, any NaN equal to any NaN.
pub(crate) fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
}

/// Activations of all kinds that are hard on kernels; 0 and above 8 are the normal ones.
pub(crate) fn activations(rng: &mut Rng, cols: usize, style: usize) -> Vec<f32> {
    let mut x: Vec<f32> = (0..cols).map(|_| rng.normal()).collect();
    match style {
        1 => x.fill(0.0),
        2 => x.iter_mut().for_each(|x| *x = 3.5f32.copysign(*x)),
        3 => x[rng.below(cols)] = 1e4,
        4 => x.iter_mut().for_each(|x| *x *= 1e-40),
        5 => x.iter_mut().for_each(|x| *x *= 1e30),
        6 => x.iter_mut().for_each(|x| *x *= -0.0),
        7 => x[rng.below(cols)] = f32::NAN,
        8 => x[rng.below(cols)] = f32::INFINITY,
        _ => {}
    }
    x
}
