//! The house recipe: error feedback, a step per column, a trellis and an adaptive coder.
//!
//! # Idea
//! The output error of a linear layer is the whitened error of its columns once later columns have been moved to
//! hide what earlier ones got wrong. Equal loss per column is the best use of bits, so a column's step follows the
//! factor's diagonal, and an entropy coder charges each column what it really holds. A trellis makes the cells
//! rounder; rounding by squared error plus `lambda` times code length takes what the coder offers.
//!
//! # Algorithm
//! 1. `H` = mean of `x x^T`, damped by a fraction of its mean diagonal; `U` = upper Cholesky factor of `H^-1`.
//! 2. Step of column `j`: `relative * s * U_jj`, `s` the root mean square weight over the geometric mean of `U_jj`,
//!    rounded to quarter octaves around a common base. Tables with known row usage take 0.28 of that and half
//!    octaves per row.
//! 3. Sweep ([`lamella_quant::sweep`]): each column is rounded by Viterbi's search over the trellis with real code
//!    lengths, reconstructed at its cells' centroids, and its error fed into the later columns. Twice: the first
//!    sweep finds code lengths and centroids.
//! 4. Codes go through the adaptive coder of [`crate::house::coder`], which stores no tables.
//!
//! # Shapes
//! `weight [out_features, in_features]`, any float type; second moment `[in_features, in_features]`.
//!
//! # Stored form
//! [`crate::house::form`]: 6 bytes, about 3 bits per column, about 20 bytes of offsets, then the codes. At 64 x 64
//! and 2.2 bits side information is 3 % of the array; at 384 x 1536 it is 0.01 bit per weight.
//!
//! # Cost
//! One factorisation per distinct input (`columns^3 / 3` multiply-adds, `f64`) and two sweeps of
//! `rows * columns^2 / 2`. Decoding: one adaptive symbol per weight.
//!
//! # When to choose it
//! Wherever size matters. Where a runtime wants plain groups of integers, take `gptq`.
//!
//! # Claim
//! On MiniLM's 36 linear weights at 2.25, 3.25 and 4.25 coded bits per weight, every byte counted, the squared
//! embedding error is less than a tenth, a fifth and a fourth of GPTQ's with groups of 128.
//!
//! # Differences
//! From WaterSIC: trellis instead of scalar cells, code lengths inside the rounding, no rescalers, a coder instead
//! of reported entropies.
//!
//! # Source
//! E. Lifar et al., "WaterSIC", arXiv 2603.04956 (step per column); J. Chee et al., "QuIP", arXiv 2307.13304
//! (LDLQ); M. W. Marcellin, T. R. Fischer, "Trellis coded quantization", 1990, and T. R. Fischer, M. Wang,
//! "Entropy-constrained trellis-coded quantization", 1992.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use lamella_codec::{
    Array, ArraySpec, Codec, CodecError, Dtype, Encoded, Knowledge, Point, Rate, Recipe, Refusal, Registration,
};
use lamella_math::{FactorError, InverseFactor, SecondMoment};
use lamella_quant::sweep::trellis::Trellis;
use lamella_quant::sweep::{EntropyCoded, Swept, entropy_coded};

use crate::distortion::{distortion, weighted_energy};
use crate::house::form::{Header, read, write};
use crate::house::plan::{quantized_steps, row_exponents, steps, unit_step};
use crate::matrix::{Matrix, accepts_matrix, damaged, read_matrix, single_layer};

/// Rows that estimates look at; whole strips, spread over the matrix.
const SAMPLE_ROWS: usize = 128;
/// Relative steps that encoders accept.
const STEP_RANGE: std::ops::RangeInclusive<f64> = 1e-6..=1e6;

/// `house(bits=2.5)`.
#[derive(Debug)]
pub struct House {
    recipe: Recipe,
    bits: f64,
    damping: f64,
    usage: f64,
    lookup: f64,
    settings: EntropyCoded,
    factors: Mutex<Vec<(Weak<SecondMoment>, Arc<Factor>)>>,
}

/// `U` and its diagonal, or the identity where nothing is known.
#[derive(Debug)]
struct Factor {
    upper: Vec<f32>,
    diagonal: Vec<f32>,
}

