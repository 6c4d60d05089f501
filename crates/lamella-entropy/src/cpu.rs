//! Which instruction set the kernels may use: found once at run time, lowered (never raised) by `LAMELLA_CPU`.

use std::sync::OnceLock;

/// Instruction sets with kernels in this crate, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CpuLevel {
    /// Safe Rust only: the definition of the bytes.
    Plain,
    /// 256-bit vectors with gathers.
    Avx2,
    /// 512-bit vectors (F, BW, VL, DQ) with compress and expand.
    Avx512,
}

/// The level used by this process: what the machine has, lowered by `LAMELLA_CPU=plain|avx2|avx512`.
pub fn cpu_level() -> CpuLevel {
    static LEVEL: OnceLock<CpuLevel> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let found = detected_level();
        match std::env::var("LAMELLA_CPU").as_deref() {
            Ok("plain") => CpuLevel::Plain,
            Ok("avx2") => found.min(CpuLevel::Avx2),
            _ => found,
        }
    })
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn detected_level() -> CpuLevel {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    match (avx2, avx512) {
        (true, true) => CpuLevel::Avx512,
        (true, false) => CpuLevel::Avx2,
        _ => CpuLevel::Plain,
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn detected_level() -> CpuLevel {
    CpuLevel::Plain
}
