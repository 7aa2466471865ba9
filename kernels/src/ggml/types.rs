//! ggml's table of tensor types, and what can go wrong with their rows.
//!
//! Source of the table: `ggml/include/ggml.h` and `type_traits` in `ggml/src/ggml.c` of llama.cpp, read at ggml 0.25.

use core::fmt;

macro_rules! ggml_types {
    ($($name:ident = $id:literal, $label:literal, $block_len:literal, $block_bytes:literal;)*) => {
        /// A tensor type of ggml. The discriminant is the number that GGUF files store.
        ///
        /// Numbers that ggml has withdrawn (4, 5, 31 to 33, 36 to 38) are absent.
        #[expect(non_camel_case_types, reason = "ggml's spelling, so that a type is found by one search in both")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum GgmlType {
            $(
                #[doc = concat!(
                    "`", $label, "`: blocks of ", stringify!($block_len), " values in ", stringify!($block_bytes), " bytes."
                )]
                $name = $id,
            )*
        }

        impl GgmlType {
            /// Every type, in ascending order of number.
            pub const ALL: &'static [GgmlType] = &[$(GgmlType::$name),*];

            /// The type with the number `id`, or `None` where ggml has none or has withdrawn it.
            pub const fn from_id(id: u32) -> Option<GgmlType> {
                match id {
                    $($id => Some(GgmlType::$name),)*
                    _ => None,
                }
            }

            /// The name as people write it, such as `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self { $(GgmlType::$name => $label,)* }
            }

            /// Values in one block; a row is a whole number of blocks.
            pub const fn block_len(self) -> usize {
                match self { $(GgmlType::$name => $block_len,)* }
            }

            /// Bytes of one block.
            pub const fn block_bytes(self) -> usize {
                match self { $(GgmlType::$name => $block_bytes,)* }
            }
        }
    };
}

ggml_types! {
    F32 = 0, "F32", 1, 4;
    F16 = 1, "F16", 1, 2;
    Q4_0 = 2, "Q4_0", 32, 18;
    Q4_1 = 3, "Q4_1", 32, 20;
    Q5_0 = 6, "Q5_0", 32, 22;
    Q5_1 = 7, "Q5_1", 32, 24;
    Q8_0 = 8, "Q8_0", 32, 34;
    Q8_1 = 9, "Q8_1", 32, 36;
    Q2_K = 10, "Q2_K", 256, 84;
    Q3_K = 11, "Q3_K", 256, 110;
    Q4_K = 12, "Q4_K", 256, 144;
    Q5_K = 13, "Q5_K", 256, 176;
    Q6_K = 14, "Q6_K", 256, 210;
    Q8_K = 15, "Q8_K", 256, 292;
    IQ2_XXS = 16, "IQ2_XXS", 256, 66;
    IQ2_XS = 17, "IQ2_XS", 256, 74;
    IQ3_XXS = 18, "IQ3_XXS", 256, 98;
    IQ1_S = 19, "IQ1_S", 256, 50;
    IQ4_NL = 20, "IQ4_NL", 32, 18;
    IQ3_S = 21, "IQ3_S", 256, 110;
    IQ2_S = 22, "IQ2_S", 256, 82;
    IQ4_XS = 23, "IQ4_XS", 256, 136;
    I8 = 24, "I8", 1, 1;
    I16 = 25, "I16", 1, 2;
    I32 = 26, "I32", 1, 4;
    I64 = 27, "I64", 1, 8;
    F64 = 28, "F64", 1, 8;
    IQ1_M = 29, "IQ1_M", 256, 56;
    BF16 = 30, "BF16", 1, 2;
    TQ1_0 = 34, "TQ1_0", 256, 54;
    TQ2_0 = 35, "TQ2_0", 256, 66;
    MXFP4 = 39, "MXFP4", 32, 17;
    NVFP4 = 40, "NVFP4", 64, 36;
    Q1_0 = 41, "Q1_0", 128, 18;
    Q2_0 = 42, "Q2_0", 64, 18;
}

impl GgmlType {
    /// The number that GGUF files store for this type.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a row of `n` values, or `None` where `n` is no whole number of blocks or the size overflows.
    pub const fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_len()) {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a row could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GgmlError {
    /// This module has no reader of that kind for the type.
    Unsupported {
        /// The type that was asked for.
        ty: GgmlType,
        /// The types that can be read.
        readable: &'static [GgmlType],
    },
    /// A slice does not have the length that the others imply.
    Length {
        /// The type of the row.
        ty: GgmlType,
        /// Which slice: `bytes`, `out`, `codes` or one of scales.
        slice: &'static str,
        /// The length that it must have, in elements. For `out` and `codes` of a ragged row: rounded up to
        /// whole blocks.
        expected: usize,
        /// The length that it has, in elements.
        found: usize,
    },
}

impl fmt::Display for GgmlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GgmlError::Unsupported { ty, readable } => {
                write!(f, "tensors of type {ty} cannot be read here; convert to one of")?;
                for (i, ty) in readable.iter().enumerate() {
                    write!(f, "{} {ty}", if i == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            GgmlError::Length { ty, slice, expected, found } => {
                write!(f, "a {ty} row needs {expected} elements in `{slice}`, found {found}")
            }
        }
    }
}

impl core::error::Error for GgmlError {}
