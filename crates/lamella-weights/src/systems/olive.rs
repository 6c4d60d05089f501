//! OliVe (S058): four-bit outlier-victim pairs: an outlier takes the code of its neighbour, which becomes zero.
//!
//! # Idea
//! Outliers stretch a uniform grid for all, and lists of outliers break memory layout. Values come in pairs; where one
//! is an outlier, the other (the victim) is given up. Its code marks the pair, so that the outlier's own four bits can
//! be read as a float of wide range. Every pair stays one byte.
//!
//! # Algorithm
//! 1. Levels in units `s`, the border of normal values and outliers at 32. `int`: `{0, +-1 .. +-7} * 4`. `flint`:
//!    `{0, +-1, 2, 3, 4, 6, 8, 16} * 2`. Code `1000` (-8, or -0) stands for no level: it marks a victim.
//! 2. Outliers ("abfloat", two exponent bits, base 5): `2^i (1 + j/2)`, `i = 5..8`, `j = 0, 1`, without the first:
//!    48, 64, 96, 128, 192, 256, 384, and their negatives. With 8 bits: normal -127 to 127, outliers `2^i (1 + j/8)`,
//!    `i = 7..22`, without the first.
//! 3. `s = alpha / largest normal level`, from `alpha_0 = max(|mean + 3 sd|, |mean - 3 sd|)`.
//! 4. Each value goes to the nearest level, normal or outlier. In a pair with an outlier the other value becomes 0; of
//!    two outliers the larger survives.
//! 5. `alpha = alpha_0 * {0.75, 0.77, .. 2.5}` with the least squared error after pairing; `int` or `flint` for the whole
//!    array by the same sum.
//!
//! # Shapes
//! `array [rows, columns]`, any float type: a weight `[out_features, in_features]` (`scale=row`) or activations
//! `[tokens, features]` (`scale=array`, with `alpha` given where it was calibrated before).
//!
//! # Stored form
//! 1 byte for the grid, scales as 16-bit floats (one a row or one in all), then one byte per pair of neighbours in a row
//! (two with 8 bits): `4 + 16 / columns` bits per value.
//!
//! # Cost
//! 89 scales are tried per row and grid, each a pass over it. Decoding: one comparison and one table per value.
//!
//! # When to choose it
//! Where hardware wants aligned 4-bit values of weights *and* activations. For size alone take `house`.
//!
//! # Claim
//! At equal bits, squared error and perplexity of weights, and of weights and activations, are below symmetric 4-bit
//! rounding with the best clipped scale; less than 0.1 % of pairs hold two outliers.
//!
//! # Differences
//! Of two outliers the larger survives (the paper's code keeps the left). The grid of 8-bit outliers is ours. A
//! last value without a partner cannot be an outlier.
//!
//! # Source
//! C. Guo, J. Tang, W. Hu, J. Leng, C. Zhang, F. Yang, Y. Liu, M. Guo, Y. Zhu, "OliVe: Accelerating Large Language Models
//! via Hardware-friendly Outlier-Victim Pair Quantization", arXiv 2304.07493, sections 3 and 4.

use std::sync::Arc;

use half::f16;
use lamella_codec::{
    Array, ArraySpec, Codec, CodecError, Encoded, Knowledge, Rate, Recipe, Refusal, Registration, System,
    Wing,
};
use rayon::prelude::*;

use crate::distortion::{distortion, weighted_energy};
use crate::matrix::{accepts_matrix, clamp, clamped_array, damaged, out_of_range, read_matrix, single_layer};
use crate::olive::{Grid, measure};

/// The line of the list.
pub fn system() -> System {
    System {
        id: "S058",
        name: "OliVe",
        wing: Wing::Weights,
        compresses: "weights and activations, outliers in place",
        recipe: Some("olive(bits=4)"),
        claim: Some("error and perplexity below 4-bit rounding with the best clipped scale, at equal bits"),
        measure: Some(measure),
    }
}

/// `olive(bits=4, grid=auto, scale=row)`.
#[derive(Debug, Clone)]
pub struct Olive {
    recipe: Recipe,
    bits: u32,
    /// Grids to choose from.
    grids: Vec<Grid>,
    /// Whether each row has its own scale.
    is_by_row: bool,
    /// The largest normal value, 0 to search for it.
    alpha: f64,
}

