//! The definition of a tile's product.

use super::{BLOCK, Line, Row, TILE, Width};

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
