//! What becomes of each tensor of a model: decided before anything is computed, so that the size of the
//! result is known and impossible requests fail at once.

use crate::bitstack::rank_for;
use crate::error::{Error, Result};
use lutite_kernels::ggml::{GgmlError, GgmlType, READABLE, superblock_format, uniform_format};
use lutite_kernels::pack::{GROUPS, GROUPS_LIST, MAX_LEVELS, MAX_PLANES, ParamKind, PlaneShape, RANKS};
use lutite_runtime::store::{Gguf, LevelsInfo, PackedInfo, TensorInfo, is_packed};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// How many planes a matrix gets, and how its weights get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// Stage A: the source's own codes and scales, nothing rounded. Matrices in a type that has none (F32, F16,
    /// BF16) stay as they are.
    Exact,
    /// This many planes: calibrated (stage C) where that was done beforehand, else by alternating least squares (stage B).
    Planes(usize),
}

/// What is asked of matrices of levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelOptions {
    /// How many, 1 to 32.
    pub levels: usize,
    /// Rank of the magnitudes; `None` for [`rank_for`] each shape.
    pub rank: Option<usize>,
}

/// What is asked of a packed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackOptions {
    /// For all matrices but the head.
    pub bits: Bits,
    /// For the head; `None` keeps a source that is quantized exactly, and else takes at least 4 planes.
    pub head: Option<Bits>,
    /// For single matrices, by their names without `.weight`, before all else.
    pub each: BTreeMap<String, Bits>,
    /// For all matrices but the head, in place of `bits`: levels of signs, which have to be fitted beforehand.
    pub levels: Option<LevelOptions>,
    /// Columns per group of fitted matrices.
    pub group: usize,
    /// Parameter kind of fitted matrices: `Hlq8` or `Hlq16`.
    pub kind: ParamKind,
}

impl PackOptions {
    /// Stage A for everything.
    pub fn exact() -> PackOptions {
        PackOptions {
            bits: Bits::Exact,
            head: None,
            each: BTreeMap::new(),
            levels: None,
            group: 64,
            kind: ParamKind::Hlq8,
        }
    }

    /// The options in one word, for file names and metadata: `exact`, `q2-g64-hlq8`, `q2-g64-hlq8-head4`; and where single
    /// matrices have bits of their own, a hash of them: `mixed-0123abcd-g64-hlq8`.
    pub fn tag(&self) -> String {
        if !self.each.is_empty() {
            let all = format!("{:?} {:?} {:?}", self.bits, self.head, self.each);
            let hash = xxh3_64(all.as_bytes()) as u32;
            return format!("mixed-{hash:08x}-g{}-{}", self.group, self.kind.name());
        }
        if let Some(LevelOptions { levels, rank }) = self.levels {
            let rank = rank.map_or("auto".to_owned(), |rank| rank.to_string());
            return format!("bitstack-l{levels}-k{rank}");
        }
        let bits = |b: Bits| match b {
            Bits::Exact => "exact".to_owned(),
            Bits::Planes(q) => format!("q{q}-g{}-{}", self.group, self.kind.name()),
        };
        let head = match self.head {
            None => String::new(),
            Some(Bits::Exact) => "-headexact".into(),
            Some(Bits::Planes(q)) => format!("-head{q}"),
        };
        bits(self.bits) + &head
    }

    fn check(&self) -> Result<()> {
        for bits in [Some(self.bits), self.head].into_iter().flatten().chain(self.each.values().copied()) {
            if let Bits::Planes(q) = bits
                && !(1..=MAX_PLANES).contains(&q)
            {
                return Err(Error::Options(format!(
                    "{q} bits are not possible; 1 to {MAX_PLANES}, or exact"
                )));
            }
        }
        if let Some(LevelOptions { levels, rank }) = self.levels {
            if !(1..=MAX_LEVELS).contains(&levels) {
                return Err(Error::Options(format!("{levels} levels are not possible; 1 to {MAX_LEVELS}")));
            }
            if let Some(rank) = rank.filter(|rank| !RANKS.contains(rank)) {
                return Err(Error::Options(format!("rank {rank} is not possible; 1, 2, 4, 8 or 16")));
            }
        }
        if !GROUPS.contains(&self.group) {
            return Err(Error::Options(format!("group {} is not possible; {GROUPS_LIST}", self.group)));
        }
        if !matches!(self.kind, ParamKind::Hlq8 | ParamKind::Hlq16) {
            return Err(Error::Options("fitted weights have parameters of kind hlq8 or hlq16".into()));
        }
        Ok(())
    }
}

