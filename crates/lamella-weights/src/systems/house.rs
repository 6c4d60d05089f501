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
//!    rounded to quarter octaves around a common base. Tables with known row usage get half octaves
//!    per row.
//! 3. Sweep ([`lamella_quant::sweep`]): each column is rounded by Viterbi's search over the trellis with real code
//!    lengths, reconstructed at its cells' centroids, and its error fed into the later columns. Twice: the first
//!    sweep finds code lengths and centroids.
//! 4. Codes go through the adaptive coder of [`crate::house::coder`], which stores no tables.
//! 5. With `execute=int4` or `int8` there are no centroids, and codes beyond the width cost four squared steps more: an
//!    element is an integer times its steps, and [`crate::house::packed`] multiplies the integers.
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
//! embedding error is less than a tenth, a sixth and a fifth of GPTQ's with groups of 128.
//!
//! # Differences
//! From WaterSIC: trellis instead of scalar cells, code lengths inside the rounding, no rescalers, a coder instead
//! of reported entropies.
//!
//! # Source
//! E. Lifar et al., "WaterSIC", arXiv 2603.04956 (step per column); J. Chee et al., "QuIP", arXiv 2307.13304
//! (LDLQ); M. W. Marcellin, T. R. Fischer, "Trellis coded quantization", 1990, and T. R. Fischer, M. Wang,
//! "Entropy-constrained trellis-coded quantization", 1992.

use std::sync::Arc;

use lamella_codec::{
    Array, ArraySpec, Codec, CodecError, CodedLinear, Dtype, Encoded, Knowledge, Point, Rate, Recipe,
    Refusal, Registration,
};
use lamella_quant::execute::Width;
use lamella_quant::sweep::trellis::Trellis;
use lamella_quant::sweep::{EntropyCoded, RowSource};

use crate::house::form::{GROUPS, read};
use crate::house::packed::PackedLinear;
use crate::house::solver::{Sampled, Solver};
use crate::matrix::{MatrixRows, accepts_matrix, damaged, single_layer};

/// Relative steps that encoders accept.
const STEP_RANGE: std::ops::RangeInclusive<f64> = 1e-6..=1e6;

/// `house(bits=2.5)`.
#[derive(Debug)]
pub struct House {
    recipe: Recipe,
    bits: f64,
    solver: Solver,
    execute: Option<Width>,
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
            (
                "trellis",
                "7",
                "memory bits of the trellis: 0 (none; always with execute=int4) or 2 to 8; more is better and slower",
            ),
            ("passes", "2", "sweeps, 1 to 8; the first ones learn code lengths and centroids"),
            ("usage", "0.5", "how strongly steps of rows follow how seldom they are used, 0 to 1"),
            (
                "execute",
                "none",
                "none; or int4, int8: codes that run as packed integers, without being expanded",
            ),
        ],
        build: |recipe| Ok(Arc::new(House::from_recipe(recipe)?)),
    }
}

impl House {
    pub(crate) fn from_recipe(recipe: &Recipe) -> Result<Self, CodecError> {
        let recipe = recipe.clone().name_positional("bits")?;
        recipe.reject_unknown(&["bits", "damping", "lambda", "trellis", "passes", "usage", "execute"])?;
        let execute = match recipe.word("execute", &["none", "int4", "int8"], "none")? {
            "int4" => Some(Width::Four),
            "int8" => Some(Width::Eight),
            _ => None,
        };
        let usual = if execute == Some(Width::Four) { 0 } else { 7 };
        let memory_bits = recipe.integer("trellis", 0..=8u32, usual)?;
        let trellis = Trellis::new(memory_bits)
            .filter(|_| execute != Some(Width::Four) || memory_bits == 0)
            .ok_or_else(|| CodecError::BadRecipe {
                recipe: recipe.to_string(),
                message: match execute {
                    Some(Width::Four) => format!("`trellis` is {memory_bits}; with execute=int4 it is 0"),
                    _ => format!("`trellis` is {memory_bits}; allowed are 0 and 2 to 8"),
                },
            })?;
        // A trellis counts half steps.
        let largest = execute.map(|width| width.largest() as u32 >> u32::from(memory_bits > 0));
        Ok(Self {
            bits: recipe.number("bits", 0.1..=16.0, 3.0)?,
            solver: Solver::new(
                recipe.number("damping", 1e-6..=1.0, 0.03)?,
                recipe.number("usage", 0.0..=1.0, 0.5)?,
                EntropyCoded {
                    lambda: recipe.number("lambda", 0.0..=1.0, 0.1)? as f32,
                    trellis,
                    passes: recipe.integer("passes", 1..=8u32, 2)?,
                    offset_groups: if execute.is_some() { 0 } else { GROUPS },
                    largest,
                },
            ),
            execute,
            recipe,
        })
    }

