//! The product with one vector, straight from the planes: a nibble of a plane picks one of 16 sums of 4 inputs.
//!
//! For every run of 4 inputs the sums of its 16 subsets are computed once. A plane holds, for each row, 4 bits a run: the
//! subset whose inputs count. So a plane's product with a group of inputs is a look-up and an addition per run, and
//! `y = sum_groups (sum_j s_j acc_j + z sum(x))`.
//!
//! # Numbers
//! Sums are kept as 16-bit integers in units of the group's largest sum over 32,767, and added exactly. The kernels
//! therefore return the same bits as the plain loop; against multiplying the expanded matrix the result is off by the
//! rounding of those sums, about `1e-5` of the largest.
//!
//! # Layout
//! `[32 rows][plane][run]` of 16 bytes: byte `i` has row `i` in its low and row `16 + i` in its high nibble, so that one
//! shuffle of 32 bytes looks up 32 rows. Resident bytes: the planes, and 4 bytes per scale, offset, row and group.

use super::form::{PlaneForm, PlaneMatrix};
use super::kernel;
use crate::coded::VectorProduct;

/// Rows looked up together.
pub const ROWS: usize = 32;
/// Inputs of a run.
const RUN: usize = 4;
/// Runs whose bytes can be added in 16 bits without overflow.
const MAX_RUNS: usize = 256;

/// A matrix laid out for look-ups.
#[derive(Debug, Clone)]
pub struct PackedPlanes {
    form: PlaneForm,
    /// `[bands of 32 rows, groups_per_row, bits + 1, 32]`: scales, then offsets.
    levels: Vec<f32>,
    /// `[bands of 32 rows, bits, runs, 16]`.
    nibbles: Vec<u8>,
}

impl VectorProduct for PackedPlanes {
    fn shape(&self) -> (usize, usize) {
        (self.form.rows, self.form.columns)
    }

    fn product(&self, input: &[f32], out: &mut [f32]) {
        self.multiply(input, out);
    }

    fn add_row_to(&self, row: usize, target: &mut [f32]) {
        let PlaneForm { columns, bits, group_size, .. } = self.form;
        let (per_row, runs) = (self.form.per_row(), columns.div_ceil(RUN));
        let (band, lane) = (row / ROWS, row % ROWS);
        for (column, value) in target.iter_mut().enumerate().take(columns) {
            let start = (band * per_row + column / group_size) * (bits + 1) * ROWS + lane;
            let mut level = self.levels[start + bits * ROWS];
            for plane in 0..bits {
                let place = ((band * bits + plane) * runs + column / RUN) * 16 + lane % 16;
                let nibble = self.nibbles[place] >> (lane / 16 * 4) & 15;
                if nibble >> (column % RUN) & 1 == 1 {
                    level += self.levels[start + plane * ROWS];
                }
            }
            *value += level;
        }
    }

    fn held_bytes(&self) -> usize {
        self.resident_bytes()
    }
}

/// The subset sums of one vector.
struct Tables {
    /// `[runs, 16]`: low and high bytes of each sum plus 32,768.
    low: Vec<[u8; 16]>,
    high: Vec<[u8; 16]>,
    /// One unit of the sums, per group.
    units: Vec<f32>,
    /// Sums of all inputs, per group.
    totals: Vec<f32>,
}

/// Sums of bytes, one pair a row: what a kernel adds up over some runs.
pub type Bytes = [[u16; ROWS]; 2];

