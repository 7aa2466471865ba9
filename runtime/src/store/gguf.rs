//! Reading GGUF files, versions 2 and 3.
//!
//! Layout, little-endian; a string is `len: u64, bytes[len]`:
//!
//! ```text
//! "GGUF"  version: u32  tensors: u64  entries: u64
//! entries times   key: string  type: u32  value
//! tensors times   name: string  dims: u32  dim[dims]: u64  type: u32  offset: u64
//! padding to `general.alignment` (32 where absent)
//! data            each tensor at its offset from here, a multiple of the alignment
//! ```
//!
//! Source: `docs/gguf.md` of ggml, and what `gguf.cpp` of llama.cpp accepts where that is silent.
//!
//! The file is untrusted. Nothing is believed before it is held against the bytes that are left: a count
//! against the least size of what it counts, a length against the rest, an offset against the end. So memory
//! is bounded: an entry takes 56 bytes here and at least 14 in the file, a tensor 96 here and at least 33 in
//! the file. Names and values are borrowed, never copied. Lookup is by a sorted index: no hashing, so no
//! crafted collisions, and duplicates show as neighbours.

use std::fmt;

use lutite_kernels::ggml::GgmlType;

use super::fault::{Fault, GgufError, Place};
use super::model_file::{RowOrder, TensorPart};
use super::stack;
use super::value::{Broken, Cursor, Elements, Value};

/// Most dimensions of a tensor (`GGML_MAX_DIMS`).
pub const MAX_DIMS: usize = 4;

/// Longest tensor name in bytes. The specification says 64, but ggml keeps a NUL within its 64.
pub const MAX_NAME_BYTES: usize = 63;

/// Longest metadata key in bytes, by the specification.
pub const MAX_KEY_BYTES: usize = 65_535;

/// Arrays around a value, at most. No known file nests at all; the parser recurses, so there must be an end.
pub(super) const MAX_ARRAY_DEPTH: usize = 4;

/// Entries or tensors, at most: far above any model (split mixtures of experts have some 10^4 tensors), and
/// it keeps what is allocated for a false count in a file of many gigabytes below 100 MB.
const MAX_COUNT: u64 = 1 << 20;

/// Least bytes of an entry: length, one byte of key, type, one byte of value.
const LEAST_ENTRY_BYTES: usize = 8 + 1 + 4 + 1;

/// Least bytes of a tensor description: length, one byte of name, number of dimensions, one dimension, type,
/// offset.
const LEAST_TENSOR_BYTES: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// Alignment where the file does not say (`GGUF_DEFAULT_ALIGNMENT`).
const UNSAID_ALIGNMENT_BYTES: u64 = 32;

pub(super) const MAGIC: [u8; 4] = *b"GGUF";
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// A parsed GGUF file, borrowing all names, values and data from its bytes.
pub struct Gguf<'a> {
    version: u32,
    alignment: u64,
    data_offset: u64,
    entries: Vec<(&'a str, Value<'a>)>,
    by_key: Vec<usize>,
    tensors: Vec<TensorInfo<'a>>,
    by_name: Vec<usize>,
}

/// A tensor of a [`Gguf`].
#[derive(Clone, Copy)]
pub struct TensorInfo<'a> {
    /// Its name, such as `blk.0.ffn_up.weight`.
    pub name: &'a str,
    /// Its type.
    pub ty: GgmlType,
    /// Values along each dimension, fastest first (a row is `dims[0]` long); 1 behind the last. See
    /// [`Self::shape`].
    pub dims: [u64; MAX_DIMS],
    /// Where the data starts, in bytes from the start of the file; where it lies in another file, where it would start.
    pub offset: u64,
    /// The data as it is stored: all rows, without padding, in the order of `order`.
    pub data: &'a [u8],
    /// In which order the rows are stored; [`Self::row_bytes`] gives them in their own.
    pub order: RowOrder,
    n_dims: usize,
}

