//! A whole product: fixed chunks of tiles on all threads.

#![allow(unsafe_code, reason = "chunks of rows write into columns of one matrix")]

use rayon::prelude::*;

use super::{Activations, BLOCK, Grids, Kernels, Packed, TILE, TOKENS, kernels};

/// Tiles of a chunk for one token, and for several.
const TILES: usize = 16;
/// Products below which all stays on the calling thread: waking others costs more.
const SERIAL: usize = 1 << 18;

/// Rounds one row; see [`Activations::new`].
pub(super) fn round_row(row: &[f32], steps: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    // Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let blocks = row.chunks(BLOCK).zip(steps.chunks(BLOCK)).zip(codes.chunks_exact_mut(BLOCK));
    for ((((row, steps), codes), scale), sum) in blocks.zip(scales).zip(sums) {
        let mut folded = [0.0f32; BLOCK];
        for ((folded, x), step) in folded.iter_mut().zip(row).zip(steps) {
            *folded = x * step;
        }
        let mut bits = 0u32;
        for folded in &folded {
            // Magnitudes compare like their bits, and what is not finite is the largest.
            bits = bits.max(folded.to_bits() & 0x7fff_ffff);
        }
        let largest = f32::from_bits(bits);
        *scale = largest / 127.0;
        // Below 2^-120 the inverse would overflow; such a block is zero.
        if !(largest.is_finite() && largest > f32::from_bits(7 << 23)) {
            if largest.is_finite() {
                *scale = 0.0;
            }
            continue;
        }
        let inverse = 127.0 / largest;
        let mut total = 0i32;
        for (code, folded) in codes.iter_mut().zip(folded) {
            let rounded = (folded * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
            *code = rounded as i8;
            total = total.wrapping_add(rounded);
        }
        *sum = total;
    }
}

/// A pointer that chunks of one matrix share.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: only `product_with` makes one, and its chunks write different columns.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// `outputs[t, column + i] = sum_j codes[i, j] * activations[t, j]`, rows of `outputs` `stride` apart.
///
/// # Panics
/// Where the activations have other columns, or the outputs are too short.
pub fn product(
    packed: &Packed,
    activations: &Activations,
    outputs: &mut [f32],
    stride: usize,
    column: usize,
) {
    product_with(kernels(), packed, None, activations, outputs, stride, column);
}

/// `outputs[t, column + i] = sum_g scale[i, g] sum_j (code[i, j] - zero[i, g]) activations[t, j]`, codes unsigned, rows
/// of `outputs` `stride` apart.
///
/// # Panics
/// Where the activations have other columns, the grids are another matrix's, or the outputs are too short.
pub fn product_grouped(
    packed: &Packed,
    grids: &Grids,
    activations: &Activations,
    outputs: &mut [f32],
    stride: usize,
    column: usize,
) {
    product_with(kernels(), packed, Some(grids), activations, outputs, stride, column);
}

pub(super) fn product_with(
    kernels: Kernels,
    packed: &Packed,
    grids: Option<&Grids>,
    activations: &Activations,
    outputs: &mut [f32],
    stride: usize,
    column: usize,
) {
    let tokens = activations.tokens();
    if tokens == 0 || packed.rows == 0 {
        return;
    }
    assert_eq!(activations.columns, packed.columns, "activations of another width");
    assert!(grids.is_none_or(|grids| grids.fits(packed.rows, packed.columns)), "grids of another matrix");
    assert!(column + packed.rows <= stride, "rows of outputs are too short");
    assert!((tokens - 1) * stride + column + packed.rows <= outputs.len(), "outputs are too short");
    let per_tile = packed.columns.div_ceil(BLOCK) * packed.width.lines();
    let tiles = packed.rows.div_ceil(TILE);
    let shared = Shared(outputs.as_mut_ptr());
    let store = |token: usize, tile: usize, sums: &[f32; TILE]| {
        let n = TILE.min(packed.rows - tile * TILE);
        #[allow(
            clippy::redundant_locals,
            reason = "captures the whole of it: the pointer alone is not shared"
        )]
        let shared = shared;
        // SAFETY: inside `outputs` by the assertions above; no other tile or token writes these elements.
        unsafe {
            let at = shared.0.add(token * stride + column + tile * TILE);
            std::ptr::copy_nonoverlapping(sums.as_ptr(), at, n);
        }
    };
    let chunk = |chunk: usize| {
        for tile in chunk * TILES..tiles.min((chunk + 1) * TILES) {
            let lines = &packed.lines[tile * per_tile..][..per_tile];
            let whole = tokens / TOKENS * TOKENS;
            for first in (0..whole).step_by(TOKENS) {
                let rows = std::array::from_fn(|n| activations.row(first + n));
                let sums = match grids {
                    Some(grids) => (kernels.many_grouped)(packed.width, lines, grids.tile(tile), rows),
                    None => (kernels.many)(packed.width, lines, rows),
                };
                sums.iter().enumerate().for_each(|(n, sums)| store(first + n, tile, sums));
            }
            for token in whole..tokens {
                let rows = [activations.row(token)];
                let [sums] = match grids {
                    Some(grids) => (kernels.one_grouped)(packed.width, lines, grids.tile(tile), rows),
                    None => (kernels.one)(packed.width, lines, rows),
                };
                store(token, tile, &sums);
            }
        }
    };
    let chunks = tiles.div_ceil(TILES);
    if tokens * packed.rows * packed.columns <= SERIAL || chunks == 1 {
        (0..chunks).for_each(chunk);
    } else {
        (0..chunks).into_par_iter().for_each(chunk);
    }
}
