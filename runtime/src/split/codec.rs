//! Hidden states as they travel from the first layers to the others.
//!
//! A few values of a state are hundreds of times larger than the rest, most of them in the same few channels for every token; rounded
//! with the others to few bits they would leave nothing of these. So they are sent apart (*threshold splitting*), as bf16, whose
//! range is that of f32: in channels that both sides agreed on without an index, elsewhere with the distance to the one before.
//! What is left is rounded to a few bits with one scale per token, and to more bits where that would lose too much (*token-adaptive
//! bits*). After "Memory- and Latency-Constrained Inference of LLMs via Adaptive Split Computing" (arXiv 2511.04002), whose
//! formulas were not at hand: the rules below are our own.
//!
//! One state, little-endian:
//!
//! | bytes | |
//! |---:|---|
//! | 1 | bits `b`, 2 to 8; or 32, behind which all values follow as f32 |
//! | 1 | indexed values `n` |
//! | 2, 2 | `low` and `step`, bf16 |
//! | 2 per agreed channel | values of agreed channels, bf16, in ascending order |
//! | 3 `n`, or more | indexed values: the number of other channels between it and the one before (255: so many, and more follows), a bf16 |
//! | | codes of all others, `b` bits each, lowest bits first; the last byte is filled up with zeros |
//!
//! A code `q` is `low + step * q`. All is computed in f32 in a fixed order, the same on every machine.

use super::bytes::{Reader, Short};
use half::bf16;
use std::fmt;

/// How states are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As f32.
    Lossless,
    /// So many bits for most values, 2 to 8.
    Bits(u8),
}

/// What both sides agree on.
#[derive(Clone, Debug, PartialEq)]
pub struct CodecSpec {
    /// Values of a state.
    pub width: usize,
    /// How most of them are sent.
    pub precision: Precision,
    /// Channels whose values are sent apart for every token; ascending.
    pub channels: Vec<u16>,
    /// Other values that may be sent apart, of one token.
    pub indexed: u8,
    /// What a token may lose: the squares of what rounding changes over the squares of its state. A token that would lose more
    /// gets more bits.
    pub guard: f32,
}

/// Widest state.
pub const MAX_WIDTH: usize = 1 << 16;

/// What marks a state of f32.
const LOSSLESS: u8 = 32;

/// A distance that goes on in the next byte.
const FAR: u8 = 255;

/// Values beyond so many times the root mean square of the others are candidates for being sent apart.
const CANDIDATE: f32 = 2.5;

/// Parts of the range of what is rounded that may be all that codes cover: values outside lose more, all others less.
const COVERED: [f32; 5] = [1.0, 0.9, 0.8, 0.7, 0.6];

/// What is wrong with a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hidden state {0}")]
pub struct CodecError(String);

impl From<Short> for CodecError {
    fn from(_: Short) -> CodecError {
        CodecError::new("ends before it is whole")
    }
}

impl CodecError {
    fn new(why: impl fmt::Display) -> CodecError {
        CodecError(why.to_string())
    }
}

/// Brings states into bytes and back.
#[derive(Clone, Debug)]
pub struct Codec {
    spec: CodecSpec,
    /// Values that are neither of agreed channels nor, after [`Codec::split`], indexed.
    rest: Vec<f32>,
    /// Places of indexed values among those of channels that are not agreed; ascending.
    picked: Vec<usize>,
    codes: Vec<u8>,
}

impl Codec {
    /// Checks what was agreed on.
    ///
    /// # Errors
    /// Widths, bits and channels that there are not.
    pub fn new(spec: CodecSpec) -> Result<Codec, CodecError> {
        let bad = |why: String| Err(CodecError::new(why));
        if spec.width == 0 || spec.width > MAX_WIDTH {
            return bad(format!("cannot have {} values; 1 to {MAX_WIDTH} are possible", spec.width));
        }
        if let Precision::Bits(bits) = spec.precision
            && !(2..=8).contains(&bits)
        {
            return bad(format!("cannot be sent with {bits} bits a value; 2 to 8 are possible"));
        }
        let ascending = spec.channels.is_sorted_by(|a, b| a < b);
        if !ascending || spec.channels.last().is_some_and(|c| usize::from(*c) >= spec.width) {
            return bad(format!("of {} values has no such channels, ascending", spec.width));
        }
        if !spec.guard.is_finite() || spec.guard < 0.0 {
            return bad(format!("cannot lose {} of itself", spec.guard));
        }
        Ok(Codec { spec, rest: Vec::new(), picked: Vec::new(), codes: Vec::new() })
    }

