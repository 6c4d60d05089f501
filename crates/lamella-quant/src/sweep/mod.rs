//! The entropy-coded sweep: error feedback with a step per column, a trellis, and rounding by real code lengths.
//!
//! [`feedback::sweep`](crate::feedback::sweep) carries each column's error into the later columns. What a unit of
//! squared error in column `j` then costs at the outputs is `1 / U_jj^2`, so the best uniform steps are in
//! proportion to `U_jj`: each column loses alike (reverse water-filling), and columns that matter get more bits by
//! themselves because an entropy coder charges what a column really holds. Within a column rows are independent
//! given the columns before, so a [trellis](trellis::Trellis) can run down it and codes can be chosen by
//! `squared error + lambda * bits`, both in units of the step.
//!
//! # Passes
//! Code lengths and reconstruction offsets come from the codes of the pass before; the first pass starts from
//! half-Gaussian lengths and no offsets. Two passes are enough (a third changes the loss by under half a percent).
//!
//! # Shapes
//! Weights `[rows, columns]` row-major; codes `[columns, rows]`, since that is the order they are coded in.
//!
//! Source: LDLQ is J. Chee et al., "QuIP", 2023, section 3 (equal to GPTQ, E. Frantar et al., 2022); a step per
//! column is E. Lifar et al., "WaterSIC", arXiv 2603.04956.

pub mod rates;
pub mod trellis;

use lamella_math::InverseFactor;

use std::ops::Range;

use crate::feedback::{ColumnQuantizer, ROWS_PER_CHUNK, sweep};
use rates::{Histogram, LENGTHS, Lengths, class_of, length};
use trellis::{Branches, Search, Trellis};

/// Magnitudes with a reconstruction offset of their own: 1, 2 and "3 or more".
pub const OFFSET_MAGNITUDES: usize = 3;
/// Units of reconstruction offsets in one step.
pub const OFFSET_UNITS: f32 = 64.0;

/// How far each level moves towards zero, in 1/64 of a step, per column group, quantiser and magnitude.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `[group][quantizer][magnitude - 1]`; groups beyond the end have none.
    pub groups: Vec<[[i8; OFFSET_MAGNITUDES]; 2]>,
}

impl Offsets {
    /// The offsets of one group.
    #[inline]
    pub fn of_group(&self, group: usize) -> [[i8; OFFSET_MAGNITUDES]; 2] {
        self.groups.get(group).copied().unwrap_or_default()
    }
}

/// Where a code lies, in steps: what a decoder multiplies by the step.
///
/// `magnitude - quantizer / 2 - offset / 64`, with the code's sign; 0 for code 0. Exact in `f32` below 2^17.
#[inline]
pub fn level(code: i32, quantizer: u32, offsets: &[[i8; OFFSET_MAGNITUDES]; 2]) -> f32 {
    if code == 0 {
        return 0.0;
    }
    let magnitude = code.unsigned_abs();
    let offset = offsets[quantizer as usize & 1][(magnitude as usize - 1).min(OFFSET_MAGNITUDES - 1)];
    let position = magnitude as f32 - 0.5 * quantizer as f32 - f32::from(offset) / OFFSET_UNITS;
    if code < 0 { -position } else { position }
}

/// The steps of a matrix: column `j` of row `i` uses `columns[j] * rows[i]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Steps {
    /// One per column.
    pub columns: Vec<f32>,
    /// One per row; empty where all rows use their column's step as it is.
    pub rows: Vec<f32>,
    /// Which [`Offsets`] group each column uses.
    pub groups: Vec<u8>,
}

impl Steps {
    #[inline]
    fn row(&self, row: usize) -> f32 {
        self.rows.get(row).copied().unwrap_or(1.0)
    }
}

