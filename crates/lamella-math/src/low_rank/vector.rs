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

/// Vectors of 16 rows that are carried side by side: a sum's next term waits for the one before, so several sums take
/// turns.
#[cfg(target_arch = "x86_64")]
const VECTORS: usize = 4;

/// By hand: left to itself the compiler gathers directions instead of rows. A column's change of `z` and the next
/// column's sum over it are one pass.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn shape_avx512(recursion: &Recursion, errors: &mut [f32], rows: usize) {
    use std::arch::x86_64::*;

    let dimension = recursion.pivots().len();
    assert_eq!(errors.len(), rows * dimension, "errors are [dimension, rows]");
    let mut state = vec![[_mm512_setzero_ps(); VECTORS]; recursion.rank()];
    for first in (0..rows).step_by(16 * VECTORS) {
        let masks: [__mmask16; VECTORS] = std::array::from_fn(|v| {
            let there = rows.saturating_sub(first + 16 * v).min(16);
            ((1u32 << there) - 1) as u16
        });
        state.fill([_mm512_setzero_ps(); VECTORS]);
        let mut pull = [_mm512_setzero_ps(); VECTORS];
        // Nothing so far, unless a damaged file's gains are not finite: then what the definition gives.
        for &gain in recursion.loadings_and_gains(0).1 {
            let nothing = _mm512_mul_ps(_mm512_setzero_ps(), _mm512_set1_ps(gain));
            pull = pull.map(|pull| _mm512_add_ps(pull, nothing));
        }
        for column in 0..dimension {
            let mut error = [_mm512_setzero_ps(); VECTORS];
            for v in 0..VECTORS {
                // Rows behind the last are masked out: their address may lie behind the end and is not used.
                let at = errors.as_mut_ptr().wrapping_add(column * rows + first + 16 * v);
                // SAFETY: masked elements are not touched, the others lie within `[dimension, rows]`, asserted above.
                unsafe {
                    error[v] = _mm512_sub_ps(_mm512_maskz_loadu_ps(masks[v], at), pull[v]);
                    _mm512_mask_storeu_ps(at, masks[v], error[v]);
                }
            }
            if column + 1 == dimension {
                break;
            }
            let (loadings, _) = recursion.loadings_and_gains(column);
            let (_, gains) = recursion.loadings_and_gains(column + 1);
            pull = [_mm512_setzero_ps(); VECTORS];
            for ((z, &loading), &gain) in state.iter_mut().zip(loadings).zip(gains) {
                let (loading, gain) = (_mm512_set1_ps(loading), _mm512_set1_ps(gain));
                for v in 0..VECTORS {
                    z[v] = _mm512_add_ps(z[v], _mm512_mul_ps(error[v], loading));
                    pull[v] = _mm512_add_ps(pull[v], _mm512_mul_ps(z[v], gain));
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn shape_avx2(recursion: &Recursion, errors: &mut [f32], rows: usize) {
    recursion.shape_here(errors, rows);
}

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
