//! Rows of SpQR's codes times a vector.

#![allow(unsafe_code, reason = "vector instructions, called only where the CPU has them")]

use super::product::{RUN, plain};

/// `sum_groups s sum(q x)` of one row: nibbles, inputs, a scale per group, runs per group.
pub type RowProduct = fn(&[[u8; 8]], &[[f32; RUN]], &[f32], usize) -> f32;

/// The widest kernel of this CPU.
pub fn fastest() -> RowProduct {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        return by_avx2;
    }
    plain
}

#[cfg(target_arch = "x86_64")]
fn by_avx2(nibbles: &[[u8; 8]], input: &[[f32; RUN]], scales: &[f32], runs_per_group: usize) -> f32 {
    // SAFETY: `fastest` hands this function out only where the CPU has AVX2 and FMA.
    unsafe { avx2(nibbles, input, scales, runs_per_group) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(nibbles: &[[u8; 8]], input: &[[f32; RUN]], scales: &[f32], runs_per_group: usize) -> f32 {
    use std::arch::x86_64::*;
    let mask = _mm_set1_epi8(15);
    let mut total = _mm256_setzero_ps();
    let groups = nibbles.chunks(runs_per_group).zip(input.chunks(runs_per_group)).zip(scales);
    for ((nibbles, input), &scale) in groups {
        let mut sum = _mm256_setzero_ps();
        for (bytes, values) in nibbles.iter().zip(input) {
            // SAFETY: 8 bytes and twice 8 floats are read, the sizes of the arrays; no alignment is asked for.
            let (bytes, front, back) = unsafe {
                (
                    _mm_loadl_epi64(bytes.as_ptr().cast()),
                    _mm256_loadu_ps(values.as_ptr()),
                    _mm256_loadu_ps(values.as_ptr().add(8)),
                )
            };
            let low = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_and_si128(bytes, mask)));
            let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask);
            let high = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(high));
            sum = _mm256_fmadd_ps(low, front, sum);
            sum = _mm256_fmadd_ps(high, back, sum);
        }
        total = _mm256_fmadd_ps(_mm256_set1_ps(scale), sum, total);
    }
    let mut lanes = [0.0f32; 8];
    // SAFETY: 8 floats are written, the size of the array.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), total) };
    lanes.iter().sum()
}
