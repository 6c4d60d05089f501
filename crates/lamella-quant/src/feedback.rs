//! The column sweep with error feedback.
//!
//! Columns are quantised one after the other. The error `e_j = (w_j - v_j) / U_jj` of column `j` is fed into
//! every later column `k` as `w_k -= e_j U_jk`, where `U` is the upper Cholesky factor of the inverse of the
//! (damped) second moment: `H^-1 = U^T U`. What the inputs' correlations can hide of the error is hidden, and the
//! output error that remains is the sum of squares of the `e_j`. This is GPTQ, or LDLQ, or noise shaping.
//!
//! # Cost and determinism
//! `rows * columns^2` multiply-adds. Rows are independent, so fixed chunks of [`ROWS_PER_CHUNK`] rows run in
//! parallel and the result does not depend on the number of threads. Inside a chunk columns are stored one after
//! the other, and a block's errors reach the columns right of the block in one matrix product.

use lamella_math::matrix::{Layout, multiply_add};
use rayon::prelude::*;

/// Rows that one task carries through the sweep.
pub const ROWS_PER_CHUNK: usize = 64;
/// Columns whose errors are applied to the columns right of them in one matrix product.
const COLUMNS_PER_BLOCK: usize = 128;

/// A chunk of rows in the sweep, stored column by column.
pub struct Chunk<'a> {
    /// Index of the chunk's first row in the matrix.
    pub first_row: usize,
    /// Rows in this chunk.
    pub rows: usize,
    /// Current values, `[columns, rows]`: those of columns not yet visited carry the feedback so far.
    pub values: &'a mut [f32],
}

impl Chunk<'_> {
    /// The current values of one column, one per row.
    pub fn column(&self, column: usize) -> &[f32] {
        &self.values[column * self.rows..(column + 1) * self.rows]
    }
}

