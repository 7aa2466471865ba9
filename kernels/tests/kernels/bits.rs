//! One hash for each kernel over seeded inputs. Within a machine all tiers have to agree; the hashes are printed, so that
//! machines of different architectures can be compared as well (`.ci/run aarch64`).

use crate::attention::{Cache, kv_types};
use crate::common::{HLQ, Matrix, Rng, Signs, UNIFORM};
use lutite_kernels::attention::KvLayout;
use lutite_kernels::dot::{Block, Tokens, product, quantize};
use lutite_kernels::isa::Isa;
use lutite_kernels::lut::{SignTableShape, SignTables, TableShape, Tables, gemv, sign, sign_lut, table};
use lutite_kernels::ops::{act, norm, rope, softmax};
use lutite_kernels::pack::{GROUPS, RANKS};
use lutite_kernels::plain::{self, PlainType};

/// FNV-1a, 64 bits.
struct Hash(u64);

impl Hash {
    fn new() -> Hash {
        Hash(0xcbf2_9ce4_8422_2325)
    }
    fn bytes(&mut self, b: &[u8]) {
        for b in b {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    fn floats(&mut self, x: &[f32]) {
        assert!(x.iter().all(|x| !x.is_nan()), "a NaN has no promised bits");
        x.iter().for_each(|x| self.bytes(&x.to_bits().to_le_bytes()));
    }
}

/// Numbers as they come in activations: several magnitudes, zeros of both signs, an outlier.
fn vector(rng: &mut Rng, n: usize) -> Vec<f32> {
    let mut x: Vec<f32> =
        (0..n).map(|_| rng.normal() * [1.0, 1.0, 1e-3, 30.0, 0.0, 1e-41][rng.below(6)]).collect();
    if n > 3 {
        x[3] = 1e4;
    }
    x
}

/// Tables and products for every kind, number of planes and size of group, on odd shapes.
fn look_ups(isa: Isa, h: &mut Hash) {
    let mut rng = Rng(11);
    for kind in HLQ {
        for q in 1..=8 {
            for group in GROUPS {
                let (rows, cols) = (1 + rng.below(80), 1 + rng.below(600));
                let m = Matrix::random(&mut rng, rows, cols, q, group, kind);
                let x = vector(&mut rng, cols);
                let shape = TableShape { cols, group };
                let mut entries = vec![0; shape.entries_len()];
                let mut scales = vec![0.0; shape.scales_len()];
                table::build(isa, shape, &x, &mut entries, &mut scales).unwrap();
                h.bytes(&entries);
                h.floats(&scales);
                let t = Tables::new(shape, &entries, &scales).unwrap();
                let mut y = vec![[0.0; 32]; m.shape.tiles()];
                gemv(isa, &m.view(), &[t], 0..m.shape.tiles(), 4096, &mut y).unwrap();
                h.floats(&y.as_flattened()[..rows]);
            }
        }
    }
}

/// Tables and products of levels of signs, for every rank, on odd shapes.
fn signs(isa: Isa, h: &mut Hash) {
    let mut rng = Rng(15);
    for rank in RANKS {
        let (rows, cols) = (1 + rng.below(80), 1 + rng.below(600));
        let m = Signs::random(&mut rng, rows, cols, rank);
        let x = vector(&mut rng, cols);
        let shape = SignTableShape { cols, rank };
        let mut entries = vec![0; shape.entries_len()];
        let mut scales = vec![0.0; shape.scales_len()];
        sign::build(isa, &m.view(), 0, &x, &mut entries, &mut scales).unwrap();
        h.bytes(&entries);
        h.floats(&scales);
        let t = SignTables::new(shape, &entries, &scales).unwrap();
        let mut y = vec![[1.0; 32]; m.shape.tiles()];
        sign_lut(isa, &m.view(), &t, 0..m.shape.tiles(), 4096, &mut y).unwrap();
        h.floats(&y.as_flattened()[..rows]);
    }
}

fn operations(isa: Isa, h: &mut Hash) {
    let mut rng = Rng(12);
    let rope = rope::Rope::new(&rope::RopeConfig {
        dims: 64,
        base: 10_000.0,
        factors: vec![1.5; 32],
        scaling: rope::RopeScaling::None,
    });
    for n in [1, 7, 8, 9, 64, 577] {
        let (x, u) = (vector(&mut rng, n), vector(&mut rng, n));
        let mut y = vec![0.0; n];
        act::silu_mul(isa, &x, &u, &mut y);
        h.floats(&y);
        act::add(&x, &u, &mut y);
        h.floats(&y);
        norm::apply(&x, norm::inverse_rms(isa, &x, 1e-5), &u, &mut y);
        h.floats(&y);
        y.copy_from_slice(&x);
        softmax::softmax(isa, &mut y);
        h.floats(&y);
        for ty in [PlainType::F32, PlainType::F16, PlainType::Bf16] {
            // Weights below 2 in magnitude in each of the types: the upper exponent bit is cleared.
            let mut w: Vec<u8> = (0..5 * n * ty.bytes()).map(|_| rng.next() as u8).collect();
            w.iter_mut().skip(ty.bytes() - 1).step_by(ty.bytes()).for_each(|b| *b &= 0xbf);
            plain::gemm(isa, ty, &w, n, &x, &mut |_, _, y| h.floats(y)).unwrap();
        }
        let mut angles = vec![0.0; rope.dims()];
        rope.angles(n * 1013, &mut angles);
        let mut head = vector(&mut rng, 64);
        rope::rotate_adjacent(&mut head, &angles);
        h.floats(&head);
    }
}

fn attention(isa: Isa, h: &mut Hash) {
    let mut rng = Rng(13);
    for (dim, positions, heads) in [(8, 1, 1), (64, 37, 3), (96, 300, 2), (128, 260, 8)] {
        for (keys, values) in kv_types(dim) {
            let cache = Cache::random(&mut rng, isa, KvLayout::new(dim, keys, values).unwrap(), positions);
            let queries: Vec<f32> = (0..2 * heads * dim).map(|_| rng.normal() * 0.2).collect();
            for first in [0, positions.saturating_sub(2)] {
                let tokens = 2.min(positions - first);
                h.floats(&cache.attend(isa, &queries[..tokens * heads * dim], heads, first));
            }
        }
    }
}

/// Integer products of one and of three tokens, for every uniform kind, number of bits and size of group.
fn products(isa: Isa, h: &mut Hash) {
    let mut rng = Rng(14);
    for kind in UNIFORM {
        for bits in 1..=8 {
            for group in GROUPS {
                let (rows, cols) = (1 + rng.below(80), 1 + rng.below(600));
                let m = Matrix::random(&mut rng, rows, cols, bits, group, kind);
                let blocks = cols.div_ceil(32);
                let (mut one, mut three) = (vec![Block::default(); blocks], vec![Block::default(); blocks]);
                let x = [0; 3].map(|_| vector(&mut rng, cols));
                let none: &[f32] = &[];
                quantize(isa, [&x[0], &x[1], &x[2], none, none, none, none, none], &mut three).unwrap();
                quantize(isa, [&x[2][..]], &mut one).unwrap();
                let mut y = vec![[0.0; 32]; 3 * m.shape.tiles()];
                product(isa, &m.view(), Tokens::Many(&three, 3), 0..m.shape.tiles(), 4096, &mut y).unwrap();
                for y in y.chunks(m.shape.tiles()) {
                    h.floats(&y.as_flattened()[..rows]);
                }
                let y = &mut y[..m.shape.tiles()];
                product(isa, &m.view(), Tokens::One(&one), 0..m.shape.tiles(), 4096, y).unwrap();
                h.floats(&y.as_flattened()[..rows]);
            }
        }
    }
}

#[test]
fn bits_of_every_kernel() {
    type Family = (&'static str, fn(Isa, &mut Hash));
    let families: [Family; 5] = [
        ("look-ups", look_ups),
        ("signs", signs),
        ("operations", operations),
        ("attention", attention),
        ("products", products),
    ];
    for (name, run) in families {
        let hash = |isa| {
            let mut h = Hash::new();
            run(isa, &mut h);
            h.0
        };
        let scalar = hash(Isa::scalar());
        for isa in Isa::available() {
            let h = hash(isa);
            println!("bits: {name} = {h:016x} ({})", isa.name());
            assert_eq!(h, scalar, "{name} on {} and on scalar", isa.name());
        }
    }
}
