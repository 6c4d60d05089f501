//! MixLLM (S065): the output rows of all linears that matter most to the loss get 8 bits, the others 4; activations 8.
//!
//! # Idea
//! Rows of a linear are independent sub-problems, so width can differ by row and stay fast. Which rows matter is a question
//! to the whole model: one ranking over all layers finds that some layers want many fine rows and others none.
//!
//! # Algorithm
//! 1. For each sample `d` of the calibration text: `g_d`, the gradient of the model's loss in every linear's weight. With
//!    `c_q - c_0` what 4-bit rounding in groups changes in row `c`: `S_c = mean_d |g_d (c_q - c_0) + (g_d (c_q - c_0))^2 / 2|`.
//! 2. All rows of all linears sorted by `S`; the first `share` of them get 8 bits. One pass.
//! 3. Grids per row and group of `group_size` inputs: 4 bits with integer zero point, 8 bits symmetric. Ranges shrink by the
//!    factor that leaves least error, weighted by the inputs' mean squares.
//! 4. GPTQ's sweep on those grids, groups by falling mean square of their inputs, columns likewise inside a group, so that
//!    groups stay runs of stored columns and no order is stored.
//! 5. Product: activations rounded to 8 bits in blocks; integers summed per group, then scaled ([`crate::mixllm::product`]).
//!
//! # Shapes
//! `weight [out_features, in_features]`, any float type; second moment `[in_features, in_features]`.
//!
//! # Stored form
//! [`crate::mixllm::form`]: 8 bytes, a bit a row; `4 + 20 / g` bits a weight of coarse
//! rows (4.156 for `g` = 128), `8 + 16 / g` of fine.
//!
//! # Cost
//! Calibration and one reverse pass a sample through the model in floats, with a gradient as large as the model in memory
//! for each thread. Then as `gptq`, four times for the ranges.
//!
//! # When to choose it
//! Where a runtime multiplies integers of 4 and 8 bits and 8-bit activations. For a size alone take `house`.
//!
//! # Claim
//! At 10 % of rows at 8 bits perplexity is below that of the same share inside each linear, of random rows (neither in a
//! smaller file) and of 4 bits alone, more than half of the way to 8 bits; shares differ strongly between layers.
//!
//! # Differences
//! Activations are rounded in blocks of 32 inputs, which is finer than the paper's 128. 16 samples unless told otherwise (the
//! paper: 128, 16 are enough). Encoders and recurrent networks have no such gradients here: their rows are then chosen
//! inside each linear by output error, with a warning; so are those of a single array.
//!
//! # Source
//! Z. Zheng, X. Song, C. Liu, "MixLLM: LLM Quantization with Global Mixed-precision between Output-features and Highly-
//! efficient System Design", arXiv 2412.14590, sections 3 and 4, algorithm 1.

use std::sync::Arc;

use lamella_codec::{
    Array, ArraySpec, Codec, CodecError, CodedLinear, Encoded, Knowledge, Rate, Recipe, Refusal,
    Registration, System, Wing,
};

use crate::distortion::{distortion, weighted_energy};
use crate::inputs::factored_in;
use crate::matrix::{
    Matrix, accepts_matrix, clamp, clamped_array, damaged, out_of_range, read_matrix, single_layer,
};
use crate::mixllm::form::{MixForm, Mixed};
use crate::mixllm::measure;
use crate::mixllm::product::PackedMix;
use crate::mixllm::salience::{rounding_change, top_rows};
use crate::mixllm::solver::{group_order, solve};

/// What recipes call it.
pub(crate) const NAME: &str = "mixllm";

/// The line of the list.
pub fn system() -> System {
    System {
        id: "S065",
        name: "MixLLM",
        wing: Wing::Weights,
        compresses: "linear weights at 4 and 8 bits by output row, with 8-bit activations",
        recipe: Some("mixllm(share=10%)"),
        claim: Some(
            "10 % of all rows at 8 bits: perplexity below rows chosen by layer or at random and 4 bits alone",
        ),
        measure: Some(measure),
    }
}