/// Settings of the sweep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EntropyCoded {
    /// Squared steps that one bit is worth. 0 rounds to nearest; theory says 0.1155 at high rates.
    pub lambda: f32,
    /// The trellis that runs down each column.
    pub trellis: Trellis,
    /// Sweeps over the whole matrix, at least 1.
    pub passes: u32,
    /// Largest number of offset groups learned; 0 reconstructs at cell middles.
    pub offset_groups: usize,
    /// The largest magnitude that costs nothing but its bits; larger ones cost [`OVERFLOW`] more. Codes that are
    /// executed in few bits keep what does not fit apart.
    pub largest: Option<u32>,
}

/// Squared steps that a magnitude beyond [`EntropyCoded::largest`] costs: a value up to two steps beyond is cut to it.
pub const OVERFLOW: f32 = 4.0;

/// What a sweep found.
#[derive(Debug, Clone)]
pub struct Swept {
    /// Codes, `[columns, rows]`.
    pub codes: Vec<i32>,
    /// Offsets the reconstruction used.
    pub offsets: Offsets,
    /// Reconstruction, `[rows, columns]` row-major; empty from [`entropy_coded_rows`], which shows it.
    pub reconstruction: Vec<f32>,
    /// Sum of squared whitened errors: the output error per input, damping included.
    pub loss: f64,
    /// Bits the codes cost by the lengths of the last pass.
    pub bits: f64,
}

/// Elements of a strip of rows that is swept at a time: what a large matrix holds in memory beside its codes.
const STRIP_ELEMENTS: usize = 8 << 20;

/// A matrix whose rows are read when they are needed.
pub trait RowSource: Sync {
    /// Rows.
    fn rows(&self) -> usize;
    /// Columns.
    fn columns(&self) -> usize;
    /// Some rows, row-major.
    fn read(&self, rows: Range<usize>) -> Vec<f32>;
}

/// Rows in memory.
struct Whole<'a> {
    weights: &'a [f32],
    columns: usize,
}

impl RowSource for Whole<'_> {
    fn rows(&self) -> usize {
        self.weights.len().checked_div(self.columns).unwrap_or(0)
    }
    fn columns(&self) -> usize {
        self.columns
    }
    fn read(&self, rows: Range<usize>) -> Vec<f32> {
        self.weights[rows.start * self.columns..rows.end * self.columns].to_vec()
    }
}

/// Strips of whole chunks, in order; large matrices are read in several.
pub fn strips(rows: usize, columns: usize) -> impl Iterator<Item = Range<usize>> {
    let height = (STRIP_ELEMENTS / columns.max(1)).next_multiple_of(ROWS_PER_CHUNK).max(ROWS_PER_CHUNK);
    (0..rows).step_by(height).map(move |first| first..rows.min(first + height))
}

/// Sums of errors per group, quantiser and magnitude: where the centroids lie.
#[derive(Debug, Clone)]
struct Centroids {
    sums: Vec<[[(f64, u64); OFFSET_MAGNITUDES]; 2]>,
}

impl Centroids {
    fn new(groups: usize) -> Self {
        Self { sums: vec![[[(0.0, 0); OFFSET_MAGNITUDES]; 2]; groups] }
    }
    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.sums.iter_mut().zip(&other.sums) {
            for (mine, theirs) in mine.as_flattened_mut().iter_mut().zip(theirs.as_flattened()) {
                mine.0 += theirs.0;
                mine.1 += theirs.1;
            }
        }
    }
    /// Offsets in 1/64 of a step; cells with few numbers stay at their middles.
    fn offsets(&self) -> Offsets {
        let groups = self
            .sums
            .iter()
            .map(|group| {
                group.map(|cells| {
                    cells.map(|(sum, count)| {
                        // Shrunk towards 0 as if 16 numbers had been seen at the middle.
                        let mean = sum / (count as f64 + 16.0);
                        (mean * f64::from(OFFSET_UNITS)).round().clamp(-31.0, 31.0) as i8
                    })
                })
            })
            .collect();
        Offsets { groups }
    }
}

/// What is fixed during one pass.
struct Pass<'a> {
    settings: EntropyCoded,
    steps: &'a Steps,
    diagonal: &'a [f32],
    /// Expected magnitude per column, and factor per row.
    columns: Vec<f32>,
    rows: Vec<f32>,
    lengths: Lengths,
    offsets: Offsets,
}