impl TensorInfo<'_> {
    /// Number of dimensions, 1 to 4.
    pub fn n_dims(&self) -> usize {
        self.n_dims
    }

    /// Values along each dimension, fastest first: `[columns, rows, ...]`.
    pub fn shape(&self) -> &[u64] {
        &self.dims[..self.n_dims]
    }

    /// Number of rows: the product of all dimensions but the first.
    pub fn rows(&self) -> u64 {
        self.dims[1..].iter().product()
    }

    /// Number of values.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Bytes of its data, also where that is absent.
    pub fn bytes(&self) -> u64 {
        shape_bytes(self.ty, self.shape()).unwrap_or(0)
    }

    /// Whether the file was cut off before its data or within it, as stacked files may be (see [`super::Stack`]).
    pub fn is_absent(&self) -> bool {
        self.data.is_empty()
    }
}

impl fmt::Debug for TensorInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?} at {}", self.name, self.ty, self.shape(), self.offset)
    }
}

impl fmt::Debug for Gguf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (entries, tensors) = (self.entries.len(), self.tensors.len());
        write!(f, "GGUF v{}, {entries} metadata entries, {tensors} tensors", self.version)
    }
}

impl<'a> Gguf<'a> {
    /// Parses the bytes of a whole file and checks everything in it but the tensors' values.
    ///
    /// # Errors
    /// [`GgufError`] with the place, the byte and the fault, for the first fault found.
    pub fn parse(bytes: &'a [u8]) -> Result<Gguf<'a>, GgufError> {
        let (mut gguf, end) = Gguf::parse_head(bytes)?;
        gguf.place_data(bytes, end)?;
        Ok(gguf)
    }

    /// As [`parse`](Self::parse), with the tensors' data elsewhere: one part for each, of the right length.
    pub(super) fn parse_parts(head: &'a [u8], parts: &'a [TensorPart]) -> Result<Gguf<'a>, GgufError> {
        let (mut gguf, end) = Gguf::parse_head(head)?;
        gguf.data_offset = end.next_multiple_of(gguf.alignment);
        for (t, part) in gguf.tensors.iter_mut().zip(parts) {
            (t.offset, t.data, t.order) = (gguf.data_offset.saturating_add(t.offset), &part.data, part.order);
        }
        Ok(gguf)
    }

    /// Metadata and descriptions, and where they end.
    pub(super) fn parse_head(bytes: &'a [u8]) -> Result<(Gguf<'a>, u64), GgufError> {
        let mut cursor = Cursor { bytes, at: 0 };
        let (version, n_tensors, n_entries) = header(&mut cursor).map_err(|b| located(b, Place::Header))?;
        let mut gguf = Gguf {
            version,
            alignment: UNSAID_ALIGNMENT_BYTES,
            data_offset: 0,
            entries: Vec::with_capacity(bounded(&cursor, n_entries, ENTRIES, LEAST_ENTRY_BYTES)?),
            by_key: Vec::new(),
            tensors: Vec::new(),
            by_name: Vec::new(),
        };
        for index in 0..n_entries {
            gguf.entries.push(entry(&mut cursor, index)?);
        }
        gguf.by_key = sorted(gguf.entries.len(), |i| gguf.entries[i].0)
            .map_err(|i| GgufError::new(value_place(gguf.entries[i].0), None, Fault::Duplicate))?;
        if let Some(alignment) = gguf.u64(ALIGNMENT_KEY)? {
            check_alignment(alignment)?;
            gguf.alignment = alignment;
        }

        gguf.tensors.reserve_exact(bounded(&cursor, n_tensors, TENSORS, LEAST_TENSOR_BYTES)?);
        for index in 0..n_tensors {
            gguf.tensors.push(describe_tensor(&mut cursor, index)?);
        }
        gguf.by_name = sorted(gguf.tensors.len(), |i| gguf.tensors[i].name)
            .map_err(|i| tensor_error(gguf.tensors[i].name, None, Fault::Duplicate))?;
        Ok((gguf, cursor.at as u64))
    }