    /// What was agreed on.
    pub fn spec(&self) -> &CodecSpec {
        &self.spec
    }

    /// Bytes of a state at most.
    pub fn max_bytes(&self) -> usize {
        1 + 4 * self.spec.width
    }

    /// Appends a state of [`CodecSpec::width`] values.
    ///
    /// # Errors
    /// A value that is no finite number; nothing is appended then.
    ///
    /// # Panics
    /// If `x` has another width.
    pub fn encode(&mut self, x: &[f32], out: &mut Vec<u8>) -> Result<(), CodecError> {
        assert_eq!(x.len(), self.spec.width, "a state of another width");
        if let Some(i) = x.iter().position(|x| !x.is_finite()) {
            return Err(CodecError::new(format_args!("has {} in channel {i}", x[i])));
        }
        let Precision::Bits(least) = self.spec.precision else {
            lossless(x, out);
            return Ok(());
        };
        self.split(x);
        let allowed = self.spec.guard * squares(x, |v| v);
        for bits in least..=8 {
            let Some(scale) = Scale::best(&self.rest, bits) else { break };
            if scale.lost <= allowed {
                let before = out.len();
                self.write(x, bits, &scale, out);
                if out.len() - before <= self.max_bytes() {
                    return Ok(());
                }
                // A handful of values.
                out.truncate(before);
                break;
            }
        }
        lossless(x, out);
        Ok(())
    }

    /// Splits what is not of agreed channels into what is sent with its place and what is rounded.
    fn split(&mut self, x: &[f32]) {
        let Codec { spec, rest, picked, .. } = self;
        rest.clear();
        let mut from = 0;
        for channel in spec.channels.iter().map(|c| usize::from(*c)).chain([x.len()]) {
            rest.extend_from_slice(&x[from..channel]);
            from = channel + 1;
        }
        picked.clear();
        let most = usize::from(spec.indexed).min(rest.len());
        if most == 0 {
            return;
        }
        // Without what is far out, which would hide the others.
        let mut limit = f32::MAX;
        for _ in 0..2 {
            let near = |v: f32| if v.abs() < limit { v } else { 0.0 };
            limit = CANDIDATE * (squares(rest, near) / rest.len() as f32).sqrt();
        }
        picked.extend((0..rest.len()).filter(|i| rest[*i].abs() > limit));
        if picked.len() > most {
            picked.select_nth_unstable_by(most, |a, b| {
                rest[*b].abs().total_cmp(&rest[*a].abs()).then(a.cmp(b))
            });
            picked.truncate(most);
            picked.sort_unstable();
        }
        // The others move together.
        let mut next = picked.iter().copied().peekable();
        let mut at = 0;
        for i in 0..rest.len() {
            if next.next_if_eq(&i).is_none() {
                rest[at] = rest[i];
                at += 1;
            }
        }
        rest.truncate(at);
    }

    fn write(&mut self, x: &[f32], bits: u8, scale: &Scale, out: &mut Vec<u8>) {
        let Codec { spec, rest, picked, codes } = self;
        out.extend([bits, picked.len() as u8]);
        out.extend(scale.low.to_le_bytes());
        out.extend(scale.step.to_le_bytes());
        let apart = |v: f32, out: &mut Vec<u8>| out.extend(nearest(v).to_le_bytes());
        spec.channels.iter().for_each(|c| apart(x[usize::from(*c)], out));
        let mut others = Others::new(&spec.channels);
        let mut behind = 0;
        for place in picked.iter() {
            let mut distance = place - behind;
            while distance >= usize::from(FAR) {
                out.push(FAR);
                distance -= usize::from(FAR);
            }
            out.push(distance as u8);
            apart(x[others.channel(*place)], out);
            behind = place + 1;
        }
        scale.codes(rest, bits, codes);
        pack(codes, bits, out);
    }

