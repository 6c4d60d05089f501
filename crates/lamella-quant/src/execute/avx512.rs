//! The product on 512-bit vectors: a tile is one vector of sixteen rows.
//!
//! Without byte dot products the sums run in 16 bits, as in the AVX2 kernel. With them (VNNI) an instruction multiplies
//! four bytes of each lane and adds them into 32 bits, whole bytes too.
#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::x86_64::*;

use super::{BLOCK, Grid, Kernels, Line, Row, TILE, TOKENS, TileGrids, Width, avx512_sparse};

/// The kernels, where the machine has AVX-512 F, BW and VL.
pub(super) fn kernels() -> Option<Kernels> {
    let found = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl");
    found.then_some(Kernels {
        name: "avx512",
        one: tile::<1>,
        many: tile::<TOKENS>,
        one_grouped: grouped::<1>,
        many_grouped: grouped::<TOKENS>,
        sparse_one: avx512_sparse::one,
        sparse_many: avx512_sparse::many,
    })
}

/// The kernels with byte dot products, where the machine has VNNI too.
pub(super) fn kernels_vnni() -> Option<Kernels> {
    let found = kernels().is_some() && is_x86_feature_detected!("avx512vnni");
    found.then_some(Kernels {
        name: "vnni",
        one: tile_vnni::<1>,
        many: tile_vnni::<TOKENS>,
        one_grouped: grouped_vnni::<1>,
        many_grouped: grouped_vnni::<TOKENS>,
        sparse_one: avx512_sparse::one,
        sparse_many: avx512_sparse::many,
    })
}