/// Decides what a column becomes; one value per chunk of rows, made by the sweep's caller.
pub trait ColumnQuantizer: Send {
    /// Called before the first column of each block that starts at a multiple of the block size; every column in
    /// `columns` then carries all the feedback it will get from columns left of the block.
    fn begin_block(&mut self, _chunk: &Chunk<'_>, _columns: std::ops::Range<usize>) {}
    /// Replaces one column's values (one per row of the chunk) with their reconstruction.
    fn quantize(&mut self, column: usize, values: &mut [f32]);
}

/// Sweeps `weights` (`[rows, columns]`, row-major, replaced by the reconstruction) under the upper factor
/// (`[columns, columns]`, row-major, zero below the diagonal). An empty factor stands for the identity: no column
/// hides another's error, and the sweep costs what the weights hold.
///
/// `block` is the distance of block starts (0 for the default of 128). Returns each chunk's quantiser, in row
/// order.
///
/// # Panics
/// Where the slices do not have these lengths: a caller's mistake, never the data's.
pub fn sweep<Q: ColumnQuantizer>(
    weights: &mut [f32],
    columns: usize,
    upper: &[f32],
    block: usize,
    make: impl Fn(usize, usize) -> Q + Sync,
) -> Vec<Q> {
    assert!(upper.is_empty() || upper.len() == columns * columns, "the factor must be square, or empty");
    if columns == 0 {
        return Vec::new();
    }
    assert_eq!(weights.len() % columns, 0, "whole rows are needed");
    let block = if block == 0 { COLUMNS_PER_BLOCK } else { block };
    weights
        .par_chunks_mut(ROWS_PER_CHUNK * columns)
        .enumerate()
        .map(|(index, rows_of_chunk)| {
            let rows = rows_of_chunk.len() / columns;
            let mut quantizer = make(index * ROWS_PER_CHUNK, rows);
            let mut values = transpose(rows_of_chunk, rows, columns);
            sweep_chunk(&mut values, rows, columns, upper, block, index * ROWS_PER_CHUNK, &mut quantizer);
            rows_of_chunk.copy_from_slice(&transpose(&values, columns, rows));
            quantizer
        })
        .collect()
}

fn sweep_chunk<Q: ColumnQuantizer>(
    values: &mut [f32],
    rows: usize,
    columns: usize,
    upper: &[f32],
    block: usize,
    first_row: usize,
    quantizer: &mut Q,
) {
    let mut errors = vec![0.0f32; block.min(columns) * rows];
    for start in (0..columns).step_by(block) {
        let end = (start + block).min(columns);
        quantizer.begin_block(&Chunk { first_row, rows, values }, start..end);
        for column in start..end {
            let (before, after) = values.split_at_mut((column + 1) * rows);
            let current = &mut before[column * rows..];
            let error = &mut errors[(column - start) * rows..(column - start + 1) * rows];
            error.copy_from_slice(current);
            quantizer.quantize(column, current);
            if upper.is_empty() {
                continue;
            }
            let factors = &upper[column * columns..(column + 1) * columns];
            let inverse = 1.0 / factors[column];
            error.iter_mut().zip(current.iter()).for_each(|(e, &v)| *e = (*e - v) * inverse);
            for (later, &factor) in after.chunks_exact_mut(rows).zip(&factors[column + 1..end]) {
                later.iter_mut().zip(error.iter()).for_each(|(w, &e)| *w -= e * factor);
            }
        }
        if end < columns && !upper.is_empty() {
            // values[k, :] -= sum_j upper[start + j, k] * errors[j, :] for every column k >= end.
            let factors = Layout::row_major(columns, columns).block(start, end, end - start, columns - end);
            multiply_add(
                &mut values[end * rows..],
                Layout::row_major(columns - end, rows),
                1.0,
                upper,
                factors.transposed(),
                &errors,
                Layout::row_major(end - start, rows),
                -1.0,
            );
        }
    }
}

/// Transposes `[rows, columns]` to `[columns, rows]`.
pub fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    // In tiles of a cache line's numbers: whole rows lie so far apart that their lines push each other out.
    const TILE: usize = 16;
    let mut out = vec![0.0; values.len()];
    for first_row in (0..rows).step_by(TILE) {
        let last_row = rows.min(first_row + TILE);
        for first_column in (0..columns).step_by(TILE) {
            for column in first_column..columns.min(first_column + TILE) {
                let target = &mut out[column * rows + first_row..column * rows + last_row];
                for (target, row) in target.iter_mut().zip(first_row..) {
                    *target = values[row * columns + column];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Round;
    impl ColumnQuantizer for Round {
        fn quantize(&mut self, _column: usize, values: &mut [f32]) {
            values.iter_mut().for_each(|v| *v = v.round());
        }
    }

    fn plain(weights: &mut [f32], columns: usize, upper: &[f32]) {
        for row in weights.chunks_exact_mut(columns) {
            for j in 0..columns {
                let value = row[j];
                row[j] = value.round();
                let error = (value - row[j]) / upper[j * columns + j];
                for k in j + 1..columns {
                    row[k] -= error * upper[j * columns + k];
                }
            }
        }
    }

    #[test]
    fn an_empty_factor_is_the_identity() {
        let columns = 150;
        let identity: Vec<f32> =
            (0..columns * columns).map(|i| f32::from(u8::from(i % (columns + 1) == 0))).collect();
        let weights: Vec<f32> = (0..70 * columns).map(|i| ((i * 37) % 101) as f32 / 13.0 - 3.7).collect();
        let (mut with, mut without) = (weights.clone(), weights);
        sweep(&mut with, columns, &identity, 32, |_, _| Round);
        sweep(&mut without, columns, &[], 32, |_, _| Round);
        assert_eq!(with, without);
    }

    #[test]
    fn blocks_equal_the_plain_sweep() {
        let (rows, columns) = (70, 150);
        let mut upper = vec![0.0; columns * columns];
        for j in 0..columns {
            for k in j..columns {
                upper[j * columns + k] =
                    if j == k { 1.0 } else { ((j * 7 + k * 3) % 11) as f32 / 64.0 - 0.07 };
            }
        }
        let weights: Vec<f32> = (0..rows * columns).map(|i| ((i * 37) % 101) as f32 / 13.0 - 3.7).collect();
        let (mut swept, mut expected) = (weights.clone(), weights);
        sweep(&mut swept, columns, &upper, 32, |_, _| Round);
        plain(&mut expected, columns, &upper);
        let different = swept.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert!(different * 500 < swept.len(), "{different} of {} codes differ", swept.len());
    }
}