/// One chunk of rows in one pass.
struct Rounding<'a> {
    pass: &'a Pass<'a>,
    first_row: usize,
    rows: usize,
    state: u32,
    codes: Vec<i32>,
    histogram: Histogram,
    centroids: Centroids,
    column_magnitudes: Vec<f32>,
    row_magnitudes: Vec<f64>,
    loss: f64,
    bits: f64,
    search: Search,
    branches: Vec<Branches>,
    magnitudes: Vec<u32>,
}

impl ColumnQuantizer for Rounding<'_> {
    fn quantize(&mut self, column: usize, values: &mut [f32]) {
        let pass = self.pass;
        let trellis = pass.settings.trellis;
        let group = usize::from(pass.steps.groups[column]);
        let offsets = pass.offsets.of_group(group);
        self.branches.clear();
        for (index, &value) in values.iter().enumerate() {
            let row = self.first_row + index;
            let position = (value / (pass.steps.columns[column] * pass.steps.row(row))).abs().min(1e6);
            let class = class_of(pass.columns[column] * pass.rows[row]);
            let lengths = pass.lengths.of_class(class);
            self.branches.push(branches(position, lengths, &offsets, &pass.settings));
        }
        self.magnitudes.resize(values.len(), 0);
        let start = self.state;
        self.state = self.search.run(trellis, start, &self.branches, &mut self.magnitudes);
        let (mut state, mut column_loss, mut column_magnitude) = (start, 0.0f64, 0.0f32);
        for (index, value) in values.iter_mut().enumerate() {
            let row = self.first_row + index;
            let step = pass.steps.columns[column] * pass.steps.row(row);
            let magnitude = self.magnitudes[index];
            let code = if *value < 0.0 { -(magnitude as i32) } else { magnitude as i32 };
            let quantizer = trellis.quantizer(state);
            state = trellis.next(state, magnitude);
            let level = level(code, quantizer, &offsets);
            let class = class_of(pass.columns[column] * pass.rows[row]);
            self.histogram.add(class, quantizer, magnitude);
            self.bits += f64::from(length(&pass.lengths.of_class(class)[quantizer as usize], magnitude));
            let middle = if magnitude == 0 { 0.0 } else { magnitude as f32 - 0.5 * quantizer as f32 };
            if magnitude > 0
                && let Some(group) = self.centroids.sums.get_mut(group)
            {
                let cell =
                    &mut group[quantizer as usize][(magnitude as usize - 1).min(OFFSET_MAGNITUDES - 1)];
                cell.0 += f64::from((middle - (*value / step).abs()).clamp(-2.0, 2.0));
                cell.1 += 1;
            }
            column_magnitude += middle;
            self.row_magnitudes[index] += f64::from(middle);
            if let Some(slot) = self.codes.get_mut(column * self.rows + index) {
                *slot = code;
            }
            let error = *value - level * step;
            column_loss += f64::from(error) * f64::from(error);
            *value = level * step;
        }
        self.column_magnitudes[column] = column_magnitude;
        self.loss += column_loss / f64::from(pass.diagonal[column]).powi(2);
    }
}

/// The candidates around `position` (in steps, not negative): for each quantiser the best code of each parity.
#[inline]
fn branches(
    position: f32,
    lengths: &[[f32; LENGTHS]; 2],
    offsets: &[[i8; OFFSET_MAGNITUDES]; 2],
    settings: &EntropyCoded,
) -> Branches {
    let mut out = Branches { cost: [[f32::INFINITY; 2]; 2], magnitude: [[0; 2]; 2] };
    let quantizers = if settings.trellis.memory_bits() == 0 { 1 } else { 2 };
    let largest = settings.largest.unwrap_or(u32::MAX);
    for quantizer in 0..quantizers {
        let middle = (position + 0.5 * quantizer as f32) as u32;
        let mut consider = |magnitude: u32| {
            let error = position - level(magnitude as i32, quantizer as u32, offsets);
            let overflow = if magnitude > largest { OVERFLOW } else { 0.0 };
            let bits = length(&lengths[quantizer], magnitude);
            let cost = error * error + settings.lambda * bits + overflow;
            let parity = magnitude as usize & 1;
            if cost < out.cost[quantizer][parity] {
                out.cost[quantizer][parity] = cost;
                out.magnitude[quantizer][parity] = magnitude;
            }
        };
        (middle.saturating_sub(1)..=middle + 1).for_each(&mut consider);
        if middle >= largest {
            (largest.saturating_sub(1)..=largest).for_each(&mut consider);
        }
    }
    out
}