/// How recipes name it.
pub fn registration() -> Registration {
    Registration {
        name: NAME,
        summary: "4-bit rows, and 8 bits for those of the whole model that matter most to the loss (S065)",
        arguments: &[
            ("share", "10%", "share of rows with 8 bits, 0 to 1"),
            ("group_size", "128", "inputs that share a grid, 16 to 65536"),
            ("choice", "global", "rows ranked over all linears (global), in each (array), or drawn (random)"),
            ("samples", "16", "sequences whose gradients rank the rows, 1 to 4096"),
            ("damping", "0.01", "fraction of the mean diagonal added to the second moment, 0.000001 to 1"),
            (
                "execute",
                "int8",
                "run on packed integers and 8-bit activations (int8), or decode to floats (none)",
            ),
        ],
        build: |recipe| Ok(Arc::new(MixLlm::from_recipe(recipe)?)),
    }
}

/// How 8-bit rows are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// One ranking over all linears of the model.
    Global,
    /// A ranking in each linear.
    Array,
    /// Drawn, the same on every run.
    Random,
}

/// Parameters; the defaults are the paper's but for the number of samples.
#[derive(Debug, Clone)]
pub(crate) struct MixLlm {
    recipe: Recipe,
    /// Share of rows with 8 bits (`p`).
    pub(crate) share: f64,
    /// Inputs that share a grid.
    pub(crate) group_size: usize,
    /// How they are chosen.
    pub(crate) choice: Choice,
    /// Sequences whose gradients rank the rows.
    pub(crate) samples: usize,
    damping: f64,
    executes: bool,
    /// The rows of this array, once a pipeline has chosen among all.
    rows: Option<Arc<Vec<bool>>>,
}

impl MixLlm {
    pub(crate) fn from_recipe(recipe: &Recipe) -> Result<Self, CodecError> {
        let recipe = recipe.clone().name_positional("share")?;
        let names = registration().arguments;
        recipe.reject_unknown(&names.iter().map(|argument| argument.0).collect::<Vec<_>>())?;
        Ok(Self {
            share: recipe.number("share", 0.0..=1.0, 0.1)?,
            group_size: recipe.integer("group_size", 16..=65536u32, 128)? as usize,
            choice: match recipe.word("choice", &["global", "array", "random"], "global")? {
                "array" => Choice::Array,
                "random" => Choice::Random,
                _ => Choice::Global,
            },
            samples: recipe.integer("samples", 1..=4096u32, 16)? as usize,
            damping: recipe.number("damping", 1e-6..=1.0, 0.01)?,
            executes: recipe.word("execute", &["int8", "none"], "int8")? == "int8",
            rows: None,
            recipe,
        })
    }

    /// The same with the rows of one array.
    pub(crate) fn with_rows(&self, rows: Vec<bool>) -> Self {
        Self { rows: Some(Arc::new(rows)), ..self.clone() }
    }

    /// Whether both come from one recipe.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.recipe == other.recipe
    }

    /// Its recipe, for messages.
    pub(crate) fn recipe_text(&self) -> String {
        self.recipe.to_string()
    }

    /// 8-bit rows of so many.
    pub(crate) fn count(&self, rows: usize) -> usize {
        (self.share * rows as f64).round() as usize
    }

    fn form(&self, rows: usize, columns: usize) -> MixForm {
        MixForm { rows, columns, group_size: self.group_size }
    }

    /// Step 2 where no pipeline has chosen.
    fn own_rows(&self, matrix: &Matrix, name: &str, knowledge: &Knowledge) -> Vec<bool> {
        let (rows, columns) = (matrix.rows, matrix.columns);
        let scores: Vec<f64> = match self.choice {
            Choice::Random => {
                let seed = name
                    .bytes()
                    .fold(65u64, |seed, byte| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
                let mut random = crate::levels::Random(seed);
                (0..rows).map(|_| random.next() as f64).collect()
            }
            _ => {
                let change = rounding_change(&matrix.values, columns, self.group_size);
                change.chunks_exact(columns).map(|row| weighted_energy(row, columns, knowledge)).collect()
            }
        };
        top_rows(&scores, self.count(rows))
    }
}

