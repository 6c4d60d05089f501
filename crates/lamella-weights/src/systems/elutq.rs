//! ELUTQ (S138): weights as scaled bit planes with a free scale for every plane, for table look-up on CPUs.
//!
//! # Idea
//! A uniform grid of `2^q` levels is the special case `s_j = 2^j s` of `z + sum_j s_j b_j`. With the scales set free the
//! levels go where the weights are; look-up tables over bit planes cost the same, whatever the scales. At 2 bits two free
//! scales place four levels nearly as well as any four numbers would.
//!
//! # Algorithm
//! 1. Groups of `g = group_size` inputs of a row: `q` scales `s_j` and an offset `z`. Start: `R = max - min`,
//!    `s_j = 2^j R / (2^q - 1)`, `z = min`.
//! 2. `fit=alternating`: `rounds` times, each weight takes the nearest of the `2^q` levels, then
//!    `theta = argmin |B theta - w|^2`, `B = [bits, 1]`; the best levels met are kept.
//! 3. `fit=gradient` instead: Adam on `(s, z)`, 40 to 100 steps, `z` in `[min - 0.05 R, min + R / (2^q - 1)]`.
//! 4. GPTQ: when the sweep reaches a group its levels are fitted to the weights as they are by then; each column takes its
//!    nearest levels, and `e = (w - v) / U_jj` goes on into the columns after it. `repick=false` fixes all codes of a group
//!    before errors move inside it, as the released code does.
//! 5. Product ([`crate::elutq`]): sums of every subset of 4 inputs once per vector; a nibble of a plane selects one.
//!
//! # Shapes
//! `weight [out_features, in_features]`, any float type; second moment `[in_features, in_features]`.
//!
//! # Stored form
//! [`crate::elutq::form`]: scales `[q, M, N/g]` and offsets in 16 bits, `q` packed planes: `q + 16 (q + 1) / g` bits per
//! weight (2.375 at 2 bits in groups of 128).
//!
//! # Cost
//! Calibration, no gradients. `rows * columns^2` multiply-adds as in `gptq`, and `rounds * 2^q` operations a weight for
//! the fits. Decoding adds up to `q` numbers a weight.
//!
//! # When to choose it
//! At 2 and 3 bits where a CPU multiplies from the coded form. For a size, or the least loss, take `house`.
//!
//! # Claim
//! On every linear the squared error is below rounding's and the output error below the best of six settings of `gptq`,
//! each in a file no smaller; perplexity at 2 bits is below the best gptq's.
//!
//! # Differences
//! Levels are rounded to 16 bits before codes are chosen; what codes leave open in the least squares stays where it was
//! (the paper takes the pseudo-inverse). Nearest levels are picked again after errors moved (`repick`). The paper's last
//! stage, block reconstruction with trained weights, is not built: this house's reverse passes hold matrices constant.
//!
//! # Source
//! "ELUTQ: Efficient LUT-Aware Quantization for Deploying Large Language Models on Edge Devices"; the authors' released
//! code for the fit, the sweep and the layout.

use std::ops::Range;
use std::sync::Arc;

use lamella_codec::{
    Array, ArraySpec, Codec, CodecError, CodedLinear, Encoded, Knowledge, Rate, Recipe, Refusal,
    Registration, System, Wing,
};
use lamella_quant::feedback::{Chunk, ColumnQuantizer, sweep};
use lamella_quant::gptq::Order;

use crate::coded::ByVector;
use crate::distortion::{distortion, weighted_energy};
use crate::elutq::fit::{Levels, alternate, descend, nearest};
use crate::elutq::form::PlaneForm;
use crate::elutq::measure;
use crate::elutq::product::PackedPlanes;
use crate::inputs::factored;
use crate::matrix::{accepts_matrix, clamp, clamped_array, damaged, out_of_range, read_matrix, single_layer};

const CLAIM: &str =
    "less error on every linear than rounding and gptq in files no smaller; less perplexity at 2 bits";

/// The catalogue's entry.
pub fn system() -> System {
    System {
        id: "S138",
        name: "ELUTQ",
        wing: Wing::Weights,
        compresses: "large language model weights for CPU table look-up",
        recipe: Some("elutq"),
        claim: Some(CLAIM),
        measure: Some(measure),
    }
}