/// How recipes name it.
pub fn registration() -> Registration {
    Registration {
        name: "house",
        summary: "a step per column, error feedback, a trellis and an adaptive entropy coder; meets any size",
        arguments: &[
            ("bits", "3", "bits per weight aimed at where no size is given, 0.1 to 16"),
            ("damping", "0.03", "fraction of the mean diagonal added to the second moment, 0.000001 to 1"),
            ("lambda", "0.1", "squared steps that one bit is worth when rounding, 0 to 1"),
            ("trellis", "6", "memory bits of the trellis: 0 (none) or 2 to 8; more is better and slower to encode"),
            ("passes", "2", "sweeps, 1 to 8; the first ones learn code lengths and centroids"),
            ("usage", "0.5", "how strongly steps of rows follow how seldom they are used, 0 to 1"),
            ("lookup", "0.28", "step of arrays whose rows are looked up (usage known), relative to all others, 0.01 to 10"),
        ],
        build: |recipe| Ok(Arc::new(House::from_recipe(recipe)?)),
    }
}

impl House {
    fn from_recipe(recipe: &Recipe) -> Result<Self, CodecError> {
        let recipe = recipe.clone().name_positional("bits")?;
        recipe.reject_unknown(&["bits", "damping", "lambda", "trellis", "passes", "usage", "lookup"])?;
        let memory_bits = recipe.integer("trellis", 0..=8u32, 6)?;
        let trellis = Trellis::new(memory_bits).ok_or_else(|| CodecError::BadRecipe {
            recipe: recipe.to_string(),
            message: format!("`trellis` is {memory_bits}; allowed are 0 and 2 to 8"),
        })?;
        Ok(Self {
            bits: recipe.number("bits", 0.1..=16.0, 3.0)?,
            damping: recipe.number("damping", 1e-6..=1.0, 0.03)?,
            usage: recipe.number("usage", 0.0..=1.0, 0.5)?,
            lookup: recipe.number("lookup", 0.01..=10.0, 0.28)?,
            settings: EntropyCoded {
                lambda: recipe.number("lambda", 0.0..=1.0, 0.1)? as f32,
                trellis,
                passes: recipe.integer("passes", 1..=8u32, 2)?,
                offset_groups: crate::house::form::GROUPS,
            },
            factors: Mutex::new(Vec::new()),
            recipe,
        })
    }

    /// The factor of what is known of the inputs; the last few are kept, since arrays share inputs.
    fn factor(&self, array: &str, columns: usize, knowledge: &Knowledge) -> Result<Arc<Factor>, CodecError> {
        let solver = |message: String| CodecError::Solver { array: array.to_owned(), message };
        let Some(moment) = knowledge.second_moment.as_ref() else {
            return Ok(Arc::new(Factor::identity(columns)));
        };
        if moment.dimension() != columns {
            let message = format!("the second moment has {} features, the array {columns}", moment.dimension());
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
        if kept.len() >= 4 {
            kept.remove(0);
        }
        kept.push((Arc::downgrade(moment), Arc::clone(&factor)));
        Ok(factor)
    }

    /// Sweeps a matrix at a relative step and writes it.
    fn solve(&self, matrix: &Matrix, unit: f64, factor: &Factor, rows: &[i32], relative: f64) -> (Vec<u8>, Swept) {
        let ideal: Vec<f64> = factor
            .diagonal
            .iter()
            .map(|&u| if unit > 0.0 { (relative * unit * f64::from(u)).clamp(1e-28, 1e28) } else { 1.0 })
            .collect();
        let (base, columns) = quantized_steps(&ideal);
        let steps = steps(base, &columns, rows);
        let swept = entropy_coded(&matrix.values, matrix.columns, &factor.upper, &steps, self.settings);
        let header = Header {
            trellis: self.settings.trellis,
            base,
            columns,
            rows: rows.to_vec(),
            offsets: swept.offsets.clone(),
        };
        (write(&header, matrix.rows, &swept.codes), swept)
    }

    /// The step at relative step 1: see [`unit_step`]. Errors of a table's row meet no others to average with, so
    /// looked-up tables take finer steps.
    fn unit(&self, matrix: &Matrix, factor: &Factor, knowledge: &Knowledge) -> f64 {
        let is_lookup = knowledge.row_usage.is_some();
        unit_step(&matrix.values, &factor.diagonal) * if is_lookup { self.lookup } else { 1.0 }
    }

    /// Half octaves per row, or none.
    fn rows(&self, rows: usize, knowledge: &Knowledge) -> Vec<i32> {
        match knowledge.row_usage.as_deref() {
            Some(usage) if usage.len() == rows && self.usage > 0.0 => row_exponents(usage, self.usage),
            _ => Vec::new(),
        }
    }

    /// The relative step of a rate; [`Rate::Recipe`] searches for the recipe's bits on a sample.
    fn relative_step(&self, array: &Array<'_>, knowledge: &Knowledge, rate: Rate) -> Result<f64, CodecError> {
        match rate {
            Rate::Step(step) if STEP_RANGE.contains(&step) => Ok(step),
            Rate::Recipe => {
                let sampled = Sampled::new(self, array, knowledge)?;
                let (mut low, mut high) = (-12.0f64, 6.0f64);
                for _ in 0..12 {
                    let middle = 0.5 * (low + high);
                    let bits = sampled.point(middle.exp2()).0 * 8.0 / array.spec.len().max(1) as f64;
                    if bits > self.bits { low = middle } else { high = middle }
                }
                Ok((0.5 * (low + high)).exp2())
            }
            other => Err(CodecError::BadRecipe {
                recipe: self.recipe.to_string(),
                message: format!("{other:?} is no rate of this codec; relative steps lie within 1e-6 to 1e6"),
            }),
        }
    }
}

/// Some rows of an array, from which the whole is predicted.
struct Sampled<'a> {
    codec: &'a House,
    factor: Arc<Factor>,
    unit: f64,
    sample: Matrix,
    rows: Vec<i32>,
    knowledge: Knowledge,
    /// Rows of the whole over rows of the sample, and the same for the distortion.
    scale: f64,
    energy_scale: f64,
}

