//! SpQR's sweep: grids without likely outliers, quantised scales, and outliers set apart as the sweep meets them.
//! The numbers are the steps of the system's documentation (`systems/spqr.rs`).

use std::ops::Range;

use half::f16;
use lamella_quant::feedback::{Chunk, ColumnQuantizer, sweep};
use lamella_quant::grid::{Group, Zero, groups_per_row};

use super::form::{PLAIN_SCALES, ROWS_PER_TILE, SpqrForm, Tile};
use crate::sparse::SparseRows;

/// What decides which weights are outliers.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds<'a> {
    /// Smallest squared error, over `U_jj^2`, of an outlier.
    pub tau: f32,
    /// Whether likely outliers are kept out of their group's grid.
    pub leave_one_out: bool,
    /// `U_jj`.
    pub diagonal: &'a [f32],
}

/// What the sweep found, in the order [`SpqrForm::encode`] wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Solved {
    /// Second-level grids, bands of rows outermost; empty with plain scales.
    pub tiles: Vec<Tile>,
    /// Grids, `[rows, groups_per_row]`.
    pub groups: Vec<Group>,
    /// Codes, `[rows, columns]`.
    pub codes: Vec<u8>,
    /// Outliers.
    pub outliers: SparseRows,
}

/// `mean_j(var(W[:,j]) / U_jj^2)`; about zero where there is only one row.
pub fn mean_variance(weights: &[f32], columns: usize, diagonal: &[f32]) -> f64 {
    let rows = weights.len() / columns;
    let of_column = |column: usize| {
        let values = || weights.iter().skip(column).step_by(columns).map(|&w| f64::from(w));
        let mean = if rows > 1 { values().sum::<f64>() / rows as f64 } else { 0.0 };
        let variance = values().map(|w| (w - mean) * (w - mean)).sum::<f64>() / rows as f64;
        variance / f64::from(diagonal[column]).powi(2)
    };
    (0..columns).map(of_column).sum::<f64>() / columns as f64
}

/// The sweep's rounding for one chunk of rows.
struct Rounding<'a> {
    form: SpqrForm,
    thresholds: Thresholds<'a>,
    first_row: usize,
    rows: usize,
    /// `[groups_per_row, bands of the chunk]`.
    tiles: Vec<Tile>,
    /// `[groups_per_row, rows]`.
    groups: Vec<Group>,
    /// `[columns, rows]`.
    codes: Vec<u8>,
    outliers: Vec<(u32, u16, f32)>,
}

impl Rounding<'_> {
    fn covering(&self, values: impl Iterator<Item = f32>) -> Group {
        Group::covering(values, self.form.bits, Zero::Float)
    }

    /// `sum_j ((w_j - v_j) / U_jj)^2` on a grid, one weight left out.
    fn cost(&self, values: &[f32], diagonal: &[f32], group: Group, without: usize) -> f32 {
        let bits = self.form.bits;
        let error = |(&w, &u): (&f32, &f32)| (w - group.dequantize(group.quantize(w, bits))) / u;
        let all = values.iter().zip(diagonal).map(error).enumerate();
        all.filter(|&(index, _)| index != without).map(|(_, e)| e * e).sum()
    }

    /// Step 3: the group's values with likely outliers replaced by the mean of the others.
    fn without_likely_outliers(&self, values: &[f32], diagonal: &[f32]) -> Vec<f32> {
        let grid = self.covering(values.iter().copied());
        let whole = self.cost(values, diagonal, grid, usize::MAX);
        // No weight can gain more than the whole error.
        if !self.thresholds.leave_one_out || whole <= self.thresholds.tau {
            return values.to_vec();
        }
        let (low, high) = values.iter().fold((0.0f32, 0.0f32), |(low, high), &w| (low.min(w), high.max(w)));
        let is_likely = |without: usize| {
            // Leaving out a weight inside the range changes no grid: only its own error goes.
            let is_inside = values[without] > low && values[without] < high;
            let others = values.iter().enumerate().filter(|&(index, _)| index != without);
            if is_inside {
                let error = (values[without]
                    - grid.dequantize(grid.quantize(values[without], self.form.bits)))
                    / diagonal[without];
                return error * error > self.thresholds.tau;
            }
            let refitted = self.covering(others.map(|(_, &w)| w));
            whole - self.cost(values, diagonal, refitted, without) > self.thresholds.tau
        };
        let likely: Vec<bool> = (0..values.len()).map(is_likely).collect();
        let others: Vec<f32> = values.iter().zip(&likely).filter(|&(_, &is)| !is).map(|(&w, _)| w).collect();
        if others.is_empty() {
            return values.to_vec();
        }
        let mean = others.iter().sum::<f32>() / others.len() as f32;
        values.iter().zip(likely).map(|(&w, is_likely)| if is_likely { mean } else { w }).collect()
    }
}

