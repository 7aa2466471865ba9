//! x86-64 tiers.
pub(crate) mod avx2;
pub(crate) mod avx512;

use core::arch::x86_64::__m512;
use core::hint::black_box;
use core::mem::MaybeUninit;

/// Aligns the stack of the function that this is inlined into to whole cache lines. The compiler does so of its own accord
/// only where it knows before it assigns registers that it has to; otherwise registers that do not fit go wherever the
/// stack happens to be, and one that lies across two lines, or two pages, costs up to a fifth of a kernel's time.
#[inline(always)]
fn align_stack() {
    black_box(&MaybeUninit::<__m512>::uninit());
}
