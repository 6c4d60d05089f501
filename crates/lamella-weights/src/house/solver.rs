//! Solves an array at a relative step: factor, steps, sweep, bytes; and predicts that from some of its rows.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lamella_codec::{CodecError, Knowledge};
use lamella_math::{FactorError, InverseFactor, SecondMoment};
use lamella_quant::sweep::{EntropyCoded, RowSource, Swept, entropy_coded_rows};

use super::coder::STRIP_ROWS;
use super::form::{Header, write};
use super::plan::{quantized_steps, row_exponents, steps, unit_step_of_rows};
use crate::distortion::{Energy, distortion};
use crate::matrix::{Matrix, MatrixRows};

/// Rows that estimates look at; whole strips, spread over the matrix.
const SAMPLE_ROWS: usize = 128;
/// The sweep and the coder run the trellis down the same strips of rows.
const _: () = assert!(STRIP_ROWS == lamella_quant::feedback::ROWS_PER_CHUNK);

/// Factors that are kept; arrays with the same inputs follow one another.
const KEPT_FACTORS: usize = 4;

/// The encoder's settings, with the last factors it made.
#[derive(Debug)]
pub struct Solver {
    /// Fraction of the mean diagonal added to the second moment.
    pub damping: f64,
    /// How strongly rows' steps follow how seldom they are used.
    pub usage: f64,
    /// The sweep's settings.
    pub settings: EntropyCoded,
    factors: Mutex<Vec<(Weak<SecondMoment>, Arc<Factor>)>>,
}

/// What became of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Solved {
    /// The stored form.
    pub payload: Vec<u8>,
    /// Its loss.
    pub distortion: f64,
    /// The loss of storing nothing.
    pub distortion_of_zeros: f64,
    /// Whether the sweep left the range of 32-bit floats.
    pub has_nan: bool,
}

/// `U` and its diagonal, or the identity where nothing is known.
#[derive(Debug)]
pub struct Factor {
    upper: Vec<f32>,
    diagonal: Vec<f32>,
}

impl Factor {
    fn new(factor: &InverseFactor) -> Self {
        Self { upper: factor.upper().to_vec(), diagonal: factor.diagonal() }
    }
    fn identity(columns: usize) -> Self {
        // The sweep reads no factor as the identity: a wide matrix needs no square of its width.
        Self { upper: Vec::new(), diagonal: vec![1.0; columns] }
    }
}

impl Solver {
    /// A solver that has made no factor yet.
    pub fn new(damping: f64, usage: f64, settings: EntropyCoded) -> Self {
        Self { damping, usage, settings, factors: Mutex::new(Vec::new()) }
    }

    /// The factor of what is known of the inputs; the last few are kept, since arrays share inputs.
    ///
    /// # Errors
    /// A second moment of another dimension or with numbers that are not finite.
    pub fn factor(
        &self,
        array: &str,
        columns: usize,
        knowledge: &Knowledge,
    ) -> Result<Arc<Factor>, CodecError> {
        let solver = |message: String| CodecError::Solver { array: array.to_owned(), message };
        let Some(moment) = knowledge.second_moment.as_ref() else {
            return Ok(Arc::new(Factor::identity(columns)));
        };
        if moment.dimension() != columns {
            let message =
                format!("the second moment has {} features, the array {columns}", moment.dimension());
            return Err(solver(message));
        }
        let is_same = |known: &Weak<SecondMoment>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(moment));
        let mut kept = self.factors.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(known, _)| known.strong_count() > 0);
        if let Some((_, factor)) = kept.iter().find(|(known, _)| is_same(known)) {
            return Ok(Arc::clone(factor));
        }
        drop(kept);
        // Inputs that are copies of one another need more than the usual damping.
        let mut damping = self.damping;
        let factor = loop {
            match InverseFactor::new(moment, damping) {
                Ok(factor) => break Factor::new(&factor),
                Err(FactorError::Empty { .. }) => break Factor::identity(columns),
                Err(FactorError::NotPositive { .. }) if damping < 1.0 => damping *= 10.0,
                Err(error) => return Err(solver(error.to_string())),
            }
        };
        let factor = Arc::new(factor);
        let mut kept = self.factors.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_FACTORS {
            kept.remove(0);
        }
        kept.push((Arc::downgrade(moment), Arc::clone(&factor)));
        Ok(factor)
    }

    /// Sweeps a matrix at a relative step and writes it; values beyond `limit` are read as `limit`.
    pub fn encode(
        &self,
        matrix: &dyn RowSource,
        factor: &Factor,
        knowledge: &Knowledge,
        relative: f64,
        limit: f32,
    ) -> Solved {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let unit = unit_step_of_rows(matrix, &factor.diagonal);
        let mut error = Energy::new(rows, columns, knowledge);
        let mut zeros = Energy::new(rows, columns, knowledge);
        let mut has_nan = false;
        let mut see = |strip: Range<usize>, values: &[f32]| {
            let mut weights = matrix.read(strip.clone());
            zeros.add(strip.start, &weights);
            has_nan |= values.iter().any(|value| value.is_nan());
            weights.iter_mut().zip(values).for_each(|(w, v)| *w -= v.clamp(-limit, limit));
            error.add(strip.start, &weights);
        };
        let rows = self.rows(rows, knowledge);
        let (payload, _) = self.solve(matrix, unit, factor, &rows, relative, &mut see);
        Solved { payload, distortion: error.sum(), distortion_of_zeros: zeros.sum(), has_nan }
    }

    /// Sweeps a matrix at a relative step and writes it.
    fn solve(
        &self,
        matrix: &dyn RowSource,
        unit: f64,
        factor: &Factor,
        rows: &[i32],
        relative: f64,
        see: &mut dyn FnMut(Range<usize>, &[f32]),
    ) -> (Vec<u8>, Swept) {
        let ideal: Vec<f64> = factor
            .diagonal
            .iter()
            .map(|&u| if unit > 0.0 { (relative * unit * f64::from(u)).clamp(1e-28, 1e28) } else { 1.0 })
            .collect();
        let (base, columns) = quantized_steps(&ideal);
        let steps = steps(base, &columns, rows);
        let swept = entropy_coded_rows(matrix, &factor.upper, &steps, self.settings, see);
        let header = Header {
            trellis: self.settings.trellis,
            base,
            columns,
            rows: rows.to_vec(),
            offsets: swept.offsets.clone(),
        };
        (write(&header, matrix.rows(), &swept.codes), swept)
    }

    /// Half octaves per row, or none.
    fn rows(&self, rows: usize, knowledge: &Knowledge) -> Vec<i32> {
        match knowledge.row_usage.as_deref() {
            Some(usage) if usage.len() == rows && self.usage > 0.0 => row_exponents(usage, self.usage),
            _ => Vec::new(),
        }
    }
}