impl Codec for MixLlm {
    fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    fn uses_second_moment(&self) -> bool {
        true
    }

    fn stored_bytes(&self, spec: &ArraySpec) -> Option<u64> {
        let (rows, columns) = spec.matrix()?;
        let n_fine = match (self.choice, &self.rows) {
            (_, Some(chosen)) => chosen.iter().filter(|&&fine| fine).count(),
            // How many rows a ranking over all leaves here is not known yet.
            (Choice::Global, None) if self.share > 0.0 && self.share < 1.0 => return None,
            _ => self.count(rows),
        };
        Some(self.form(rows, columns).stored_bytes(n_fine)? as u64)
    }

    fn accepts(&self, spec: &ArraySpec) -> Result<(), Refusal> {
        accepts_matrix(spec)
    }

    fn encode(&self, array: &Array<'_>, knowledge: &Knowledge, _rate: Rate) -> Result<Encoded, CodecError> {
        let matrix = read_matrix(&self.recipe, array)?;
        let (rows, columns) = (matrix.rows, matrix.columns);
        let form = self.form(rows, columns);
        let moment = knowledge.second_moment.as_deref();
        let diagonal =
            moment.filter(|m| m.dimension() == columns).map_or(vec![1.0; columns], |m| m.diagonal());
        let is_fine = match &self.rows {
            Some(chosen) if chosen.len() == rows => chosen.to_vec(),
            _ => self.own_rows(&matrix, &array.spec.name, knowledge),
        };
        // 3. and 4.
        let factor = factored_in(
            &array.spec,
            columns,
            knowledge,
            group_order(&diagonal, self.group_size),
            self.damping,
        )?;
        let mixed = solve(&matrix.values, form, is_fine, &diagonal, &factor);
        let payload = form.encode(&mixed).map_err(|message| out_of_range(&array.spec, &matrix, &message))?;
        let mut reconstruction = form.values(&mixed);
        clamp(&mut reconstruction, array.spec.dtype);
        Ok(Encoded::single(
            payload,
            distortion(&matrix.values, &reconstruction, columns, knowledge),
            weighted_energy(&matrix.values, columns, knowledge),
        ))
    }

    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError> {
        let (form, mixed) = self.read(spec, layers)?;
        clamped_array(spec, form.values(&mixed))
    }

    fn execute(
        &self,
        spec: &ArraySpec,
        layers: &[&[u8]],
    ) -> Result<Option<Arc<dyn CodedLinear>>, CodecError> {
        if !self.executes {
            return Ok(None);
        }
        let (form, mixed) = self.read(spec, layers)?;
        Ok(PackedMix::new(form, &mixed).map(|packed| Arc::new(packed) as Arc<dyn CodedLinear>))
    }
}

impl MixLlm {
    fn read(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<(MixForm, Mixed), CodecError> {
        let (rows, columns) = spec.matrix().ok_or_else(|| damaged(spec, 0, "the array has not 2 axes"))?;
        let form = self.form(rows, columns);
        let mixed = form.decode(single_layer(spec, layers)?).map_err(|message| damaged(spec, 0, message))?;
        Ok((form, mixed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamella_codec::Dtype;

    #[test]
    fn a_file_has_the_size_that_its_share_says() {
        let (rows, columns) = (37, 100);
        let values: Vec<f32> = (0..rows * columns).map(|i| (i * 7919 % 1009) as f32 / 504.0 - 1.0).collect();
        let array = Array::from_f32(ArraySpec::new("w", vec![rows, columns], Dtype::F32), &values).unwrap();
        for text in ["mixllm(share=30%, group_size=32)", "mixllm(share=10%)", "mixllm(share=100%)"] {
            let codec = MixLlm::from_recipe(&text.parse().unwrap()).unwrap();
            let encoded = codec.encode(&array, &Knowledge::default(), Rate::Recipe).unwrap();
            let fine = codec.count(rows);
            assert_eq!(Some(encoded.size_bytes()), codec.form(rows, columns).stored_bytes(fine), "{text}");
        }
    }
}
