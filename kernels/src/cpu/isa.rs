//! Which instruction sets there are, and which this processor has.

use super::micro::{self, Micro};
use std::str::FromStr;

/// An instruction set the kernels have a path for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// What every processor of the architecture has.
    Portable,
    /// AVX2, FMA and F16C (x86-64 since 2013).
    Avx2,
    /// AVX-512 F, BW, VL, DQ.
    Avx512,
    /// AVX-512 with the integer dot product `vpdpbusd`.
    Avx512Vnni,
    /// AVX-512 with `vpdpbusd` and the BF16 dot product `vdpbf16ps`.
    Avx512Bf16,
    /// NEON, on every aarch64.
    Neon,
    /// NEON with the integer dot product `sdot` (processors since 2018).
    NeonDot,
}

/// The text names no instruction set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("isa {0:?} is none of portable, avx2, avx512, avx512-vnni, avx512-bf16, neon, neon-dot")]
pub struct ParseIsaError(String);

impl Isa {
    /// All of them, slowest first.
    pub const ALL: [Self; 7] =
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16, Self::Neon, Self::NeonDot];

    /// Its name in settings and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Neon => "neon",
            Self::NeonDot => "neon-dot",
        }
    }

    /// Whether this processor can run it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => Self::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512Vnni.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[allow(unreachable_patterns, reason = "which sets remain depends on the architecture")]
            _ => false,
        }
    }

    /// Its micro-kernels. Only for an available set.
    pub(super) fn micro(self) -> &'static Micro {
        match self {
            Self::Portable => &micro::portable::TABLE,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => &micro::avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => &micro::avx512::TABLE,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => &micro::AVX512_VNNI,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => &micro::AVX512_BF16,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => &micro::neon::TABLE,
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => &micro::NEON_DOT,
            #[allow(unreachable_patterns, reason = "which sets remain depends on the architecture")]
            _ => unreachable!("invariant: {} is available", self.as_str()),
        }
    }

    /// The fastest one this processor can run.
    #[must_use]
    pub fn detect() -> Self {
        let fastest = Self::ALL.into_iter().rev().find(|isa| isa.is_available());
        fastest.expect("invariant: portable is always available")
    }
}

impl FromStr for Isa {
    type Err = ParseIsaError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|isa| isa.as_str() == text);
        found.ok_or_else(|| ParseIsaError(text.to_owned()))
    }
}
