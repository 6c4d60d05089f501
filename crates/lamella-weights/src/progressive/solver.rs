//! Solves an array: structure, steps, sweep, layers; and predicts what it will take from some of its rows.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use lamella_codec::{Array, ArraySpec, CodecError, EncodedLayer, Knowledge};
use lamella_entropy::range::RangeEncoder;
use lamella_math::low_rank::{DiagonalPlusLowRank, Recursion};
use lamella_math::{FactorError, SecondMoment};
use lamella_quant::refine::{Coarse, MAX_DEPTH, OFFSET_MAGNITUDES, coarse_sweep};

use super::form::{Header, MAX_EXPONENT, MAX_ROW_QUARTERS, Structure, parts, permuted, write_first};
use super::state::{Refinement, State};
use super::tables::{Classes, order};
use crate::distortion::row_energies;
use crate::house::form::{GROUPS, power, stored_base};
use crate::house::plan::{row_exponents, unit_step};
use crate::matrix::{Matrix, largest_finite};

/// Models of second moments that are kept; arrays with the same inputs follow one another.
const KEPT_FITS: usize = 4;
/// Numbers of directions that are tried, below the most there are.
const RANKS: [usize; 17] = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192];
/// Rows that estimates look at.
const SAMPLE_ROWS: usize = 128;
/// Weights from which tables are static by themselves: classes of rows and columns then cost next to nothing.
const STATIC_FROM: usize = 1 << 20;
/// `log2` of the relative step at which an array takes about no bits, from which every bit takes one off.
const LOG2_STEP_OF_NOTHING: f64 = 1.8;

/// The encoder's settings, with the last models it fitted.
#[derive(Debug)]
pub struct Solver {
    /// Fraction of the mean diagonal added to the second moment.
    pub damping: f64,
    /// How strongly rows' steps follow how seldom they are used.
    pub usage: f64,
    /// Most directions of a structure.
    pub rank: usize,
    /// Bits per weight that the first layer is to have, about.
    pub base: f64,
    /// Half the width of the cell of code 0, in 1/128 of a step.
    pub threshold: u8,
    /// Whether tables are static; `None`: where that costs next to nothing.
    pub is_static: Option<bool>,
    fits: Mutex<Vec<(Weak<SecondMoment>, Arc<DiagonalPlusLowRank>)>>,
}

/// An array's structure and what follows from it.
#[derive(Debug)]
pub struct Shaping {
    stored: Structure,
    recursion: Recursion,
    /// Diagonal of the inverse factor.
    diagonal: Vec<f32>,
    /// Bytes of the structure.
    bytes: f64,
    /// Bits a weight that it takes more than the diagonal alone, at equal loss.
    gain: f64,
}

impl Shaping {
    /// Bits a weight that the structure saves against the diagonal alone (negative) at equal loss, and its bytes.
    pub fn cost(&self) -> (f64, f64) {
        (self.gain, self.bytes)
    }

    /// Of inputs that nothing is known of.
    fn plain(columns: usize) -> Self {
        Self {
            stored: Structure::default(),
            recursion: Recursion::new(&[], columns),
            diagonal: vec![1.0; columns],
            bytes: 2.0,
            gain: 0.0,
        }
    }
}

impl Solver {
    /// A solver that has fitted nothing yet.
    pub fn new(
        (damping, usage, rank): (f64, f64, usize),
        (base, threshold): (f64, u8),
        is_static: Option<bool>,
    ) -> Self {
        Self { damping, usage, rank, base, threshold, is_static, fits: Mutex::new(Vec::new()) }
    }

