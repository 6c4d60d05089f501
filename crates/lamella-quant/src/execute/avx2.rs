//! The product on 256-bit vectors: a tile is two halves of eight rows.
//!
//! `maddubs` multiplies unsigned by signed bytes and adds neighbours into 16 bits. A half byte times an activation is
//! at most 15 * 127, so the two of a pair in all eight groups of a block, 8 * 2 * 1905 = 30480, stay below 2^15.
//! Codes of 8 bits are taken as two half bytes with sums of their own.
#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::x86_64::*;

use super::{BLOCK, Kernels, Line, Row, TILE, TOKENS, TileGrids, Width, sparse};

/// The kernels, where the machine has AVX2.
pub(super) fn kernels() -> Option<Kernels> {
    let found = is_x86_feature_detected!("avx2");
    found.then_some(Kernels {
        name: "avx2",
        one: tile::<1>,
        many: tile::<TOKENS>,
        one_grouped: grouped::<1>,
        many_grouped: grouped::<TOKENS>,
        sparse_one: sparse::one,
        sparse_many: sparse::many,
    })
}

fn tile<const N: usize>(width: Width, lines: &[Line], rows: [Row<'_>; N]) -> [[f32; TILE]; N] {
    // SAFETY: only `kernels` hands this function out, after it has found AVX2.
    unsafe {
        match width {
            Width::Four => run::<N, false, false>(lines, NO_GRIDS, rows),
            Width::Eight => run::<N, true, false>(lines, NO_GRIDS, rows),
        }
    }
}

fn grouped<const N: usize>(
    width: Width,
    lines: &[Line],
    grids: TileGrids<'_>,
    rows: [Row<'_>; N],
) -> [[f32; TILE]; N] {
    // SAFETY: only `kernels` hands this function out, after it has found AVX2.
    unsafe {
        match width {
            Width::Four => run::<N, false, true>(lines, grids, rows),
            Width::Eight => run::<N, true, true>(lines, grids, rows),
        }
    }
}

/// Stands for the grids of kernels that have none.
const NO_GRIDS: TileGrids<'static> = TileGrids { grids: &[], blocks: 1 };

/// Four activations in every 32-bit lane.
#[inline]
#[target_feature(enable = "avx2")]
fn four(codes: &[i8; BLOCK], at: usize) -> __m256i {
    let four = [codes[at], codes[at + 1], codes[at + 2], codes[at + 3]];
    _mm256_set1_epi32(i32::from_ne_bytes(four.map(i8::cast_unsigned)))
}

#[target_feature(enable = "avx2")]
fn run<const N: usize, const EIGHT: bool, const GROUPED: bool>(
    lines: &[Line],
    grids: TileGrids<'_>,
    rows: [Row<'_>; N],
) -> [[f32; TILE]; N] {
    let width = if EIGHT { Width::Eight } else { Width::Four };
    let mask = _mm256_set1_epi8(15);
    let mut out = [[0.0; TILE]; N];
    for half in 0..2 {
        let (mut sums, mut totals) = ([_mm256_setzero_ps(); N], [_mm256_setzero_ps(); N]);
        let mut zeros = _mm256_set1_epi32(width.bias());
        for (block, lines) in lines.chunks_exact(width.lines()).enumerate() {
            if GROUPED {
                let grid = &grids.grids[block / grids.blocks];
                // SAFETY: the first or last eight of sixteen bytes.
                zeros = _mm256_cvtepu8_epi32(unsafe {
                    _mm_loadl_epi64(grid.zeros.as_ptr().add(8 * half).cast())
                });
            }
            let codes = rows.map(|row| &row.codes.as_chunks::<BLOCK>().0[block]);
            let mut low = [_mm256_setzero_si256(); N];
            let mut high = [_mm256_setzero_si256(); N];
            for (index, line) in lines.iter().enumerate() {
                // SAFETY: a line has 64 bytes on a multiple of 64; `half` is 0 or 1.
                let bytes = unsafe { _mm256_load_si256(line.0.as_ptr().cast::<__m256i>().add(half)) };
                let first = _mm256_and_si256(bytes, mask);
                let second = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
                for n in 0..N {
                    if EIGHT {
                        let x = four(codes[n], 4 * index);
                        low[n] = _mm256_add_epi16(low[n], _mm256_maddubs_epi16(first, x));
                        high[n] = _mm256_add_epi16(high[n], _mm256_maddubs_epi16(second, x));
                    } else {
                        let (x, y) = (four(codes[n], 8 * index), four(codes[n], 8 * index + 4));
                        low[n] = _mm256_add_epi16(low[n], _mm256_maddubs_epi16(first, x));
                        low[n] = _mm256_add_epi16(low[n], _mm256_maddubs_epi16(second, y));
                    }
                }
            }
            for n in 0..N {
                let mut exact = _mm256_madd_epi16(low[n], _mm256_set1_epi16(1));
                if EIGHT {
                    exact = _mm256_add_epi32(exact, _mm256_madd_epi16(high[n], _mm256_set1_epi16(16)));
                }
                // Zeros are below 2^8 and a block's sum below 2^12: 16-bit halves multiply exactly.
                let of_activations =
                    _mm256_set1_epi32(i32::from((rows[n].sums[block] as i16).cast_unsigned()));
                exact = _mm256_sub_epi32(exact, _mm256_madd_epi16(zeros, of_activations));
                let scale = _mm256_set1_ps(rows[n].scales[block]);
                sums[n] = _mm256_add_ps(sums[n], _mm256_mul_ps(scale, _mm256_cvtepi32_ps(exact)));
            }
            if GROUPED && grids.ends(block, rows[0].scales.len()) {
                let grid = &grids.grids[block / grids.blocks];
                // SAFETY: the first or last eight of sixteen floats.
                let scales = unsafe { _mm256_loadu_ps(grid.scales.as_ptr().add(8 * half)) };
                for n in 0..N {
                    totals[n] = _mm256_add_ps(totals[n], _mm256_mul_ps(scales, sums[n]));
                    sums[n] = _mm256_setzero_ps();
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(if GROUPED { totals } else { sums }) {
            // SAFETY: eight of the sixteen results, the first or the last.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * half), sum) };
        }
    }
    out
}
