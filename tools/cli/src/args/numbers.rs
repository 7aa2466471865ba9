//! Numbers that `lutite quantize` takes: sizes, bits, levels.

use super::Bits;
use lutite_kernels::pack::{MAX_LEVELS, RANKS};
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "k" | "kb" => 1e3,
            "m" | "mb" => 1e6,
            "g" | "gb" => 1e9,
            "kib" => 1024.0,
            "mib" => 1024.0 * 1024.0,
            "gib" => 1024.0 * 1024.0 * 1024.0,
            _ => f64::NAN,
        };
        let bytes = number.parse().unwrap_or(f64::NAN) * unit;
        if bytes >= 1.0 && bytes < 2f64.powi(63) {
            return Ok(Size(bytes as u64));
        }
        Err("a number of bytes such as 60M, 1.5G or 700MiB".into())
    }
}

/// Numbers of planes, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels(pub Vec<Bits>);

impl FromStr for Levels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let levels: Vec<Bits> = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let rank = |bits: &Bits| match bits {
            Bits::Exact => u32::MAX,
            Bits::Planes(planes) => u32::from(*planes),
        };
        let ascending = levels.is_sorted_by(|a, b| rank(a) < rank(b));
        let known = levels.iter().all(|bits| matches!(rank(bits), 1..=6 | 8 | u32::MAX));
        if levels.len() < 2 || !ascending || !known {
            return Err("two or more of 1, 2, 3, 4, 5, 6, 8 and exact, ascending, such as 2,3,4,exact".into());
        }
        Ok(Levels(levels))
    }
}

/// Levels of signs, and the rank of their magnitudes if it is not the shape's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignLevels {
    /// Those of the least model, if they are not to be found out; 1 or more.
    pub least: Option<usize>,
    /// All, more than the least; `None` for those that a checkpoint has.
    pub levels: Option<usize>,
    /// One that kernels know.
    pub rank: Option<usize>,
}

impl FromStr for SignLevels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(SignLevels { least: None, levels: None, rank: None });
        }
        let (levels, rank) = text.split_once(':').map_or((text, None), |(levels, rank)| (levels, Some(rank)));
        let (least, levels) =
            levels.split_once('-').map_or((None, levels), |(least, all)| (Some(least), all));
        let number = |text: Option<&str>| text.map(str::parse).transpose().ok();
        number(least)
            .zip(levels.parse().ok())
            .zip(number(rank))
            .filter(|((least, levels), rank)| {
                (1..*levels).contains(&least.unwrap_or(1))
                    && *levels <= MAX_LEVELS
                    && rank.is_none_or(|rank| RANKS.contains(&rank))
            })
            .map(|((least, levels), rank)| SignLevels { least, levels: Some(levels), rank })
            .ok_or_else(|| {
                format!(
                    "2 to {MAX_LEVELS} or the least and the most, and perhaps :1, :2, :4, :8 or :16, such as 6, 6:2 or 1-6:2; \
                     `all` of a checkpoint's"
                )
            })
    }
}

/// Bits per weight, as an average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BitsPerWeight(pub f64);

impl FromStr for BitsPerWeight {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bits = text.parse().ok().filter(|b| (0.5..=32.0).contains(b));
        bits.map(BitsPerWeight).ok_or_else(|| "a number of bits such as 2.5".into())
    }
}

/// What a program may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mem {
    /// Bytes.
    Bytes(u64),
    /// A share of the machine's memory, 0 to 1.
    Share(f64),
    /// What is free, and as it changes.
    Auto,
}

impl FromStr for Mem {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = |text: &str| text.trim().parse().ok().filter(|p| *p > 0.0 && *p <= 100.0);
        match text.strip_suffix('%') {
            Some(percent) => share(percent).map(|p: f64| Mem::Share(p / 100.0)),
            None if text == "auto" => Some(Mem::Auto),
            None => text.parse::<Size>().ok().map(|size| Mem::Bytes(size.0)),
        }
        .ok_or_else(|| "an amount such as 300M or 1.5GiB, a share such as 70%, or auto".into())
    }
}