/// Some rows of an array, from which the whole is predicted.
#[derive(Debug, Clone)]
pub struct Sampled<'a> {
    solver: &'a Solver,
    factor: Arc<Factor>,
    unit: f64,
    sample: Matrix,
    rows: Vec<i32>,
    knowledge: Knowledge,
    /// Rows of the whole over rows of the sample.
    scale: f64,
}

impl<'a> Sampled<'a> {
    /// Picks the rows.
    pub fn new(
        solver: &'a Solver,
        matrix: &MatrixRows<'_>,
        factor: Arc<Factor>,
        knowledge: &Knowledge,
    ) -> Self {
        let unit = unit_step_of_rows(matrix, &factor.diagonal);
        let rows = solver.rows(matrix.rows(), knowledge);
        let picked = picked_rows(matrix.rows());
        let sample = matrix.picked(&picked);
        let usage = knowledge.row_usage.as_ref().filter(|usage| usage.len() == matrix.rows());
        let mut known = knowledge.clone();
        known.row_usage = usage.map(|usage| Arc::new(picked.iter().map(|&row| usage[row]).collect()));
        let scale = matrix.rows() as f64 / sample.rows as f64;
        Self {
            solver,
            factor,
            unit,
            rows: if rows.is_empty() { rows } else { picked.iter().map(|&row| rows[row]).collect() },
            scale,
            sample,
            knowledge: known,
        }
    }

    /// Elements of the whole array.
    pub fn elements(&self) -> f64 {
        self.sample.values.len() as f64 * self.scale
    }

    /// Bytes and distortion of the whole array at a relative step.
    pub fn point(&self, relative: f64) -> (f64, f64) {
        let mut reconstruction = Vec::with_capacity(self.sample.values.len());
        let mut see = |_: Range<usize>, values: &[f32]| reconstruction.extend_from_slice(values);
        let (payload, _) =
            self.solver.solve(&self.sample, self.unit, &self.factor, &self.rows, relative, &mut see);
        // Steps are paid once, codes per row.
        let side = (6.0 + 0.4 * self.sample.columns as f64 + 16.0).min(payload.len() as f64);
        let bytes = side + (payload.len() as f64 - side) * self.scale;
        let loss = distortion(&self.sample.values, &reconstruction, self.sample.columns, &self.knowledge);
        // Steps equalise the loss of rows, large and small.
        (bytes, loss * self.scale)
    }
}

/// Up to [`SAMPLE_ROWS`] rows at equal distances.
fn picked_rows(rows: usize) -> Vec<usize> {
    let picked = rows.min(SAMPLE_ROWS);
    (0..picked).map(|index| (2 * index + 1) * rows / (2 * picked)).collect()
}
