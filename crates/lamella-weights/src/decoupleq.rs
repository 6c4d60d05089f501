//! decoupleQ's solver: integers and grids in turn, each half step kept for the rows it helps. The numbers are the steps of
//! the system's documentation (`systems/decoupleq.rs`).

use half::f16;
use lamella_math::SecondMoment;
use lamella_math::matrix::{Layout, multiply_add};
use lamella_quant::feedback::{ColumnQuantizer, sweep};
use lamella_quant::gptq::{Direction, reorder};
use lamella_quant::grid::{Group, Zero, groups_per_row, reconstruct, round_to_nearest, static_groups};
use rayon::prelude::*;

use crate::inputs::Factored;

/// Rows solved together; rows do not know of each other.
const ROWS_PER_CHUNK: usize = 64;
/// Ranges that step 3 tries are `1 - i / 200` of the whole.
const SHRINK_STEPS: f32 = 200.0;

/// Settings of one matrix.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Bits of a code.
    pub bits: u32,
    /// Columns that share a grid.
    pub group_size: usize,
    /// Rounds of steps 4 and 5.
    pub rounds: usize,
    /// Ranges that step 3 tries.
    pub shrinks: usize,
}

/// Grids, codes and what they stand for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Solution {
    /// `[rows, groups_per_row]`.
    pub groups: Vec<Group>,
    /// `[rows, columns]`.
    pub codes: Vec<u8>,
    /// `[rows, columns]`.
    pub values: Vec<f32>,
    /// `(v - w) H (v - w)^T` of each row.
    costs: Vec<f64>,
}

/// The damped second moment the error is measured by; `None` for the identity.
pub fn damped(moment: Option<&SecondMoment>, damping: f64) -> Option<Vec<f32>> {
    let moment = moment.filter(|moment| moment.mean_diagonal() > 0.0)?;
    let scale = 1.0 / moment.tokens().max(1) as f64;
    let mut matrix: Vec<f32> = moment.sum().iter().map(|&value| (f64::from(value) * scale) as f32).collect();
    let added = (damping * moment.mean_diagonal() * scale) as f32;
    matrix.iter_mut().step_by(moment.dimension() + 1).for_each(|value| *value += added);
    Some(matrix)
}

/// Solves `weights`, `[rows, columns]`, under `moment` ([`damped`]) and its factor.
pub fn solve(
    weights: &[f32],
    columns: usize,
    moment: Option<&[f32]>,
    factor: &Factored,
    settings: Settings,
) -> Solution {
    let chunks = weights.par_chunks(ROWS_PER_CHUNK * columns);
    let solved: Vec<Solution> =
        chunks.map(|weights| Rows { weights, columns, moment, factor, settings }.solve()).collect();
    let mut all = Solution::default();
    for mut chunk in solved {
        all.groups.append(&mut chunk.groups);
        all.codes.append(&mut chunk.codes);
        all.values.append(&mut chunk.values);
        all.costs.append(&mut chunk.costs);
    }
    all
}

/// A chunk of rows with all that its solution depends on.
struct Rows<'a> {
    weights: &'a [f32],
    columns: usize,
    moment: Option<&'a [f32]>,
    factor: &'a Factored,
    settings: Settings,
}