/// How recipes name it.
pub fn registration() -> Registration {
    Registration {
        name: "elutq",
        summary: "bit planes with a free scale for every plane, fitted by least squares; multiplied by table look-up",
        arguments: &[
            ("bits", "2", "planes, 1 to 6"),
            ("group_size", "128", "inputs that share scales, 8 to 65536, a multiple of 8"),
            ("fit", "alternating", "how scales are fitted: alternating least squares, or gradient descent"),
            ("rounds", "10", "rounds of the alternating fit, 0 to 100; 0 is the uniform grid"),
            ("damping", "0.01", "fraction of the mean diagonal added to the second moment, 0.000001 to 10"),
            ("repick", "true", "whether codes are chosen after errors moved inside their group"),
            ("execute", "none", "run linears from their codes (codes), or decode to floats (none)"),
            (
                "sequential",
                "false",
                "take each block's statistics behind the already quantised blocks before it",
            ),
        ],
        build: |recipe| Ok(Arc::new(Elutq::from_recipe(recipe)?)),
    }
}

/// Parameters; the defaults are the paper's.
#[derive(Debug, Clone)]
pub struct Elutq {
    recipe: Recipe,
    /// Planes, 1 to 6 (`q`).
    pub bits: usize,
    /// Inputs that share scales, a multiple of 8 (`g`).
    pub group_size: usize,
    /// Whether step 3 replaces step 2.
    pub by_gradient: bool,
    /// Rounds of step 2.
    pub rounds: usize,
    /// Fraction of the mean diagonal added to it.
    pub damping: f64,
    /// Whether codes are chosen column by column.
    pub repick: bool,
    /// Whether linears run from their codes.
    pub executes: bool,
}

impl Elutq {
    fn from_recipe(recipe: &Recipe) -> Result<Self, CodecError> {
        let recipe = recipe.clone().name_positional("bits")?;
        let names = registration().arguments;
        recipe.reject_unknown(&names.iter().map(|argument| argument.0).collect::<Vec<_>>())?;
        recipe.flag("sequential")?;
        let group_size = recipe.integer("group_size", 8..=65536u32, 128)? as usize;
        if !group_size.is_multiple_of(8) {
            let message = format!("`group_size` is {group_size}; multiples of 8 are allowed");
            return Err(CodecError::BadRecipe { recipe: recipe.to_string(), message });
        }
        Ok(Self {
            bits: recipe.integer("bits", 1..=6u32, 2)? as usize,
            group_size,
            by_gradient: recipe.word("fit", &["alternating", "gradient"], "alternating")? == "gradient",
            rounds: recipe.integer("rounds", 0..=100u32, 10)? as usize,
            damping: recipe.number("damping", 1e-6..=10.0, 0.01)?,
            repick: recipe.word("repick", &["true", "false"], "true")? == "true",
            executes: recipe.word("execute", &["none", "codes"], "none")? == "codes",
            recipe,
        })
    }

    fn form(&self, rows: usize, columns: usize) -> PlaneForm {
        PlaneForm { rows, columns, bits: self.bits, group_size: self.group_size }
    }

    /// Steps 1 to 3.
    fn fit(&self, values: &[f32]) -> Levels {
        if self.by_gradient { descend(values, self.bits) } else { alternate(values, self.bits, self.rounds) }
    }
}

impl Codec for Elutq {
    fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    fn uses_second_moment(&self) -> bool {
        true
    }

    fn stored_bytes(&self, spec: &ArraySpec) -> Option<u64> {
        let (rows, columns) = spec.matrix()?;
        Some(self.form(rows, columns).stored_bytes()? as u64)
    }

    fn accepts(&self, spec: &ArraySpec) -> Result<(), Refusal> {
        accepts_matrix(spec)
    }

