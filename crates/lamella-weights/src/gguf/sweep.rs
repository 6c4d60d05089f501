//! Error feedback into ggml's grids.
//!
//! The sweep of [`lamella_quant::feedback`] with grids that are fitted when it reaches them: a block's scale (the
//! `f16` number) from all its columns as the feedback from the left has left them, a group's scale code again at
//! the group's first column. An error of column `j` costs `1 / U_jj^2`, which is what the searches weigh by.

use std::ops::Range;

use half::f16;
use lamella_io::{BlockForm, Codes};
use lamella_quant::feedback::{Chunk, ColumnQuantizer};

use super::fit::{FEW_STEPS, STEPS, fit, round};

/// Largest number that an `f16` holds.
const LARGEST: f32 = 65_504.0;

/// What a scale becomes when it is stored as `f16`.
pub(super) fn to_f16(value: f32) -> f32 {
    f16::from_f32(value.clamp(-LARGEST, LARGEST)).to_f32()
}

/// Quantises a chunk of rows as the sweep passes.
pub(super) struct BlockQuantizer<'a> {
    form: BlockForm,
    /// What an error of each column costs.
    costs: &'a [f32],
    rows: usize,
    /// What a scale becomes when it is stored.
    rounding: fn(f32) -> f32,
    /// Finished and current blocks, `[blocks, rows]`.
    pub(super) blocks: Vec<Codes>,
}

impl<'a> BlockQuantizer<'a> {
    pub(super) fn new(form: BlockForm, costs: &'a [f32], rows: usize, rounding: fn(f32) -> f32) -> Self {
        Self { form, costs, rows, rounding, blocks: Vec::new() }
    }

    /// Scales of a block from its current values.
    fn begin(&self, values: &[f32], costs: &[f32]) -> Codes {
        let form = &self.form;
        let mut block = Codes::zeros(*form);
        let group = form.group;
        let fits: Vec<(f32, f32)> = values
            .chunks_exact(group)
            .zip(costs.chunks_exact(group))
            .map(|(values, costs)| {
                fit(form, values, costs, if form.has_groups() { FEW_STEPS } else { STEPS })
            })
            .collect();
        if !form.has_groups() {
            (block.scale, block.minimum) = ((self.rounding)(fits[0].0), (self.rounding)(fits[0].1));
            return block;
        }
        let (low, high) = form.scale_codes;
        let widest =
            fits.iter().fold(0.0f32, |widest, fit| if fit.0.abs() > widest.abs() { fit.0 } else { widest });
        let most = fits.iter().fold(0.0f32, |most, fit| most.max(fit.1));
        block.scale = (self.rounding)(widest / if low < 0 { low as f32 } else { high as f32 });
        if form.has_minima() {
            block.minimum = (self.rounding)(most / form.most_minimum_code as f32);
        }
        block
    }

    /// A group's scale and minimum code for the values it has now.
    fn set_group(form: &BlockForm, block: &mut Codes, index: usize, values: &[f32], costs: &[f32]) {
        let (scale, minimum) = fit(form, values, costs, STEPS);
        let (low, high) = form.scale_codes;
        let code = |value: f32, unit: f32, low: i32, high: i32| {
            if unit == 0.0 { 0 } else { ((value / unit).round() as i32).clamp(low, high) }
        };
        let scale_code = code(scale, block.scale, low, high);
        let minimum_code = code(minimum, block.minimum, 0, form.most_minimum_code);
        let mut best = (f64::INFINITY, scale_code, minimum_code);
        let minima = if form.has_minima() { -1..=1 } else { 0..=0 };
        for minimum_step in minima {
            for scale_step in -1..=1 {
                let s = (scale_code + scale_step).clamp(low, high);
                let m = (minimum_code + minimum_step).clamp(0, form.most_minimum_code);
                let error =
                    round(form, values, costs, block.scale * s as f32, block.minimum * m as f32, None);
                if error < best.0 {
                    best = (error, s, m);
                }
            }
        }
        (block.scale_codes[index], block.minimum_codes[index]) = (best.1, best.2);
    }
}

impl ColumnQuantizer for BlockQuantizer<'_> {
    fn begin_block(&mut self, chunk: &Chunk<'_>, columns: Range<usize>) {
        let form = self.form;
        let gather = |row: usize, columns: Range<usize>| -> Vec<f32> {
            columns.map(|column| chunk.column(column)[row]).collect()
        };
        if columns.start.is_multiple_of(form.block) {
            let whole = columns.start..columns.start + form.block;
            for row in 0..self.rows {
                let block = self.begin(&gather(row, whole.clone()), &self.costs[whole.clone()]);
                self.blocks.push(block);
            }
        }
        if form.has_groups() {
            let first = self.blocks.len() - self.rows;
            let group = columns.start % form.block / form.group;
            for row in 0..self.rows {
                let values = gather(row, columns.clone());
                let block = &mut self.blocks[first + row];
                Self::set_group(&form, block, group, &values, &self.costs[columns.clone()]);
            }
        }
    }

    fn quantize(&mut self, column: usize, values: &mut [f32]) {
        let form = self.form;
        let first = self.blocks.len() - self.rows;
        let at = column % form.block;
        for (value, block) in values.iter_mut().zip(&mut self.blocks[first..]) {
            let scale = block.scale * block.scale_codes[at / form.group] as f32;
            let minimum = block.minimum * block.minimum_codes[at / form.group] as f32;
            let code =
                if scale == 0.0 { Codes::zero_code(&form) } else { form.nearest((*value + minimum) / scale) };
            block.codes[at] = code;
            *value = scale * form.level(code) - minimum;
        }
    }
}
