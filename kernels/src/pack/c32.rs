//! Layout C32: where each code of the uniform kinds lies.
//!
//! These kinds multiply whole codes, so their bits lie together, as integer products want them. A code of `q` bits
//! is cut into fields of 8, 4, 2 and 1 bits, the widest first and at the lowest bits ([`widths`]); each field of a
//! matrix is one contiguous block:
//!
//! ```text
//! for each tile of 32 rows                                 row r is in tile r / 32
//!   for each block of 32 columns (columns padded up)       column c is in block c / 32
//!     for each of the field's `width` units of 32 / width columns
//!       128 bytes: 4 for each of the 32 rows, in order
//!         field of column 4 i + j of the unit: bits width * i .. width * (i + 1) of byte j
//! ```
//!
//! A register of 8 (16, 4) consecutive rows holds 4 columns of each after one shift and one mask, next to each
//! other as `maddubs`, `vpdpbusd` and `sdot` take them. Padding is zero.

use super::p32::{PlaneShape, TILE_ROWS};
use crate::error::{Error, Result};

/// Columns of a block.
pub const BLOCK_COLS: usize = 32;

/// Bytes of a unit: 4 for each row of a tile.
pub const UNIT_BYTES: usize = 4 * TILE_ROWS;

/// The layout's name in files.
pub const LAYOUT_ID: &str = "c32-1";

/// FNV-1a over the (byte, bit) position of every field of a 64 x 40 matrix, for widths 8, 4, 2 and 1.
pub const LAYOUT_HASH: u64 = layout_hash();

/// Widths of the fields that codes of `bits` bits are cut into, lowest first.
pub const fn widths(bits: usize) -> &'static [usize] {
    match bits {
        1 => &[1],
        2 => &[2],
        3 => &[2, 1],
        4 => &[4],
        5 => &[4, 1],
        6 => &[4, 2],
        7 => &[4, 2, 1],
        8 => &[8],
        _ => &[],
    }
}

/// Bytes of one tile of a field.
pub const fn tile_bytes(shape: PlaneShape, width: usize) -> usize {
    shape.cols.div_ceil(BLOCK_COLS) * width * UNIT_BYTES
}

/// Bytes of a whole field; `None` where that does not fit a `usize`.
pub const fn field_bytes(shape: PlaneShape, width: usize) -> Option<usize> {
    match shape.cols.div_ceil(BLOCK_COLS).checked_mul(width * UNIT_BYTES) {
        Some(n) => n.checked_mul(shape.tiles()),
        None => None,
    }
}

/// Byte within a tile, and lowest bit, of the field of row `r` of the tile and column `c`.
const fn position(width: usize, r: usize, c: usize) -> (usize, usize) {
    let unit_cols = BLOCK_COLS / width;
    let (unit, c) = (c / unit_cols, c % unit_cols);
    (unit * UNIT_BYTES + 4 * r + c % 4, width * (c / 4))
}

const fn layout_hash() -> u64 {
    let shape = PlaneShape { rows: 64, cols: 40 };
    let mut h = 0xcbf2_9ce4_8422_2325_u64;
    let mut width = 8;
    while width > 0 {
        let mut i = 0;
        while i < shape.rows * shape.cols {
            let (row, col) = (i / shape.cols, i % shape.cols);
            let (byte, bit) = position(width, row % TILE_ROWS, col);
            let byte = row / TILE_ROWS * tile_bytes(shape, width) + byte;
            h = (h ^ (byte as u64 * 8 + bit as u64)).wrapping_mul(0x0100_0000_01b3);
            i += 1;
        }
        width /= 2;
    }
    h
}

/// Packs up to 32 rows of codes, `[rows of this tile][cols]`, into one tile of each field, overwriting it.
///
/// # Errors
/// [`Error::Length`] when a buffer does not fit the shape.
pub fn pack_tile(shape: PlaneShape, codes: &[u8], bits: usize, fields: &mut [&mut [u8]]) -> Result<()> {
    let rows = codes.len() / shape.cols.max(1);
    let fits = rows <= TILE_ROWS && rows * shape.cols == codes.len();
    let expected = if fits { codes.len() } else { TILE_ROWS * shape.cols };
    let mut lengths = vec![("codes of a tile", expected, codes.len())];
    lengths.push(("fields", widths(bits).len(), fields.len()));
    for (width, field) in widths(bits).iter().zip(&*fields) {
        lengths.push(("tile of a field", tile_bytes(shape, *width), field.len()));
    }
    for (what, expected, found) in lengths {
        if expected != found {
            return Err(Error::Length { what: what.into(), expected, found });
        }
    }
    let mut shift = 0;
    for (width, field) in widths(bits).iter().zip(fields) {
        field.fill(0);
        let mask = ((1u32 << width) - 1) as u8;
        for (r, row) in codes.chunks_exact(shape.cols.max(1)).enumerate() {
            for (c, code) in row.iter().enumerate() {
                let (byte, bit) = position(*width, r, c);
                field[byte] |= (code >> shift & mask) << bit;
            }
        }
        shift += width;
    }
    Ok(())
}

/// Reads codes of row `r` of a tile back, from column `from` on: as many as `codes` has. `fields` are that tile's.
pub fn unpack_row(bits: usize, fields: &[&[u8]], r: usize, from: usize, codes: &mut [u8]) {
    codes.fill(0);
    let mut shift = 0;
    for (width, field) in widths(bits).iter().zip(fields) {
        let mask = ((1u32 << width) - 1) as u8;
        for (c, code) in codes.iter_mut().enumerate() {
            let (byte, bit) = position(*width, r, from + c);
            *code |= (field[byte] >> bit & mask) << shift;
        }
        shift += width;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change of the layout must come with a new `LAYOUT_ID`.
    #[test]
    fn layout_hash_is_pinned() {
        assert_eq!(format!("{LAYOUT_ID} {LAYOUT_HASH:016x}"), "c32-1 5620798490ee3a25");
    }

    #[test]
    fn pack_then_unpack_is_identity() {
        for bits in 1..=8 {
            for (rows, cols) in [(1, 1), (32, 32), (31, 33), (7, 100)] {
                let shape = PlaneShape { rows, cols };
                let code = |r: usize, c: usize| ((r * 37 + c * 11 + r * c) % (1 << bits)) as u8;
                let codes: Vec<u8> = (0..rows * cols).map(|i| code(i / cols, i % cols)).collect();
                let mut fields: Vec<_> =
                    widths(bits).iter().map(|w| vec![0xffu8; tile_bytes(shape, *w)]).collect();
                let mut parts: Vec<&mut [u8]> = fields.iter_mut().map(Vec::as_mut_slice).collect();
                pack_tile(shape, &codes, bits, &mut parts).unwrap();
                let parts: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
                for r in 0..rows {
                    let from = r % cols;
                    let mut got = vec![0; cols - from];
                    unpack_row(bits, &parts, r, from, &mut got);
                    assert!(
                        (from..cols).all(|c| got[c - from] == code(r, c)),
                        "{bits} {rows}x{cols} row {r}"
                    );
                }
            }
        }
    }
}