    /// The relative step of a rate; [`Rate::Recipe`] searches for the recipe's bits on a sample.
    fn relative_step<'a>(&'a self, rate: Rate, sampled: impl Fn() -> Sampled<'a>) -> Result<f64, CodecError> {
        match rate {
            Rate::Step(step) if STEP_RANGE.contains(&step) => Ok(step),
            Rate::Recipe => {
                let sampled = sampled();
                let (mut low, mut high) = (-12.0f64, 6.0f64);
                for _ in 0..12 {
                    let middle = 0.5 * (low + high);
                    let bits = sampled.point(middle.exp2()).0 * 8.0 / sampled.elements();
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
        let matrix = MatrixRows::new(&self.recipe, array)?;
        let factor = self.solver.factor(&array.spec.name, matrix.columns(), knowledge)?;
        let sampled = || Sampled::new(&self.solver, &matrix, Arc::clone(&factor), knowledge);
        let relative = self.relative_step(rate, sampled)?;
        let solved = self.solver.encode(&matrix, &factor, knowledge, relative, largest(array.spec.dtype));
        if solved.has_nan {
            let message = "values this large leave the range of 32-bit floats in the sweep".to_owned();
            return Err(CodecError::Solver { array: array.spec.name.clone(), message });
        }
        Ok(Encoded::single(solved.payload, solved.distortion, solved.distortion_of_zeros))
    }

    fn estimate(
        &self,
        array: &Array<'_>,
        knowledge: &Knowledge,
        rates: &[Rate],
    ) -> Result<Vec<Point>, CodecError> {
        let matrix = MatrixRows::new(&self.recipe, array)?;
        let factor = self.solver.factor(&array.spec.name, matrix.columns(), knowledge)?;
        let sampled = Sampled::new(&self.solver, &matrix, factor, knowledge);
        rates
            .iter()
            .map(|&rate| {
                let (bytes, distortion) = sampled.point(self.relative_step(rate, || sampled.clone())?);
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

    fn execute(
        &self,
        spec: &ArraySpec,
        layers: &[&[u8]],
    ) -> Result<Option<Arc<dyn CodedLinear>>, CodecError> {
        let (Some(width), Some((rows, columns))) = (self.execute, spec.matrix()) else { return Ok(None) };
        let payload = single_layer(spec, layers)?;
        let linear =
            PackedLinear::read(payload, rows, columns, width).map_err(|message| damaged(spec, 0, message))?;
        Ok(linear.map(|linear| Arc::new(linear) as Arc<dyn CodedLinear>))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn house(text: &str) -> House {
        House::from_recipe(&text.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_unit_gaussian_at_two_bits_comes_near_the_bound() {
        // Box-Muller on a linear congruential generator; the bound is 4^-bits, a scalar quantiser has 1.42 times it.
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        let mut gaussian =
            || ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
        let values: Vec<f32> = (0..384 * 256).map(|_| gaussian()).collect();
        let spec = ArraySpec::new("w", vec![384, 256], Dtype::F32);
        let array = Array::from_f32(spec.clone(), &values).unwrap();
        let codec = house("house(bits=2)");
        let encoded = codec.encode(&array, &Knowledge::default(), Rate::Recipe).unwrap();
        let bits = encoded.size_bytes() as f64 * 8.0 / values.len() as f64;
        assert!((bits - 2.0).abs() < 0.04, "{bits} bits where 2 were asked for");
        let decoded = codec.decode(&spec, &[&encoded.layers[0].payload]).unwrap().to_f32().unwrap();
        let squares: f64 = values.iter().zip(&decoded).map(|(w, v)| f64::from(w - v).powi(2)).sum();
        let error_at_two_bits = squares / values.len() as f64 * 4.0f64.powf(bits - 2.0);
        assert!(error_at_two_bits < 0.0745, "{error_at_two_bits} at 2 bits");
    }
}
