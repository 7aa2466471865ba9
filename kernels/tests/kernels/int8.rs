//! Products of signed bytes on every tier.

use crate::common::Rng;
use lutite_kernels::int8::dot_2x2;
use lutite_kernels::isa::Isa;

#[test]
fn every_tier_multiplies_bytes_exactly() {
    let mut rng = Rng(5);
    for n in (0..70).chain([1000, 4096]) {
        let rows: [Vec<i8>; 4] = [(); 4].map(|()| (0..n).map(|_| rng.next() as i8).collect());
        let [a0, a1, b0, b1] = &rows;
        let slow = [(a0, b0), (a0, b1), (a1, b0), (a1, b1)]
            .map(|(a, b)| a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum::<i32>());
        for isa in Isa::available() {
            assert_eq!(dot_2x2(isa, [a0, a1], [b0, b1]).unwrap(), slow, "{} of {n}", isa.name());
        }
    }
}

/// The largest product is that of two -128: sums in 16 bits, and instructions that saturate, would show.
#[test]
fn extremes_do_not_saturate() {
    let (low, high) = (vec![-128i8; 131_071], vec![127i8; 131_071]);
    for isa in Isa::available() {
        let got = dot_2x2(isa, [&low, &high], [&low, &high]).unwrap();
        let n = 131_071;
        assert_eq!(got, [n * 16384, n * -16256, n * -16256, n * 16129], "{}", isa.name());
    }
}

#[test]
fn rows_of_unequal_length_are_refused() {
    let (a, b) = ([0i8; 4], [0i8; 5]);
    let e = dot_2x2(Isa::scalar(), [&a, &a], [&a, &b]).unwrap_err().to_string();
    assert!(e.contains("second row of b") && e.contains('5'), "{e}");
}
