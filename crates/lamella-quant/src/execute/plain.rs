//! The definition of a tile's product.

use super::{BLOCK, Line, Row, TILE, TileGrids, Width};

/// One tile times `N` rows.
pub(super) fn tile<const N: usize>(width: Width, lines: &[Line], rows: [Row<'_>; N]) -> [[f32; TILE]; N] {
    rows.map(|activations| {
        let mut sums = [0.0f32; TILE];
        for (block, lines) in lines.chunks_exact(width.lines()).enumerate() {
            let codes = &activations.codes[block * BLOCK..][..BLOCK];
            for (row, sum) in sums.iter_mut().enumerate() {
                let exact = dot(width, lines, row, codes) - width.bias() * activations.sums[block];
                *sum += activations.scales[block] * exact as f32;
            }
        }
        sums
    })
}

/// One tile with a grid for every row and group times `N` rows.
pub(super) fn grouped<const N: usize>(
    width: Width,
    lines: &[Line],
    grids: TileGrids<'_>,
    rows: [Row<'_>; N],
) -> [[f32; TILE]; N] {
    rows.map(|activations| {
        let (mut totals, mut sums) = ([0.0f32; TILE], [0.0f32; TILE]);
        let n_blocks = activations.scales.len();
        for (block, lines) in lines.chunks_exact(width.lines()).enumerate() {
            let grid = &grids.grids[block / grids.blocks];
            let codes = &activations.codes[block * BLOCK..][..BLOCK];
            for (row, sum) in sums.iter_mut().enumerate() {
                let zero = i32::from(grid.zeros[row]);
                let exact = dot(width, lines, row, codes) - zero * activations.sums[block];
                *sum += activations.scales[block] * exact as f32;
            }
            if grids.ends(block, n_blocks) {
                for (total, (sum, scale)) in totals.iter_mut().zip(sums.iter_mut().zip(grid.scales)) {
                    *total += scale * *sum;
                    *sum = 0.0;
                }
            }
        }
        totals
    })
}

/// Unsigned codes of one row and block times activations.
fn dot(width: Width, lines: &[Line], row: usize, activations: &[i8]) -> i32 {
    let per_line = activations.chunks_exact(width.features());
    let line = |(line, activations): (&Line, &[i8])| {
        let bytes = &line.0[4 * row..][..4];
        activations
            .iter()
            .enumerate()
            .map(|(feature, &q)| {
                let byte = i32::from(bytes[feature % 4]);
                let code = if width == Width::Four { byte >> (feature / 4 * 4) & 15 } else { byte };
                code * i32::from(q)
            })
            .sum::<i32>()
    };
    lines.iter().zip(per_line).map(line).sum()
}
