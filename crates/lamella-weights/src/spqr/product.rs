//! SpQR's product with one vector, from codes: grids group by group, then the sparse rows.
//!
//! `y = sum_groups (s sum(q x) + m sum(x)) + sum_outliers v x`, with `x` in the order of the sweep. The sums of `x` are
//! taken once per vector; scale `s` and minimum `m = -s z` of a row's group come from their codes when the group's turn
//! comes, so that second-level codes stay coded in memory too.
//!
//! # Layout
//! Sixteen rows at a time, which is a second-level tile: one step and lowest value of scales and of zeros serve all lanes
//! of a vector. A *line* of 64 bytes holds 8 columns of those rows, a row in each 32-bit lane, the first column in its low
//! half byte. A group is a whole number of lines, but for the last of a row. At 3 bits this holds 4 bits a weight, one byte
//! a group and 16 bytes a tile: 5 bits a weight beside the outliers' 6 bytes each.

use super::form::{ROWS_PER_TILE, SpqrForm, SpqrMatrix};
use super::kernel::{self, BandProduct};
use crate::coded::VectorProduct;
use crate::sparse::SparseRows;

/// Columns of a line.
pub const RUN: usize = 8;

/// 8 columns of 16 rows, on a cache line of their own.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u32; ROWS_PER_TILE]);

/// One group of 16 rows beside its lines: second-level codes and levels.
#[derive(Debug, Clone, Copy)]
pub struct GroupOfBand {
    /// Code of the scale in the low, of the zero in the high nibble, one byte a row.
    pub pairs: [u8; ROWS_PER_TILE],
    /// Step and lowest value of the scales, then of the zeros.
    pub levels: [f32; 4],
}

/// A matrix laid out for products.
#[derive(Debug, Clone)]
pub struct PackedSpqr {
    form: SpqrForm,
    order: Vec<u32>,
    /// `[bands of 16 rows, lines]`.
    lines: Vec<Line>,
    /// `[bands of 16 rows, groups_per_row]`.
    groups: Vec<GroupOfBand>,
    outliers: SparseRows,
}

impl PackedSpqr {
    /// Lays a matrix out; `None` where it has codes of more than 4 bits, plain scales, or groups that are no whole lines.
    pub fn new(matrix: &SpqrMatrix) -> Option<Self> {
        let form = matrix.form;
        let second = matrix.second.as_ref()?;
        if form.bits > 4 || form.scale_bits > 4 || !form.group_size.is_multiple_of(RUN) {
            return None;
        }
        let (bands, per_row) = (form.rows.div_ceil(ROWS_PER_TILE), form.columns.div_ceil(form.group_size));
        let per_band = form.columns.div_ceil(RUN);
        let mut lines = vec![Line([0; ROWS_PER_TILE]); bands * per_band];
        for (row, codes) in matrix.codes.chunks_exact(form.columns.max(1)).enumerate() {
            let band = &mut lines[row / ROWS_PER_TILE * per_band..][..per_band];
            for (line, run) in band.iter_mut().zip(codes.chunks(RUN)) {
                let lane = &mut line.0[row % ROWS_PER_TILE];
                run.iter().enumerate().for_each(|(place, &code)| *lane |= u32::from(code) << (4 * place));
            }
        }
        let group = |index: usize| {
            let (band, group) = (index / per_row.max(1), index % per_row.max(1));
            let mut pairs = [0; ROWS_PER_TILE];
            for (place, pair) in pairs.iter_mut().enumerate() {
                let row = band * ROWS_PER_TILE + place;
                if row < form.rows {
                    let at = row * per_row + group;
                    *pair = second.scales[at] as u8 | (second.zeros[at] as u8) << 4;
                }
            }
            GroupOfBand { pairs, levels: std::array::from_fn(|at| second.levels[4 * index + at]) }
        };
        let groups = (0..bands * per_row).map(group).collect();
        Some(Self { form, order: matrix.order.clone(), lines, groups, outliers: matrix.outliers.clone() })
    }

    /// Bytes held in memory.
    pub fn resident_bytes(&self) -> usize {
        let sparse = 4 * self.outliers.starts.len() + 6 * self.outliers.values.len();
        size_of_val(&self.lines[..]) + size_of_val(&self.groups[..]) + 4 * self.order.len() + sparse
    }