/// Quantises `weights` (`[rows, columns]` row-major) with these steps under the factor's noise shaping.
///
/// `factor` is `U`, row-major (zero below the diagonal), see [`InverseFactor::upper`]; empty for the identity.
///
/// # Panics
/// Where lengths do not fit: a caller's mistake, never the data's.
pub fn entropy_coded(
    weights: &[f32],
    columns: usize,
    factor: &[f32],
    steps: &Steps,
    settings: EntropyCoded,
) -> Swept {
    let source = Whole { weights, columns };
    let mut reconstruction = Vec::with_capacity(weights.len());
    let mut swept = entropy_coded_rows(&source, factor, steps, settings, &mut |_, values| {
        reconstruction.extend_from_slice(values);
    });
    swept.reconstruction = reconstruction;
    swept
}

/// As [`entropy_coded`] for a matrix that is read in strips of rows, once for each pass and once before. Memory holds
/// the codes and one strip; the strips' reconstructions are shown in order.
///
/// # Panics
/// As [`entropy_coded`].
pub fn entropy_coded_rows(
    source: &dyn RowSource,
    factor: &[f32],
    steps: &Steps,
    settings: EntropyCoded,
    reconstructed: &mut dyn FnMut(Range<usize>, &[f32]),
) -> Swept {
    let (rows, columns) = (source.rows(), source.columns());
    assert!(steps.columns.len() == columns && steps.groups.len() == columns, "one step and group per column");
    assert!(steps.rows.is_empty() || steps.rows.len() == rows, "one step per row");
    let mut diagonal: Vec<f32> = factor.iter().step_by(columns + 1).copied().collect();
    diagonal.resize(columns, 1.0);
    let (expected_columns, expected_rows) = expected_magnitudes(source, steps);
    let mut pass = Pass {
        settings,
        steps,
        diagonal: &diagonal,
        columns: expected_columns,
        rows: expected_rows,
        lengths: Lengths::learn(&Histogram::default(), 1.0),
        offsets: Offsets::default(),
    };
    let groups =
        steps.groups.iter().map(|&g| usize::from(g) + 1).max().unwrap_or(0).min(settings.offset_groups);
    for _ in 1..settings.passes {
        let mut parts = Vec::new();
        run_pass(source, factor, &pass, groups, false, |_, strip, _| parts.extend(strip));
        let learned = learn(&parts, rows, columns, groups);
        drop(parts);
        (pass.lengths, pass.offsets, pass.columns, pass.rows) = learned;
    }
    let mut codes = vec![0i32; rows * columns];
    let (mut loss, mut bits) = (0.0, 0.0);
    run_pass(source, factor, &pass, groups, true, |range, parts, values| {
        for part in &parts {
            for column in 0..columns {
                codes[column * rows + part.first_row..][..part.rows]
                    .copy_from_slice(&part.codes[column * part.rows..(column + 1) * part.rows]);
            }
            loss += part.loss;
            bits += part.bits;
        }
        drop(parts);
        reconstructed(range, &values);
    });
    Swept { codes, offsets: pass.offsets, reconstruction: Vec::new(), loss, bits }
}