    fn fit(
        &self,
        array: &str,
        columns: usize,
        knowledge: &Knowledge,
    ) -> Result<Option<Arc<DiagonalPlusLowRank>>, CodecError> {
        let solver = |message: String| CodecError::Solver { array: array.to_owned(), message };
        let Some(moment) = knowledge.second_moment.as_ref() else { return Ok(None) };
        if moment.dimension() != columns {
            let message =
                format!("the second moment has {} features, the array {columns}", moment.dimension());
            return Err(solver(message));
        }
        let mut kept = self.fits.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(known, _)| known.strong_count() > 0);
        if let Some((_, fit)) =
            kept.iter().find(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(moment)))
        {
            return Ok(Some(Arc::clone(fit)));
        }
        drop(kept);
        let fit = match DiagonalPlusLowRank::fit(moment, self.damping, self.rank) {
            Ok(fit) => Arc::new(fit),
            Err(FactorError::Empty { .. }) => return Ok(None),
            Err(error) => return Err(solver(error.to_string())),
        };
        let mut kept = self.fits.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_FITS {
            kept.remove(0);
        }
        kept.push((Arc::downgrade(moment), Arc::clone(&fit)));
        Ok(Some(fit))
    }

    /// What is known of an array's inputs, as its decoder will know it.
    ///
    /// A loading's rounding costs each row a share `step^2 / 12` of its loss per direction and its bits go as
    /// `-log2 step`: the best step is `sqrt(12 / rows)`. The number of directions is the one with which weights and
    /// structure together take the fewest bits at equal loss, both measured: loadings rounded, bytes coded.
    ///
    /// # Errors
    /// A second moment of another dimension or with numbers that are not finite.
    pub fn shaping(
        &self,
        array: &str,
        matrix: &Matrix,
        knowledge: &Knowledge,
    ) -> Result<Shaping, CodecError> {
        let (rows, columns) = (matrix.rows, matrix.columns);
        let Some(fit) = self.fit(array, columns, knowledge)? else {
            return Ok(Shaping::plain(columns));
        };
        let exponent = ((12.0 / rows as f64).sqrt().clamp(0.01, 0.5).log2() * 4.0).round() as i32;
        let step = f64::from(power(exponent));
        let moment = knowledge.second_moment.as_ref();
        let mut best: Option<(f64, DiagonalPlusLowRank, Structure, f64, f64)> = None;
        for rank in RANKS.into_iter().filter(|&rank| rank < fit.rank()).chain([fit.rank()]) {
            let model = fit.truncated(rank).rounded(step);
            let codes = model.loadings().iter().map(|&m| (f64::from(m) / step).round() as i32).collect();
            let stored = Structure { exponent, codes };
            let mut encoder = RangeEncoder::new();
            let message = |message| CodecError::Solver { array: array.to_owned(), message };
            stored.clone().code(&mut encoder, columns).map_err(message)?;
            let bytes = encoder.finish().len() as f64;
            let gain = moment.map_or(0.0, |moment| model.bits_against_diagonal(moment));
            let bits = gain + 8.0 * bytes / (rows * columns) as f64;
            if best.as_ref().is_none_or(|&(least, ..)| bits < least) {
                best = Some((bits, model, stored, bytes, gain));
            }
        }
        let Some((_, model, stored, bytes, gain)) = best else { return Ok(Shaping::plain(columns)) };
        let loadings = stored.loadings();
        let recursion = Recursion::new(&loadings, columns);
        let diagonal = (0..columns)
            .map(|j| {
                let shared: f64 =
                    loadings.iter().skip(j).step_by(columns).map(|&m| f64::from(m).powi(2)).sum();
                let own = (model.diagonal()[j] / (1.0 + shared)).sqrt();
                (1.0 / (f64::from(recursion.pivots()[j]) * own)) as f32
            })
            .collect();
        Ok(Shaping { stored, recursion, diagonal, bytes, gain })
    }

    /// Bits by which the first layer of an array with this final step is refined.
    pub fn depth(&self, relative: f64) -> u32 {
        let log2_base = LOG2_STEP_OF_NOTHING - self.base;
        (log2_base - relative.log2()).round().clamp(0.0, f64::from(MAX_DEPTH)) as u32
    }

    /// Steps of an array's rows: coarser where they are seldom used; in a stack in proportion to the arrays' own.
    fn row_steps(&self, matrix: &Matrix, shaping: &Shaping, knowledge: &Knowledge) -> RowSteps {
        let (rows, stacked) = (matrix.rows, &knowledge.stacked_rows);
        let parts = parts(rows, matrix.columns);
        let unit = unit_step(&matrix.values, &shaping.diagonal);
        if let Some(usage) = knowledge.row_usage.as_deref()
            && usage.len() == rows
            && self.usage > 0.0
        {
            let halves = row_exponents(usage, self.usage);
            return RowSteps { unit, exponents: halves.into_iter().map(|half| 2 * half).collect(), parts };
        }
        if stacked.len() < 2 || stacked.iter().sum::<usize>() != rows || unit <= 0.0 {
            return RowSteps { unit, exponents: Vec::new(), parts };
        }
        let mut exponents = Vec::with_capacity(rows);
        let (mut first, mut left) = (0, 0.0);
        for &height in stacked {
            let values = &matrix.values[first * matrix.columns..(first + height) * matrix.columns];
            let own = unit_step(values, &shaping.diagonal);
            let quarters = if own > 0.0 { 4.0 * (own / unit).log2() } else { 0.0 };
            let exponent = (quarters.round() as i32).clamp(-MAX_ROW_QUARTERS, MAX_ROW_QUARTERS);
            exponents.resize(first + height, exponent);
            left += (quarters - f64::from(exponent)) * height as f64;
            first += height;
        }
        RowSteps { unit: unit * (0.25 * left / rows as f64).exp2(), exponents, parts }
    }

    /// All layers of an array whose last one has the relative step `relative`.
    ///
    /// A refinement that would not lower the measured distortion is joined with those after it; the last ones are left
    /// out where nothing is gained any more.
    ///
    /// # Errors
    /// Values so large that the sweep leaves the range of `f32`.
    pub fn encode(
        &self,
        spec: &ArraySpec,
        matrix: &Matrix,
        shaping: &Shaping,
        knowledge: &Knowledge,
        relative: f64,
    ) -> Result<Vec<EncodedLayer>, CodecError> {
        let rows = self.row_steps(matrix, shaping, knowledge);
        self.layers(spec, matrix, &rows, shaping, knowledge, relative)
    }

    fn layers(
        &self,
        spec: &ArraySpec,
        matrix: &Matrix,
        rows: &RowSteps,
        shaping: &Shaping,
        knowledge: &Knowledge,
        relative: f64,
    ) -> Result<Vec<EncodedLayer>, CodecError> {
        let depth = self.depth(relative);
        let (unit, row_exponents) = rows.of(matrix.rows, depth);
        let coarse_step = relative * f64::from(1u32 << depth);
        let ideal: Vec<f64> = shaping
            .diagonal
            .iter()
            .map(|&u| if unit > 0.0 { (coarse_step * unit * f64::from(u)).clamp(1e-28, 1e28) } else { 1.0 })
            .collect();
        let (base, exponents) = eighths(&ideal);
        let mut header = Header {
            threshold: self.threshold,
            base,
            columns: exponents,
            rows: row_exponents,
            offsets: vec![[0; OFFSET_MAGNITUDES]; GROUPS],
            classes: None,
        };
        let steps = header.steps();
        let recursion = shaping.recursion.clone().scaled(&steps);
        let threshold = f32::from(self.threshold) / 128.0;
        let sweep = |header: &Header| {
            let factors = header.row_factors();
            coarse_sweep(
                &matrix.values,
                &recursion,
                &steps,
                &factors,
                &header.groups(),
                &header.offsets,
                threshold,
            )
        };
        // The first sweep finds the centroids, the second one uses them.
        header.offsets = sweep(&header).offsets;
        let Coarse { codes, bits, .. } = sweep(&header);
        let order = order(matrix.rows, parts(matrix.rows, matrix.columns));
        let (codes, bits) = (permuted(&codes, &order), permuted(&bits, &order));
        if self.is_static.unwrap_or(codes.len() >= STATIC_FROM) {
            let alike = vec![0; matrix.rows];
            let exponents = if header.rows.is_empty() { &alike } else { &header.rows };
            header.classes = Some(Classes::of(&codes, &permuted(exponents, &order)));
        }
        let wrong = |message| CodecError::Solver { array: spec.name.clone(), message };
        let limit = largest_finite(spec.dtype);
        let measure = |values: Vec<f32>| -> Result<Vec<f64>, CodecError> {
            if values.iter().any(|value| value.is_nan()) {
                let message = "values this large leave the range of 32-bit floats in the sweep".to_owned();
                return Err(CodecError::Solver { array: spec.name.clone(), message });
            }
            let read = Array::from_f32(spec.clone(), &values)?.to_f32()?;
            let error: Vec<f32> = matrix.values.iter().zip(&read).map(|(w, v)| w - v).collect();
            Ok(row_energies(&error, matrix.columns, knowledge))
        };
        let payload = write_first(&header, matrix.rows, &codes).map_err(wrong)?;
        let mut state = State::new(&header, matrix.rows, codes);
        let mut energies = measure(state.values(limit))?;
        let mut last = energies.iter().sum::<f64>();
        let mut layers = vec![EncodedLayer { payload, distortion: last, is_mapped: false }];
        let mut open: Option<Refinement> = None;
        for depth in 1..=depth {
            if last <= 0.0 {
                break;
            }
            let mut begun = match open.take() {
                Some(open) => open,
                None => state.begin(&shaping.stored).map_err(wrong)?,
            };
            let finer = measure(state.values_of(limit, &bits, depth))?;
            for part in 0..state.parts() {
                state.extend(&mut begun, &bits).map_err(wrong)?;
                (part..matrix.rows).step_by(state.parts()).for_each(|row| energies[row] = finer[row]);
                let distortion = energies.iter().sum::<f64>();
                if distortion < last {
                    let next = state.begin(&shaping.stored).map_err(wrong)?;
                    let payload = state.finished(std::mem::replace(&mut begun, next));
                    layers.push(EncodedLayer { payload, distortion, is_mapped: false });
                    last = distortion;
                }
            }
            open = Some(begun);
        }
        Ok(layers)
    }
}