impl Rows<'_> {
    fn solve(&self) -> Solution {
        let Settings { bits, group_size, rounds, .. } = self.settings;
        // 2.
        let groups = static_groups(self.weights, self.columns, group_size, bits, Zero::Float);
        let mut best = self.rounded(groups.clone());
        if groups.iter().any(|group| !group.is_finite()) {
            return best;
        }
        self.improve(&mut best, self.swept(groups));
        // 3.
        let mut searched = self.search();
        let refitted = self.refitted(&searched);
        self.improve(&mut searched, refitted);
        self.improve(&mut best, searched);
        // 4. to 6.
        for _ in 0..rounds {
            let swept = self.swept(best.groups.clone());
            let mut n_better = self.improve(&mut best, swept);
            let refitted = self.refitted(&best);
            n_better += self.improve(&mut best, refitted);
            if n_better == 0 {
                break;
            }
        }
        best
    }

    fn per_row(&self) -> usize {
        groups_per_row(self.columns, self.settings.group_size)
    }

    /// Takes the rows of `candidate` that cost less; how many those are.
    fn improve(&self, best: &mut Solution, candidate: Solution) -> usize {
        let (columns, per_row) = (self.columns, self.per_row());
        let mut n_better = 0;
        for row in 0..best.costs.len() {
            // Written this way round, a cost that is NaN is never taken.
            if candidate.costs[row] < best.costs[row] {
                let (groups, weights) =
                    (row * per_row..(row + 1) * per_row, row * columns..(row + 1) * columns);
                best.groups[groups.clone()].copy_from_slice(&candidate.groups[groups]);
                best.codes[weights.clone()].copy_from_slice(&candidate.codes[weights.clone()]);
                best.values[weights.clone()].copy_from_slice(&candidate.values[weights]);
                best.costs[row] = candidate.costs[row];
                n_better += 1;
            }
        }
        n_better
    }

    /// `rows H[inputs, :]` for rows of the inputs' values; the identity where nothing is known of the inputs.
    fn times_moment(&self, values: &[f32], inputs: std::ops::Range<usize>) -> Vec<f32> {
        let (columns, width) = (self.columns, inputs.len());
        let rows = values.len() / width.max(1);
        let mut product = vec![0.0; rows * columns];
        match self.moment {
            None => {
                for (out, values) in product.chunks_exact_mut(columns).zip(values.chunks_exact(width)) {
                    out[inputs.clone()].copy_from_slice(values);
                }
            }
            Some(moment) => {
                let square = Layout::row_major(columns, columns).block(inputs.start, 0, width, columns);
                let (out, left) = (Layout::row_major(rows, columns), Layout::row_major(rows, width));
                multiply_add(&mut product, out, 0.0, values, left, moment, square, 1.0);
            }
        }
        product
    }

    fn costs(&self, values: &[f32]) -> Vec<f64> {
        let error: Vec<f32> = values.iter().zip(self.weights).map(|(v, w)| v - w).collect();
        let product = self.times_moment(&error, 0..self.columns);
        let by_row = product.chunks_exact(self.columns).zip(error.chunks_exact(self.columns));
        by_row.map(|(left, right)| dot(left, right)).collect()
    }

    fn solution(&self, groups: Vec<Group>, codes: Vec<u8>) -> Solution {
        let values = reconstruct(&codes, self.columns, self.settings.group_size, &groups);
        Solution { costs: self.costs(&values), groups, codes, values }
    }

    fn rounded(&self, groups: Vec<Group>) -> Solution {
        let Settings { bits, group_size, .. } = self.settings;
        let codes = round_to_nearest(self.weights, self.columns, group_size, bits, &groups);
        self.solution(groups, codes)
    }

    /// Step 3: the range of each row whose rounding costs least.
    fn search(&self) -> Solution {
        let Settings { bits, group_size, shrinks, .. } = self.settings;
        let shrunk = |step: usize| -> Vec<Group> {
            let share = 1.0 - step as f32 / SHRINK_STEPS;
            let rows = self.weights.chunks_exact(self.columns).flat_map(|row| row.chunks(group_size));
            rows.map(|group| {
                let (low, high) =
                    group.iter().fold((0.0f32, 0.0f32), |(low, high), &w| (low.min(w), high.max(w)));
                Group::from_range(share * low, share * high, bits, Zero::Float)
            })
            .collect()
        };
        let mut best = self.rounded(shrunk(0));
        for step in 1..shrinks {
            self.improve(&mut best, self.rounded(shrunk(step)));
        }
        best
    }

    /// Step 4: the sweep on these grids.
    fn swept(&self, groups: Vec<Group>) -> Solution {
        let (columns, order) = (self.columns, &self.factor.order);
        let mut weights = reorder(self.weights, columns, order, Direction::ToSweep);
        let rows = weights.len() / columns;
        let (settings, per_row) = (self.settings, self.per_row());
        let chunks = sweep(&mut weights, columns, &self.factor.upper, 0, |first_row, _| OnGrids {
            settings,
            per_row,
            order,
            groups: &groups[first_row * per_row..],
            codes: Vec::with_capacity(rows * columns),
        });
        let mut codes = vec![0u8; rows * columns];
        let mut first_row = 0;
        for chunk in &chunks {
            let in_chunk = chunk.codes.len() / columns;
            for (position, of_column) in chunk.codes.chunks_exact(in_chunk.max(1)).enumerate() {
                for (row, &code) in of_column.iter().enumerate() {
                    codes[(first_row + row) * columns + order[position] as usize] = code;
                }
            }
            first_row += in_chunk;
        }
        drop(chunks);
        self.solution(groups, codes)
    }

    /// Step 5: the grids that cost least with these codes, rows whose system is singular as they were.
    fn refitted(&self, now: &Solution) -> Solution {
        let (columns, per_row, size) = (self.columns, self.per_row(), self.settings.group_size);
        let rows = now.costs.len();
        let half = f32::from(1u16 << (self.settings.bits - 1));
        let centred: Vec<f32> = now.codes.iter().map(|&code| f32::from(code) - half).collect();
        let inputs = |group: usize| group * size..((group + 1) * size).min(columns);
        // w H and 1 H, group by group of the left factor.
        let codes_times: Vec<Vec<f32>> = (0..per_row)
            .map(|group| {
                let masked = centred.chunks_exact(columns).flat_map(|row| row[inputs(group)].to_vec());
                self.times_moment(&masked.collect::<Vec<f32>>(), inputs(group))
            })
            .collect();
        let ones_times: Vec<Vec<f32>> = (0..per_row)
            .map(|group| self.times_moment(&vec![1.0; inputs(group).len()], inputs(group)))
            .collect();
        let mut groups = now.groups.clone();
        for row in 0..rows {
            let place = row * columns..(row + 1) * columns;
            let (codes, weights) = (&centred[place.clone()], &self.weights[place.clone()]);
            let n = 2 * per_row;
            let (mut matrix, mut right) = (vec![0.0f64; n * n], vec![0.0f64; n]);
            for left in 0..per_row {
                let (scaled, ones) = (&codes_times[left][place.clone()], &ones_times[left]);
                right[left] = dot(scaled, weights);
                right[per_row + left] = dot(ones, weights);
                for other in 0..per_row {
                    let at = inputs(other);
                    let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>();
                    matrix[left * n + other] = dot(&scaled[at.clone()], &codes[at.clone()]);
                    matrix[left * n + per_row + other] = sum(&scaled[at.clone()]);
                    matrix[(per_row + left) * n + other] = dot(&ones[at.clone()], &codes[at.clone()]);
                    matrix[(per_row + left) * n + per_row + other] = sum(&ones[at]);
                }
            }
            let Some(solved) = eliminate(matrix, right) else { continue };
            for group in 0..per_row {
                let (scale, zero) = (solved[group] as f32, solved[per_row + group] as f32);
                groups[row * per_row + group] = stored(scale, zero - scale * half, self.settings.bits);
            }
        }
        let flipped = |index: usize, code: u8| {
            // A negative scale was turned round, so its codes count from the other end.
            let (row, column) = (index / columns, index % columns);
            let group = &groups[row * per_row + column / size];
            if group.zero_point == 1 { ((1u16 << self.settings.bits) - 1) as u8 - code } else { code }
        };
        let codes = now.codes.iter().enumerate().map(|(index, &code)| flipped(index, code)).collect();
        let plain = groups.iter().map(|group| Group { zero_point: 0, ..*group }).collect();
        self.solution(plain, codes)
    }
}

