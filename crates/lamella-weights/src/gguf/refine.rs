//! Coordinate descent behind the sweep: codes and scales moved until no single move lowers the error of outputs.
//!
//! The sweep decides each column once, before it knows what later columns could hide. Here every row is looked at
//! as a whole: with `r = w - v` and `g = H r`, changing the reconstruction by `d` changes the error `r H r` by
//! `d H d - 2 d g`. Three moves are tried in turn:
//!
//! 1. a block's `f16` scale (and minimum), by least squares under `H` for fixed codes;
//! 2. a group's scale and minimum codes by one, codes kept or rounded again;
//! 3. a weight's code, to the level nearest to `v_j + g_j / H_jj`, which is exact for one coordinate.
//!
//! A move is taken where the error falls, so the error never rises. Cost: about `columns` multiply-adds per move
//! taken and a few hundred per weight for those tried, each pass.

use lamella_io::{BlockForm, Codes};
use lamella_math::matrix::{Layout, multiply_add};

/// Passes over all blocks of a row. The third gains under half a percent of the error.
const PASSES: usize = 2;
/// A block's scale is moved only where that lowers the row's error by this share: it changes 256 weights at once.
const WORTH_MOVING: f32 = 2e-4;

/// Refines the rows of a chunk. `weights` is `[rows, columns]`, `hessian` `[columns, columns]` and symmetric,
/// `blocks` are the rows' blocks, row after row, `rounding` what a stored scale becomes.
pub(super) fn refine(
    form: &BlockForm,
    columns: usize,
    hessian: &[f32],
    weights: &[f32],
    blocks: &mut [Codes],
    rounding: fn(f32) -> f32,
) {
    let rows = weights.len() / columns.max(1);
    let per_row = columns / form.block;
    let mut residual: Vec<f32> = weights.to_vec();
    for (block, residual) in blocks.iter().zip(residual.chunks_exact_mut(form.block)) {
        residual.iter_mut().enumerate().for_each(|(i, value)| *value -= value_of(form, block, i));
    }
    let mut gradient = vec![0.0f32; weights.len()];
    let (shape, square) = (Layout::row_major(rows, columns), Layout::row_major(columns, columns));
    multiply_add(&mut gradient, shape, 0.0, &residual, shape, hessian, square, 1.0);
    for (row, blocks) in blocks.chunks_exact_mut(per_row).enumerate() {
        let range = row * columns..(row + 1) * columns;
        let mut row =
            Row { hessian, columns, residual: &mut residual[range.clone()], gradient: &mut gradient[range] };
        for _ in 0..PASSES {
            for (index, block) in blocks.iter_mut().enumerate() {
                let start = index * form.block;
                row.move_scale(form, block, start, rounding);
                for group in 0..form.n_groups() {
                    if form.has_groups() {
                        row.move_group(form, block, group, start + group * form.group);
                    }
                    row.move_codes(form, block, group, start);
                }
            }
        }
    }
}

/// What weight `i` of a block is.
pub(super) fn value_of(form: &BlockForm, block: &Codes, i: usize) -> f32 {
    let scale = block.scale * block.scale_codes[i / form.group] as f32;
    scale * form.level(block.codes[i]) - block.minimum * block.minimum_codes[i / form.group] as f32
}

/// A row of the matrix: what is left of it, and the gradient `H r`.
struct Row<'a> {
    hessian: &'a [f32],
    columns: usize,
    residual: &'a mut [f32],
    gradient: &'a mut [f32],
}

