//! Sparse codes on 512-bit vectors: sixteen entries, or sixteen tokens, at a time.
#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::x86_64::*;

use super::sparse::{FEW, LANES, code_of};

/// One token. To be handed out only where AVX-512 F, BW and VL were found.
pub(super) fn one(entries: &[u16], folded: &[f32]) -> f32 {
    // SAFETY: `avx512::kernels` hands this function out after it has found F, BW and VL; `Sparse` keeps the columns that
    // entries lead to below the number of inputs.
    unsafe { run_one(entries, folded) }
}

/// Sixteen tokens. To be handed out as [`one`].
pub(super) fn many(entries: &[u16], folded: &[[f32; LANES]]) -> [f32; LANES] {
    // SAFETY: as above; columns are checked here.
    unsafe { run_many(entries, folded) }
}

/// Entries of a turn in 32 bits each, those behind the last zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load(turn: &[u16]) -> __m512i {
    let mask = u16::MAX >> (LANES - turn.len().min(LANES));
    // SAFETY: masked elements are not read, and the others are the turn's.
    _mm512_cvtepu16_epi32(unsafe { _mm256_maskz_loadu_epi16(mask, turn.as_ptr().cast()) })
}

/// # Safety
/// The machine has AVX-512 F, BW and VL, and the entries' columns are all below `folded.len()`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn run_one(entries: &[u16], folded: &[f32]) -> f32 {
    let zero = _mm512_setzero_si512();
    let mut sums = _mm512_setzero_ps();
    let mut base = zero;
    let last = _mm512_set1_epi32(15);
    for turn in entries.chunks(LANES) {
        let both = load(turn);
        let mut at = _mm512_and_si512(both, _mm512_set1_epi32(255));
        // Running sums of the distances, by doubling.
        at = _mm512_add_epi32(at, _mm512_alignr_epi32::<15>(at, zero));
        at = _mm512_add_epi32(at, _mm512_alignr_epi32::<14>(at, zero));
        at = _mm512_add_epi32(at, _mm512_alignr_epi32::<12>(at, zero));
        at = _mm512_add_epi32(at, _mm512_alignr_epi32::<8>(at, zero));
        at = _mm512_add_epi32(at, base);
        base = _mm512_permutexvar_epi32(last, at);
        let codes = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(both)));
        // SAFETY: as promised by the caller, every column has an input.
        let inputs = unsafe { _mm512_i32gather_ps::<4>(at, folded.as_ptr()) };
        sums = _mm512_add_ps(sums, _mm512_mul_ps(codes, inputs));
    }
    let halves = _mm512_castps_pd(sums);
    let (low, high) = (_mm512_castpd512_pd256(halves), _mm512_extractf64x4_pd::<1>(halves));
    let eight = _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

/// # Safety
/// The machine has AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn run_many(entries: &[u16], folded: &[[f32; LANES]]) -> [f32; LANES] {
    let mut column = 0usize;
    if entries.len() <= FEW {
        let mut sums = [_mm512_setzero_ps(); FEW];
        for (sum, &entry) in sums.iter_mut().zip(entries) {
            column += usize::from(entry as u8);
            // SAFETY: sixteen floats.
            let inputs = unsafe { _mm512_loadu_ps(folded[column].as_ptr()) };
            *sum = _mm512_add_ps(*sum, _mm512_mul_ps(_mm512_set1_ps(code_of(entry) as f32), inputs));
        }
        return halved(sums);
    }
    let mut sums = [_mm512_setzero_ps(); LANES];
    let (turns, rest) = entries.as_chunks::<LANES>();
    let mut padded = [0u16; LANES];
    padded[..rest.len()].copy_from_slice(rest);
    for turn in turns.iter().chain((!rest.is_empty()).then_some(&padded)) {
        for k in 0..LANES {
            column += usize::from(turn[k] as u8);
            let inputs = &folded[column];
            // SAFETY: sixteen floats.
            let inputs = unsafe { _mm512_loadu_ps(inputs.as_ptr()) };
            let code = _mm512_set1_ps(code_of(turn[k]) as f32);
            sums[k] = _mm512_add_ps(sums[k], _mm512_mul_ps(code, inputs));
        }
    }
    for k in 0..FEW {
        sums[k] = _mm512_add_ps(sums[k], sums[k + FEW]);
    }
    halved(std::array::from_fn(|k| sums[k]))
}

/// Adds sums by halves.
#[inline]
#[target_feature(enable = "avx512f")]
fn halved(mut sums: [__m512; FEW]) -> [f32; LANES] {
    for half in [4, 2, 1] {
        for k in 0..half {
            sums[k] = _mm512_add_ps(sums[k], sums[k + half]);
        }
    }
    let mut out = [0.0; LANES];
    // SAFETY: sixteen results.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums[0]) };
    out
}