/// How recipes name it.
pub fn registration() -> Registration {
    Registration {
        name: "olive",
        summary: "outlier-victim pairs (S058): an outlier takes its neighbour's code; weights and activations",
        arguments: &[
            ("bits", "4", "bits of a code, 4 or 8"),
            ("grid", "auto", "normal levels: int, flint (4 bits only), or the better of both (auto)"),
            ("scale", "row", "one scale a row (row) or one in all (array)"),
            ("alpha", "0", "largest normal value, 0 to search for it, up to 1000000"),
            ("outliers", "true", "pairs with outliers (true), or plain clipped rounding (false)"),
        ],
        build: |recipe| Ok(Arc::new(Olive::from_recipe(recipe)?)),
    }
}

impl Olive {
    fn from_recipe(recipe: &Recipe) -> Result<Self, CodecError> {
        let recipe = recipe.clone().name_positional("bits")?;
        recipe.reject_unknown(&["bits", "grid", "scale", "alpha", "outliers"])?;
        let refuse =
            |message: &str| CodecError::BadRecipe { recipe: recipe.to_string(), message: message.into() };
        let bits = recipe.integer("bits", 4..=8u32, 4)?;
        let has_outliers = recipe.word("outliers", &["true", "false"], "true")? == "true";
        let grids = match (bits, recipe.word("grid", &["auto", "int", "flint"], "auto")?) {
            (4, "int") => vec![Grid::int4(has_outliers)],
            (4, "flint") => vec![Grid::flint4(has_outliers)],
            (4, _) => vec![Grid::int4(has_outliers), Grid::flint4(has_outliers)],
            (8, "flint") => return Err(refuse("`grid=flint` has 4 bits; with 8 there is only `int`")),
            (8, _) => vec![Grid::int8(has_outliers)],
            _ => return Err(refuse("`bits` is neither 4 nor 8")),
        };
        let is_by_row = recipe.word("scale", &["row", "array"], "row")? == "row";
        let alpha = recipe.number("alpha", 0.0..=1e6, 0.0)?;
        Ok(Self { bits, grids, is_by_row, alpha, recipe })
    }

    /// Values that share a scale.
    fn unit(&self, rows: usize, columns: usize) -> usize {
        if self.is_by_row { columns } else { rows * columns }
    }

    /// Scales and squared error of a grid.
    fn search(&self, grid: &Grid, values: &[f32], columns: usize) -> (Vec<f32>, f64) {
        let unit = self.unit(values.len() / columns, columns).max(1);
        let found: Vec<(f32, f64)> = values
            .par_chunks(unit)
            .map(|values| match self.alpha > 0.0 {
                true => {
                    let scale = grid.scale(self.alpha);
                    (scale, grid.squared_error(values, columns, scale))
                }
                false => grid.search(values, columns),
            })
            .collect();
        (found.iter().map(|found| found.0).collect(), found.iter().map(|found| found.1).sum())
    }

    /// Bytes of a payload's parts: grid, scales, codes.
    fn extents(&self, rows: usize, columns: usize) -> Option<[usize; 3]> {
        let scales = if self.is_by_row { rows } else { usize::from(rows > 0) };
        let row = if self.bits == 4 { columns.div_ceil(2) } else { columns };
        Some([1, scales.checked_mul(2)?, rows.checked_mul(row)?])
    }
}

impl Codec for Olive {
    fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    fn stored_bytes(&self, spec: &ArraySpec) -> Option<u64> {
        let (rows, columns) = spec.matrix()?;
        Some(self.extents(rows, columns)?.iter().map(|&part| part as u64).sum())
    }

    fn accepts(&self, spec: &ArraySpec) -> Result<(), Refusal> {
        accepts_matrix(spec)
    }