    /// Turns the tensors' offsets, so far from the start of the data, into offsets in the file, and gives
    /// each its data. `end` is where the descriptions end.
    fn place_data(&mut self, bytes: &'a [u8], end: u64) -> Result<(), GgufError> {
        let blocks = stack::Optional::read(self)?;
        // The file's length is at most 2^63 and the alignment at most 2^63: no overflow, but perhaps behind
        // the end.
        self.data_offset = end.next_multiple_of(self.alignment);
        for t in &mut self.tensors {
            let fail =
                |fault| Err(tensor_error(t.name, Some(self.data_offset.saturating_add(t.offset)), fault));
            if !t.offset.is_multiple_of(self.alignment) {
                return fail(Fault::Misaligned { offset: t.offset, alignment: self.alignment });
            }
            let need = shape_bytes(t.ty, t.shape()).map_err(|fault| tensor_error(t.name, None, fault))?;
            // Blocks of a stack may be missing, but not so that the sum of offset and size overflows.
            let optional = blocks.has(t.name)
                && self
                    .data_offset
                    .checked_add(t.offset)
                    .is_some_and(|start| start.checked_add(need).is_some());
            let rest = self.data_offset.checked_add(t.offset).and_then(|start| {
                let at = usize::try_from(start).ok()?;
                Some((start, bytes.get(at..)?))
            });
            let Some((start, rest)) = rest else {
                if optional {
                    t.offset += self.data_offset;
                    continue;
                }
                return fail(Fault::Truncated { need, have: 0 });
            };
            let data = usize::try_from(need).ok().and_then(|need| rest.get(..need));
            let Some(data) = data.or(optional.then_some(&[])) else {
                return fail(Fault::Truncated { need, have: rest.len() as u64 });
            };
            (t.offset, t.data) = (start, data);
        }

        // No tensor is empty, so that if any two overlap, two neighbours in the order of their offsets do.
        let mut order: Vec<usize> = (0..self.tensors.len()).collect();
        order.sort_unstable_by_key(|&i| (self.tensors[i].offset, i));
        for pair in order.windows(2) {
            let (a, b) = (&self.tensors[pair[0]], &self.tensors[pair[1]]);
            if a.offset + a.bytes() > b.offset {
                return Err(tensor_error(b.name, Some(b.offset), Fault::Overlap(a.name.into())));
            }
        }
        Ok(())
    }

    /// The file's version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What tensor data is aligned to, in bytes: a power of two.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where the data section starts, in bytes from the start of the file. Without tensors this may be behind
    /// its end.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// All metadata in the order of the file.
    pub fn metadata(&self) -> &[(&'a str, Value<'a>)] {
        &self.entries
    }

