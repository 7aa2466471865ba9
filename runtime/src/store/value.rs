//! Metadata values: decoding from the file's bytes and encoding to them.
//!
//! Layout (GGUF versions 2 and 3, all little-endian): a string is `len: u64, bytes[len]`, an array is
//! `element type: u32, len: u64, elements`, a bool is one byte, and numbers are themselves. Types are u32
//! numbers, in the order of [`ValueType`].

use super::fault::Fault;
use super::gguf::MAX_ARRAY_DEPTH;

/// The type of a metadata value. The discriminant is the number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ValueType {
    /// 8-bit unsigned.
    U8 = 0,
    /// 8-bit signed.
    I8 = 1,
    /// 16-bit unsigned.
    U16 = 2,
    /// 16-bit signed.
    I16 = 3,
    /// 32-bit unsigned.
    U32 = 4,
    /// 32-bit signed.
    I32 = 5,
    /// 32-bit float.
    F32 = 6,
    /// One byte, 0 or 1.
    Bool = 7,
    /// UTF-8 text.
    Str = 8,
    /// Values of one type; they may be arrays.
    Array = 9,
    /// 64-bit unsigned.
    U64 = 10,
    /// 64-bit signed.
    I64 = 11,
    /// 64-bit float.
    F64 = 12,
}

impl ValueType {
    fn from_id(id: u32) -> Result<ValueType, Fault> {
        use ValueType::*;
        const ALL: [ValueType; 13] = [U8, I8, U16, I16, U32, I32, F32, Bool, Str, Array, U64, I64, F64];
        ALL.get(id as usize).copied().ok_or(Fault::ValueType(id))
    }

    /// The least bytes that a value of this type takes; exactly its bytes, but for strings and arrays.
    const fn least_bytes(self) -> usize {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 => 8,
            ValueType::Str => 8,
            ValueType::Array => 12,
        }
    }

    /// The name in messages: `u32`, `str`, `array`.
    pub const fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::Str => "str",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }
}

/// A metadata value, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant holds what its name says")]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(&'a str),
    Array(ArrayView<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// The type of the value.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::Str(_) => ValueType::Str,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The value as `T`, where it is an integer of any type and fits.
    pub fn integer<T: TryFrom<i128>>(&self) -> Option<T> {
        let wide = match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        };
        T::try_from(wide).ok()
    }

    /// What the value is, for a message: `str`, `i32 -1`, `array of 3 f32`.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Array(a) => format!("array of {} {}", a.len, a.element.name()),
            _ => match self.integer::<i128>() {
                Some(v) => format!("{} {v}", self.value_type().name()),
                None => self.value_type().name().to_owned(),
            },
        }
    }
}

/// An array of metadata values: checked when the file was parsed, decoded when iterated, never copied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ArrayView<'a> {
    element: ValueType,
    len: usize,
    /// The encoded elements, exactly.
    bytes: &'a [u8],
}

impl<'a> ArrayView<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The encoded elements, as they lie in the file.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The type of every element.
    pub fn element_type(&self) -> ValueType {
        self.element
    }

    /// All elements, whatever their type.
    pub fn values(&self) -> Values<'a> {
        Values { cursor: Cursor { bytes: self.bytes, at: 0 }, element: self.element, left: self.len }
    }

    fn elements<T>(&self, ty: ValueType, pick: fn(Value<'a>) -> Option<T>) -> Option<Elements<'a, T>> {
        (self.element == ty).then(|| Elements { values: self.values(), pick })
    }

    /// The elements, if they are strings.
    pub fn strs(&self) -> Option<Elements<'a, &'a str>> {
        self.elements(ValueType::Str, |v| if let Value::Str(s) = v { Some(s) } else { None })
    }

    /// The elements, if they are `f32`.
    pub fn f32s(&self) -> Option<Elements<'a, f32>> {
        self.elements(ValueType::F32, |v| if let Value::F32(x) = v { Some(x) } else { None })
    }

    /// The elements, if they are bools.
    pub fn bools(&self) -> Option<Elements<'a, bool>> {
        self.elements(ValueType::Bool, |v| if let Value::Bool(x) = v { Some(x) } else { None })
    }

    /// The elements, if they are integers of any type and every one fits into `T`. Reads all of them to know.
    pub fn integers<T: TryFrom<i128>>(&self) -> Option<Elements<'a, T>> {
        let elements = Elements { values: self.values(), pick: |v| v.integer() };
        (self.values().all(|v| v.integer::<T>().is_some())).then_some(elements)
    }

    /// [`integers`](Self::integers) as `i32`.
    pub fn i32s(&self) -> Option<Elements<'a, i32>> {
        self.integers()
    }

    /// [`integers`](Self::integers) as `u32`.
    pub fn u32s(&self) -> Option<Elements<'a, u32>> {
        self.integers()
    }

    /// [`integers`](Self::integers) as `u64`.
    pub fn u64s(&self) -> Option<Elements<'a, u64>> {
        self.integers()
    }
}

