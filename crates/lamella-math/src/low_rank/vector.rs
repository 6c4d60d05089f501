//! The recursion compiled for wider vectors, chosen at run time. No operation is fused or reordered: the bits are the
//! same.
#![allow(unsafe_code, reason = "functions for instructions that are checked for first")]

use super::recursion::{Recursion, believe_here};

/// [`Recursion::shape`].
pub(super) fn shape(recursion: &Recursion, errors: &mut [f32], rows: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: just found.
            return unsafe { shape_avx512(recursion, errors, rows) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: just found.
            return unsafe { shape_avx2(recursion, errors, rows) };
        }
    }
    recursion.shape_here(errors, rows);
}

/// What [`Recursion::new`] keeps of loadings.
pub(super) fn believe(loadings: &[f32], rank: usize, pivots: &mut [f32], vectors: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: just found.
        return unsafe { believe_avx2(loadings, rank, pivots, vectors) };
    }
    believe_here(loadings, rank, pivots, vectors);
}

/// Vectors of 16 (8) rows that are carried side by side: a sum's next term waits for the one before, so several sums take
/// turns.
#[cfg(target_arch = "x86_64")]
const VECTORS: usize = 4;

/// By hand: left to itself the compiler gathers directions instead of rows. A column's change of `z` and the next
/// column's sum over it are one pass.
#[cfg(target_arch = "x86_64")]
macro_rules! shape_by_hand {
    ($name:ident, $feature:literal, $lanes:literal, $vector:ident, $mask:ident, [$masks:expr],
     $zero:ident, $set:ident, $add:ident, $sub:ident, $mul:ident, $load:ident, $store:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $feature)]
        fn $name(recursion: &Recursion, errors: &mut [f32], rows: usize) {
            use std::arch::x86_64::*;

            let dimension = recursion.pivots().len();
            assert_eq!(errors.len(), rows * dimension, "errors are [dimension, rows]");
            let masked: fn(usize) -> $mask = $masks;
            let mut state = vec![[$zero(); VECTORS]; recursion.rank()];
            for first in (0..rows).step_by($lanes * VECTORS) {
                let masks: [$mask; VECTORS] =
                    std::array::from_fn(|v| masked(rows.saturating_sub(first + $lanes * v).min($lanes)));
                state.fill([$zero(); VECTORS]);
                let mut pull: [$vector; VECTORS] = [$zero(); VECTORS];
                // Nothing so far, unless a damaged file's gains are not finite: then what the definition gives.
                for &gain in recursion.loadings_and_gains(0).1 {
                    let nothing = $mul($zero(), $set(gain));
                    pull = pull.map(|pull| $add(pull, nothing));
                }
                for column in 0..dimension {
                    let mut error = [$zero(); VECTORS];
                    for v in 0..VECTORS {
                        // Rows behind the last are masked out: their address may lie behind the end and is not used.
                        let at = errors.as_mut_ptr().wrapping_add(column * rows + first + $lanes * v);
                        // SAFETY: masked elements are not touched, the others lie within `[dimension, rows]`, asserted
                        // above.
                        unsafe {
                            error[v] = $sub(load::$load(at, masks[v]), pull[v]);
                            load::$store(at, masks[v], error[v]);
                        }
                    }
                    if column + 1 == dimension {
                        break;
                    }
                    let (loadings, _) = recursion.loadings_and_gains(column);
                    let (_, gains) = recursion.loadings_and_gains(column + 1);
                    pull = [$zero(); VECTORS];
                    for ((z, &loading), &gain) in state.iter_mut().zip(loadings).zip(gains) {
                        let (loading, gain) = ($set(loading), $set(gain));
                        for v in 0..VECTORS {
                            z[v] = $add(z[v], $mul(error[v], loading));
                            pull[v] = $add(pull[v], $mul(z[v], gain));
                        }
                    }
                }
            }
        }
    };
}

/// Masked loads and stores under one order of arguments.
#[cfg(target_arch = "x86_64")]
mod load {
    use std::arch::x86_64::*;

    /// # Safety
    /// Elements of the mask can be read.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn sixteen(at: *const f32, mask: __mmask16) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_maskz_loadu_ps(mask, at) }
    }
    /// # Safety
    /// Elements of the mask can be written.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn store_sixteen(at: *mut f32, mask: __mmask16, values: __m512) {
        // SAFETY: the caller's.
        unsafe { _mm512_mask_storeu_ps(at, mask, values) }
    }
    /// # Safety
    /// Elements of the mask can be read.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn eight(at: *const f32, mask: __m256i) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_maskload_ps(at, mask) }
    }
    /// # Safety
    /// Elements of the mask can be written.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn store_eight(at: *mut f32, mask: __m256i, values: __m256) {
        // SAFETY: the caller's.
        unsafe { _mm256_maskstore_ps(at, mask, values) }
    }

    /// The first `there` of sixteen.
    pub(super) fn first_of_sixteen(there: usize) -> __mmask16 {
        ((1u32 << there) - 1) as u16
    }
    /// The first `there` of eight.
    pub(super) fn first_of_eight(there: usize) -> __m256i {
        let lanes: [i32; 8] = std::array::from_fn(|lane| if lane < there { -1 } else { 0 });
        // SAFETY: eight integers of 32 bits are 256 bits, and every pattern of bits is a vector.
        unsafe { std::mem::transmute(lanes) }
    }
}

#[cfg(target_arch = "x86_64")]
shape_by_hand!(
    shape_avx512,
    "avx512f",
    16,
    __m512,
    __mmask16,
    [load::first_of_sixteen],
    _mm512_setzero_ps,
    _mm512_set1_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    sixteen,
    store_sixteen
);
#[cfg(target_arch = "x86_64")]
shape_by_hand!(
    shape_avx2,
    "avx2",
    8,
    __m256,
    __m256i,
    [load::first_of_eight],
    _mm256_setzero_ps,
    _mm256_set1_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    eight,
    store_eight
);

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn believe_avx2(loadings: &[f32], rank: usize, pivots: &mut [f32], vectors: &mut [f32]) {
    believe_here(loadings, rank, pivots, vectors);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_gives_the_same_bits() {
        let (rank, dimension, rows) = (5, 40, 70);
        let number = |i: usize| ((i * 2_654_435_761) >> 7 & 1023) as f32 / 512.0 - 1.0;
        let loadings: Vec<f32> = (0..rank * dimension).map(number).collect();
        let recursion = Recursion::new(&loadings, dimension).scaled(&vec![0.3; dimension]);
        let (mut pivots, mut vectors) = (vec![1.0; dimension], vec![0.0; 2 * rank * dimension]);
        believe_here(&loadings, rank, &mut pivots, &mut vectors);
        assert_eq!(Recursion::new(&loadings, dimension).pivots(), pivots);
        let white: Vec<f32> = (0..rows * dimension).map(|i| number(i + 77)).collect();
        let mut plain = white.clone();
        recursion.shape_here(&mut plain, rows);
        let mut found = vec![white.clone()];
        shape(&recursion, &mut found[0], rows);
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                let mut errors = white.clone();
                // SAFETY: just found.
                unsafe { shape_avx2(&recursion, &mut errors, rows) };
                found.push(errors);
            } else {
                println!("skipped: this machine has no avx2");
            }
        }
        for errors in found {
            assert!(errors.iter().zip(&plain).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}
