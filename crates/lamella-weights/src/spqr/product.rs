//! SpQR's product with one vector, from codes: grids group by group, then the sparse rows.
//!
//! `y = sum_groups (s sum(q x) + m sum(x)) + sum_outliers v x`, with `x` in the order of the sweep. The sums of `x` are
//! taken once per vector; scale `s` and minimum `m = -s z` of a row's groups come from their codes when the row's turn
//! comes, so that second-level codes stay coded in memory too.
//!
//! # Layout
//! Codes of at most 4 bits, two a byte: of 16 consecutive columns, column `i` in the low and column `8 + i` in the high
//! nibble of byte `i`. A group is a whole number of such runs, but for the last of a row. At 3 bits this holds 4 bits a
//! weight, one byte a group and 16 bytes a tile: 5 bits a weight beside the outliers' 6 bytes each.

use super::form::{ROWS_PER_TILE, SpqrForm, SpqrMatrix};
use super::kernel;
use crate::sparse::SparseRows;

/// Columns of a run.
pub const RUN: usize = 16;

/// A matrix laid out for products.
#[derive(Debug, Clone)]
pub struct PackedSpqr {
    form: SpqrForm,
    order: Vec<u32>,
    /// `[rows, runs, 8]`.
    nibbles: Vec<u8>,
    /// Code of the scale in the low, of the zero in the high nibble, `[rows, groups_per_row]`.
    pairs: Vec<u8>,
    /// `[4, bands of 16 rows, groups_per_row]`: steps and minima of scales, then of zeros.
    levels: [Vec<f32>; 4],
    outliers: SparseRows,
}

impl PackedSpqr {
    /// Lays a matrix out; `None` where it has codes of more than 4 bits, plain scales, or groups that are no whole runs.
    pub fn new(matrix: &SpqrMatrix) -> Option<Self> {
        let form = matrix.form;
        let second = matrix.second.as_ref()?;
        if form.bits > 4 || form.scale_bits > 4 || !form.group_size.is_multiple_of(RUN) {
            return None;
        }
        let mut nibbles = Vec::with_capacity(form.rows * form.columns.div_ceil(RUN) * RUN / 2);
        for row in matrix.codes.chunks_exact(form.columns.max(1)) {
            for run in row.chunks(RUN) {
                let code = |place: usize| run.get(place).copied().unwrap_or(0);
                nibbles.extend((0..RUN / 2).map(|place| code(place) | code(place + RUN / 2) << 4));
            }
        }
        let codes = second.scales.iter().zip(&second.zeros);
        Some(Self {
            form,
            order: matrix.order.clone(),
            nibbles,
            pairs: codes.map(|(&scale, &zero)| scale as u8 | (zero as u8) << 4).collect(),
            levels: [0, 1, 2, 3].map(|at| second.levels.iter().skip(at).step_by(4).copied().collect()),
            outliers: matrix.outliers.clone(),
        })
    }

    /// Bytes held in memory.
    pub fn resident_bytes(&self) -> usize {
        let levels: usize = self.levels.iter().map(|levels| 4 * levels.len()).sum();
        let sparse = 4 * self.outliers.starts.len() + 6 * self.outliers.values.len();
        self.nibbles.len() + self.pairs.len() + levels + 4 * self.order.len() + sparse
    }

    /// `out = W input`, on this thread; with the widest kernel this CPU has.
    ///
    /// # Panics
    /// Where `input` has not `columns` or `out` not `rows` numbers.
    pub fn multiply(&self, input: &[f32], out: &mut [f32]) {
        self.multiply_with(input, out, kernel::fastest());
    }

    /// [`PackedSpqr::multiply`] by the plain loop, whatever the CPU has: equal but for the order of sums.
    ///
    /// # Panics
    /// As [`PackedSpqr::multiply`].
    pub fn multiply_plain(&self, input: &[f32], out: &mut [f32]) {
        self.multiply_with(input, out, plain);
    }