/// Iterator over the elements of an [`ArrayView`].
#[derive(Clone, Debug)]
pub struct Values<'a> {
    cursor: Cursor<'a>,
    element: ValueType,
    left: usize,
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        // The same decoder has accepted these bytes before, so that it cannot fail here.
        self.cursor.value(self.element, 0).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Values<'_> {}

/// Iterator over the elements of an [`ArrayView`] as one Rust type.
#[derive(Clone, Debug)]
pub struct Elements<'a, T> {
    values: Values<'a>,
    pick: fn(Value<'a>) -> Option<T>,
}

impl<T> Iterator for Elements<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.values.next().and_then(self.pick)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.values.size_hint()
    }
}

impl<T> ExactSizeIterator for Elements<'_, T> {}

/// A fault at a byte, before it is known which key or tensor it belongs to.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) at: usize,
    /// The element of the outermost array, if in one.
    pub(super) element: Option<u64>,
    pub(super) fault: Fault,
}

/// A position in the file's bytes; every read is checked against their end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// `fault`, here.
    pub(super) fn broken(&self, fault: Fault) -> Broken {
        Broken { at: self.at, element: None, fault }
    }

    /// The next `n` bytes.
    pub(super) fn take(&mut self, n: u64) -> Result<&'a [u8], Broken> {
        let have = self.left();
        let end = usize::try_from(n).ok().filter(|&n| n <= have).map(|n| self.at + n);
        let Some(end) = end else {
            return Err(self.broken(Fault::Truncated { need: n, have: have as u64 }));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Broken> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Broken> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length and as many bytes of UTF-8.
    pub(super) fn str(&mut self) -> Result<&'a str, Broken> {
        let len = self.u64()?;
        let start = *self;
        std::str::from_utf8(self.take(len)?).map_err(|e| start.broken(Fault::NotUtf8(e.valid_up_to() as u64)))
    }

    /// A type number and a value of that type.
    pub(super) fn any_value(&mut self) -> Result<Value<'a>, Broken> {
        let ty = self.value_type()?;
        self.value(ty, 0)
    }

    fn value_type(&mut self) -> Result<ValueType, Broken> {
        let start = *self;
        ValueType::from_id(self.u32()?).map_err(|fault| start.broken(fault))
    }

    /// A value of type `ty`. `depth` is the number of arrays around it; the recursion ends at
    /// [`MAX_ARRAY_DEPTH`].
    fn value(&mut self, ty: ValueType, depth: usize) -> Result<Value<'a>, Broken> {
        Ok(match ty {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.array()?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.array()?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.array()?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.array()?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(self.array()?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.array()?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.array()?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(self.array()?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.array()?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.array()?)),
            ValueType::Str => Value::Str(self.str()?),
            ValueType::Bool => {
                let start = *self;
                match self.array()? {
                    [0] => Value::Bool(false),
                    [1] => Value::Bool(true),
                    [other] => return Err(start.broken(Fault::Bool(other))),
                }
            }
            ValueType::Array => Value::Array(self.array_view(depth)?),
        })
    }

    fn array_view(&mut self, depth: usize) -> Result<ArrayView<'a>, Broken> {
        if depth == MAX_ARRAY_DEPTH {
            return Err(self.broken(Fault::Depth));
        }
        let element = self.value_type()?;
        let counted = *self;
        let count = self.u64()?;
        // Refused before a single element is looked at, so that the loop below is bounded by the file's
        // length.
        let most = self.left() / element.least_bytes();
        let Some(len) = usize::try_from(count).ok().filter(|&n| n <= most) else {
            let fault = Fault::Count { what: "array elements", count, most: most as u64 };
            return Err(counted.broken(fault));
        };
        let start = self.at;
        match element {
            ValueType::Str | ValueType::Array | ValueType::Bool => {
                for i in 0..len {
                    let checked = self.value(element, depth + 1);
                    checked.map_err(|broken| Broken { element: Some(i as u64), ..broken })?;
                }
            }
            // Any bytes are a number: only their count matters.
            _ => self.at += len * element.least_bytes(),
        }
        Ok(ArrayView { element, len, bytes: &self.bytes[start..self.at] })
    }
}