impl<'a> Sampled<'a> {
    fn new(codec: &'a House, array: &Array<'_>, knowledge: &Knowledge) -> Result<Self, CodecError> {
        let matrix = read_matrix(&codec.recipe, array)?;
        let factor = codec.factor(&array.spec.name, matrix.columns, knowledge)?;
        let unit = codec.unit(&matrix, &factor, knowledge);
        let rows = codec.rows(matrix.rows, knowledge);
        let (sample, picked) = sample(&matrix);
        let usage = knowledge.row_usage.as_ref().filter(|usage| usage.len() == matrix.rows);
        let mut known = knowledge.clone();
        known.row_usage = usage.map(|usage| Arc::new(picked.iter().map(|&row| usage[row]).collect()));
        let energy = weighted_energy(&matrix.values, matrix.columns, knowledge);
        let sample_energy = weighted_energy(&sample.values, matrix.columns, &known);
        let scale = matrix.rows as f64 / sample.rows as f64;
        Ok(Self {
            codec,
            factor,
            unit,
            rows: if rows.is_empty() { rows } else { picked.iter().map(|&row| rows[row]).collect() },
            scale,
            energy_scale: if sample_energy > 0.0 { energy / sample_energy } else { scale },
            sample,
            knowledge: known,
        })
    }

    /// Bytes and distortion of the whole array at a relative step.
    fn point(&self, relative: f64) -> (f64, f64) {
        let (payload, swept) = self.codec.solve(&self.sample, self.unit, &self.factor, &self.rows, relative);
        // Steps are paid once, codes per row.
        let side = (6.0 + 0.4 * self.sample.columns as f64 + 16.0).min(payload.len() as f64);
        let bytes = side + (payload.len() as f64 - side) * self.scale;
        let loss =
            distortion(&self.sample.values, &swept.reconstruction, self.sample.columns, &self.knowledge);
        (bytes, loss * self.energy_scale)
    }
}

impl Factor {
    fn new(factor: &InverseFactor) -> Self {
        Self { upper: factor.upper().to_vec(), diagonal: factor.diagonal() }
    }
    fn identity(columns: usize) -> Self {
        let upper = (0..columns * columns).map(|i| f32::from(u8::from(i % (columns + 1) == 0))).collect();
        Self { upper, diagonal: vec![1.0; columns] }
    }
}

impl Codec for House {
    fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    fn has_free_rate(&self) -> bool {
        true
    }

