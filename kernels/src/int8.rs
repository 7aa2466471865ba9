//! Products of rows of signed bytes: the tile that products over many tokens are to be made of.

use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::simd::{Kernel, Simd};

/// The four sums of products `[a0 b0, a0 b1, a1 b0, a1 b1]` of rows of equal length, exact for up to 131,071
/// columns (any bytes) and modulo 2^32 beyond. Equal on every tier.
///
/// # Errors
/// [`Error::Length`] where the rows differ in length.
pub fn dot_2x2(isa: Isa, a: [&[i8]; 2], b: [&[i8]; 2]) -> Result<[i32; 4]> {
    let expected = a[0].len();
    for (what, row) in [("second row of a", a[1]), ("first row of b", b[0]), ("second row of b", b[1])] {
        if row.len() != expected {
            return Err(Error::Length { what: what.into(), expected, found: row.len() });
        }
    }
    Ok(isa.run(Dot { a, b }))
}

struct Dot<'a> {
    a: [&'a [i8]; 2],
    b: [&'a [i8]; 2],
}

impl Kernel for Dot<'_> {
    type Output = [i32; 4];
    const PRODUCTS: bool = true;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [i32; 4] {
        let [(a0, a0_tail), (a1, a1_tail)] = self.a.map(<[i8]>::as_chunks::<16>);
        let [(b0, b0_tail), (b1, b1_tail)] = self.b.map(<[i8]>::as_chunks::<16>);
        let mut t = s.products_zero();
        for (((a0, a1), b0), b1) in a0.iter().zip(a1).zip(b0).zip(b1) {
            t = s.products_add(t, [a0, a1], [b0, b1]);
        }
        let [a0, a1, b0, b1] = [a0_tail, a1_tail, b0_tail, b1_tail].map(padded);
        s.products_sums(s.products_add(t, [&a0, &a1], [&b0, &b1]))
    }
}

#[inline(always)]
fn padded(tail: &[i8]) -> [i8; 16] {
    let mut b = [0; 16];
    b[..tail.len()].copy_from_slice(tail);
    b
}