/// What can be written as a metadata value: numbers, bools, text, slices of those, and a [`Value`] read from
/// another file. Sealed: the set is that of the format.
pub trait ToValue: sealed::Encode {}

impl<T: sealed::Encode + ?Sized> ToValue for T {}

pub(super) mod sealed {
    use super::{Value, ValueType};

    /// Encoding of a value, without its type number.
    pub trait Encode {
        /// The type number that goes before it.
        fn value_type(&self) -> ValueType;
        /// Appends the encoded value.
        fn encode(&self, out: &mut Vec<u8>);
    }

    /// A type with one fixed [`ValueType`], so that also an empty slice of it has a type.
    pub trait Scalar {
        /// The type number.
        const TYPE: ValueType;
        /// Appends the encoded value.
        fn put(&self, out: &mut Vec<u8>);
    }

    macro_rules! numbers {
        ($($t:ty => $v:ident),*) => {$(
            impl Scalar for $t {
                const TYPE: ValueType = ValueType::$v;
                fn put(&self, out: &mut Vec<u8>) {
                    out.extend_from_slice(&self.to_le_bytes());
                }
            }
        )*};
    }
    numbers!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, u64 => U64, i64 => I64, f64 => F64);

    impl Scalar for bool {
        const TYPE: ValueType = ValueType::Bool;
        fn put(&self, out: &mut Vec<u8>) {
            out.push(u8::from(*self));
        }
    }

    impl Scalar for &str {
        const TYPE: ValueType = ValueType::Str;
        fn put(&self, out: &mut Vec<u8>) {
            (self.len() as u64).put(out);
            out.extend_from_slice(self.as_bytes());
        }
    }

    impl Scalar for String {
        const TYPE: ValueType = ValueType::Str;
        fn put(&self, out: &mut Vec<u8>) {
            self.as_str().put(out);
        }
    }

    impl<T: Scalar> Encode for T {
        fn value_type(&self) -> ValueType {
            T::TYPE
        }
        fn encode(&self, out: &mut Vec<u8>) {
            self.put(out);
        }
    }

    impl<T: Scalar> Encode for &[T] {
        fn value_type(&self) -> ValueType {
            ValueType::Array
        }
        fn encode(&self, out: &mut Vec<u8>) {
            (T::TYPE as u32).put(out);
            (self.len() as u64).put(out);
            for element in *self {
                element.put(out);
            }
        }
    }

    impl Encode for Value<'_> {
        fn value_type(&self) -> ValueType {
            Value::value_type(self)
        }
        fn encode(&self, out: &mut Vec<u8>) {
            match *self {
                Value::U8(v) => v.put(out),
                Value::I8(v) => v.put(out),
                Value::U16(v) => v.put(out),
                Value::I16(v) => v.put(out),
                Value::U32(v) => v.put(out),
                Value::I32(v) => v.put(out),
                Value::F32(v) => v.put(out),
                Value::Bool(v) => v.put(out),
                Value::Str(v) => v.put(out),
                Value::U64(v) => v.put(out),
                Value::I64(v) => v.put(out),
                Value::F64(v) => v.put(out),
                Value::Array(a) => {
                    (a.element as u32).put(out);
                    (a.len as u64).put(out);
                    out.extend_from_slice(a.bytes);
                }
            }
        }
    }
}