/// Steps of an array's rows, or of a sample of them.
#[derive(Debug)]
struct RowSteps {
    /// The array's step at the relative step 1, of a row with exponent 0.
    unit: f64,
    /// Quarter octaves per row, or none where rows are alike.
    exponents: Vec<i32>,
    /// Units per bit of the whole array.
    parts: usize,
}

impl RowSteps {
    /// Unit and exponents of `rows` rows that are refined by `depth` bits.
    ///
    /// Halfway between two depths some rows have a bit more than others, which costs up to .16 bit against an even depth.
    /// Where each part begins finer than the part before it, by its share of an octave, losses lie as far apart at any
    /// time: four parts cost .05 bit at every unit.
    fn of(&self, rows: usize, depth: u32) -> (f64, Vec<i32>) {
        if depth == 0 || self.parts < 2 || rows < self.parts {
            return (self.unit, self.exponents.clone());
        }
        let coarser = |part: usize| (4 * (self.parts - 1 - part) / self.parts) as i32;
        let own = |row: usize| self.exponents.get(row).copied().unwrap_or(0);
        let of = |row: usize| (own(row) + coarser(row % self.parts)).min(MAX_ROW_QUARTERS);
        let mean = (0..self.parts).map(coarser).sum::<i32>() as f64 / self.parts as f64;
        (self.unit * (-0.25 * mean).exp2(), (0..rows).map(of).collect())
    }
}