impl ColumnQuantizer for Rounding<'_> {
    fn begin_block(&mut self, chunk: &Chunk<'_>, columns: Range<usize>) {
        let diagonal = &self.thresholds.diagonal[columns.clone()];
        let fit = |row: usize| {
            let values: Vec<f32> = columns.clone().map(|column| chunk.column(column)[row]).collect();
            self.covering(self.without_likely_outliers(&values, diagonal).into_iter())
        };
        let grids: Vec<Group> = (0..self.rows).map(fit).collect();
        if self.form.scale_bits == PLAIN_SCALES {
            self.groups.extend(grids);
            return;
        }
        // 4.
        for band in grids.chunks(ROWS_PER_TILE) {
            let scales: Vec<f32> = band.iter().map(|group| group.scale).collect();
            let zero = |group: &Group| if group.scale > 0.0 { -group.minimum / group.scale } else { 0.0 };
            let zeros: Vec<f32> = band.iter().map(zero).collect();
            let tile = Tile::quantize(&scales, &zeros, self.form.scale_bits);
            self.groups.extend((0..band.len()).map(|row| tile.group(row)));
            self.tiles.push(tile);
        }
    }

    fn quantize(&mut self, column: usize, values: &mut [f32]) {
        let (bits, group_size) = (self.form.bits, self.form.group_size);
        for (row, value) in values.iter_mut().enumerate() {
            let group = self.groups[column / group_size * self.rows + row];
            let mut code = group.quantize(*value, bits);
            let mut level = group.dequantize(code);
            let error = (*value - level) / self.thresholds.diagonal[column];
            if error * error > self.thresholds.tau {
                let of_zero = group.quantize(0.0, bits);
                let kept = f16::from_f32(*value - group.dequantize(of_zero));
                if kept.is_finite() && kept != f16::ZERO {
                    (code, level) = (of_zero, group.dequantize(of_zero) + kept.to_f32());
                    self.outliers.push(((self.first_row + row) as u32, column as u16, kept.to_f32()));
                }
            }
            self.codes.push(code as u8);
            *value = level;
        }
    }
}

/// Steps 3 to 5: sweeps `weights`, `[rows, columns]` in the order of the sweep, and leaves the reconstruction there.
pub fn solve(weights: &mut [f32], form: SpqrForm, upper: &[f32], thresholds: Thresholds<'_>) -> Solved {
    let SpqrForm { rows, columns, group_size, .. } = form;
    let chunks = sweep(weights, columns, upper, group_size, |first_row, rows| Rounding {
        form,
        thresholds,
        first_row,
        rows,
        tiles: Vec::new(),
        groups: Vec::new(),
        codes: Vec::with_capacity(rows * columns),
        outliers: Vec::new(),
    });
    let per_row = groups_per_row(columns, group_size);
    let (mut tiles, mut groups) = (Vec::new(), Vec::with_capacity(rows * per_row));
    let (mut codes, mut outliers) = (vec![0u8; rows * columns], Vec::new());
    for mut chunk in chunks {
        let bands = if chunk.tiles.is_empty() { 0 } else { chunk.rows.div_ceil(ROWS_PER_TILE) };
        for band in 0..bands {
            tiles.extend((0..per_row).map(|group| chunk.tiles[group * bands + band].clone()));
        }
        for row in 0..chunk.rows {
            groups.extend((0..per_row).map(|group| chunk.groups[group * chunk.rows + row]));
            let place = (chunk.first_row + row) * columns;
            for column in 0..columns {
                codes[place + column] = chunk.codes[column * chunk.rows + row];
            }
        }
        outliers.append(&mut chunk.outliers);
    }
    let outliers = SparseRows::from_entries(rows, outliers);
    Solved { tiles, groups, codes, outliers }
}