impl Row<'_> {
    /// Change of the error where weights from `start` on change by `change`.
    fn gain(&self, start: usize, change: &[f32]) -> f32 {
        let mut sum = -2.0 * dot(change, &self.gradient[start..start + change.len()]);
        for (i, &step) in change.iter().enumerate() {
            if step != 0.0 {
                let from = (start + i) * self.columns + start;
                sum += step * dot(change, &self.hessian[from..from + change.len()]);
            }
        }
        sum
    }

    fn apply(&mut self, start: usize, change: &[f32]) {
        for (i, &step) in change.iter().enumerate() {
            if step != 0.0 {
                self.step(start + i, step);
            }
        }
    }

    fn step(&mut self, column: usize, step: f32) {
        self.residual[column] -= step;
        let moved = &self.hessian[column * self.columns..(column + 1) * self.columns];
        self.gradient.iter_mut().zip(moved).for_each(|(gradient, &factor)| *gradient -= step * factor);
    }

    /// Scale and minimum that suit the block's codes best.
    fn move_scale(&mut self, form: &BlockForm, block: &mut Codes, start: usize, rounding: fn(f32) -> f32) {
        let along_scale: Vec<f32> = (0..form.block)
            .map(|i| block.scale_codes[i / form.group] as f32 * form.level(block.codes[i]))
            .collect();
        let gradient = &self.gradient[start..start + form.block];
        let mut image = vec![0.0f32; form.block];
        for (i, image) in image.iter_mut().enumerate() {
            let from = (start + i) * self.columns + start;
            *image = dot(&along_scale, &self.hessian[from..from + form.block]);
        }
        let (curvature, slope) = (dot(&along_scale, &image), dot(&along_scale, gradient));
        if curvature <= 0.0 {
            return;
        }
        let (mut scale, mut minimum) = (block.scale + slope / curvature, block.minimum);
        if form.has_minima() {
            let along: Vec<f32> =
                (0..form.block).map(|i| -(block.minimum_codes[i / form.group] as f32)).collect();
            let cross = dot(&along, &image);
            let mut own = 0.0;
            for (i, &factor) in along.iter().enumerate() {
                let from = (start + i) * self.columns + start;
                own += factor * dot(&along, &self.hessian[from..from + form.block]);
            }
            let determinant = curvature * own - cross * cross;
            if determinant > 1e-4 * curvature * own {
                let of_minimum = dot(&along, gradient);
                scale = block.scale + (own * slope - cross * of_minimum) / determinant;
                minimum += (curvature * of_minimum - cross * slope) / determinant;
                if form.most_minimum_code > 1 {
                    minimum = minimum.max(0.0);
                }
            }
        }
        let mut moved = Codes { scale: rounding(scale), minimum: rounding(minimum), ..block.clone() };
        if form.most_minimum_code > 1 && moved.minimum < 0.0 {
            moved.minimum = 0.0;
        }
        let change: Vec<f32> =
            (0..form.block).map(|i| value_of(form, &moved, i) - value_of(form, block, i)).collect();
        let error = dot(self.residual, self.gradient).max(0.0);
        if change.iter().all(|change| change.is_finite()) && self.gain(start, &change) < -WORTH_MOVING * error
        {
            self.apply(start, &change);
            *block = moved;
        }
    }

    /// Scale and minimum codes next to a group's own, its codes kept or rounded again.
    fn move_group(&mut self, form: &BlockForm, block: &mut Codes, group: usize, start: usize) {
        let codes = group * form.group..(group + 1) * form.group;
        let (own_scale, own_minimum) = (block.scale_codes[group], block.minimum_codes[group]);
        let current: Vec<f32> = codes.clone().map(|i| value_of(form, block, i)).collect();
        // Where each weight would go if it could move freely and alone.
        let wanted: Vec<f32> = (0..form.group)
            .map(|i| {
                let curvature = self.hessian[(start + i) * (self.columns + 1)];
                current[i] + if curvature > 0.0 { self.gradient[start + i] / curvature } else { 0.0 }
            })
            .collect();
        let mut best: Option<GroupMove> = None;
        let most = i32::from(form.has_minima());
        for minimum_step in -most..=most {
            for scale_step in -1..=1 {
                let scale_code = (own_scale + scale_step).clamp(form.scale_codes.0, form.scale_codes.1);
                let minimum_code = (own_minimum + minimum_step).clamp(0, form.most_minimum_code);
                let scale = block.scale * scale_code as f32;
                let minimum = block.minimum * minimum_code as f32;
                if scale == 0.0 || (scale_code, minimum_code) == (own_scale, own_minimum) {
                    continue;
                }
                for is_rounded in [false, true] {
                    let tried: Vec<u8> = match is_rounded {
                        false => block.codes[codes.clone()].to_vec(),
                        true => wanted.iter().map(|&value| form.nearest((value + minimum) / scale)).collect(),
                    };
                    let change: Vec<f32> = tried
                        .iter()
                        .zip(&current)
                        .map(|(&code, &current)| scale * form.level(code) - minimum - current)
                        .collect();
                    let gain = self.gain(start, &change);
                    if gain < best.as_ref().map_or(0.0, |best| best.gain) {
                        best = Some(GroupMove { gain, scale_code, minimum_code, codes: tried, change });
                    }
                }
            }
        }
        if let Some(best) = best {
            self.apply(start, &best.change);
            (block.scale_codes[group], block.minimum_codes[group]) = (best.scale_code, best.minimum_code);
            block.codes[codes].copy_from_slice(&best.codes);
        }
    }

    /// Each code of a group to its best level while all others stay.
    fn move_codes(&mut self, form: &BlockForm, block: &mut Codes, group: usize, start: usize) {
        let scale = block.scale * block.scale_codes[group] as f32;
        let minimum = block.minimum * block.minimum_codes[group] as f32;
        if scale == 0.0 {
            return;
        }
        for i in group * form.group..(group + 1) * form.group {
            let column = start + i;
            let curvature = self.hessian[column * (self.columns + 1)];
            if curvature <= 0.0 {
                continue;
            }
            let current = scale * form.level(block.codes[i]) - minimum;
            let wanted = current + self.gradient[column] / curvature;
            let code = form.nearest((wanted + minimum) / scale);
            if code == block.codes[i] {
                continue;
            }
            let step = scale * form.level(code) - minimum - current;
            if step * (step * curvature - 2.0 * self.gradient[column]) < 0.0 {
                block.codes[i] = code;
                self.step(column, step);
            }
        }
    }
}

/// Another scale, minimum and codes for one group.
struct GroupMove {
    /// Change of the row's loss: negative where it gains.
    gain: f32,
    scale_code: i32,
    minimum_code: i32,
    codes: Vec<u8>,
    /// New values less the old.
    change: Vec<f32>,
}

/// Product of two rows in eight partial sums, which the compiler keeps in vectors.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (left_parts, left_rest) = left.as_chunks::<8>();
    let (right_parts, right_rest) = right.as_chunks::<8>();
    for (left, right) in left_parts.iter().zip(right_parts) {
        for lane in 0..8 {
            sums[lane] += left[lane] * right[lane];
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    sums.iter().sum::<f32>() + rest
}