/// How one matrix is packed.
#[derive(Clone, Debug)]
pub(crate) struct Job<'a> {
    pub(crate) source: TensorInfo<'a>,
    pub(crate) info: PackedInfo,
    pub(crate) exact: bool,
}

/// A matrix that becomes levels.
#[derive(Clone, Debug)]
pub(crate) struct LevelsJob<'a> {
    pub(crate) source: TensorInfo<'a>,
    pub(crate) info: LevelsInfo,
}

/// What happens to one tensor, in file order.
#[derive(Clone, Debug)]
pub(crate) enum Step<'a> {
    Pack(Job<'a>),
    Levels(LevelsJob<'a>),
    Copy(TensorInfo<'a>),
}

/// What a matrix takes in the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix<'p> {
    /// Without `.weight`.
    pub name: &'p str,
    /// How many it has.
    pub weights: u64,
    /// With its parameters.
    pub bytes: u64,
}

/// The fate of every tensor.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    pub(crate) steps: Vec<Step<'a>>,
    /// The options it was made from.
    pub options: PackOptions,
}

impl<'a> Plan<'a> {
    /// Plans the packing of `src`.
    ///
    /// # Errors
    /// Options outside of what kernels know; a source that is packed already; a matrix in a type that
    /// cannot be read.
    pub fn new(src: &Gguf<'a>, options: &PackOptions) -> Result<Plan<'a>> {
        options.check()?;
        if is_packed(src)? {
            return Err(Error::Options(
                "this file is packed already; pack the file that it was made from".into(),
            ));
        }
        let tied = src.tensor("output.weight").is_none();
        let steps = src.tensors().iter().map(|t| step(t, options, tied)).collect::<Result<_>>()?;
        Ok(Plan { steps, options: options.clone() })
    }

    /// Bytes of tensor data in the result.
    pub fn bytes(&self) -> u64 {
        let size = |s: &Step<'_>| match s {
            Step::Pack(j) => j.info.bytes().unwrap_or(usize::MAX) as u64,
            Step::Levels(j) => j.info.bytes().unwrap_or(usize::MAX) as u64,
            Step::Copy(t) => t.data.len() as u64,
        };
        self.steps.iter().map(size).sum()
    }

    /// Bytes of tensor data in the source.
    pub fn source_bytes(&self) -> u64 {
        let size = |s: &Step<'_>| match s {
            Step::Pack(j) => j.source.data.len() as u64,
            Step::Levels(j) => j.source.data.len() as u64,
            Step::Copy(t) => t.data.len() as u64,
        };
        self.steps.iter().map(size).sum()
    }

    /// Whether any matrix changes its form.
    pub fn packs(&self) -> bool {
        self.steps.iter().any(|s| !matches!(s, Step::Copy(_)))
    }

    /// Matrices that do not hold their source's weights exactly: those fitted with fewer planes, or levels.
    pub fn fitted(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().filter_map(|s| match s {
            Step::Pack(j) if !j.exact => Some(&*j.info.name),
            Step::Levels(j) => Some(&*j.info.name),
            _ => None,
        })
    }

    /// All matrices of the result, copied ones included, in the order of the file.
    pub fn matrices(&self) -> impl Iterator<Item = Matrix<'_>> {
        self.steps.iter().filter_map(|s| match s {
            Step::Pack(j) => Some(Matrix {
                name: &j.info.name,
                weights: (j.info.shape.rows * j.info.shape.cols) as u64,
                bytes: j.info.bytes().unwrap_or(usize::MAX) as u64,
            }),
            Step::Levels(j) => Some(Matrix {
                name: &j.info.name,
                weights: (j.info.shape.rows * j.info.shape.cols) as u64,
                bytes: j.info.bytes().unwrap_or(usize::MAX) as u64,
            }),
            Step::Copy(t) if t.n_dims() == 2 => Some(Matrix {
                name: t.name.strip_suffix(".weight").unwrap_or(t.name),
                weights: t.elements(),
                bytes: t.data.len() as u64,
            }),
            Step::Copy(_) => None,
        })
    }

    /// Bits per weight over [`Plan::matrices`].
    pub fn bits_per_weight(&self) -> f64 {
        let (bytes, weights) =
            self.matrices().fold((0, 0), |(bytes, weights), m| (bytes + m.bytes, weights + m.weights));
        if weights > 0 { 8.0 * bytes as f64 / weights as f64 } else { 0.0 }
    }
}