/// One pass, strip by strip: `done` gets a strip's rows, its chunks' roundings and its reconstruction.
fn run_pass<'a>(
    source: &dyn RowSource,
    factor: &[f32],
    pass: &'a Pass<'a>,
    groups: usize,
    keeps_codes: bool,
    mut done: impl FnMut(Range<usize>, Vec<Rounding<'a>>, Vec<f32>),
) {
    let columns = source.columns();
    for strip in strips(source.rows(), columns) {
        let mut values = source.read(strip.clone());
        let parts = sweep(&mut values, columns, factor, 0, |first_row, rows| Rounding {
            pass,
            first_row: strip.start + first_row,
            rows,
            state: 0,
            codes: vec![0; if keeps_codes { rows * columns } else { 0 }],
            histogram: Histogram::default(),
            centroids: Centroids::new(groups),
            column_magnitudes: vec![0.0; columns],
            row_magnitudes: vec![0.0; rows],
            loss: 0.0,
            bits: 0.0,
            search: Search::default(),
            branches: Vec::with_capacity(rows),
            magnitudes: Vec::new(),
        });
        done(strip, parts, values);
    }
}

/// Expected magnitudes before the first pass: the mean absolute weight of each column over its step, and what each
/// row adds to that.
fn expected_magnitudes(source: &dyn RowSource, steps: &Steps) -> (Vec<f32>, Vec<f32>) {
    let (rows, columns) = (source.rows(), source.columns());
    let mut by_column = vec![0.0f64; columns];
    let mut by_row = vec![0.0f64; rows];
    for strip in strips(rows, columns) {
        let weights = source.read(strip.clone());
        for (row, values) in strip.zip(weights.chunks_exact(columns.max(1))) {
            let scale = steps.row(row);
            for (column, &value) in values.iter().enumerate() {
                let magnitude = f64::from((value / (steps.columns[column] * scale)).abs().min(1e6));
                by_column[column] += magnitude;
                by_row[row] += magnitude;
            }
        }
    }
    normalized(by_column, by_row, rows)
}

/// Column means, and row totals relative to their mean.
fn normalized(by_column: Vec<f64>, by_row: Vec<f64>, rows: usize) -> (Vec<f32>, Vec<f32>) {
    let mean_row = by_row.iter().sum::<f64>() / rows.max(1) as f64;
    // A little of the mean keeps rows of zeros from predicting an impossible class.
    let weight = 0.02 * mean_row + 1e-9;
    let factors = by_row.iter().map(|&total| ((total + weight) / (mean_row + weight)) as f32).collect();
    (by_column.iter().map(|&total| (total / rows.max(1) as f64) as f32).collect(), factors)
}

/// Code lengths, offsets, expected magnitudes per column and factors per row, from the codes of one pass.
fn learn(
    parts: &[Rounding<'_>],
    rows: usize,
    columns: usize,
    groups: usize,
) -> (Lengths, Offsets, Vec<f32>, Vec<f32>) {
    let (mut histogram, mut centroids) = (Histogram::default(), Centroids::new(groups));
    let (mut by_column, mut by_row) = (vec![0.0f64; columns], Vec::with_capacity(rows));
    for part in parts {
        histogram.merge(&part.histogram);
        centroids.merge(&part.centroids);
        by_column.iter_mut().zip(&part.column_magnitudes).for_each(|(sum, &part)| *sum += f64::from(part));
        by_row.extend_from_slice(&part.row_magnitudes);
    }
    let (columns, rows) = normalized(by_column, by_row, rows);
    (Lengths::learn(&histogram, 32.0), centroids.offsets(), columns, rows)
}

/// The output error of a sweep without what damping added: `trace(E H E^T)` with `H` the mean of `x x^T`.
pub fn undamped_loss(swept: &Swept, weights: &[f32], factor: &InverseFactor) -> f64 {
    let squared: f64 =
        weights.iter().zip(&swept.reconstruction).map(|(&w, &v)| (f64::from(w) - f64::from(v)).powi(2)).sum();
    (swept.loss - factor.absolute_damping() * squared).max(0.0)
}

#[cfg(test)]
mod tests;
