//! Sixteen rows of SpQR's codes times a vector.
//!
//! With AVX-512 a lane's half byte selects among sixteen floats 0 to 15 in a register: a permutation looks at the lowest
//! four bits of each lane, so that a code costs a shift, the permutation and the multiply-add. With AVX2 codes are masked
//! and converted, eight rows at a time.

#![allow(unsafe_code, reason = "vector instructions, called only where the CPU has them")]

use super::form::ROWS_PER_TILE;
use super::product::{GroupOfBand, Line, RUN, plain};

/// Lines, groups, inputs by line, sums of the inputs by group, lines of a group: the products of 16 rows.
pub type BandProduct = fn(&[Line], &[GroupOfBand], &[[f32; RUN]], &[f32], usize) -> [f32; ROWS_PER_TILE];

/// The widest kernel of this CPU.
pub fn fastest() -> BandProduct {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return by_avx512;
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            return by_avx2;
        }
    }
    plain
}

#[cfg(target_arch = "x86_64")]
fn by_avx512(
    lines: &[Line],
    groups: &[GroupOfBand],
    input: &[[f32; RUN]],
    sums: &[f32],
    lines_per_group: usize,
) -> [f32; ROWS_PER_TILE] {
    // SAFETY: `fastest` hands this function out only where the CPU has AVX-512 F.
    unsafe { avx512(lines, groups, input, sums, lines_per_group) }
}