fn step<'a>(t: &TensorInfo<'a>, o: &PackOptions, tied: bool) -> Result<Step<'a>> {
    let error = |why: String| Error::Tensor { name: t.name.to_owned(), why };
    let Some(name) = t.name.strip_suffix(".weight").filter(|_| t.n_dims() == 2) else {
        return Ok(Step::Copy(*t));
    };
    if !READABLE.contains(&t.ty) {
        return Err(error(GgmlError::Unsupported { ty: t.ty, readable: READABLE }.to_string()));
    }
    let exact = exact_form(t.ty);
    if name == "token_embd" && !tied {
        return Ok(Step::Copy(*t)); // only rows of it are ever read
    }
    let is_head = name == "output" || name == "token_embd";
    let bits = match (is_head, o.head, o.bits) {
        _ if o.each.contains_key(name) => o.each[name],
        (false, _, bits) | (true, None, bits @ Bits::Exact) | (true, Some(bits), _) => bits,
        (true, None, Bits::Planes(_)) if exact.is_some() => Bits::Exact,
        (true, None, Bits::Planes(q)) => Bits::Planes(q.max(4)),
    };
    let size = |n: u64| usize::try_from(n).map_err(|_| error("is larger than the address space".into()));
    let shape = PlaneShape { rows: size(t.rows())?, cols: size(t.dims[0])? };
    let name = name.to_owned();
    if let Some(LevelOptions { levels, rank }) = o.levels.filter(|_| !is_head) {
        let info = LevelsInfo { name, shape, levels, rank: rank.unwrap_or_else(|| rank_for(shape)) };
        info.bytes().ok_or_else(|| error("is larger than the address space".into()))?;
        return Ok(Step::Levels(LevelsJob { source: *t, info }));
    }
    let job = match (bits, exact) {
        (Bits::Exact, None) => return Ok(Step::Copy(*t)),
        (Bits::Exact, Some((kind, planes, group))) => {
            let info = PackedInfo { name, kind, shape, planes, group };
            Job { source: *t, info, exact: true }
        }
        (Bits::Planes(planes), _) => {
            let info = PackedInfo { name, kind: o.kind, shape, planes, group: o.group };
            Job { source: *t, info, exact: false }
        }
    };
    job.info.bytes().ok_or_else(|| error("is larger than the address space".into()))?;
    Ok(Step::Pack(job))
}

/// Kind, planes and group that hold a type's own codes and scales; `None` for numbers without codes.
fn exact_form(ty: GgmlType) -> Option<(ParamKind, usize, usize)> {
    if let Some(f) = uniform_format(ty) {
        let kind = f.center.map_or(ParamKind::Uniform, ParamKind::Centered);
        return Some((kind, usize::from(f.bits), f.block));
    }
    let f = superblock_format(ty)?;
    let kind = f.center.map_or(ParamKind::UniformK, ParamKind::CenteredK);
    Some((kind, usize::from(f.bits), f.group))
}