/// A grid as it is stored, its scale not negative; `zero_point` is 1 where the codes have to be turned round.
fn stored(scale: f32, minimum: f32, bits: u32) -> Group {
    let top = ((1u32 << bits) - 1) as f32;
    let is_turned = scale < 0.0;
    let (scale, minimum) = if is_turned { (-scale, minimum + scale * top) } else { (scale, minimum) };
    let round = |value: f32| f16::from_f32(value).to_f32();
    Group { scale: round(scale), minimum: round(minimum), zero_point: u32::from(is_turned) }
}

fn dot(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Solves a symmetric system, row-major; `None` where it is singular. Pivots come in order: the matrix is positive definite
/// wherever it is not singular.
fn eliminate(mut matrix: Vec<f64>, mut right: Vec<f64>) -> Option<Vec<f64>> {
    let n = right.len();
    let least = 1e-12 * (0..n).map(|i| matrix[i * n + i].abs()).fold(0.0, f64::max);
    for i in 0..n {
        let pivot = matrix[i * n + i];
        if pivot.is_nan() || pivot <= least {
            return None;
        }
        for k in i + 1..n {
            let factor = matrix[k * n + i] / pivot;
            for j in i..n {
                matrix[k * n + j] -= factor * matrix[i * n + j];
            }
            right[k] -= factor * right[i];
        }
    }
    for i in (0..n).rev() {
        for j in i + 1..n {
            right[i] -= matrix[i * n + j] * right[j];
        }
        right[i] /= matrix[i * n + i];
    }
    Some(right)
}

/// The sweep's rounding on given grids of original columns.
struct OnGrids<'a> {
    settings: Settings,
    per_row: usize,
    order: &'a [u32],
    /// From the chunk's first row on.
    groups: &'a [Group],
    /// `[columns, rows]`, columns in the order of the sweep.
    codes: Vec<u8>,
}