#[cfg(target_arch = "x86_64")]
fn by_avx2(
    lines: &[Line],
    groups: &[GroupOfBand],
    input: &[[f32; RUN]],
    sums: &[f32],
    lines_per_group: usize,
) -> [f32; ROWS_PER_TILE] {
    // SAFETY: `fastest` hands this function out only where the CPU has AVX2 and FMA.
    unsafe { avx2(lines, groups, input, sums, lines_per_group) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(
    lines: &[Line],
    groups: &[GroupOfBand],
    input: &[[f32; RUN]],
    sums: &[f32],
    lines_per_group: usize,
) -> [f32; ROWS_PER_TILE] {
    use std::arch::x86_64::*;
    let codes =
        _mm512_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0);
    let mut total = _mm512_setzero_ps();
    let runs = lines.chunks(lines_per_group).zip(input.chunks(lines_per_group));
    for ((lines, input), (group, sum)) in runs.zip(groups.iter().zip(sums)) {
        // Four sums, so that no addition waits for the one before it.
        let mut coded = [_mm512_setzero_ps(); 4];
        for (line, values) in lines.iter().zip(input) {
            // SAFETY: a line has 64 bytes on a multiple of 64.
            let mut lanes = unsafe { _mm512_load_si512(line.0.as_ptr().cast()) };
            for (place, &value) in values.iter().enumerate() {
                let code = _mm512_permutexvar_ps(lanes, codes);
                coded[place % 4] = _mm512_fmadd_ps(code, _mm512_set1_ps(value), coded[place % 4]);
                lanes = _mm512_srli_epi32::<4>(lanes);
            }
        }
        let coded = _mm512_add_ps(_mm512_add_ps(coded[0], coded[1]), _mm512_add_ps(coded[2], coded[3]));
        // SAFETY: sixteen bytes.
        let pairs = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(group.pairs.as_ptr().cast()) });
        let levels = group.levels.map(|level| _mm512_set1_ps(level));
        let scale = _mm512_fmadd_ps(levels[0], _mm512_permutexvar_ps(pairs, codes), levels[1]);
        let zero = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(pairs), codes);
        let zero = _mm512_fmadd_ps(levels[2], zero, levels[3]);
        let moved = _mm512_fnmadd_ps(zero, _mm512_set1_ps(*sum), coded);
        total = _mm512_fmadd_ps(scale, moved, total);
    }
    let mut out = [0.0f32; ROWS_PER_TILE];
    // SAFETY: sixteen floats are written, the size of the array.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), total) };
    out
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(
    lines: &[Line],
    groups: &[GroupOfBand],
    input: &[[f32; RUN]],
    sums: &[f32],
    lines_per_group: usize,
) -> [f32; ROWS_PER_TILE] {
    use std::arch::x86_64::*;
    let mask = _mm256_set1_epi32(15);
    let mut total = [_mm256_setzero_ps(); 2];
    let runs = lines.chunks(lines_per_group).zip(input.chunks(lines_per_group));
    for ((lines, input), (group, sum)) in runs.zip(groups.iter().zip(sums)) {
        let mut coded = [_mm256_setzero_ps(); 4];
        for (line, values) in lines.iter().zip(input) {
            for half in 0..2 {
                // SAFETY: the first or last eight of a line's sixteen lanes.
                let mut lanes = unsafe { _mm256_load_si256(line.0.as_ptr().add(8 * half).cast()) };
                for (place, &value) in values.iter().enumerate() {
                    let code = _mm256_cvtepi32_ps(_mm256_and_si256(lanes, mask));
                    let at = 2 * half + place % 2;
                    coded[at] = _mm256_fmadd_ps(code, _mm256_set1_ps(value), coded[at]);
                    lanes = _mm256_srli_epi32::<4>(lanes);
                }
            }
        }
        let levels = group.levels.map(|level| _mm256_set1_ps(level));
        for half in 0..2 {
            // SAFETY: the first or last eight of sixteen bytes.
            let pairs = unsafe { _mm_loadl_epi64(group.pairs.as_ptr().add(8 * half).cast()) };
            let pairs = _mm256_cvtepu8_epi32(pairs);
            let scale = _mm256_cvtepi32_ps(_mm256_and_si256(pairs, mask));
            let zero = _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(pairs));
            let scale = _mm256_fmadd_ps(levels[0], scale, levels[1]);
            let zero = _mm256_fmadd_ps(levels[2], zero, levels[3]);
            let coded = _mm256_add_ps(coded[2 * half], coded[2 * half + 1]);
            let moved = _mm256_fnmadd_ps(zero, _mm256_set1_ps(*sum), coded);
            total[half] = _mm256_fmadd_ps(scale, moved, total[half]);
        }
    }
    let mut out = [0.0f32; ROWS_PER_TILE];
    for (half, total) in total.into_iter().enumerate() {
        // SAFETY: the first or last eight of sixteen floats.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * half), total) };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kernel of this machine gives the plain one's products but for rounding.
    #[test]
    fn kernels_equal_the_plain_loop() {
        let n_groups = 5;
        let number = |i: usize| (i * 7919 % 1009) as f32 / 504.0 - 1.0;
        for lines_per_group in [1, 2, 4] {
            let n = n_groups * lines_per_group - 1;
            let lines: Vec<Line> = (0..n)
                .map(|line| {
                    Line(std::array::from_fn(|row| ((line * 16 + row) as u32).wrapping_mul(2_654_435_761)))
                })
                .collect();
            let groups: Vec<GroupOfBand> = (0..n_groups)
                .map(|group| GroupOfBand {
                    pairs: std::array::from_fn(|row| (group * 37 + row * 11) as u8),
                    levels: std::array::from_fn(|at| number(group * 4 + at)),
                })
                .collect();
            let input: Vec<[f32; RUN]> =
                (0..n).map(|line| std::array::from_fn(|at| number(line * 8 + at))).collect();
            let sums: Vec<f32> =
                input.chunks(lines_per_group).map(|run| run.iter().flatten().sum()).collect();
            let expected = plain(&lines, &groups, &input, &sums, lines_per_group);
            #[allow(unused_mut, reason = "other machines have the plain one only")]
            let mut kernels: Vec<BandProduct> = vec![fastest()];
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                kernels.push(by_avx2);
            }
            for kernel in kernels {
                let found = kernel(&lines, &groups, &input, &sums, lines_per_group);
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((found - expected).abs() <= 1e-3 * (1.0 + expected.abs()), "{found} {expected}");
                }
            }
        }
    }
}