    fn encode(&self, array: &Array<'_>, knowledge: &Knowledge, _rate: Rate) -> Result<Encoded, CodecError> {
        let matrix = read_matrix(&self.recipe, array)?;
        let (values, columns) = (&matrix.values, matrix.columns);
        // Step 5: the grid with the least squared error; the first of equals.
        let mut best: Option<(&Grid, Vec<f32>, f64)> = None;
        for grid in &self.grids {
            let (scales, error) = self.search(grid, values, columns);
            if best.as_ref().is_none_or(|best| error < best.2) {
                best = Some((grid, scales, error));
            }
        }
        let Some((grid, scales, _)) = best else {
            return Err(CodecError::BadRecipe { recipe: self.recipe.to_string(), message: "no grid".into() });
        };
        if scales.iter().any(|scale| !scale.is_finite()) {
            let message = "a scale is beyond 16-bit floats";
            return Err(out_of_range(&array.spec, &matrix, message));
        }
        let mut payload = vec![grid.id()];
        scales.iter().for_each(|&scale| payload.extend_from_slice(&f16::from_f32(scale).to_le_bytes()));
        let mut reconstruction = Vec::with_capacity(values.len());
        for (row, values) in values.chunks_exact(columns).enumerate() {
            let scale = scales[if self.is_by_row { row } else { 0 }];
            // Steps 3 and 4.
            let codes = grid.codes(values, scale);
            reconstruction.extend(grid.values(&codes, scale));
            payload.extend(grid.pack(&codes));
        }
        clamp(&mut reconstruction, array.spec.dtype);
        Ok(Encoded::single(
            payload,
            distortion(values, &reconstruction, columns, knowledge),
            weighted_energy(values, columns, knowledge),
        ))
    }

    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError> {
        let (rows, columns) = spec.matrix().ok_or_else(|| damaged(spec, 0, "the array has not 2 axes"))?;
        let payload = single_layer(spec, layers)?;
        let extents = self.extents(rows, columns);
        let needed =
            extents.and_then(|parts| parts.iter().try_fold(0usize, |sum, &part| sum.checked_add(part)));
        let (Some([_, scales, _]), true) = (extents, needed == Some(payload.len())) else {
            return Err(damaged(spec, 0, format!("needs {needed:?} bytes, found {}", payload.len())));
        };
        let grid = self.grids.iter().find(|grid| grid.id() == payload[0]);
        let grid =
            grid.ok_or_else(|| damaged(spec, 0, format!("{} names no grid of this recipe", payload[0])))?;
        let (scales, codes) = payload[1..].split_at(scales);
        let mut values = Vec::with_capacity(rows * columns);
        let row_bytes = codes.len() / rows.max(1);
        for row in 0..rows {
            let at = if self.is_by_row { 2 * row } else { 0 };
            let scale = f16::from_le_bytes([scales[at], scales[at + 1]]).to_f32();
            if !scale.is_finite() {
                return Err(damaged(spec, 0, format!("the scale of row {row} is not finite")));
            }
            let codes = grid.unpack(&codes[row * row_bytes..(row + 1) * row_bytes], columns);
            values.extend(grid.values(&codes, scale));
        }
        clamped_array(spec, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamella_codec::Dtype;

    #[test]
    fn an_outlier_costs_its_neighbour_and_nothing_else() {
        let values = [4.0f32, -8.0, 96.0, 3.0, 28.0, -384.0, 12.0];
        let array = Array::from_f32(ArraySpec::new("w", vec![1, 7], Dtype::F32), &values).unwrap();
        let codec = Olive::from_recipe(&"olive(grid=int, alpha=28)".parse().unwrap()).unwrap();
        let encoded = codec.encode(&array, &Knowledge::default(), Rate::Recipe).unwrap();
        assert_eq!(encoded.size_bytes(), 1 + 2 + 4);
        let decoded = codec.decode(&array.spec, &[&encoded.layers[0].payload]).unwrap().to_f32().unwrap();
        assert_eq!(decoded, [4.0, -8.0, 96.0, 0.0, 0.0, -384.0, 12.0]);
        let plain =
            Olive::from_recipe(&"olive(grid=int, alpha=28, outliers=false)".parse().unwrap()).unwrap();
        let encoded = plain.encode(&array, &Knowledge::default(), Rate::Recipe).unwrap();
        let decoded = plain.decode(&array.spec, &[&encoded.layers[0].payload]).unwrap().to_f32().unwrap();
        assert_eq!(decoded, [4.0, -8.0, 28.0, 4.0, 28.0, -28.0, 12.0]);
    }
}
