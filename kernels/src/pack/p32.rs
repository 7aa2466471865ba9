//! Layout P32: where each bit of a plane lies.
//!
//! One layout serves AVX2, NEON and prefill, straight from a memory map, whatever the number of
//! threads. A plane of a `rows x cols` matrix is one contiguous block:
//!
//! ```text
//! for each tile of 32 rows (rows padded up)          row r is in tile r / 32
//!   for each pair of 4-column steps (columns padded to 8)   column c is in pair c / 8
//!     32 bytes; byte b belongs to row perm(b) of the tile
//!       low nibble : columns 8 pair     .. 8 pair + 4, bit i = column i of the step
//!       high nibble: columns 8 pair + 4 .. 8 pair + 8
//! perm(b) = b / 2 for even b, 16 + b / 2 for odd b
//! ```
//!
//! The permutation makes AVX2's split of a 16-bit lane into its even and odd byte come out as rows
//! 0..16 and 16..32 in order. Padding bits are zero; they meet padded *activations* of zero, or rows
//! that are never stored. The uniform kinds store their codes in another layout: [`super::c32`].

use crate::error::{Error, Result};

/// Rows of a tile.
pub const TILE_ROWS: usize = 32;

/// Columns of a pair of steps: what one 32-byte block covers.
pub const PAIR_COLS: usize = 8;

/// Bytes of one tile x pair block.
pub const BLOCK_BYTES: usize = 32;

/// The layout's name in files; a reader that knows another one refuses the file.
pub const LAYOUT_ID: &str = "p32-1";

/// FNV-1a over the (byte, bit) position of every bit of a 64 x 24 plane: guards against a layout that
/// changed without its name.
pub const LAYOUT_HASH: u64 = layout_hash();

/// Byte of a tile's 32-byte block that holds row `r` of the tile: the inverse of `perm`.
#[inline]
pub const fn byte_of_row(r: usize) -> usize {
    2 * (r % 16) + r / 16
}

const fn position(shape: PlaneShape, row: usize, col: usize) -> (usize, u32) {
    let block = (row / TILE_ROWS) * shape.pairs() + col / PAIR_COLS;
    (block * BLOCK_BYTES + byte_of_row(row % TILE_ROWS), (col % PAIR_COLS) as u32)
}

const fn layout_hash() -> u64 {
    let shape = PlaneShape { rows: 64, cols: 24 };
    let mut h = 0xcbf2_9ce4_8422_2325_u64;
    let mut i = 0;
    while i < shape.rows * shape.cols {
        let (byte, bit) = position(shape, i / shape.cols, i % shape.cols);
        h = (h ^ (byte as u64 * 8 + bit as u64)).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    h
}

/// The shape of a matrix of weights; rows are outputs, columns inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneShape {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

impl PlaneShape {
    /// Tiles of 32 rows, the last one padded.
    pub const fn tiles(self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }
    /// Blocks of 8 columns, the last one padded.
    pub const fn pairs(self) -> usize {
        self.cols.div_ceil(PAIR_COLS)
    }
    /// Bytes of one tile of one plane.
    pub const fn tile_bytes(self) -> usize {
        self.pairs() * BLOCK_BYTES
    }
    /// Bytes of one plane; `None` where the product does not fit in a `usize`.
    pub const fn plane_bytes(self) -> Option<usize> {
        match self.tiles().checked_mul(self.pairs()) {
            Some(n) => n.checked_mul(BLOCK_BYTES),
            None => None,
        }
    }
    /// Groups of `group` columns, the last one perhaps short.
    pub const fn groups(self, group: usize) -> usize {
        self.cols.div_ceil(group)
    }
}

/// Packs up to 32 rows of codes into one tile of each plane.
///
/// `codes` is `[rows of this tile][cols]`; bit `p` of a code goes to plane `p`. `planes[p]` is that
/// plane's tile, `shape.tile_bytes()` long, and is overwritten.
///
/// # Errors
/// [`Error::Length`] when a buffer does not fit the shape.
pub fn pack_tile(shape: PlaneShape, codes: &[u8], planes: &mut [&mut [u8]]) -> Result<()> {
    let rows = codes.len() / shape.cols.max(1);
    if rows > TILE_ROWS || rows * shape.cols != codes.len() {
        return Err(Error::Length {
            what: "codes of a tile".into(),
            expected: TILE_ROWS * shape.cols,
            found: codes.len(),
        });
    }
    for (p, plane) in planes.iter_mut().enumerate() {
        if plane.len() != shape.tile_bytes() {
            return Err(Error::Length {
                what: format!("tile of plane {p}"),
                expected: shape.tile_bytes(),
                found: plane.len(),
            });
        }
        plane.fill(0);
        for (r, row) in codes.chunks_exact(shape.cols.max(1)).enumerate() {
            for (pair, eight) in row.chunks(PAIR_COLS).enumerate() {
                let bits = eight.iter().enumerate().fold(0, |b, (i, c)| b | (c >> p & 1) << i);
                plane[pair * BLOCK_BYTES + byte_of_row(r)] = bits;
            }
        }
    }
    Ok(())
}

/// Reads codes of row `r` of a tile back, from column `from`, a multiple of 8, on: as many as `codes` has. Bit `p` of a
/// code is from `planes[p]`, that tile of plane `p`.
pub fn unpack_row(planes: &[&[u8]], r: usize, from: usize, codes: &mut [u8]) {
    codes.fill(0);
    for (p, plane) in planes.iter().enumerate() {
        let bytes = plane[from / PAIR_COLS * BLOCK_BYTES + byte_of_row(r)..].iter().step_by(BLOCK_BYTES);
        for (eight, bits) in codes.chunks_mut(PAIR_COLS).zip(bytes) {
            for (i, c) in eight.iter_mut().enumerate() {
                *c |= (bits >> i & 1) << p;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutation_is_the_documented_one() {
        for b in 0..32 {
            let perm = if b % 2 == 0 { b / 2 } else { 16 + b / 2 };
            assert_eq!(byte_of_row(perm), b);
        }
    }

    /// A change of the layout must come with a new `LAYOUT_ID`.
    #[test]
    fn layout_hash_is_pinned() {
        assert_eq!(format!("{LAYOUT_ID} {LAYOUT_HASH:016x}"), "p32-1 6eaf8389dbdf4525");
    }

    #[test]
    fn pack_then_unpack_is_identity() {
        for (rows, cols) in [(1, 1), (32, 8), (33, 9), (70, 100), (31, 31)] {
            let shape = PlaneShape { rows, cols };
            let code = |r: usize, c: usize| (r * 37 + c * 11 + r * c) as u8;
            let mut planes = vec![vec![0u8; shape.plane_bytes().unwrap()]; 8];
            for t in 0..shape.tiles() {
                let n = (rows - 32 * t).min(32);
                let codes: Vec<u8> = (0..n * cols).map(|i| code(32 * t + i / cols, i % cols)).collect();
                let tb = shape.tile_bytes();
                let mut tiles: Vec<&mut [u8]> =
                    planes.iter_mut().map(|p| &mut p[t * tb..(t + 1) * tb]).collect();
                pack_tile(shape, &codes, &mut tiles).unwrap();
            }
            let mut got = vec![0; cols];
            for r in 0..rows {
                let tb = shape.tile_bytes();
                let tiles: Vec<&[u8]> = planes.iter().map(|p| &p[r / 32 * tb..(r / 32 + 1) * tb]).collect();
                unpack_row(&tiles, r % 32, 0, &mut got);
                assert!((0..cols).all(|c| got[c] == code(r, c)), "{rows}x{cols} row {r}");
            }
        }
    }
}