    fn multiply_with(&self, input: &[f32], out: &mut [f32], of_row: kernel::RowProduct) {
        let SpqrForm { rows, columns, group_size, .. } = self.form;
        assert!(input.len() == columns && out.len() == rows, "one number a column in, one a row out");
        let (per_row, runs) = (columns.div_ceil(group_size), columns.div_ceil(RUN));
        let mut swept: Vec<f32> = self.order.iter().map(|&column| input[column as usize]).collect();
        let sums: Vec<f32> = swept.chunks(group_size).map(|group| group.iter().sum()).collect();
        swept.resize(runs * RUN, 0.0);
        let (mut scales, mut minima) = (vec![0.0f32; per_row], vec![0.0f32; per_row]);
        for (row, out) in out.iter_mut().enumerate() {
            let band = row / ROWS_PER_TILE * per_row;
            let [scale_step, scale_low, zero_step, zero_low] =
                self.levels.each_ref().map(|levels| &levels[band..band + per_row]);
            let pairs = &self.pairs[row * per_row..(row + 1) * per_row];
            for group in 0..per_row {
                let scale = scale_step[group] * f32::from(pairs[group] & 15) + scale_low[group];
                let zero = zero_step[group] * f32::from(pairs[group] >> 4) + zero_low[group];
                (scales[group], minima[group]) = (scale, -(scale * zero));
            }
            let nibbles = self.nibbles[row * runs * 8..(row + 1) * runs * 8].as_chunks::<8>().0;
            let coded = of_row(nibbles, swept.as_chunks::<RUN>().0, &scales, group_size / RUN);
            *out = coded + minima.iter().zip(&sums).map(|(minimum, sum)| minimum * sum).sum::<f32>();
        }
        swept.truncate(columns);
        self.outliers.multiply_add(&swept, out);
    }
}

/// `sum_groups s sum(q x)` of one row: what every kernel returns.
pub fn plain(nibbles: &[[u8; 8]], input: &[[f32; RUN]], scales: &[f32], runs_per_group: usize) -> f32 {
    let groups = nibbles.chunks(runs_per_group).zip(input.chunks(runs_per_group)).zip(scales);
    groups
        .map(|((nibbles, input), scale)| {
            let mut sum = 0.0;
            for (bytes, values) in nibbles.iter().zip(input) {
                for (place, &byte) in bytes.iter().enumerate() {
                    sum += f32::from(byte & 15) * values[place] + f32::from(byte >> 4) * values[place + 8];
                }
            }
            scale * sum
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::super::form::Tile;
    use super::*;

    #[test]
    fn products_equal_the_expanded_matrix() {
        for (rows, columns, group_size) in [(40, 200, 16), (5, 64, 32), (1, 7, 16)] {
            let form = SpqrForm { rows, columns, bits: 3, group_size, scale_bits: 3 };
            let per_row = columns.div_ceil(group_size);
            let tiles: Vec<Tile> = (0..form.n_tiles())
                .map(|tile| {
                    let rows = (rows - tile / per_row * ROWS_PER_TILE).min(ROWS_PER_TILE);
                    let number = |row: usize| 0.1 + ((row * 5 + tile * 3) % 11) as f32 / 20.0;
                    let scales: Vec<f32> = (0..rows).map(number).collect();
                    let zeros: Vec<f32> = (0..rows).map(|row| 7.0 * number(row + 3)).collect();
                    Tile::quantize(&scales, &zeros, 3)
                })
                .collect();
            let codes: Vec<u8> = (0..rows * columns).map(|i| (i * 7919 % 8) as u8).collect();
            let order: Vec<u32> = (0..columns as u32).rev().collect();
            let kept = vec![(0, 3, 1.5), (rows as u32 - 1, columns as u16 - 1, -2.0)];
            let outliers = SparseRows::from_entries(rows, kept);
            let payload = form.encode(&tiles, &[], &order, &codes, &outliers).unwrap();
            let matrix = form.decode(&payload).unwrap();
            let packed = PackedSpqr::new(&matrix).unwrap();
            let input: Vec<f32> = (0..columns).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
            let (mut fast, mut plain) = (vec![0.0; rows], vec![0.0; rows]);
            packed.multiply(&input, &mut fast);
            packed.multiply_plain(&input, &mut plain);
            for (row, weights) in matrix.expand().chunks_exact(columns).enumerate() {
                let exact: f64 = weights.iter().zip(&input).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                let size: f64 = weights.iter().zip(&input).map(|(&w, &x)| f64::from(w * x).abs()).sum();
                assert!((exact - f64::from(fast[row])).abs() < 1e-5 * size, "{exact} {}", fast[row]);
                assert!((exact - f64::from(plain[row])).abs() < 1e-5 * size);
            }
        }
    }
}
