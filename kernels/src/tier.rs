//! The instruction sets there are kernels for.

use std::fmt;
use std::str::FromStr;

/// A set of kernels, named after the instructions it needs. Best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
    Avx512Vnni,
    /// x86-64 with AVX2 and the VEX form of VNNI (Alder Lake-N, Zen 5).
    AvxVnni,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with SSE4.1 (Gemini Lake, Elkhart Lake).
    Sse41,
    /// AArch64 with the 8-bit matrix extension.
    NeonI8mm,
    /// AArch64 with SDOT and UDOT.
    NeonDot,
    /// Any AArch64.
    Neon,
    /// 32-bit ARM with NEON.
    ArmV7Neon,
    /// Safe Rust, any machine: the reference for all others.
    Portable,
}

impl Tier {
    /// All tiers, best first.
    pub const ALL: [Tier; 9] = [
        Tier::Avx512Vnni,
        Tier::AvxVnni,
        Tier::Avx2,
        Tier::Sse41,
        Tier::NeonI8mm,
        Tier::NeonDot,
        Tier::Neon,
        Tier::ArmV7Neon,
        Tier::Portable,
    ];

    /// The best tier of this machine.
    pub fn detect() -> Tier {
        Tier::ALL.into_iter().find(|tier| tier.is_available()).unwrap_or(Tier::Portable)
    }

    /// The tiers this machine can run, best first.
    pub fn available() -> impl Iterator<Item = Tier> {
        Tier::ALL.into_iter().filter(|tier| tier.is_available())
    }

    /// Whether this build has kernels of this tier and this machine can run them.
    pub fn is_available(self) -> bool {
        crate::kernel::kernels(self).is_some()
    }

    /// The name used on command lines and in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Avx512Vnni => "avx512-vnni",
            Tier::AvxVnni => "avx-vnni",
            Tier::Avx2 => "avx2",
            Tier::Sse41 => "sse4.1",
            Tier::NeonI8mm => "neon-i8mm",
            Tier::NeonDot => "neon-dot",
            Tier::Neon => "neon",
            Tier::ArmV7Neon => "armv7-neon",
            Tier::Portable => "portable",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No tier has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownTier(pub String);

impl fmt::Display for UnknownTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no kernel tier is called {:?}; there are", self.0)?;
        Tier::ALL.iter().try_for_each(|tier| write!(f, " {tier}"))
    }
}

impl std::error::Error for UnknownTier {}

impl FromStr for Tier {
    type Err = UnknownTier;

    fn from_str(name: &str) -> Result<Tier, UnknownTier> {
        Tier::ALL.into_iter().find(|tier| tier.name() == name).ok_or_else(|| UnknownTier(name.to_owned()))
    }
}