    /// `out = W input`, on this thread; with the widest kernel this CPU has.
    ///
    /// # Panics
    /// Where `input` has not `columns` or `out` not `rows` numbers.
    pub fn multiply(&self, input: &[f32], out: &mut [f32]) {
        self.multiply_with(input, out, kernel::fastest());
    }

    /// [`PackedSpqr::multiply`] by the plain loop, whatever the CPU has: equal but for the rounding of sums.
    ///
    /// # Panics
    /// As [`PackedSpqr::multiply`].
    pub fn multiply_plain(&self, input: &[f32], out: &mut [f32]) {
        self.multiply_with(input, out, plain);
    }

    fn multiply_with(&self, input: &[f32], out: &mut [f32], of_band: BandProduct) {
        let SpqrForm { rows, columns, group_size, .. } = self.form;
        assert!(input.len() == columns && out.len() == rows, "one number a column in, one a row out");
        let (per_row, per_band) = (columns.div_ceil(group_size), columns.div_ceil(RUN));
        let mut swept: Vec<f32> = self.order.iter().map(|&column| input[column as usize]).collect();
        let sums: Vec<f32> = swept.chunks(group_size).map(|group| group.iter().sum()).collect();
        swept.resize(per_band * RUN, 0.0);
        for (band, out) in out.chunks_mut(ROWS_PER_TILE).enumerate() {
            let lines = &self.lines[band * per_band..(band + 1) * per_band];
            let groups = &self.groups[band * per_row..(band + 1) * per_row];
            let found = of_band(lines, groups, swept.as_chunks::<RUN>().0, &sums, group_size / RUN);
            out.copy_from_slice(&found[..out.len()]);
        }
        swept.truncate(columns);
        self.outliers.multiply_add(&swept, out);
    }
}

impl VectorProduct for PackedSpqr {
    fn shape(&self) -> (usize, usize) {
        (self.form.rows, self.form.columns)
    }

    fn product(&self, input: &[f32], out: &mut [f32]) {
        self.multiply(input, out);
    }

    fn add_row_to(&self, row: usize, target: &mut [f32]) {
        let SpqrForm { columns, group_size, .. } = self.form;
        let (per_row, per_band) = (columns.div_ceil(group_size), columns.div_ceil(RUN));
        let (band, lane) = (row / ROWS_PER_TILE, row % ROWS_PER_TILE);
        for (place, &column) in self.order.iter().enumerate() {
            let group = &self.groups[band * per_row + place / group_size];
            let [scale_step, scale_low, zero_step, zero_low] = group.levels;
            let scale = scale_step * f32::from(group.pairs[lane] & 15) + scale_low;
            let zero = zero_step * f32::from(group.pairs[lane] >> 4) + zero_low;
            let line = self.lines[band * per_band + place / RUN].0[lane];
            target[column as usize] += scale * ((line >> (4 * (place % RUN)) & 15) as f32 - zero);
        }
        let (start, end) = (self.outliers.starts[row] as usize, self.outliers.starts[row + 1] as usize);
        for entry in start..end {
            let place = usize::from(self.outliers.columns[entry]);
            target[self.order[place] as usize] += self.outliers.values[entry];
        }
    }

    fn held_bytes(&self) -> usize {
        self.resident_bytes()
    }
}

/// Products of 16 rows: what every kernel returns.
pub fn plain(
    lines: &[Line],
    groups: &[GroupOfBand],
    input: &[[f32; RUN]],
    sums: &[f32],
    lines_per_group: usize,
) -> [f32; ROWS_PER_TILE] {
    let mut totals = [0.0f32; ROWS_PER_TILE];
    let runs = lines.chunks(lines_per_group).zip(input.chunks(lines_per_group));
    for ((lines, input), (group, sum)) in runs.zip(groups.iter().zip(sums)) {
        let [scale_step, scale_low, zero_step, zero_low] = group.levels;
        for (row, total) in totals.iter_mut().enumerate() {
            let mut coded = 0.0f32;
            for (line, values) in lines.iter().zip(input) {
                for (place, value) in values.iter().enumerate() {
                    coded += (line.0[row] >> (4 * place) & 15) as f32 * value;
                }
            }
            let scale = scale_step * f32::from(group.pairs[row] & 15) + scale_low;
            let zero = zero_step * f32::from(group.pairs[row] >> 4) + zero_low;
            *total += scale * (coded - zero * sum);
        }
    }
    totals
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
