//! GPTQ: rounding on grids per group, each column's error fed into the columns after it.
//!
//! # Idea
//! Rounding to nearest ignores that inputs are correlated. GPTQ quantises column by column and lets later columns
//! absorb what the inputs' second moment says they can; what remains is the error of the layer's *outputs*.
//!
//! # Algorithm
//! 1. `H` = mean of `x x^T`, damped by a fraction of its mean diagonal; `U` = upper Cholesky factor of `H^-1`.
//! 2. For each column `j` in `order`: round to the group's grid, `e = (w_j - v_j) / U_jj`, `w_k -= e U_jk` for `k > j`.
//! 3. Grids are fitted to the original weights (`groups=static`) or when the sweep reaches them (`dynamic`).
//!
//! # Stored form
//! [`crate::grouped`]: `bits + 32 / group_size` bits per weight with a float zero, `bits + (16 + bits) / group_size`
//! with an integer one; `order=activation` adds 16 bits per column.
//!
//! # Cost
//! One factorisation per distinct input (`columns^3`) and `rows * columns^2` multiply-adds. Decoding costs what
//! `rtn` costs.
//!
//! # When to choose it
//! Where the reader wants plain groups at 3 bits and more. Below that, or for a size, take `house`.
//!
//! # Source
//! Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", arXiv 2210.17323, section 3.3 and algorithm 1. The damping default
//! is the paper's 1 %.

use std::sync::Arc;

use lamella_codec::{
    Array, ArraySpec, Codec, CodecError, Encoded, Knowledge, Rate, Recipe, Refusal, Registration,
};
use lamella_math::{FactorError, InverseFactor};
use lamella_quant::gptq::{self, Direction, Groups, Order, activation_order, reorder};
use lamella_quant::grid::Zero;

use super::rtn::zero_argument;
use crate::distortion::{distortion, weighted_energy};
use crate::grouped::GroupedForm;
use crate::matrix::{accepts_matrix, clamp, clamped_array, damaged, out_of_range, read_matrix, single_layer};

/// `gptq(bits=4, group_size=128, groups=static, zero=float, order=natural)`.
#[derive(Debug, Clone)]
pub struct Gptq {
    recipe: Recipe,
    bits: u32,
    group_size: usize,
    groups: Groups,
    zero: Zero,
    order: Order,
    damping: f64,
}

/// How recipes name it.
pub fn registration() -> Registration {
    Registration {
        name: "gptq",
        summary: "round on grids per group, errors fed forward through the inputs' second moment",
        arguments: &[
            ("bits", "4", "bits of a code, 2 to 8"),
            (
                "group_size",
                "128",
                "inputs that share a grid, 1 to 65536; the last group of a row may be shorter",
            ),
            (
                "groups",
                "static",
                "grids fitted to the original weights (static) or as the sweep reaches them (dynamic)",
            ),
            (
                "zero",
                "float",
                "how a grid's zero is stored: float (16 bits) or integer (as many bits as a code)",
            ),
            (
                "order",
                "natural",
                "columns as stored (natural) or by falling mean square of the inputs (activation)",
            ),
            ("damping", "0.01", "fraction of the mean diagonal added to the second moment, 0.000001 to 1"),
            (
                "sequential",
                "false",
                "take each block's statistics behind the already quantised blocks before it",
            ),
        ],
        build: |recipe| Ok(Arc::new(Gptq::from_recipe(recipe)?)),
    }
}

impl Gptq {
    fn from_recipe(recipe: &Recipe) -> Result<Self, CodecError> {
        let recipe = recipe.clone().name_positional("bits")?;
        recipe.reject_unknown(&["bits", "group_size", "groups", "zero", "order", "damping", "sequential"])?;
        recipe.flag("sequential")?;
        Ok(Self {
            bits: recipe.integer("bits", 2..=8, 4)?,
            group_size: recipe.integer("group_size", 1..=65536u32, 128)? as usize,
            groups: match recipe.word("groups", &["static", "dynamic"], "static")? {
                "dynamic" => Groups::Dynamic,
                _ => Groups::Static,
            },
            zero: zero_argument(&recipe)?,
            order: match recipe.word("order", &["natural", "activation"], "natural")? {
                "activation" => Order::Activation,
                _ => Order::Natural,
            },
            damping: recipe.number("damping", 1e-6..=1.0, 0.01)?,
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
            has_order: self.order == Order::Activation,
            groups_follow_order: self.groups == Groups::Dynamic,
        }
    }
}

impl Codec for Gptq {
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
        let columns = matrix.columns;
        let solver = |message: String| CodecError::Solver { array: array.spec.name.clone(), message };
        let settings =
            gptq::Gptq { bits: self.bits, group_size: self.group_size, groups: self.groups, zero: self.zero };
        let natural = || (0..columns as u32).collect::<Vec<u32>>();
        let (order, quantized) = match &knowledge.second_moment {
            // Without statistics every input counts the same, and the sweep is rounding to nearest.
            None => (natural(), gptq::without_feedback(&matrix.values, columns, &settings)),
            Some(moment) if moment.dimension() != columns => {
                let message =
                    format!("the second moment has {} features, the array {columns}", moment.dimension());
                return Err(solver(message));
            }
            Some(moment) => {
                let order = match self.order {
                    Order::Natural => natural(),
                    Order::Activation => activation_order(&moment.diagonal()),
                };
                match InverseFactor::in_order(moment, self.damping, &order) {
                    // No text reached these inputs.
                    Err(FactorError::Empty { .. }) => {
                        (natural(), gptq::without_feedback(&matrix.values, columns, &settings))
                    }
                    Err(error) => return Err(solver(error.to_string())),
                    Ok(factor) => {
                        let swept = reorder(&matrix.values, columns, &order, Direction::ToSweep);
                        let quantized = gptq::gptq(&swept, columns, factor.upper(), &order, &settings);
                        (order, quantized)
                    }
                }
            }
        };
        let mut reconstruction = reorder(&quantized.reconstruction, columns, &order, Direction::ToOriginal);
        clamp(&mut reconstruction, array.spec.dtype);
        let payload = self.form(matrix.rows, columns).encode(&quantized.groups, &order, &quantized.codes);
        Ok(Encoded::single(
            payload.map_err(|message| out_of_range(&array.spec, &matrix, &message))?,
            distortion(&matrix.values, &reconstruction, columns, knowledge),
            weighted_energy(&matrix.values, columns, knowledge),
        ))
    }

    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError> {
        let (rows, columns) = spec.matrix().ok_or_else(|| damaged(spec, 0, "the array has not 2 axes"))?;
        let payload = single_layer(spec, layers)?;
        let values = self.form(rows, columns).decode(payload).map_err(|message| damaged(spec, 0, message))?;
        clamped_array(spec, values)
    }
}
