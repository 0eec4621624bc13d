//! 32-bit ARM with NEON. Its intrinsics are not stable in Rust, and the target's baseline has no NEON: the loops are assembly,
//! handed out where the kernel of the system reports NEON.

pub(super) mod depthwise;
pub(super) mod external;
pub(super) mod rows;
mod tile;

use std::arch::global_asm;
use std::sync::LazyLock;

use super::conv;
use crate::Tier;
use crate::kernel::Kernels;
use crate::portable;
use crate::step::Requant;

global_asm!(include_str!("neon.s"), options(raw));

unsafe extern "C" {
    /// A tile of two pixels × 16 channels; `offsets` are `u32`.
    fn tractd_v7_tile(work: *const Work);
    /// 16 channels of two pixels of a depthwise convolution; `offsets` are pairs of `usize`, of which there are `long`.
    fn tractd_v7_depthwise(work: *const Work);
    /// `eights` times eight bytes of a sum.
    fn tractd_v7_add(a: *const u8, b: *const u8, to: *mut u8, eights: usize, sum: *const AddFactors);
    /// `eights` times eight floats to bytes.
    fn tractd_v7_quantize(from: *const u8, to: *mut u8, eights: usize, factors: *const QuantizeFactors);
}

static KERNELS: Kernels = Kernels {
    conv: |conv| conv::pack::<tile::ArmV7>(conv.whole()),
    depthwise: super::depthwise::pack,
    add: super::rows::add,
    table: super::rows::table,
    quantize: super::external::quantize,
    ..portable::KERNELS
};

/// The kernels of a tier, where this machine can run them.
pub(crate) fn kernels(tier: Tier) -> Option<&'static Kernels> {
    (tier == Tier::ArmV7Neon && has_neon()).then_some(&KERNELS)
}

/// Linux, `arch/arm/include/uapi/asm/hwcap.h`.
const HWCAP_NEON: libc::c_ulong = 1 << 12;
/// With fused operations: all of these processors but the Cortex-A8, the A9 and some of their time.
const HWCAP_VFPV4: libc::c_ulong = 1 << 16;

/// Asked of the system once: each tile wants to know.
static FMA: LazyLock<bool> = LazyLock::new(|| has(HWCAP_VFPV4));

fn has_neon() -> bool {
    has(HWCAP_NEON)
}

fn has(capability: libc::c_ulong) -> bool {
    // SAFETY: reads a value that the system gave the process.
    unsafe { libc::getauxval(libc::AT_HWCAP) & capability != 0 }
}

/// 1.5 · 2^23 as bits: added to a small float it leaves the nearest whole number, ties to even, in the low bits.
const WHOLE: i32 = 0x4b40_0000;

/// What the two pixels of a tile are computed from. The assembly knows the order of the fields.
#[repr(C)]
struct Work {
    reads: [*const u8; 2],
    writes: [*mut u8; 2],
    offsets: *const u8,
    long: usize,
    short: usize,
    weights: *const i8,
    bias: *const i32,
    multipliers: *const f32,
    rounding: Rounding,
    /// Null where requantisation is not fused.
    shifts: *const f32,
    /// Of fused results.
    bounds: [u8; 2],
    /// Whether there are fused operations.
    fma: bool,
}

/// Bounds less the zero point, and what to take from the bits of a rounded sum. The assembly knows the order of the fields.
#[repr(C)]
#[derive(Clone, Copy)]
struct Rounding {
    low: f32,
    high: f32,
    whole: i32,
}

impl Rounding {
    fn new(requant: &Requant) -> Rounding {
        let zero_point = f32::from(requant.zero_point);
        Rounding {
            low: f32::from(requant.clamp.low) - zero_point,
            high: f32::from(requant.clamp.high) - zero_point,
            whole: WHOLE - i32::from(requant.zero_point),
        }
    }
}

/// The assembly knows the order of the fields.
#[repr(C)]
struct AddFactors {
    a: f32,
    b: f32,
    a_zero: f32,
    b_zero: f32,
    zero: f32,
    low: f32,
    high: f32,
}

/// The assembly knows the order of the fields.
#[repr(C)]
struct QuantizeFactors {
    scale: f32,
    rounding: Rounding,
}