    /// All tensors in the order of the file's descriptions.
    pub fn tensors(&self) -> &[TensorInfo<'a>] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo<'a>> {
        self.position(name).map(|i| &self.tensors[i])
    }

    /// Which of [`Self::tensors`] has that name.
    pub fn position(&self, name: &str) -> Option<usize> {
        let found = self.by_name.binary_search_by(|&i| self.tensors[i].name.cmp(name)).ok()?;
        Some(self.by_name[found])
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Fault::Missing`] at the tensor's name.
    pub fn require(&self, name: &str) -> Result<&TensorInfo<'a>, GgufError> {
        self.tensor(name).ok_or_else(|| tensor_error(name, None, Fault::Missing))
    }

    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        let found = self.by_key.binary_search_by(|&i| self.entries[i].0.cmp(key)).ok()?;
        Some(self.entries[self.by_key[found]].1)
    }

    /// The value of `key` as what `pick` makes of it; [`Fault::WrongType`] where that is `None`.
    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        pick: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || Fault::WrongType { expected, found: value.describe() };
        pick(value).map(Some).ok_or_else(|| GgufError::new(value_place(key), None, wrong()))
    }

    /// The text of a key, `None` where the key is absent.
    ///
    /// # Errors
    /// [`Fault::WrongType`] at the key, here and in all the following.
    pub fn str(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        self.typed(key, "str", |v| if let Value::Str(s) = v { Some(s) } else { None })
    }

    /// The integer of a key, of whatever integer type, if it fits.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.typed(key, "an integer that fits u32", |v| v.integer())
    }

    /// The integer of a key, of whatever integer type, if it fits.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "an integer that fits u64", |v| v.integer())
    }

    /// The integer of a key, of whatever integer type, if it fits.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn i32(&self, key: &str) -> Result<Option<i32>, GgufError> {
        self.typed(key, "an integer that fits i32", |v| v.integer())
    }

    /// The `f32` of a key.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "f32", |v| if let Value::F32(x) = v { Some(x) } else { None })
    }

    /// The bool of a key.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "bool", |v| if let Value::Bool(x) = v { Some(x) } else { None })
    }

    /// The strings of a key's array.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn str_array(&self, key: &str) -> Result<Option<Elements<'a, &'a str>>, GgufError> {
        self.typed(key, "array of str", |v| if let Value::Array(a) = v { a.strs() } else { None })
    }

    /// The numbers of a key's array of `f32`.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn f32_array(&self, key: &str) -> Result<Option<Elements<'a, f32>>, GgufError> {
        self.typed(key, "array of f32", |v| if let Value::Array(a) = v { a.f32s() } else { None })
    }

    /// The integers of a key's array, of whatever integer type, if every one fits.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn i32_array(&self, key: &str) -> Result<Option<Elements<'a, i32>>, GgufError> {
        self.typed(key, "array of integers that fit i32", |v| {
            if let Value::Array(a) = v { a.i32s() } else { None }
        })
    }

    /// The integers of a key's array, of whatever integer type, if every one fits.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn u32_array(&self, key: &str) -> Result<Option<Elements<'a, u32>>, GgufError> {
        self.typed(key, "array of integers that fit u32", |v| {
            if let Value::Array(a) = v { a.u32s() } else { None }
        })
    }

    /// The integers of a key's array, of whatever integer type, if every one fits.
    ///
    /// # Errors
    /// As [`str`](Self::str).
    pub fn u64_array(&self, key: &str) -> Result<Option<Elements<'a, u64>>, GgufError> {
        self.typed(key, "array of integers that fit u64", |v| {
            if let Value::Array(a) = v { a.u64s() } else { None }
        })
    }
}

const ENTRIES: &str = "metadata entries";
const TENSORS: &str = "tensors";

fn located(broken: Broken, place: Place) -> GgufError {
    GgufError::new(place, Some(broken.at as u64), broken.fault)
}

pub(super) fn value_place(key: &str) -> Place {
    Place::Value { key: key.into(), element: None }
}

pub(super) fn tensor_error(name: &str, offset: Option<u64>, fault: Fault) -> GgufError {
    GgufError::new(Place::Tensor(name.into()), offset, fault)
}

/// Version, number of tensors, number of entries.
fn header(cursor: &mut Cursor<'_>) -> Result<(u32, u64, u64), Broken> {
    let magic = cursor.take(4)?;
    if magic != MAGIC {
        return Err(Broken {
            at: 0,
            element: None,
            fault: Fault::NotGguf([magic[0], magic[1], magic[2], magic[3]]),
        });
    }
    let start = *cursor;
    let version = cursor.u32()?;
    // A small number read with its bytes in the wrong order has zeros at the low end.
    if version != 0 && version & 0xffff == 0 {
        return Err(start.broken(Fault::BigEndian));
    }
    match version {
        0..=1 => return Err(start.broken(Fault::OldVersion(version))),
        2..=3 => {}
        _ => return Err(start.broken(Fault::NewVersion(version))),
    }
    Ok((version, cursor.u64()?, cursor.u64()?))
}

/// `count` as a capacity, if the rest of the file has room for as many of `least` bytes.
fn bounded(cursor: &Cursor<'_>, count: u64, what: &'static str, least: usize) -> Result<usize, GgufError> {
    let most = MAX_COUNT.min((cursor.left() / least) as u64);
    if count > most {
        return Err(located(cursor.broken(Fault::Count { what, count, most }), Place::Header));
    }
    Ok(count as usize)
}

fn entry<'a>(cursor: &mut Cursor<'a>, index: u64) -> Result<(&'a str, Value<'a>), GgufError> {
    let key = name(cursor, MAX_KEY_BYTES).map_err(|b| located(b, Place::Entry(index)))?;
    let value = cursor.any_value().map_err(|b| {
        let place = Place::Value { key: key.into(), element: b.element };
        located(b, place)
    })?;
    Ok((key, value))
}

/// The description of a tensor, with its offset still from the start of the data and without its data.
fn describe_tensor<'a>(cursor: &mut Cursor<'a>, index: u64) -> Result<TensorInfo<'a>, GgufError> {
    let name = name(cursor, MAX_NAME_BYTES).map_err(|b| located(b, Place::TensorEntry(index)))?;
    let body = |cursor: &mut Cursor<'a>| {
        let start = *cursor;
        let n_dims = cursor.u32()?;
        if n_dims as usize > MAX_DIMS {
            return Err(start.broken(Fault::Dims(n_dims.into())));
        }
        let mut dims = [1; MAX_DIMS];
        for dim in &mut dims[..n_dims as usize] {
            *dim = cursor.u64()?;
        }
        let typed = *cursor;
        let id = cursor.u32()?;
        let ty = GgmlType::from_id(id).ok_or_else(|| typed.broken(Fault::TensorType(id)))?;
        // A scalar of no dimensions, as gguf-py may write it, is a row of one value.
        let n_dims = (n_dims as usize).max(1);
        shape_bytes(ty, &dims[..n_dims]).map_err(|fault| start.broken(fault))?;
        let offset = cursor.u64()?;
        Ok(TensorInfo { name, ty, dims, offset, data: &[], order: RowOrder::Listed, n_dims })
    };
    body(cursor).map_err(|b| located(b, Place::Tensor(name.into())))
}

/// A key or name.
fn name<'a>(cursor: &mut Cursor<'a>, most: usize) -> Result<&'a str, Broken> {
    let start = *cursor;
    let name = cursor.str()?;
    check_name(name, most).map_err(|fault| start.broken(fault))?;
    Ok(name)
}

/// A key or name must be something that every reader holds for the same thing.
pub(super) fn check_name(name: &str, most: usize) -> Result<(), Fault> {
    if name.is_empty() {
        return Err(Fault::EmptyName);
    }
    if name.len() > most {
        return Err(Fault::LongName { len: name.len() as u64, most: most as u64 });
    }
    match name.chars().find(|c| c.is_control()) {
        Some(c) => Err(Fault::ControlCharacter(c)),
        None => Ok(()),
    }
}

pub(super) fn check_alignment(alignment: u64) -> Result<(), GgufError> {
    if alignment.is_power_of_two() {
        return Ok(());
    }
    Err(GgufError::new(value_place(ALIGNMENT_KEY), None, Fault::Alignment(alignment)))
}

/// Bytes of a tensor of that type and shape (fastest dimension first), without padding.
pub(super) fn shape_bytes(ty: GgmlType, shape: &[u64]) -> Result<u64, Fault> {
    if shape.is_empty() || shape.len() > MAX_DIMS {
        return Err(Fault::Dims(shape.len() as u64));
    }
    if let Some(zero) = shape.iter().position(|&d| d == 0) {
        return Err(Fault::ZeroDim(zero));
    }
    let too_large = || Fault::Shape(shape.into());
    let fits = |n: &u64| i64::try_from(*n).is_ok();
    let elements =
        shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(fits).ok_or_else(too_large)?;
    let block = ty.block_len() as u64;
    if !shape[0].is_multiple_of(block) {
        return Err(Fault::Row { row: shape[0], ty });
    }
    (elements / block).checked_mul(ty.block_bytes() as u64).filter(fits).ok_or_else(too_large)
}

/// The indices of `n` names in ascending order of name, or the later index of two that are equal.
pub(super) fn sorted<'n>(n: usize, name: impl Fn(usize) -> &'n str) -> Result<Vec<usize>, usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_unstable_by_key(|&i| name(i));
    match order.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
        Some(pair) => Err(pair[0].max(pair[1])),
        None => Ok(order),
    }
}
