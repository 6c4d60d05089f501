//! What solvers with error feedback read of a linear's inputs: the order of the columns and the factor of the second
//! moment in that order.

use lamella_codec::{ArraySpec, CodecError, Knowledge};
use lamella_math::{FactorError, InverseFactor};
use lamella_quant::gptq::{Order, activation_order};

/// An order of columns with the factor that the sweep needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Factored {
    /// Original column at each position of the sweep.
    pub order: Vec<u32>,
    /// `U`, `[columns, columns]` row-major in that order; empty where nothing is known of the inputs, which stands
    /// for the identity ([`lamella_quant::feedback::sweep`]).
    pub upper: Vec<f32>,
}

impl Factored {
    /// The columns as they are stored, and nothing known of the inputs.
    pub fn unknown(columns: usize) -> Self {
        Self { order: (0..columns as u32).collect(), upper: Vec::new() }
    }
    /// `U_jj` for every position.
    pub fn diagonal(&self) -> Vec<f32> {
        match self.upper.is_empty() {
            true => vec![1.0; self.order.len()],
            false => self.upper.iter().step_by(self.order.len() + 1).copied().collect(),
        }
    }
}

/// Factors the second moment of what an array multiplies. Where none is known, or no text reached the inputs, every
/// column counts the same.
///
/// # Errors
/// A moment of another width than the array, or one that cannot be factored.
pub fn factored(
    spec: &ArraySpec,
    columns: usize,
    knowledge: &Knowledge,
    order: Order,
    damping: f64,
) -> Result<Factored, CodecError> {
    let order = match (order, &knowledge.second_moment) {
        (Order::Activation, Some(moment)) => activation_order(&moment.diagonal()),
        _ => (0..columns as u32).collect(),
    };
    factored_in(spec, columns, knowledge, order, damping)
}

/// [`factored`] in any order of the columns.
///
/// # Errors
/// As [`factored`].
pub fn factored_in(
    spec: &ArraySpec,
    columns: usize,
    knowledge: &Knowledge,
    order: Vec<u32>,
    damping: f64,
) -> Result<Factored, CodecError> {
    let solver = |message: String| CodecError::Solver { array: spec.name.clone(), message };
    let Some(moment) = &knowledge.second_moment else { return Ok(Factored::unknown(columns)) };
    if moment.dimension() != columns {
        let message = format!("the second moment has {} features, the array {columns}", moment.dimension());
        return Err(solver(message));
    }
    match InverseFactor::in_order(moment, damping, &order) {
        Err(FactorError::Empty { .. }) => Ok(Factored::unknown(columns)),
        Err(error) => Err(solver(error.to_string())),
        Ok(factor) => Ok(Factored { upper: factor.upper().to_vec(), order }),
    }
}