impl ColumnQuantizer for OnGrids<'_> {
    fn quantize(&mut self, column: usize, values: &mut [f32]) {
        let of_column = self.order[column] as usize / self.settings.group_size;
        for (row, value) in values.iter_mut().enumerate() {
            let group = &self.groups[row * self.per_row + of_column];
            let code = group.quantize(*value, self.settings.bits);
            self.codes.push(code as u8);
            *value = group.dequantize(code);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { bits: 2, group_size: 4, rounds: 4, shrinks: 160 };

    #[test]
    fn grids_of_four_levels_are_found_whatever_the_inputs() {
        // Levels 1 and 2 apart; covering zero alone would not find the first row's.
        let weights = [0.1, 1.1, 2.1, 3.1, -1.0, 1.0, 3.0, 5.0];
        let moment = [2.0, 0.5, 0.0, 0.1, 0.5, 1.0, 0.2, 0.0, 0.0, 0.2, 3.0, 0.3, 0.1, 0.0, 0.3, 1.0];
        for moment in [None, Some(&moment[..])] {
            let factor = Factored::unknown(4);
            let solution = solve(&weights, 4, moment, &factor, SETTINGS);
            for (value, weight) in solution.values.iter().zip(weights) {
                assert!((value - weight).abs() < 2e-3, "{:?}", solution.values);
            }
        }
    }

    #[test]
    fn a_negative_scale_is_turned_round() {
        let turned = stored(-0.5, 1.0, 2);
        assert_eq!((turned.scale, turned.minimum, turned.zero_point), (0.5, -0.5, 1));
        assert_eq!(stored(0.5, -0.5, 2).zero_point, 0);
    }

    #[test]
    fn systems_by_hand() {
        assert_eq!(eliminate(vec![2.0, 1.0, 1.0, 3.0], vec![5.0, 10.0]), Some(vec![1.0, 3.0]));
        assert_eq!(eliminate(vec![1.0, 1.0, 1.0, 1.0], vec![1.0, 1.0]), None);
    }
}
