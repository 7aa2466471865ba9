//! The numbers of the worked example in `docs/format.md`.

use half::f16;
use lutite_kernels::pack::{Packed, ParamKind, PlaneShape};
use lutite_runtime::store::{PackedInfo, layout_tag};
use xxhash_rust::xxh3::xxh3_64;

const SHAPE: PlaneShape = PlaneShape { rows: 2, cols: 3 };

/// `len` bytes, zero but for these at these places.
fn bytes(len: usize, set: &[(usize, u8)]) -> Vec<u8> {
    let mut out = vec![0; len];
    set.iter().for_each(|&(at, value)| out[at] = value);
    out
}

fn rows(kind: ParamKind, params: &[u8], scales: &[u8]) -> [[f32; 3]; 2] {
    let planes = [bytes(32, &[(0, 0x02), (2, 0x05)]), bytes(32, &[(0, 0x04), (2, 0x03)])];
    let packed = Packed::new(SHAPE, 32, kind, &[&planes[0], &planes[1]], params, scales).unwrap();
    let mut out = [[0.0; 3]; 2];
    for (r, row) in out.iter_mut().enumerate() {
        packed.dequantize_row(r, row).unwrap();
    }
    out
}

#[test]
fn the_worked_example() {
    // d and m as f16: 0.5 and 0.25, then -1 and 0.
    let params = bytes(128, &[(1, 0x38), (3, 0x34), (65, 0xbc)]);
    assert_eq!(f16::from_le_bytes([params[0], params[1]]).to_f32(), 0.5);
    assert_eq!(rows(ParamKind::Uniform, &params, &[]), [[-1.0, -0.5, 0.0], [0.75, 0.5, 0.25]]);
    assert_eq!(rows(ParamKind::Centered(2), &params[..64], &[]), [[-1.0, -0.5, 0.0], [0.25, 0.0, -0.25]]);

    // The int8 kinds: 4 and 2, then -8 and 0, under scales of 0.125.
    let codes = bytes(64, &[(0, 4), (1, 2), (32, 0xf8)]);
    let scales = bytes(128, &[(1, 0x30), (3, 0x30), (65, 0x30), (67, 0x30)]);
    assert_eq!(rows(ParamKind::UniformK, &codes, &scales), [[-1.0, -0.5, 0.0], [0.75, 0.5, 0.25]]);
    assert_eq!(
        rows(ParamKind::CenteredK(2), &codes[..32], &scales[..64]),
        [[-1.0, -0.5, 0.0], [0.25, 0.0, -0.25]]
    );
    // s_0, s_1, z: 4, 8, -8 and 2, 4, 0.
    let codes = bytes(96, &[(0, 4), (1, 2), (32, 8), (33, 4), (64, 0xf8)]);
    let scales = bytes(192, &[(1, 0x30), (3, 0x30), (65, 0x30), (67, 0x30), (129, 0x30), (131, 0x30)]);
    assert_eq!(rows(ParamKind::Hlq8, &codes, &scales), [[-1.0, -0.5, 0.0], [0.75, 0.5, 0.25]]);

    // xxh3-64 of the tensors' data, and of nothing.
    let p0 = bytes(32, &[(0, 0x02), (2, 0x05)]);
    let p1 = bytes(32, &[(0, 0x04), (2, 0x03)]);
    let sums = [&p0[..], &p1, &params, &[]].map(|data| format!("{:016x}", xxh3_64(data)));
    assert_eq!(sums, ["8dabe068679fb27e", "1a2061e03f8ef668", "2d80667519c923a1", "2d06800538d394c2"]);
    let info = PackedInfo::parse("blk.0.ffn_up kind=uniform rows=2 cols=3 planes=2 group=32").unwrap();
    let tensors: Vec<String> =
        info.tensors().iter().map(|(n, ty, d)| format!("{n} {} {d:?}", ty.name())).collect();
    assert_eq!(
        tensors,
        ["blk.0.ffn_up.p0 I8 [32, 1]", "blk.0.ffn_up.p1 I8 [32, 1]", "blk.0.ffn_up.s2 F16 [32, 2, 1, 1]"]
    );
    assert_eq!(layout_tag(), "p32-1 6eaf8389dbdf4525");
}
