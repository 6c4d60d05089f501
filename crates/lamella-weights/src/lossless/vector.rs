//! Plain loops compiled for the vectors of this machine.
#![allow(unsafe_code, reason = "functions that need features of the processor")]

use std::sync::LazyLock;

/// Calls `work`, which is compiled into a function for 512-bit or 256-bit vectors where the machine has them: loops
/// inside become code of that width. The results are the same.
#[inline(always)]
pub(super) fn wide<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        match *WIDTH {
            // SAFETY: the machine has the features.
            Width::Avx512 => return unsafe { wide_512(work) },
            // SAFETY: the machine has the features.
            Width::Avx2 => return unsafe { wide_256(work) },
            Width::Plain => {}
        }
    }
    work()
}

enum Width {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

static WIDTH: LazyLock<Width> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    {
        use lamella_entropy::cpu::{CpuLevel, cpu_level};
        let level = if is_x86_feature_detected!("bmi2") { cpu_level() } else { CpuLevel::Plain };
        match level {
            CpuLevel::Avx512 => return Width::Avx512,
            CpuLevel::Avx2 => return Width::Avx2,
            CpuLevel::Plain => {}
        }
    }
    Width::Plain
});

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,bmi2,popcnt")]
fn wide_512<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn wide_256<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Whether [`deposit`] and [`extract`] may be called.
pub(super) fn has_deposit() -> bool {
    !matches!(*WIDTH, Width::Plain)
}

/// Unpacks whole groups of eight elements of `bits` bits each while eight bytes can be read; returns the groups done.
///
/// Only after [`has_deposit`] said yes; else none are done.
pub(super) fn deposit(packed: &[u8], bits: u32, out: &mut [u8]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if has_deposit() {
        // SAFETY: the machine has the feature.
        return unsafe { deposit_bmi2(packed, bits, out) };
    }
    let _ = (packed, bits, out);
    0
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi2")]
fn deposit_bmi2(packed: &[u8], bits: u32, out: &mut [u8]) -> usize {
    let mask = 0x0101_0101_0101_0101 * ((1u64 << bits) - 1);
    let size = bits as usize;
    let readable =
        (packed.len().saturating_sub(8) / size + usize::from(packed.len() >= 8)).min(out.len() / 8);
    let (groups, _) = out.as_chunks_mut::<8>();
    let mut rest = packed;
    for group in &mut groups[..readable] {
        let Some(eight) = rest.first_chunk::<8>() else { break };
        *group = std::arch::x86_64::_pdep_u64(u64::from_le_bytes(*eight), mask).to_le_bytes();
        rest = &rest[size..];
    }
    readable
}

/// Packs groups of eight elements below `1 << bits` into `bits` bytes each, writing eight bytes at a time; returns the
/// groups done, none where the machine cannot or `out` has not eight bytes of room beyond each group's begin.
pub(super) fn extract(groups: &[[u8; 8]], bits: u32, out: &mut [u8]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if has_deposit() && out.len() >= groups.len() * bits as usize + 8 {
        // SAFETY: the machine has the feature.
        unsafe { extract_bmi2(groups, bits, out) };
        return groups.len();
    }
    let _ = (groups, bits, out);
    0
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi2")]
fn extract_bmi2(groups: &[[u8; 8]], bits: u32, out: &mut [u8]) {
    let mask = 0x0101_0101_0101_0101 * ((1u64 << bits) - 1);
    let size = bits as usize;
    let mut rest = out;
    for group in groups {
        let Some(place) = rest.first_chunk_mut::<8>() else { break };
        *place = std::arch::x86_64::_pext_u64(u64::from_le_bytes(*group), mask).to_le_bytes();
        rest = &mut rest[size..];
    }
}
