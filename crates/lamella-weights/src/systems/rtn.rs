//! Rounding to nearest on a uniform grid per group of inputs.
//!
//! # Idea
//! Every group of `group_size` inputs of a row gets the smallest uniform grid of `2^bits` levels that covers its
//! values and zero. No data, no time: the baseline of everything.
//!
//! # Algorithm
//! `lo = min(0, min)`, `hi = max(0, max)`, `scale = (hi - lo) / (2^bits - 1)`, `code = round((w - lo) / scale)`.
//!
//! # Stored form
//! [`crate::grouped`]: `bits + 32 / group_size` bits per weight (3.25 for 3 bits in groups of 128).
//!
//! # When to choose it
//! Where a tensor must be coded without any text to calibrate on and in a plain format; else `gptq` or `house`.

use std::sync::Arc;

use lamella_codec::{
    Array, ArraySpec, Codec, CodecError, Encoded, Knowledge, Rate, Recipe, Refusal, Registration,
};
use lamella_quant::grid::{Zero, reconstruct, round_to_nearest, static_groups};

use crate::distortion::{distortion, weighted_energy};
use crate::grouped::GroupedForm;
use crate::matrix::{accepts_matrix, clamp, clamped_array, damaged, out_of_range, read_matrix, single_layer};

/// `rtn(bits=4, group_size=128, zero=float)`.
#[derive(Debug, Clone)]
pub struct Rtn {
    recipe: Recipe,
    bits: u32,
    group_size: usize,
    zero: Zero,
}

/// How recipes name it.
pub fn registration() -> Registration {
    Registration {
        name: "rtn",
        summary: "round to nearest on a uniform grid per group of inputs; needs no text",
        arguments: &[
            ("bits", "4", "bits of a code, 2 to 8"),
            (
                "group_size",
                "128",
                "inputs that share a grid, 1 to 65536; the last group of a row may be shorter",
            ),
            (
                "zero",
                "float",
                "how a grid's zero is stored: float (16 bits) or integer (as many bits as a code)",
            ),
        ],
        build: |recipe| Ok(Arc::new(Rtn::from_recipe(recipe)?)),
    }
}

/// Reads the `zero` argument.
pub(super) fn zero_argument(recipe: &Recipe) -> Result<Zero, CodecError> {
    Ok(match recipe.word("zero", &["float", "integer"], "float")? {
        "integer" => Zero::Integer,
        _ => Zero::Float,
    })
}

impl Rtn {
    fn from_recipe(recipe: &Recipe) -> Result<Self, CodecError> {
        let recipe = recipe.clone().name_positional("bits")?;
        recipe.reject_unknown(&["bits", "group_size", "zero"])?;
        Ok(Self {
            bits: recipe.integer("bits", 2..=8, 4)?,
            group_size: recipe.integer("group_size", 1..=65536u32, 128)? as usize,
            zero: zero_argument(&recipe)?,
            recipe,
        })
    }

    fn form(&self, rows: usize, columns: usize) -> GroupedForm {
        GroupedForm {
            rows,
            columns,
            bits: self.bits,
            group_size: self.group_size,
            zero: self.zero,
            has_order: false,
            groups_follow_order: false,
        }
    }
}

impl Codec for Rtn {
    fn recipe(&self) -> &Recipe {
        &self.recipe
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
        let (weights, columns) = (&matrix.values, matrix.columns);
        let groups = static_groups(weights, columns, self.group_size, self.bits, self.zero);
        let codes = round_to_nearest(weights, columns, self.group_size, self.bits, &groups);
        let mut reconstruction = reconstruct(&codes, columns, self.group_size, &groups);
        let payload = self.form(matrix.rows, columns).encode(&groups, &[], &codes);
        let payload = payload.map_err(|message| out_of_range(&array.spec, &matrix, &message))?;
        clamp(&mut reconstruction, array.spec.dtype);
        Ok(Encoded::single(
            payload,
            distortion(weights, &reconstruction, columns, knowledge),
            weighted_energy(weights, columns, knowledge),
        ))
    }

    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError> {
        let (rows, columns) = spec.matrix().ok_or_else(|| damaged(spec, 0, "the array has not 2 axes"))?;
        let payload = single_layer(spec, layers)?;
        let values = self.form(rows, columns).decode(payload).map_err(|message| damaged(spec, 0, message))?;
        clamped_array(spec, values)
    }
}
