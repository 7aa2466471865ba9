//! Which instruction set runs: tiers instead of single flags, detected once and passed by value.

use crate::arch;
use crate::error::{Error, Result};
use crate::simd::{Kernel, Simd};

/// A tier of instructions that this machine was found to have. Make one with [`Isa::detect`] (or
/// [`Isa::from_env`]) when an engine is built, and pass it to every kernel.
#[derive(Clone, Copy, Debug)]
pub struct Isa(Tier);

/// Names of processor features, as Rust spells them, and whether this machine has them.
pub type Features = Vec<(&'static str, bool)>;

#[cfg(target_arch = "x86_64")]
macro_rules! features {
    ($($f:tt),*) => { vec![$(($f, is_x86_feature_detected!($f))),*] };
}
#[cfg(target_arch = "aarch64")]
macro_rules! features {
    ($($f:tt),*) => { vec![$(($f, std::arch::is_aarch64_feature_detected!($f))),*] };
}

#[derive(Clone, Copy, Debug)]
enum Tier {
    Scalar(arch::Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(arch::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(arch::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(arch::Neon<arch::Base>),
    #[cfg(target_arch = "aarch64")]
    NeonDot(arch::Neon<arch::Dot>),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(arch::Neon<arch::I8mm>),
}

impl Isa {
    /// The best tier of this machine.
    pub fn detect() -> Isa {
        Self::available().pop().unwrap_or(Isa::scalar())
    }

    /// The tier that needs nothing: plain Rust, on which the bit contract is defined.
    pub fn scalar() -> Isa {
        Isa(Tier::Scalar(arch::Scalar))
    }

    /// Every tier that runs here, slowest first.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut all = vec![Isa::scalar()];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(arch::Avx2::detect().map(|t| Isa(Tier::Avx2(t))));
            all.extend(arch::Avx512::detect().map(|t| Isa(Tier::Avx512(t))));
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.extend(arch::Neon::detect().map(|t| Isa(Tier::Neon(t))));
            all.extend(arch::Neon::detect().map(|t| Isa(Tier::NeonDot(t))));
            all.extend(arch::Neon::detect().map(|t| Isa(Tier::NeonI8mm(t))));
        }
        all
    }

    /// [`Isa::detect`], lowered by the environment variable `LUTITE_ISA` where that is set.
    ///
    /// # Errors
    /// [`Error::Isa`] when the variable names a tier that does not run here.
    pub fn from_env() -> Result<Isa> {
        match std::env::var("LUTITE_ISA") {
            Ok(name) if !name.is_empty() => Self::by_name(&name),
            _ => Ok(Self::detect()),
        }
    }

    /// The tier called `name`, if it runs here.
    ///
    /// # Errors
    /// [`Error::Isa`] when it does not, with the names that do.
    pub fn by_name(name: &str) -> Result<Isa> {
        let all = Self::available();
        all.iter().find(|i| i.name().eq_ignore_ascii_case(name)).copied().ok_or_else(|| Error::Isa {
            asked: name.to_owned(),
            available: all.iter().map(|i| i.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Whether products of bytes are added up in 32 bits by one instruction, so that 8 bits cost no more than 4.
    pub const fn has_byte_products(self) -> bool {
        match self.0 {
            Tier::Scalar(_) => false,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(_) => false,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(_) => true,
            #[cfg(target_arch = "aarch64")]
            Tier::Neon(_) => false,
            #[cfg(target_arch = "aarch64")]
            Tier::NeonDot(_) | Tier::NeonI8mm(_) => true,
        }
    }

    /// The tier's name as `LUTITE_ISA` spells it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Tier::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Tier::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Tier::NeonDot(_) => "neon-dot",
            #[cfg(target_arch = "aarch64")]
            Tier::NeonI8mm(_) => "neon-i8mm",
        }
    }

    /// The tiers of this architecture, slowest first, each with the processor features that it needs and whether this
    /// machine has them: for a person who wonders why a tier was or was not taken.
    pub fn tiers() -> Vec<(&'static str, Features)> {
        #[allow(unused_mut)]
        let mut all = vec![("scalar", vec![])];
        #[cfg(target_arch = "x86_64")]
        all.extend([
            ("avx2", features!["avx2", "fma", "f16c", "bmi2"]),
            (
                "avx512",
                features![
                    "avx2",
                    "fma",
                    "f16c",
                    "bmi2",
                    "avx512f",
                    "avx512bw",
                    "avx512vl",
                    "avx512dq",
                    "avx512vbmi",
                    "avx512vnni"
                ],
            ),
        ]);
        #[cfg(target_arch = "aarch64")]
        all.extend([
            ("neon", features!["neon"]),
            ("neon-dot", features!["neon", "dotprod"]),
            ("neon-i8mm", features!["neon", "dotprod", "i8mm"]),
        ]);
        all
    }

    /// Features that later tiers will be made of, and whether this machine has them.
    pub fn unused_features() -> Features {
        #[cfg(target_arch = "x86_64")]
        return features!["avxvnni"];
        #[cfg(target_arch = "aarch64")]
        return features!["fp16", "sve"];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        return Vec::new();
    }

    /// Runs a kernel on this tier. The tiers above NEON differ from it in byte products only: compiling everything
    /// else for them again would make nothing but a larger program.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, k: K) -> K::Output {
        match self.0 {
            Tier::Scalar(t) => t.vectorize(k),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(t) => t.vectorize(k),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(t) => t.vectorize(k),
            #[cfg(target_arch = "aarch64")]
            Tier::Neon(t) => t.vectorize(k),
            #[cfg(target_arch = "aarch64")]
            Tier::NeonDot(t) if K::PRODUCTS => t.vectorize(k),
            #[cfg(target_arch = "aarch64")]
            Tier::NeonDot(t) => t.base().vectorize(k),
            #[cfg(target_arch = "aarch64")]
            Tier::NeonI8mm(t) if K::PRODUCTS => t.vectorize(k),
            #[cfg(target_arch = "aarch64")]
            Tier::NeonI8mm(t) => t.base().vectorize(k),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_and_unknown_ones_say_what_is_there() {
        for isa in Isa::available() {
            assert_eq!(Isa::by_name(&isa.name().to_uppercase()).unwrap().name(), isa.name());
        }
        let e = Isa::by_name("avx1024").unwrap_err().to_string();
        assert!(e.contains("avx1024") && e.contains("scalar"), "{e}");
    }

    #[test]
    fn a_tier_runs_where_its_features_are() {
        let here: Vec<_> = Isa::available().iter().map(|i| i.name()).collect();
        let by_features = Isa::tiers()
            .into_iter()
            .filter(|(_, needs)| needs.iter().all(|(_, has)| *has))
            .map(|(name, _)| name);
        assert_eq!(by_features.collect::<Vec<_>>(), here);
    }
}
