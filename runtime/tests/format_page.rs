//! The numbers of the worked example in `docs/format.md`.

use half::f16;
use lutite_kernels::pack::{Packed, ParamKind, PlaneShape};
use lutite_runtime::store::{MatrixInfo, layout_tag};
use xxhash_rust::xxh3::xxh3_64;

const SHAPE: PlaneShape = PlaneShape { rows: 2, cols: 3 };

/// `len` bytes, zero but for these at these places.
fn bytes(len: usize, set: &[(usize, u8)]) -> Vec<u8> {
    let mut out = vec![0; len];
    set.iter().for_each(|&(at, value)| out[at] = value);
    out
}

/// The planes: bits 0 and 1 of the codes 0 1 2 and 3 2 1.
fn planes() -> [Vec<u8>; 2] {
    [bytes(32, &[(0, 0x02), (2, 0x05)]), bytes(32, &[(0, 0x04), (2, 0x03)])]
}

/// The field of 2 bits of the same codes.
fn field() -> Vec<u8> {
    bytes(256, &[(1, 1), (2, 2), (4, 3), (5, 2), (6, 1)])
}

fn rows(kind: ParamKind, params: &[u8], scales: &[u8]) -> [[f32; 3]; 2] {
    let (planes, field) = (planes(), field());
    let parts: &[&[u8]] = if kind.is_uniform() { &[&field] } else { &[&planes[0], &planes[1]] };
    let packed = Packed::new(SHAPE, 32, kind, 2, parts, params, scales).unwrap();
    let mut out = [[0.0; 3]; 2];
    for (r, row) in out.iter_mut().enumerate() {
        packed.dequantize_row(r, row).unwrap();
    }
    out
}

fn tensors(line: &str) -> Vec<String> {
    let info = MatrixInfo::parse(line).unwrap();
    info.tensors().iter().map(|(n, ty, d)| format!("{n} {} {d:?}", ty.name())).collect()
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

    // A level of the first plane.
    let line = "blk.0.ffn_up kind=bitstack rows=2 cols=3 levels=1 rank=1";
    assert_eq!(
        tensors(line),
        ["blk.0.ffn_up.b0.sg I8 [32, 1]", "blk.0.ffn_up.b0.u F16 [2, 1]", "blk.0.ffn_up.b0.v F16 [3, 1]"]
    );
    let [plane, _] = planes();
    let level: [&[u8]; 3] = [&plane, &[0, 0x38, 0, 0x34], &[0, 0x3c, 0, 0x40, 0, 0x44]];
    let level = MatrixInfo::parse(line).unwrap().view(level).unwrap();
    for (r, expected) in [[-0.5, 1.0, -2.0], [0.25, -0.5, 1.0]].iter().enumerate() {
        let mut row = [0.0; 3];
        level.dequantize_row(r, &mut row).unwrap();
        assert_eq!(row, *expected);
    }

    // xxh3-64 of the tensors' data, and of nothing.
    let [p0, p1] = planes();
    let sums = [&field(), &params, &p0, &p1, &vec![]].map(|data| format!("{:016x}", xxh3_64(data)));
    assert_eq!(
        sums,
        ["afc9a1cf211012d4", "2d80667519c923a1", "8dabe068679fb27e", "1a2061e03f8ef668", "2d06800538d394c2"]
    );
    assert_eq!(
        tensors("blk.0.ffn_up kind=uniform rows=2 cols=3 planes=2 group=32"),
        ["blk.0.ffn_up.c2 I8 [256, 1]", "blk.0.ffn_up.s2 F16 [32, 2, 1, 1]"]
    );
    assert_eq!(
        tensors("x kind=hlq8 rows=2 cols=3 planes=2 group=32"),
        ["x.p0 I8 [32, 1]", "x.p1 I8 [32, 1]", "x.s2 I8 [32, 3, 1, 1]", "x.r2 F16 [32, 3, 1]"]
    );
    assert_eq!(layout_tag(), "p32-1 6eaf8389dbdf4525 c32-1 5620798490ee3a25");
}
