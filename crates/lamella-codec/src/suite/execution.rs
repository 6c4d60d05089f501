//! The law of coded execution: a linear that runs from its codes multiplies as the decoded matrix does.

use super::laws::describe;
use super::{Run, Violation, synthetic};
use crate::{ArraySpec, CodedLinear, Dtype};

/// Tokens multiplied at once.
const TOKENS: usize = 3;
/// Outputs beside the linear's own, which it must leave alone.
const BEFORE: usize = 2;
const AFTER: usize = 1;

impl Run<'_> {
    pub(super) fn execution(&mut self) -> Result<(), Violation> {
        for shape in [vec![24, 40], vec![45, 72], vec![1, 16]] {
            let spec = ArraySpec::new("suite", shape, Dtype::F32);
            if self.codec.accepts(&spec).is_err() {
                continue;
            }
            let array = self.synthetic(&spec, 13)?;
            for rate in self.rates() {
                let case = describe(&spec, rate);
                let broken = |message: String| self.broken("execution", &case, message);
                let encoded = self.encode("execution", &array, &synthetic::knowledge(&spec, 13), rate)?;
                let layers: Vec<&[u8]> = encoded.layers.iter().map(|layer| &layer.payload[..]).collect();
                let run = self.codec.execute(&spec, &layers).map_err(|error| broken(error.to_string()))?;
                let Some(linear) = run else { return Ok(()) };
                let decoded = self.codec.decode(&spec, &layers).and_then(|array| Ok(array.to_f32()?));
                let decoded = decoded.map_err(|error| broken(error.to_string()))?;
                check_product(&*linear, &decoded, spec.shape[1], self.cases.execution_tolerance)
                    .map_err(broken)?;
                self.checked.n_executed += 1;
            }
        }
        Ok(())
    }
}

/// Compares a linear that runs from its codes with the matrix `[rows, columns]` that the codes decode to.
///
/// Every row must come back within `1e-5` of the largest weight; a product of a row and an input within `tolerance` times
/// the product of their Euclidean lengths.
///
/// # Errors
/// A sentence that says which row differs.
pub fn check_product(
    linear: &dyn CodedLinear,
    weights: &[f32],
    columns: usize,
    tolerance: f32,
) -> Result<(), String> {
    let rows = weights.len() / columns.max(1);
    let stride = BEFORE + rows + AFTER;
    let inputs: Vec<f32> = (0..TOKENS * columns).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    let mut outputs = vec![f32::NAN; TOKENS * stride];
    linear.apply(&inputs, TOKENS, &mut outputs, stride, BEFORE);
    let largest = weights.iter().fold(0.0f32, |most, weight| most.max(weight.abs()));
    let length = |vector: &[f32]| vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    for (row, own) in weights.chunks_exact(columns).enumerate() {
        let mut read = vec![1.0; columns];
        linear.add_row(row, &mut read);
        let is_same = |(&sum, &weight): (&f32, &f32)| (sum - 1.0 - weight).abs() <= 1e-5 * largest.max(1.0);
        if let Some(column) = read.iter().zip(own).position(|pair| !is_same(pair)) {
            let found = read[column] - 1.0;
            return Err(format!("weight [{row}, {column}] reads as {found}, decodes to {}", own[column]));
        }
        for (token, input) in inputs.chunks_exact(columns).enumerate() {
            let exact: f32 = own.iter().zip(input).map(|(weight, x)| weight * x).sum();
            let found = outputs[token * stride + BEFORE + row];
            let allowed = tolerance * length(own) * length(input) + 1e-6;
            // A product that is NaN does not pass.
            let is_close = (found - exact).abs() <= allowed;
            if !is_close {
                return Err(format!("row {row} times input {token} is {exact}, not {found}"));
            }
        }
    }
    let is_beside = |&at: &usize| !(BEFORE..BEFORE + rows).contains(&(at % stride));
    match (0..outputs.len()).filter(is_beside).find(|&at| !outputs[at].is_nan()) {
        Some(at) => Err(format!("output {} of token {} is not the linear's own", at % stride, at / stride)),
        None => Ok(()),
    }
}
