//! GPTQ: the error-feedback sweep on uniform grids per group of inputs.
//!
//! Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
//! arXiv 2210.17323. For column `j` in order: round to the group's grid, divide the error by `U_jj`, feed it into
//! the columns after it (see [`crate::feedback`]).
//!
//! Two choices the paper's code offers are arguments here: *when* a group's grid is fitted (to the original
//! weights, or to the weights as the feedback has changed them when the sweep reaches the group), and the column
//! *order* (natural, or by falling mean square of the inputs).

use std::ops::Range;

use crate::feedback::{Chunk, ColumnQuantizer, sweep};
use crate::grid::{self, Group, Zero, groups_per_row, round_to_nearest, static_groups};

/// When a group's grid is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Groups {
    /// Before the sweep, to the original weights.
    Static,
    /// When the sweep reaches the group, to the weights with feedback.
    Dynamic,
}

/// The order in which columns are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they are stored.
    Natural,
    /// By falling mean square of the input ("act-order").
    Activation,
}

/// Settings of one matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gptq {
    /// Bits of a code, 2 to 8.
    pub bits: u32,
    /// Inputs that share a grid; the last group of a row may be shorter.
    pub group_size: usize,
    /// When grids are fitted.
    pub groups: Groups,
    /// How zeros are stored.
    pub zero: Zero,
}

/// Codes and grids of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// `[rows, columns]` in the order of the sweep.
    pub codes: Vec<u8>,
    /// `[rows, groups_per_row]`. Groups are of consecutive *original* columns with static groups, of columns
    /// consecutive *in the sweep* with dynamic ones.
    pub groups: Vec<Group>,
    /// Reconstruction `[rows, columns]` in the order of the sweep.
    pub reconstruction: Vec<f32>,
}

struct Rounding<'a> {
    settings: &'a Gptq,
    columns: usize,
    rows: usize,
    /// The order of the sweep: position to original column.
    order: &'a [u32],
    /// Static grids of the whole matrix, empty for dynamic groups.
    given: &'a [Group],
    first_row: usize,
    /// Dynamic grids of this chunk, group by group (`[groups_per_row, rows]`).
    fitted: Vec<Group>,
    /// Codes, column by column.
    codes: Vec<u8>,
}

impl Rounding<'_> {
    fn group_of(&self, column: usize, row: usize) -> Group {
        let Gptq { group_size, .. } = *self.settings;
        match self.settings.groups {
            Groups::Static => {
                let original = self.order[column] as usize;
                let per_row = groups_per_row(self.columns, group_size);
                self.given[(self.first_row + row) * per_row + original / group_size]
            }
            Groups::Dynamic => self.fitted[(column / group_size) * self.rows + row],
        }
    }
}

impl ColumnQuantizer for Rounding<'_> {
    fn begin_block(&mut self, chunk: &Chunk<'_>, columns: Range<usize>) {
        if self.settings.groups == Groups::Static {
            return;
        }
        for start in columns.clone().step_by(self.settings.group_size) {
            let end = (start + self.settings.group_size).min(columns.end);
            for row in 0..self.rows {
                let values = (start..end).map(|column| chunk.column(column)[row]);
                self.fitted.push(Group::covering(values, self.settings.bits, self.settings.zero));
            }
        }
    }

    fn quantize(&mut self, column: usize, values: &mut [f32]) {
        for (row, value) in values.iter_mut().enumerate() {
            let group = self.group_of(column, row);
            let code = group.quantize(*value, self.settings.bits);
            self.codes.push(code as u8);
            *value = group.dequantize(code);
        }
    }
}