impl PackedPlanes {
    /// Lays a matrix out.
    pub fn new(matrix: &PlaneMatrix) -> Self {
        let form = matrix.form;
        let (per_row, runs) = (form.per_row(), form.columns.div_ceil(RUN));
        let bands = form.rows.div_ceil(ROWS);
        let mut levels = vec![0.0; bands * per_row * (form.bits + 1) * ROWS];
        let mut nibbles = vec![0; bands * form.bits * runs * 16];
        for row in 0..form.rows {
            let (band, lane) = (row / ROWS, row % ROWS);
            for group in 0..per_row {
                let numbers = &matrix.levels[row * per_row + group];
                let start = (band * per_row + group) * (form.bits + 1) * ROWS + lane;
                for plane in 0..form.bits {
                    levels[start + plane * ROWS] = numbers.scales[plane];
                }
                levels[start + form.bits * ROWS] = numbers.offset;
            }
            for plane in 0..form.bits {
                let bytes = matrix.plane(plane, row);
                for run in 0..runs {
                    let nibble = bytes[run / 2] >> (run % 2 * 4) & 15;
                    let place = ((band * form.bits + plane) * runs + run) * 16 + lane % 16;
                    nibbles[place] |= nibble << (lane / 16 * 4);
                }
            }
        }
        Self { form, levels, nibbles }
    }

    /// Bytes held in memory.
    pub fn resident_bytes(&self) -> usize {
        4 * self.levels.len() + self.nibbles.len()
    }

    /// `out = W input`, on this thread; with the widest kernel this CPU has.
    ///
    /// # Panics
    /// Where `input` has not `columns` or `out` not `rows` numbers.
    pub fn multiply(&self, input: &[f32], out: &mut [f32]) {
        self.multiply_with(input, out, kernel::fastest());
    }

    /// [`PackedPlanes::multiply`] by the plain loop, whatever the CPU has: the same bits.
    ///
    /// # Panics
    /// As [`PackedPlanes::multiply`].
    pub fn multiply_plain(&self, input: &[f32], out: &mut [f32]) {
        self.multiply_with(input, out, plain);
    }

    fn multiply_with(&self, input: &[f32], out: &mut [f32], add: kernel::AddRuns) {
        let PlaneForm { rows, columns, bits, group_size } = self.form;
        assert!(input.len() == columns && out.len() == rows, "one number a column in, one a row out");
        let (per_row, runs) = (self.form.per_row(), columns.div_ceil(RUN));
        let tables = Tables::new(input, group_size);
        for (band, out) in out.chunks_mut(ROWS).enumerate() {
            let mut sums = [0.0f32; ROWS];
            for group in 0..per_row {
                let first = group * group_size / RUN;
                let last = ((group + 1) * group_size / RUN).min(runs);
                let start = (band * per_row + group) * (bits + 1) * ROWS;
                let levels = &self.levels[start..start + (bits + 1) * ROWS];
                for plane in 0..bits {
                    let place = (band * bits + plane) * runs;
                    let mut total = [0i32; ROWS];
                    for from in (first..last).step_by(MAX_RUNS) {
                        let to = (from + MAX_RUNS).min(last);
                        let nibbles =
                            self.nibbles[16 * (place + from)..16 * (place + to)].as_chunks::<16>().0;
                        let [low, high] = add(nibbles, &tables.low[from..to], &tables.high[from..to]);
                        let bias = 32_768 * (to - from) as i32;
                        for lane in 0..ROWS {
                            total[lane] += i32::from(low[lane]) + 256 * i32::from(high[lane]) - bias;
                        }
                    }
                    let scales = &levels[plane * ROWS..(plane + 1) * ROWS];
                    for lane in 0..ROWS {
                        sums[lane] += tables.units[group] * scales[lane] * total[lane] as f32;
                    }
                }
                for lane in 0..ROWS {
                    sums[lane] += levels[bits * ROWS + lane] * tables.totals[group];
                }
            }
            out.copy_from_slice(&sums[..out.len()]);
        }
    }
}