fn tile<const N: usize>(width: Width, lines: &[Line], rows: [Row<'_>; N]) -> [[f32; TILE]; N] {
    // SAFETY: only `kernels` hands this function out, after it has found F and BW.
    unsafe {
        match width {
            Width::Four => run::<N, false, false>(lines, NO_GRIDS, rows),
            Width::Eight => run::<N, true, false>(lines, NO_GRIDS, rows),
        }
    }
}

fn tile_vnni<const N: usize>(width: Width, lines: &[Line], rows: [Row<'_>; N]) -> [[f32; TILE]; N] {
    // SAFETY: only `kernels_vnni` hands this function out, after it has found F, BW and VNNI.
    unsafe {
        match width {
            Width::Four => run_vnni::<N, false, false>(lines, NO_GRIDS, rows),
            Width::Eight => run_vnni::<N, true, false>(lines, NO_GRIDS, rows),
        }
    }
}

fn grouped<const N: usize>(
    width: Width,
    lines: &[Line],
    grids: TileGrids<'_>,
    rows: [Row<'_>; N],
) -> [[f32; TILE]; N] {
    // SAFETY: only `kernels` hands this function out, after it has found F and BW.
    unsafe {
        match width {
            Width::Four => run::<N, false, true>(lines, grids, rows),
            Width::Eight => run::<N, true, true>(lines, grids, rows),
        }
    }
}

fn grouped_vnni<const N: usize>(
    width: Width,
    lines: &[Line],
    grids: TileGrids<'_>,
    rows: [Row<'_>; N],
) -> [[f32; TILE]; N] {
    // SAFETY: only `kernels_vnni` hands this function out, after it has found F, BW and VNNI.
    unsafe {
        match width {
            Width::Four => run_vnni::<N, false, true>(lines, grids, rows),
            Width::Eight => run_vnni::<N, true, true>(lines, grids, rows),
        }
    }
}

/// Stands for the grids of kernels that have none.
const NO_GRIDS: TileGrids<'static> = TileGrids { grids: &[], blocks: 1 };

/// Four activations in every 32-bit lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn four(codes: &[i8; BLOCK], at: usize) -> __m512i {
    let four = [codes[at], codes[at + 1], codes[at + 2], codes[at + 3]];
    _mm512_set1_epi32(i32::from_ne_bytes(four.map(i8::cast_unsigned)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line has 64 bytes on a multiple of 64.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

/// `sum + scale * (exact - zero * sum of activations)` of one block; zeros are below 2^8 in 32 bits each, and a block's
/// sum below 2^12, so that their product is that of 16-bit halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_block(sum: __m512, exact: __m512i, zeros: __m512i, row: Row<'_>, block: usize) -> __m512 {
    let of_activations = _mm512_set1_epi32(i32::from((row.sums[block] as i16).cast_unsigned()));
    let exact = _mm512_sub_epi32(exact, _mm512_madd_epi16(zeros, of_activations));
    _mm512_add_ps(sum, _mm512_mul_ps(_mm512_set1_ps(row.scales[block]), _mm512_cvtepi32_ps(exact)))
}

/// The rows' zero points.
#[inline]
#[target_feature(enable = "avx512f")]
fn zeros_of(grid: &Grid) -> __m512i {
    // SAFETY: sixteen bytes.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(grid.zeros.as_ptr().cast()) })
}

/// `total + scales * sum` of one group.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_group(total: __m512, sum: __m512, grid: &Grid) -> __m512 {
    // SAFETY: sixteen floats.
    let scales = unsafe { _mm512_loadu_ps(grid.scales.as_ptr()) };
    _mm512_add_ps(total, _mm512_mul_ps(scales, sum))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn stored<const N: usize>(sums: [__m512; N]) -> [[f32; TILE]; N] {
    let mut out = [[0.0; TILE]; N];
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: sixteen results.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
    out
}

#[target_feature(enable = "avx512f,avx512bw")]
fn run<const N: usize, const EIGHT: bool, const GROUPED: bool>(
    lines: &[Line],
    grids: TileGrids<'_>,
    rows: [Row<'_>; N],
) -> [[f32; TILE]; N] {
    let width = if EIGHT { Width::Eight } else { Width::Four };
    let mask = _mm512_set1_epi8(15);
    let (mut sums, mut totals) = ([_mm512_setzero_ps(); N], [_mm512_setzero_ps(); N]);
    let n_blocks = rows[0].scales.len();
    let mut zeros = _mm512_set1_epi32(width.bias());
    for (block, lines) in lines.chunks_exact(width.lines()).enumerate() {
        if GROUPED {
            zeros = zeros_of(&grids.grids[block / grids.blocks]);
        }
        let codes = rows.map(|row| &row.codes.as_chunks::<BLOCK>().0[block]);
        let mut low = [_mm512_setzero_si512(); N];
        let mut high = [_mm512_setzero_si512(); N];
        for (index, line) in lines.iter().enumerate() {
            let bytes = load(line);
            let first = _mm512_and_si512(bytes, mask);
            let second = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
            for n in 0..N {
                if EIGHT {
                    let x = four(codes[n], 4 * index);
                    low[n] = _mm512_add_epi16(low[n], _mm512_maddubs_epi16(first, x));
                    high[n] = _mm512_add_epi16(high[n], _mm512_maddubs_epi16(second, x));
                } else {
                    let (x, y) = (four(codes[n], 8 * index), four(codes[n], 8 * index + 4));
                    low[n] = _mm512_add_epi16(low[n], _mm512_maddubs_epi16(first, x));
                    low[n] = _mm512_add_epi16(low[n], _mm512_maddubs_epi16(second, y));
                }
            }
        }
        for n in 0..N {
            let mut exact = _mm512_madd_epi16(low[n], _mm512_set1_epi16(1));
            if EIGHT {
                exact = _mm512_add_epi32(exact, _mm512_madd_epi16(high[n], _mm512_set1_epi16(16)));
            }
            sums[n] = add_block(sums[n], exact, zeros, rows[n], block);
        }
        if GROUPED && grids.ends(block, n_blocks) {
            for n in 0..N {
                totals[n] = add_group(totals[n], sums[n], &grids.grids[block / grids.blocks]);
                sums[n] = _mm512_setzero_ps();
            }
        }
    }
    stored(if GROUPED { totals } else { sums })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn run_vnni<const N: usize, const EIGHT: bool, const GROUPED: bool>(
    lines: &[Line],
    grids: TileGrids<'_>,
    rows: [Row<'_>; N],
) -> [[f32; TILE]; N] {
    let width = if EIGHT { Width::Eight } else { Width::Four };
    let mask = _mm512_set1_epi8(15);
    let (mut sums, mut totals) = ([_mm512_setzero_ps(); N], [_mm512_setzero_ps(); N]);
    let n_blocks = rows[0].scales.len();
    let mut zeros = _mm512_set1_epi32(width.bias());
    for (block, lines) in lines.chunks_exact(width.lines()).enumerate() {
        if GROUPED {
            zeros = zeros_of(&grids.grids[block / grids.blocks]);
        }
        let codes = rows.map(|row| &row.codes.as_chunks::<BLOCK>().0[block]);
        let mut exact = [_mm512_setzero_si512(); N];
        for (index, line) in lines.iter().enumerate() {
            let bytes = load(line);
            let first = _mm512_and_si512(bytes, mask);
            let second = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
            for n in 0..N {
                if EIGHT {
                    exact[n] = _mm512_dpbusd_epi32(exact[n], bytes, four(codes[n], 4 * index));
                } else {
                    exact[n] = _mm512_dpbusd_epi32(exact[n], first, four(codes[n], 8 * index));
                    exact[n] = _mm512_dpbusd_epi32(exact[n], second, four(codes[n], 8 * index + 4));
                }
            }
        }
        for n in 0..N {
            sums[n] = add_block(sums[n], exact[n], zeros, rows[n], block);
        }
        if GROUPED && grids.ends(block, n_blocks) {
            for n in 0..N {
                totals[n] = add_group(totals[n], sums[n], &grids.grids[block / grids.blocks]);
                sums[n] = _mm512_setzero_ps();
            }
        }
    }
    stored(if GROUPED { totals } else { sums })
}