    /// Reads a state from the front of `bytes` into `x`, which has [`CodecSpec::width`] values; returns how many bytes it was.
    ///
    /// # Errors
    /// Bytes that are no state of what was agreed on; `x` is then any numbers.
    ///
    /// # Panics
    /// If `x` has another width.
    pub fn decode(&self, bytes: &[u8], x: &mut [f32]) -> Result<usize, CodecError> {
        let spec = &self.spec;
        assert_eq!(x.len(), spec.width, "a state of another width");
        let mut reader = Reader::new(bytes);
        let bits = reader.u8()?;
        if bits == LOSSLESS {
            for x in x.iter_mut() {
                *x = finite(reader.f32()?)?;
            }
            return Ok(bytes.len() - reader.rest().len());
        }
        if !(2..=8).contains(&bits) {
            return Err(CodecError::new(format_args!(
                "says {bits} bits a value; 2 to 8 and 32 are possible"
            )));
        }
        let n = usize::from(reader.u8()?);
        if n > usize::from(spec.indexed) {
            return Err(CodecError::new(format_args!(
                "has {n} indexed values, {} were agreed on",
                spec.indexed
            )));
        }
        let (low, step) = (finite(reader.bf16()?)?, finite(reader.bf16()?)?);
        if step < 0.0 || !(low + step * 255.0).is_finite() {
            return Err(CodecError::new(format_args!("has a scale of {step} from {low} on")));
        }
        let count = spec.width - spec.channels.len();
        // What is sent apart is finite: this marks the others.
        x.fill(f32::NAN);
        for channel in &spec.channels {
            x[usize::from(*channel)] = finite(reader.bf16()?)?;
        }
        let mut others = Others::new(&spec.channels);
        let mut place = 0;
        for _ in 0..n {
            loop {
                let distance = reader.u8()?;
                place += usize::from(distance);
                if distance < FAR || place >= count {
                    break;
                }
            }
            if place >= count {
                return Err(CodecError::new(format_args!("has an indexed value behind its {count} others")));
            }
            x[others.channel(place)] = finite(reader.bf16()?)?;
            place += 1;
        }
        let rounded = count - n;
        let packed = reader.take((rounded * usize::from(bits)).div_ceil(8))?;
        let mut codes = Codes { bytes: packed, bits: u32::from(bits), held: 0, count: 0 };
        for x in x.iter_mut().filter(|x| x.is_nan()) {
            *x = low + step * codes.next() as f32;
        }
        if codes.held != 0 {
            return Err(CodecError::new("is not filled up with zeros"));
        }
        Ok(bytes.len() - reader.rest().len())
    }
}

/// The range that codes cover.
struct Scale {
    low: bf16,
    step: bf16,
    /// Sum of squares of what rounding changes.
    lost: f32,
}

impl Scale {
    /// The one that loses least; `None` where numbers are too large for it.
    fn best(values: &[f32], bits: u8) -> Option<Scale> {
        let (least, most) =
            values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), v| (a.min(*v), b.max(*v)));
        if values.is_empty() {
            return Some(Scale { low: bf16::ZERO, step: bf16::ZERO, lost: 0.0 });
        }
        let top = f32::from((1u16 << bits) - 1);
        let middle = 0.5 * least + 0.5 * most;
        let half = 0.5 * most - 0.5 * least;
        let scale = |covered: f32| {
            let low = bf16::from_f32(middle - covered * half);
            // `low` may have been rounded to beyond the upper end.
            let step = bf16::from_f32(((middle + covered * half - low.to_f32()) / top).max(0.0));
            let mut scale = Scale { low, step, lost: 0.0 };
            scale.lost = scale.loss(values, top);
            scale
        };
        let best = COVERED.map(scale).into_iter().min_by(|a, b| a.lost.total_cmp(&b.lost))?;
        let fits = best.lost.is_finite() && best.step.is_finite() && best.low.is_finite();
        (fits && (best.low.to_f32() + best.step.to_f32() * 255.0).is_finite()).then_some(best)
    }

    fn inverse(&self) -> f32 {
        let step = self.step.to_f32();
        if step > 0.0 { 1.0 / step } else { 0.0 }
    }

    fn loss(&self, values: &[f32], top: f32) -> f32 {
        let (low, step, inverse) = (self.low.to_f32(), self.step.to_f32(), self.inverse());
        squares(values, |v| v - (low + step * code(v, low, inverse, top)))
    }

    fn codes(&self, values: &[f32], bits: u8, codes: &mut Vec<u8>) {
        let (low, inverse, top) = (self.low.to_f32(), self.inverse(), f32::from((1u16 << bits) - 1));
        codes.clear();
        codes.extend(values.iter().map(|v| code(*v, low, inverse, top) as u8));
    }
}