    fn accepts(&self, spec: &ArraySpec) -> Result<(), Refusal> {
        accepts_matrix(spec)
    }

    fn encode(&self, array: &Array<'_>, knowledge: &Knowledge, rate: Rate) -> Result<Encoded, CodecError> {
        let matrix = read_matrix(&self.recipe, array)?;
        let factor = self.factor(&array.spec.name, matrix.columns, knowledge)?;
        let relative = self.relative_step(array, knowledge, rate)?;
        let unit = self.unit(&matrix, &factor, knowledge);
        let rows = self.rows(matrix.rows, knowledge);
        let (payload, swept) = self.solve(&matrix, unit, &factor, &rows, relative);
        let limit = largest(array.spec.dtype);
        let values: Vec<f32> = swept.reconstruction.iter().map(|value| value.clamp(-limit, limit)).collect();
        if values.iter().any(|value| value.is_nan()) {
            let message = "values this large leave the range of 32-bit floats in the sweep".to_owned();
            return Err(CodecError::Solver { array: array.spec.name.clone(), message });
        }
        Ok(Encoded::single(
            payload,
            distortion(&matrix.values, &values, matrix.columns, knowledge),
            weighted_energy(&matrix.values, matrix.columns, knowledge),
        ))
    }

    fn estimate(
        &self,
        array: &Array<'_>,
        knowledge: &Knowledge,
        rates: &[Rate],
    ) -> Result<Vec<Point>, CodecError> {
        let sampled = Sampled::new(self, array, knowledge)?;
        rates
            .iter()
            .map(|&rate| {
                let (bytes, distortion) = sampled.point(self.relative_step(array, knowledge, rate)?);
                Ok(Point { rate, bytes, distortion })
            })
            .collect()
    }

    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError> {
        let (rows, columns) = spec.matrix().ok_or_else(|| damaged(spec, 0, "the array has not 2 axes"))?;
        let payload = single_layer(spec, layers)?;
        let values =
            read(payload, rows, columns, largest(spec.dtype)).map_err(|message| damaged(spec, 0, message))?;
        Ok(Array::from_f32(spec.clone(), &values)?)
    }
}

/// The largest finite number of a type that `f32` values are rounded to.
fn largest(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => 65_504.0,
        Dtype::BF16 => f32::from_bits(0x7f7f_0000),
        Dtype::F8E4M3 => 448.0,
        Dtype::F8E5M2 => 57_344.0,
        _ => f32::MAX,
    }
}

/// Up to [`SAMPLE_ROWS`] rows at equal distances, and their indices.
fn sample(matrix: &Matrix) -> (Matrix, Vec<usize>) {
    let rows = matrix.rows.min(SAMPLE_ROWS);
    let picked: Vec<usize> = (0..rows).map(|index| (2 * index + 1) * matrix.rows / (2 * rows)).collect();
    let mut values = Vec::with_capacity(rows * matrix.columns);
    for &row in &picked {
        values.extend_from_slice(&matrix.values[row * matrix.columns..(row + 1) * matrix.columns]);
    }
    (Matrix { rows, columns: matrix.columns, values }, picked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamella_codec::suite::{Cases, check};

    fn house(text: &str) -> House {
        House::from_recipe(&text.parse().unwrap()).unwrap()
    }

    #[test]
    fn keeps_the_laws() {
        for text in ["house(bits=3)", "house(bits=2, trellis=0)", "house(bits=2, trellis=8, passes=1)"] {
            check(&house(text), &Cases::default()).unwrap();
        }
    }

    #[test]
    fn the_recipes_bits_are_met_where_no_size_is_given() {
        let mut state = 7u64;
        let values: Vec<f32> = (0..200 * 96)
            .map(|_| {
                let mut total = 0.0;
                for _ in 0..6 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    total += (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
                }
                total
            })
            .collect();
        let array = Array::from_f32(ArraySpec::new("w", vec![200, 96], Dtype::F32), &values).unwrap();
        let codec = house("house(bits=2.5)");
        let encoded = codec.encode(&array, &Knowledge::default(), Rate::Recipe).unwrap();
        let bits = encoded.size_bytes() as f64 * 8.0 / values.len() as f64;
        assert!((bits - 2.5).abs() < 0.08, "{bits}");
    }
}
