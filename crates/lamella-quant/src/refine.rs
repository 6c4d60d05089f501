//! Whitened refinement: a coarse sweep whose remaining error can be sent later, bit by bit, at next to no loss.
//!
//! # Idea
//! A column sweep with error feedback leaves the error `E = e U`: `U` the upper factor of the inverse second moment,
//! `e` white and known to lie in the cell that was coded. Coding `E` again wastes most of a bit, since its columns hang
//! together. Coding `e` does not: split each cell, add `e U` for what is known of `e`. Every bit quarters the squared
//! error, the error stays shaped, and any rows may go first. A decoder needs `U`; as diagonal plus low rank
//! ([`lamella_math::low_rank`]) it costs little to store and `rank` operations a weight to apply.
//!
//! # Cells
//! In units of a number's step, with `t` the threshold: code 0 is `(-t, t)`, code `m` is `[m - 1 + t, m + t)` and its
//! mirror image. The first bit of code 0 is the sign; every other bit halves the cell, 0 the half nearer to zero. There
//! are no cells around an edge of an earlier one: a finer code is the coarser one with more digits.
//!
//! # Levels
//! A cell with `d` halvings is reconstructed at its middle, moved towards zero by its group's offset times `4^-d`: the
//! centroid of a density that is straight across the cell. Code 0 without its sign is 0.

use lamella_math::low_rank::{LANES, Recursion};
use rayon::prelude::*;

use crate::feedback::{ROWS_PER_CHUNK, transpose};

/// Most bits a code can be refined by.
pub const MAX_DEPTH: u32 = 14;
/// Magnitudes with an offset of their own: 0, 1, 2 and "3 or more".
pub const OFFSET_MAGNITUDES: usize = 4;
/// Units of offsets in one step.
pub const OFFSET_UNITS: f32 = 64.0;
/// Largest magnitude of a code.
pub const MAX_MAGNITUDE: f32 = 4_194_304.0;

/// Offsets of one group of columns, in 1/64 of a step.
pub type GroupOffsets = [i8; OFFSET_MAGNITUDES];

/// The code whose cell holds `position` (in steps).
#[inline]
pub fn code_of(position: f32, threshold: f32) -> i32 {
    let beyond = position.abs() - threshold;
    if beyond.is_nan() || beyond < 0.0 {
        return 0;
    }
    let magnitude = (beyond + 1.0).min(MAX_MAGNITUDE) as i32;
    if position < 0.0 { -magnitude } else { magnitude }
}

/// All [`MAX_DEPTH`] bits by which `position` can be told from the rest of its cell, the first one highest.
#[inline]
pub fn bits_of(position: f32, code: i32, threshold: f32) -> u16 {
    let digits = |share: f32, depth: u32| {
        let cells = (1u32 << depth) as f32;
        ((share * cells).max(0.0) as u32).min((1 << depth) - 1) as u16
    };
    if code == 0 {
        let sign = u16::from(position < 0.0) << (MAX_DEPTH - 1);
        return sign | digits(position.abs() / threshold, MAX_DEPTH - 1);
    }
    digits(position.abs() - threshold - (code.unsigned_abs() - 1) as f32, MAX_DEPTH)
}

/// Where a code with `depth` bits (`bits` holds them alone) lies, in steps.
#[inline]
pub fn level(code: i32, bits: u32, depth: u32, threshold: f32, offsets: &GroupOffsets) -> f32 {
    let magnitude = code.unsigned_abs();
    let offset = f32::from(offsets[(magnitude as usize).min(OFFSET_MAGNITUDES - 1)]) / OFFSET_UNITS;
    if magnitude == 0 {
        if depth == 0 {
            return 0.0;
        }
        let halvings = depth - 1;
        let share = 1.0 / (1u32 << halvings) as f32;
        let place = (bits & ((1 << halvings) - 1)) as f32 + 0.5;
        let position = threshold * (place * share) - offset * (share * share);
        return if bits >> halvings & 1 == 1 { -position } else { position };
    }
    let share = 1.0 / (1u32 << depth) as f32;
    let position =
        ((magnitude - 1) as f32 + threshold) + (bits as f32 + 0.5) * share - offset * (share * share);
    if code < 0 { -position } else { position }
}

/// What a coarse sweep found; everything `[columns, rows]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Coarse {
    /// Codes.
    pub codes: Vec<i32>,
    /// Every bit they can be refined by, see [`bits_of`].
    pub bits: Vec<u16>,
    /// Mean distance of each group's numbers from their cell's middle towards zero, in steps (code 0: of its half).
    pub offsets: Vec<GroupOffsets>,
}

