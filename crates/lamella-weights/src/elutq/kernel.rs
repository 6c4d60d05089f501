//! Look-ups of 32 rows at a time.

#![allow(unsafe_code, reason = "vector instructions, called only where the CPU has them")]

use super::product::{Bytes, plain};

/// Adds the looked-up bytes of up to 256 runs: nibbles, low bytes and high bytes of the tables.
pub type AddRuns = fn(&[[u8; 16]], &[[u8; 16]], &[[u8; 16]]) -> Bytes;

/// The widest kernel of this CPU.
pub fn fastest() -> AddRuns {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return by_avx2;
    }
    plain
}

#[cfg(target_arch = "x86_64")]
fn by_avx2(nibbles: &[[u8; 16]], low: &[[u8; 16]], high: &[[u8; 16]]) -> Bytes {
    // SAFETY: `fastest` hands this function out only where the CPU has AVX2.
    unsafe { avx2(nibbles, low, high) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(nibbles: &[[u8; 16]], low: &[[u8; 16]], high: &[[u8; 16]]) -> Bytes {
    use std::arch::x86_64::*;
    let (mask, byte_mask) = (_mm_set1_epi8(15), _mm256_set1_epi16(255));
    // Even and odd rows of the low bytes, then of the high bytes.
    let mut sums = [_mm256_setzero_si256(); 4];
    for ((nibbles, low), high) in nibbles.iter().zip(low).zip(high) {
        // SAFETY: each array has 16 bytes, and unaligned loads are allowed anywhere.
        let (bytes, low, high) = unsafe {
            (
                _mm_loadu_si128(nibbles.as_ptr().cast()),
                _mm_loadu_si128(low.as_ptr().cast()),
                _mm_loadu_si128(high.as_ptr().cast()),
            )
        };
        let front = _mm_and_si128(bytes, mask);
        let back = _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask);
        let indices = _mm256_set_m128i(back, front);
        let found_low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(low), indices);
        let found_high = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(high), indices);
        sums[0] = _mm256_add_epi16(sums[0], _mm256_and_si256(found_low, byte_mask));
        sums[1] = _mm256_add_epi16(sums[1], _mm256_srli_epi16::<8>(found_low));
        sums[2] = _mm256_add_epi16(sums[2], _mm256_and_si256(found_high, byte_mask));
        sums[3] = _mm256_add_epi16(sums[3], _mm256_srli_epi16::<8>(found_high));
    }
    let mut out = [[0u16; 32]; 2];
    for (bytes, pair) in out.iter_mut().zip(sums.chunks_exact(2)) {
        for (parity, &sum) in pair.iter().enumerate() {
            let mut lanes = [0u16; 16];
            // SAFETY: 16 lanes of 16 bits are 32 bytes, the size of the array.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
            for (lane, value) in lanes.into_iter().enumerate() {
                bytes[2 * lane + parity] = value;
            }
        }
    }
    out
}
