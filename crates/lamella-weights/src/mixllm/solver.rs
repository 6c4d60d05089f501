//! The solver of MixLLM: grids with shrunk ranges, and GPTQ's sweep over whole groups.

use lamella_quant::feedback::{ColumnQuantizer, sweep};
use lamella_quant::gptq::{Direction, activation_order, reorder};
use lamella_quant::grid::{Group, Zero};

use super::form::{MIDDLE, MixForm, Mixed};
use crate::inputs::Factored;

/// Step 3: the grid with least weighted error among shrunk ranges.
fn fitted(values: &[f32], weights: &[f32], fine: bool) -> Group {
    let (low, high) = values.iter().fold((0.0f32, 0.0f32), |(low, high), &v| (low.min(v), high.max(v)));
    let bits = if fine { 8 } else { 4 };
    let mut best: Option<(f64, Group)> = None;
    for shrink in [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7] {
        let (low, high) = (low * shrink, high * shrink);
        let group = match fine {
            true => Group::with_zero_point(
                Group::from_range(0.0, high.max(-low) * 255.0 / 127.0, 8, Zero::Float).scale,
                MIDDLE,
            ),
            false => Group::from_range(low, high, bits, Zero::Integer),
        };
        let error = |(&v, &h): (&f32, &f32)| {
            f64::from(h) * f64::from(group.dequantize(group.quantize(v, bits)) - v).powi(2)
        };
        let error: f64 = values.iter().zip(weights).map(error).sum();
        if best.as_ref().is_none_or(|best| error < best.0) {
            best = Some((error, group));
        }
        if fine {
            // 8 bits never gain by clipping.
            break;
        }
    }
    best.map_or(Group::with_zero_point(0.0, 0), |best| best.1)
}

/// Step 4's rounding for one chunk of rows.
struct Rounding<'a> {
    first_row: usize,
    per_row: usize,
    group_size: usize,
    order: &'a [u32],
    is_fine: &'a [bool],
    groups: &'a [Group],
    /// `[columns of the sweep, rows]`.
    codes: Vec<u8>,
}

impl ColumnQuantizer for Rounding<'_> {
    fn quantize(&mut self, column: usize, values: &mut [f32]) {
        let index = self.order[column] as usize / self.group_size;
        for (row, value) in values.iter_mut().enumerate() {
            let row = self.first_row + row;
            let group = &self.groups[row * self.per_row + index];
            let code = group.quantize(*value, if self.is_fine[row] { 8 } else { 4 });
            self.codes.push(code as u8);
            *value = group.scale * (code as i32 - group.zero_point as i32) as f32;
        }
    }
}

/// Groups by falling mean of the diagonal, columns likewise inside each.
pub fn group_order(diagonal: &[f32], group_size: usize) -> Vec<u32> {
    let means: Vec<f32> =
        diagonal.chunks(group_size).map(|group| group.iter().sum::<f32>() / group.len() as f32).collect();
    let inside = |group: u32| {
        let start = group as usize * group_size;
        let own = activation_order(&diagonal[start..(start + group_size).min(diagonal.len())]);
        own.into_iter().map(move |column| column + start as u32)
    };
    activation_order(&means).into_iter().flat_map(inside).collect()
}

/// Steps 3 and 4 for `values [rows, columns]`: `diagonal` are the inputs' mean squares in stored order, `factor` is in the
/// order of the sweep.
pub fn solve(
    values: &[f32],
    form: MixForm,
    is_fine: Vec<bool>,
    diagonal: &[f32],
    factor: &Factored,
) -> Mixed {
    let MixForm { rows, columns, group_size } = form;
    let mut groups = Vec::with_capacity(rows * form.per_row());
    for (row, &fine) in values.chunks_exact(columns).zip(&is_fine) {
        let runs = row.chunks(group_size).zip(diagonal.chunks(group_size));
        groups.extend(runs.map(|(values, weights)| fitted(values, weights, fine)));
    }
    let mut swept = reorder(values, columns, &factor.order, Direction::ToSweep);
    let chunks = sweep(&mut swept, columns, &factor.upper, 0, |first_row, rows| Rounding {
        first_row,
        per_row: form.per_row(),
        group_size,
        order: &factor.order,
        is_fine: &is_fine,
        groups: &groups,
        codes: Vec::with_capacity(rows * columns),
    });
    let mut codes = vec![0u8; rows * columns];
    for chunk in &chunks {
        let n = chunk.codes.len() / columns;
        for (at, &code) in chunk.codes.iter().enumerate() {
            codes[(chunk.first_row + at % n) * columns + factor.order[at / n] as usize] = code;
        }
    }
    Mixed { is_fine, groups, codes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_visited_whole_and_by_their_inputs() {
        assert_eq!(group_order(&[1.0, 2.0, 0.0, 9.0, 5.0], 2), [4, 3, 2, 1, 0]);
    }
}