/// Sweeps `weights` (`[rows, columns]` row-major) into cells.
///
/// `recursion` is [`Recursion::scaled`] by `steps`; `rows` factors multiply the steps (or are empty); `groups` and
/// `offsets` say where levels lie: `offsets[groups[column]]`.
///
/// # Panics
/// Where lengths do not fit: a caller's mistake, never the data's.
pub fn coarse_sweep(
    weights: &[f32],
    recursion: &Recursion,
    steps: &[f32],
    row_factors: &[f32],
    groups: &[u8],
    offsets: &[GroupOffsets],
    threshold: f32,
) -> Coarse {
    let columns = steps.len();
    assert!(columns > 0 && groups.len() == columns, "one step and group per column");
    let rows = weights.len() / columns;
    struct Part {
        codes: Vec<i32>,
        bits: Vec<u16>,
        sums: Vec<[(f64, u64); OFFSET_MAGNITUDES]>,
    }
    let parts: Vec<Part> = weights
        .par_chunks(ROWS_PER_CHUNK * columns)
        .enumerate()
        .map(|(index, chunk)| {
            let height = chunk.len() / columns;
            let mut values = transpose(chunk, height, columns);
            let mut part = Part {
                codes: vec![0; chunk.len()],
                bits: vec![0; chunk.len()],
                sums: vec![[(0.0, 0); OFFSET_MAGNITUDES]; offsets.len()],
            };
            recursion.run(&mut values, height, |column, first, lanes, pull| {
                let group = usize::from(groups[column]);
                let mut errors = [0.0f32; LANES];
                for lane in 0..LANES.min(height - first) {
                    let row = index * ROWS_PER_CHUNK + first + lane;
                    let step = steps[column] * row_factors.get(row).copied().unwrap_or(1.0);
                    let position = (lanes[lane] + pull[lane]) / step;
                    let code = code_of(position, threshold);
                    let at = column * height + first + lane;
                    part.codes[at] = code;
                    part.bits[at] = bits_of(position, code, threshold);
                    let middle = level(code, 0, u32::from(code == 0), threshold, &[0; OFFSET_MAGNITUDES]);
                    let cell =
                        &mut part.sums[group][(code.unsigned_abs() as usize).min(OFFSET_MAGNITUDES - 1)];
                    cell.0 += f64::from((middle.abs() - position.abs()).clamp(-1.0, 1.0));
                    cell.1 += 1;
                    errors[lane] = lanes[lane] - level(code, 0, 0, threshold, &offsets[group]) * step;
                }
                errors
            });
            part
        })
        .collect();
    let mut coarse =
        Coarse { codes: vec![0; weights.len()], bits: vec![0; weights.len()], offsets: Vec::new() };
    let mut sums = vec![[(0.0f64, 0u64); OFFSET_MAGNITUDES]; offsets.len()];
    for (index, part) in parts.iter().enumerate() {
        let (first, height) = (index * ROWS_PER_CHUNK, part.codes.len() / columns);
        for column in 0..columns {
            let (from, to) = (column * height, column * rows + first);
            coarse.codes[to..to + height].copy_from_slice(&part.codes[from..from + height]);
            coarse.bits[to..to + height].copy_from_slice(&part.bits[from..from + height]);
        }
        for (mine, theirs) in sums.iter_mut().zip(&part.sums) {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                mine.0 += theirs.0;
                mine.1 += theirs.1;
            }
        }
    }
    // Shrunk towards 0 as if 16 numbers had been seen at the middle.
    let offset = |(sum, count): (f64, u64)| {
        (sum / (count as f64 + 16.0) * f64::from(OFFSET_UNITS)).round().clamp(-15.0, 15.0) as i8
    };
    coarse.offsets = sums.iter().map(|group| group.map(offset)).collect();
    coarse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_halving_keeps_the_number_in_its_cell() {
        for threshold in [0.5f32, 0.56, 0.75] {
            for index in -4000..4000 {
                let position = index as f32 / 1000.0 + 0.000_13;
                let code = code_of(position, threshold);
                let bits = u32::from(bits_of(position, code, threshold));
                for depth in 1..=MAX_DEPTH {
                    let found =
                        level(code, bits >> (MAX_DEPTH - depth), depth, threshold, &[0; OFFSET_MAGNITUDES]);
                    let half =
                        if code == 0 { threshold } else { 0.5 } / (1u32 << depth.min(MAX_DEPTH)) as f32;
                    assert!(
                        (found - position).abs() <= half * 1.01 + 1e-6,
                        "{position} at depth {depth} is read as {found} (code {code})"
                    );
                }
            }
        }
        assert_eq!(code_of(f32::NAN, 0.5), 0);
        assert_eq!(code_of(f32::NEG_INFINITY, 0.5), -(MAX_MAGNITUDE as i32));
    }

    #[test]
    fn refined_errors_are_those_of_a_finer_cell() {
        // Without a structure a refined number is simply the finer cell's level.
        let (rows, columns) = (40, 30);
        let weights: Vec<f32> =
            (0..rows * columns).map(|i| ((i * 7919) % 1009) as f32 / 101.0 - 5.0).collect();
        let recursion = Recursion::new(&[], columns).scaled(&vec![1.0; columns]);
        let offsets = [[0i8; OFFSET_MAGNITUDES]; 1];
        let swept =
            coarse_sweep(&weights, &recursion, &vec![1.0; columns], &[], &vec![0; columns], &offsets, 0.5);
        for row in 0..rows {
            for column in 0..columns {
                let at = column * rows + row;
                let found = level(swept.codes[at], u32::from(swept.bits[at]) >> 6, 8, 0.5, &offsets[0]);
                assert!((found - weights[row * columns + column]).abs() <= 0.002);
            }
        }
    }
}
