//! Plain numbers as bytes and back: the only reinterpretation this crate makes. With `arch`, one of
//! its two rooms for `unsafe`.
#![allow(unsafe_code)]

/// The bytes of half floats (bit patterns) in memory order, to be written to; little-endian hosts only, which is all
/// that GGUF and this project support.
#[inline(always)]
pub(crate) fn bytes_of_mut(x: &mut [u16]) -> &mut [u8] {
    // SAFETY: u16 has no padding and any bit pattern is one, u8 has no alignment, the length in bytes is exact, and
    // the exclusive borrow is passed on.
    unsafe { core::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), size_of_val(x)) }
}

/// The bytes of floats in memory order.
#[inline(always)]
pub(crate) fn bytes_of(x: &[f32]) -> &[u8] {
    // SAFETY: f32 has no padding, u8 has no alignment, the length in bytes is exact, and the borrow is passed on.
    unsafe { core::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}

/// 16 floats from their bytes in memory order.
#[inline(always)]
pub(crate) fn floats(bytes: [u8; 64]) -> [f32; 16] {
    // SAFETY: the sizes are equal, and any bit pattern is a valid f32.
    unsafe { core::mem::transmute(bytes) }
}

#[cfg(not(target_endian = "little"))]
compile_error!("Lutite reads and writes little-endian files in place");