/// Runs the sweep on a matrix whose columns already stand in the order of the sweep.
///
/// `weights` is `[rows, columns]` row-major; `upper` the factor of the second moment in the same column order;
/// `order[position]` names the original column. With dynamic groups the sweep's blocks are groups, so that a
/// group is fitted with all the feedback from before it.
pub fn gptq(weights: &[f32], columns: usize, upper: &[f32], order: &[u32], settings: &Gptq) -> Quantized {
    let rows = weights.len().checked_div(columns).unwrap_or(0);
    let per_row = groups_per_row(columns, settings.group_size);
    let given = match settings.groups {
        Groups::Dynamic => Vec::new(),
        Groups::Static => {
            let original = reorder(weights, columns, order, Direction::ToOriginal);
            static_groups(&original, columns, settings.group_size, settings.bits, settings.zero)
        }
    };
    let block = match settings.groups {
        Groups::Static => 0,
        Groups::Dynamic => settings.group_size,
    };
    let mut reconstruction = weights.to_vec();
    let chunks = sweep(&mut reconstruction, columns, upper, block, |first_row, rows| Rounding {
        settings,
        columns,
        rows,
        order,
        given: &given,
        first_row,
        fitted: Vec::new(),
        codes: Vec::with_capacity(rows * columns),
    });
    let mut codes = vec![0u8; rows * columns];
    let mut groups = given.clone();
    if settings.groups == Groups::Dynamic {
        groups = vec![Group::with_minimum(0.0, 0.0); rows * per_row];
    }
    for chunk in &chunks {
        for row in 0..chunk.rows {
            let place = chunk.first_row + row;
            for column in 0..columns {
                codes[place * columns + column] = chunk.codes[column * chunk.rows + row];
            }
            if settings.groups == Groups::Dynamic {
                for group in 0..per_row {
                    groups[place * per_row + group] = chunk.fitted[group * chunk.rows + row];
                }
            }
        }
    }
    Quantized { codes, groups, reconstruction }
}

/// [`gptq`] where nothing is known of the inputs: rounding to nearest on grids fitted to the weights, which is what
/// the sweep comes to when no column can hide another's error. Memory and time are those of the weights.
pub fn without_feedback(weights: &[f32], columns: usize, settings: &Gptq) -> Quantized {
    let Gptq { bits, group_size, zero, .. } = *settings;
    let groups = static_groups(weights, columns, group_size, bits, zero);
    let codes = round_to_nearest(weights, columns, group_size, bits, &groups);
    let reconstruction = grid::reconstruct(&codes, columns, group_size, &groups);
    Quantized { codes, groups, reconstruction }
}

/// Which way [`reorder`] moves columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From original order to the sweep's.
    ToSweep,
    /// From the sweep's order back.
    ToOriginal,
}

/// Moves the columns of a row-major matrix; `order[position]` is the original column at that position of the sweep.
pub fn reorder(weights: &[f32], columns: usize, order: &[u32], direction: Direction) -> Vec<f32> {
    let mut out = vec![0.0; weights.len()];
    if columns == 0 {
        return out;
    }
    for (to, from) in out.chunks_exact_mut(columns).zip(weights.chunks_exact(columns)) {
        for (position, &original) in order.iter().enumerate() {
            match direction {
                Direction::ToSweep => to[position] = from[original as usize],
                Direction::ToOriginal => to[original as usize] = from[position],
            }
        }
    }
    out
}

/// Columns by falling diagonal, ties in natural order.
pub fn activation_order(diagonal: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..diagonal.len() as u32).collect();
    order.sort_by(|&a, &b| diagonal[b as usize].total_cmp(&diagonal[a as usize]).then(a.cmp(&b)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(groups: Groups) -> Gptq {
        Gptq { bits: 3, group_size: 16, groups, zero: Zero::Float }
    }

    fn identity(columns: usize) -> Vec<f32> {
        (0..columns * columns).map(|i| f32::from(u8::from(i % (columns + 1) == 0))).collect()
    }

    #[test]
    fn without_correlations_it_is_rounding_to_nearest() {
        let columns = 40;
        let weights: Vec<f32> = (0..70 * columns).map(|i| ((i * 29) % 97) as f32 / 40.0 - 1.2).collect();
        let order: Vec<u32> = (0..columns as u32).collect();
        let nearest = static_groups(&weights, columns, 16, 3, Zero::Float);
        let expected = round_to_nearest(&weights, columns, 16, 3, &nearest);
        for groups in [Groups::Static, Groups::Dynamic] {
            let quantized = gptq(&weights, columns, &identity(columns), &order, &settings(groups));
            assert_eq!(quantized.codes, expected, "{groups:?}");
            assert_eq!(quantized.groups, nearest, "{groups:?}");
            assert_eq!(quantized, without_feedback(&weights, columns, &settings(groups)));
        }
    }

    #[test]
    fn columns_return_to_their_places() {
        let order = [2u32, 0, 1];
        let weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let swept = reorder(&weights, 3, &order, Direction::ToSweep);
        assert_eq!(swept, [3.0, 1.0, 2.0, 6.0, 4.0, 5.0]);
        assert_eq!(reorder(&swept, 3, &order, Direction::ToOriginal), weights);
        assert_eq!(activation_order(&[1.0, 3.0, 3.0]), [1, 2, 0]);
    }
}