impl Tables {
    fn new(input: &[f32], group_size: usize) -> Self {
        let runs = input.len().div_ceil(RUN);
        let (mut low, mut high) = (Vec::with_capacity(runs), Vec::with_capacity(runs));
        let (mut units, mut totals) = (Vec::new(), Vec::new());
        let mut sums: Vec<[f32; 16]> = Vec::new();
        for group in input.chunks(group_size) {
            sums.clear();
            for run in group.chunks(RUN) {
                let mut of_run = [0.0f32; 16];
                for (place, &value) in run.iter().enumerate() {
                    for subset in 0..1 << place {
                        of_run[subset | 1 << place] = of_run[subset] + value;
                    }
                }
                sums.push(of_run);
            }
            let largest = sums.iter().flatten().fold(0.0f32, |largest, sum| largest.max(sum.abs()));
            let unit = largest / 32_767.0;
            let inverse = if unit > 0.0 { 1.0 / unit } else { 0.0 };
            for of_run in &sums {
                let biased = of_run.map(|sum| ((sum * inverse).round() + 32_768.0) as u16);
                low.push(biased.map(|sum| sum as u8));
                high.push(biased.map(|sum| (sum >> 8) as u8));
            }
            units.push(unit);
            totals.push(group.iter().sum());
        }
        Self { low, high, units, totals }
    }
}

/// Adds the looked-up bytes of up to 256 runs, row by row: what every kernel returns.
pub fn plain(nibbles: &[[u8; 16]], low: &[[u8; 16]], high: &[[u8; 16]]) -> Bytes {
    let mut sums = [[0u16; ROWS]; 2];
    for ((nibbles, low), high) in nibbles.iter().zip(low).zip(high) {
        for (lane, &byte) in nibbles.iter().enumerate() {
            for (row, nibble) in [(lane, byte & 15), (lane + 16, byte >> 4)] {
                sums[0][row] += u16::from(low[usize::from(nibble)]);
                sums[1][row] += u16::from(high[usize::from(nibble)]);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::super::fit::{Levels, MAX_BITS};
    use super::*;

    fn matrix(rows: usize, columns: usize, bits: usize, group_size: usize) -> PlaneMatrix {
        let form = PlaneForm { rows, columns, bits, group_size };
        let levels: Vec<Levels> = (0..rows * form.per_row())
            .map(|i| {
                let mut scales = [0.0; MAX_BITS];
                scales[..bits]
                    .iter_mut()
                    .enumerate()
                    .for_each(|(j, s)| *s = 0.25 * (1 + (i + 3 * j) % 5) as f32);
                Levels { offset: -0.5 - (i % 3) as f32 * 0.125, scales }
            })
            .collect();
        let codes: Vec<u8> =
            (0..rows * columns).map(|i| ((i * 7919) >> 3 & ((1 << bits) - 1)) as u8).collect();
        form.decode(&form.encode(&levels, &codes).unwrap()).unwrap()
    }

    #[test]
    fn look_ups_equal_expanding_and_every_kernel_equals_the_plain_loop() {
        for (rows, columns, bits, group_size) in
            [(70, 300, 2, 128), (33, 64, 3, 64), (32, 2048, 2, 2048), (1, 8, 1, 8), (40, 13, 4, 8)]
        {
            let matrix = matrix(rows, columns, bits, group_size);
            let input: Vec<f32> =
                (0..columns).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0).powi(3)).collect();
            let packed = PackedPlanes::new(&matrix);
            let (mut fast, mut plain) = (vec![0.0; rows], vec![0.0; rows]);
            packed.multiply(&input, &mut fast);
            packed.multiply_plain(&input, &mut plain);
            assert_eq!(fast, plain);
            let expanded = matrix.expand();
            let exact: Vec<f64> = expanded
                .chunks_exact(columns)
                .map(|row| row.iter().zip(&input).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum())
                .collect();
            let norm = exact.iter().map(|y| y * y).sum::<f64>().sqrt();
            let off = exact.iter().zip(&fast).map(|(y, &v)| (y - f64::from(v)).powi(2)).sum::<f64>().sqrt();
            assert!(off < 1e-4 * norm, "{rows} x {columns}: {}", off / norm);
        }
    }
}