/// Exponents and base of the columns for steps in proportion to `ideal` (positive numbers).
fn eighths(ideal: &[f64]) -> (f32, Vec<i32>) {
    let logs: Vec<f64> = ideal.iter().map(|step| 8.0 * step.log2()).collect();
    let mut sorted = logs.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    let exponents: Vec<i32> =
        logs.iter().map(|log| ((log - median).round() as i32).clamp(-MAX_EXPONENT, MAX_EXPONENT)).collect();
    let left = logs.iter().zip(&exponents).map(|(log, &exponent)| log - median - f64::from(exponent));
    (stored_base(((median + left.sum::<f64>() / logs.len().max(1) as f64) / 8.0).exp2() as f32), exponents)
}

/// Some rows of an array, from which the whole is predicted.
pub struct Sampled<'a> {
    solver: &'a Solver,
    shaping: &'a Shaping,
    spec: ArraySpec,
    sample: Matrix,
    rows: RowSteps,
    knowledge: Knowledge,
    /// Rows of the whole over rows of the sample.
    scale: f64,
}

impl<'a> Sampled<'a> {
    /// Picks up to 128 rows at equal distances.
    pub fn new(
        solver: &'a Solver,
        spec: &ArraySpec,
        matrix: &Matrix,
        shaping: &'a Shaping,
        knowledge: &Knowledge,
    ) -> Self {
        let rows = matrix.rows.min(SAMPLE_ROWS);
        let picked: Vec<usize> = (0..rows).map(|index| (2 * index + 1) * matrix.rows / (2 * rows)).collect();
        let columns = matrix.columns;
        let values =
            picked.iter().flat_map(|&row| matrix.values[row * columns..(row + 1) * columns].iter().copied());
        let mut steps = solver.row_steps(matrix, shaping, knowledge);
        if !steps.exponents.is_empty() {
            steps.exponents = picked.iter().map(|&row| steps.exponents[row]).collect();
        }
        let usage = knowledge.row_usage.as_ref().filter(|usage| usage.len() == matrix.rows);
        let mut known = knowledge.clone();
        known.row_usage = usage.map(|usage| Arc::new(picked.iter().map(|&row| usage[row]).collect()));
        Self {
            solver,
            shaping,
            spec: ArraySpec::new(spec.name.clone(), vec![rows, columns], spec.dtype),
            sample: Matrix { rows, columns, values: values.collect() },
            rows: steps,
            knowledge: known,
            scale: matrix.rows as f64 / rows as f64,
        }
    }

    /// Elements of the whole array.
    pub fn elements(&self) -> f64 {
        self.sample.values.len() as f64 * self.scale
    }

    /// Bytes of all layers and distortion of the whole array at a relative step.
    ///
    /// # Errors
    /// As [`Solver::encode`].
    pub fn point(&self, relative: f64) -> Result<(f64, f64), CodecError> {
        let layers = self.solver.layers(
            &self.spec,
            &self.sample,
            &self.rows,
            self.shaping,
            &self.knowledge,
            relative,
        )?;
        let total: f64 = layers.iter().map(|layer| layer.payload.len() as f64).sum();
        // Steps and structure are paid once, codes per row.
        let structure = if layers.len() > 1 { self.shaping.bytes } else { 0.0 };
        let side = (16.0 + 0.5 * self.sample.columns as f64 + structure).min(total);
        let distortion = layers.last().map_or(0.0, |layer| layer.distortion);
        Ok((side + (total - side) * self.scale, distortion * self.scale))
    }
}