/// The nearest code, as a number.
fn code(v: f32, low: f32, inverse: f32, top: f32) -> f32 {
    // Above 2^23 the numbers are the whole ones: adding so much rounds.
    const WHOLE: f32 = 12_582_912.0;
    (((v - low) * inverse).clamp(0.0, top) + WHOLE) - WHOLE
}

/// The sum of the squares of what `f` makes of values: eight sums that the compiler keeps side by side, then those, so that the order
/// is the same on all machines.
fn squares(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; 8];
    let (eights, rest) = values.as_chunks::<8>();
    for eight in eights {
        for (sum, v) in sums.iter_mut().zip(eight) {
            let v = f(*v);
            *sum += v * v;
        }
    }
    for (sum, v) in sums.iter_mut().zip(rest) {
        let v = f(*v);
        *sum += v * v;
    }
    sums.iter().sum()
}

/// The nearest bf16 that is finite.
fn nearest(v: f32) -> bf16 {
    let near = bf16::from_f32(v);
    if near.is_finite() {
        near
    } else if v > 0.0 {
        bf16::MAX
    } else {
        bf16::MIN
    }
}

fn lossless(x: &[f32], out: &mut Vec<u8>) {
    out.push(LOSSLESS);
    out.extend(x.iter().flat_map(|x| x.to_le_bytes()));
}

fn finite(v: f32) -> Result<f32, CodecError> {
    if v.is_finite() { Ok(v) } else { Err(CodecError::new(format_args!("has {v} among its values"))) }
}

/// Channels that are not agreed, found by their number in ascending order.
struct Others<'a> {
    agreed: &'a [u16],
    passed: usize,
}

impl<'a> Others<'a> {
    fn new(agreed: &'a [u16]) -> Others<'a> {
        Others { agreed, passed: 0 }
    }

    /// The channel of the `place`th of them; places ascend from call to call.
    fn channel(&mut self, place: usize) -> usize {
        while self.agreed.get(self.passed).is_some_and(|c| usize::from(*c) <= place + self.passed) {
            self.passed += 1;
        }
        place + self.passed
    }
}

fn pack(codes: &[u8], bits: u8, out: &mut Vec<u8>) {
    let (mut held, mut count) = (0u32, 0u32);
    for code in codes {
        held |= u32::from(*code) << count;
        count += u32::from(bits);
        while count >= 8 {
            out.push(held as u8);
            held >>= 8;
            count -= 8;
        }
    }
    if count > 0 {
        out.push(held as u8);
    }
}

struct Codes<'a> {
    bytes: &'a [u8],
    bits: u32,
    held: u32,
    count: u32,
}

impl Codes<'_> {
    /// The next code; there are enough bytes.
    fn next(&mut self) -> u32 {
        if self.count < self.bits
            && let Some((byte, rest)) = self.bytes.split_first()
        {
            self.held |= u32::from(*byte) << self.count;
            self.count += 8;
            self.bytes = rest;
        }
        let code = self.held & ((1 << self.bits) - 1);
        self.held >>= self.bits;
        self.count -= self.bits;
        code
    }
}