    fn encode(&self, array: &Array<'_>, knowledge: &Knowledge, _rate: Rate) -> Result<Encoded, CodecError> {
        let matrix = read_matrix(&self.recipe, array)?;
        let (rows, columns) = (matrix.rows, matrix.columns);
        let factor = factored(&array.spec, columns, knowledge, Order::Natural, self.damping)?;
        let mut reconstruction = matrix.values.clone();
        // 4., with 1. to 3. at the start of each group.
        let chunks =
            sweep(&mut reconstruction, columns, &factor.upper, self.group_size, |_, rows| Rounding {
                system: self,
                rows,
                levels: Vec::new(),
                tables: Vec::new(),
                fixed: Vec::new(),
                start: 0,
                codes: Vec::with_capacity(rows * columns),
            });
        let (mut levels, mut codes) = (Vec::new(), Vec::with_capacity(rows * columns));
        for chunk in &chunks {
            for row in 0..chunk.rows {
                levels.extend(chunk.levels.iter().skip(row).step_by(chunk.rows));
                codes.extend(chunk.codes.iter().skip(row).step_by(chunk.rows));
            }
        }
        let payload = self.form(rows, columns).encode(&levels, &codes);
        clamp(&mut reconstruction, array.spec.dtype);
        Ok(Encoded::single(
            payload.map_err(|message| out_of_range(&array.spec, &matrix, &message))?,
            distortion(&matrix.values, &reconstruction, columns, knowledge),
            weighted_energy(&matrix.values, columns, knowledge),
        ))
    }

    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError> {
        let (rows, columns) = spec.matrix().ok_or_else(|| damaged(spec, 0, "the array has not 2 axes"))?;
        let payload = single_layer(spec, layers)?;
        let matrix = self.form(rows, columns).decode(payload).map_err(|message| damaged(spec, 0, message))?;
        clamped_array(spec, matrix.expand())
    }

    fn execute(
        &self,
        spec: &ArraySpec,
        layers: &[&[u8]],
    ) -> Result<Option<Arc<dyn CodedLinear>>, CodecError> {
        let Some((rows, columns)) = spec.matrix().filter(|_| self.executes) else { return Ok(None) };
        let payload = single_layer(spec, layers)?;
        let matrix = self.form(rows, columns).decode(payload).map_err(|message| damaged(spec, 0, message))?;
        Ok(Some(PackedPlanes::new(&matrix)).map(|packed| Arc::new(ByVector(packed)) as Arc<dyn CodedLinear>))
    }
}

/// The sweep's rounding for one chunk of rows.
struct Rounding<'a> {
    system: &'a Elutq,
    rows: usize,
    /// `[groups_per_row, rows]`.
    levels: Vec<Levels>,
    /// The current group's levels by code, one table a row.
    tables: Vec<Vec<f32>>,
    /// The current group's codes with `repick=false`, `[rows, columns of the group]`.
    fixed: Vec<Vec<usize>>,
    /// First column of the current group.
    start: usize,
    /// `[columns, rows]`.
    codes: Vec<u8>,
}

impl ColumnQuantizer for Rounding<'_> {
    fn begin_block(&mut self, chunk: &Chunk<'_>, columns: Range<usize>) {
        self.start = columns.start;
        self.tables.clear();
        self.fixed.clear();
        for row in 0..self.rows {
            let values: Vec<f32> = columns.clone().map(|column| chunk.column(column)[row]).collect();
            let levels = self.system.fit(&values);
            let table = levels.table(self.system.bits);
            if !self.system.repick {
                self.fixed.push(values.iter().map(|&value| nearest(&table, value)).collect());
            }
            self.levels.push(levels);
            self.tables.push(table);
        }
    }

    fn quantize(&mut self, column: usize, values: &mut [f32]) {
        for (row, value) in values.iter_mut().enumerate() {
            let table = &self.tables[row];
            let code = match self.fixed.get(row) {
                Some(codes) => codes[column - self.start],
                None => nearest(table, *value),
            };
            self.codes.push(code as u8);
            *value = table[code];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamella_codec::{Catalogue, Dtype};

    #[test]
    fn one_plane_without_inputs_keeps_the_two_means() {
        let values = [1.0, 3.0, -2.0, -4.0, 1.0, 3.0, -2.0, -4.0];
        let array = Array::from_f32(ArraySpec::new("w", vec![1, 8], Dtype::F32), &values).unwrap();
        let codec =
            Catalogue::new(Vec::new(), crate::systems::codecs()).codec(&"elutq(1)".parse().unwrap()).unwrap();
        let encoded = codec.encode(&array, &Knowledge::default(), Rate::Recipe).unwrap();
        assert_eq!(encoded.size_bytes(), 2 + 2 + 1);
        let decoded = codec.decode(&array.spec, &[&encoded.layers[0].payload]).unwrap().to_f32().unwrap();
        for (value, mean) in decoded.iter().zip([2.0, 2.0, -3.0, -3.0, 2.0, 2.0, -3.0, -3.0f32]) {
            assert!((value - mean).abs() < 0.01, "{decoded:?}");
        }
    }
}
