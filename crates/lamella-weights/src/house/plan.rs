//! Which steps an array gets at a relative step.

use super::form::{MAX_EXPONENT, MAX_ROW_EXPONENT, group_of, power, stored_base};
use lamella_quant::sweep::{RowSource, Steps, strips};

/// Exponents and base of the columns for steps in proportion to `ideal` (positive numbers).
pub fn quantized_steps(ideal: &[f64]) -> (f32, Vec<i32>) {
    let logs: Vec<f64> = ideal.iter().map(|step| 4.0 * step.log2()).collect();
    let mut sorted = logs.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    let exponents: Vec<i32> =
        logs.iter().map(|log| ((log - median).round() as i32).clamp(-MAX_EXPONENT, MAX_EXPONENT)).collect();
    // The base takes what rounding left on average, so that the rate does not depend on it.
    let left: f64 =
        logs.iter().zip(&exponents).map(|(log, &exponent)| log - median - f64::from(exponent)).sum::<f64>()
            / logs.len().max(1) as f64;
    (stored_base(((median + left) / 4.0).exp2() as f32), exponents)
}

/// Geometric mean of the factor's diagonal against the root mean square weight: the step at which every array of a
/// network gets about the same rate. 0 for a matrix of zeros.
pub fn unit_step(weights: &[f32], diagonal: &[f32]) -> f64 {
    let squares = weights.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
    unit_of_squares(squares, weights.len(), diagonal)
}

/// [`unit_step`] of a matrix that is read in strips.
pub fn unit_step_of_rows(weights: &dyn RowSource, diagonal: &[f32]) -> f64 {
    let mut squares = 0.0f64;
    for strip in strips(weights.rows(), weights.columns()) {
        squares = weights.read(strip).iter().fold(squares, |sum, &w| sum + f64::from(w) * f64::from(w));
    }
    unit_of_squares(squares, weights.rows() * weights.columns(), diagonal)
}

fn unit_of_squares(squares: f64, elements: usize, diagonal: &[f32]) -> f64 {
    let logs: f64 = diagonal.iter().map(|&u| f64::from(u).ln()).sum();
    (squares / elements.max(1) as f64).sqrt() / (logs / diagonal.len().max(1) as f64).exp()
}

/// Half octaves per row for how often rows are used: steps grow as usage falls, to the power -`power`.
///
/// A share of the mean is added to every count: what calibration did not see may still be used.
pub fn row_exponents(usage: &[f64], power: f64) -> Vec<i32> {
    const UNSEEN: f64 = 0.3;
    let mean = usage.iter().map(|&count| count.max(0.0)).sum::<f64>() / usage.len().max(1) as f64;
    if !(mean > 0.0 && mean.is_finite()) {
        return Vec::new();
    }
    let relative = |count: f64| (count.max(0.0) + UNSEEN * mean) / ((1.0 + UNSEEN) * mean);
    let exponent = |&count: &f64| (-2.0 * power * relative(count).log2()).round() as i32;
    usage.iter().map(|count| exponent(count).clamp(-MAX_ROW_EXPONENT, MAX_ROW_EXPONENT)).collect()
}

/// The steps as the sweep wants them.
pub fn steps(base: f32, columns: &[i32], rows: &[i32]) -> Steps {
    Steps {
        columns: columns.iter().map(|&exponent| base * power(exponent)).collect(),
        rows: rows.iter().map(|&exponent| power(2 * exponent)).collect(),
        groups: columns.iter().map(|&exponent| group_of(exponent)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantized_steps_stay_near_and_keep_the_average() {
        let ideal: Vec<f64> = (0..100).map(|i| 0.01 * (1.0 + f64::from(i % 17))).collect();
        let (base, exponents) = quantized_steps(&ideal);
        let logs: Vec<f64> = exponents
            .iter()
            .zip(&ideal)
            .map(|(&exponent, step)| (f64::from(base * power(exponent)) / step).log2())
            .collect();
        assert!(logs.iter().all(|log| log.abs() < 0.26), "{logs:?}");
        assert!((logs.iter().sum::<f64>() / 100.0).abs() < 0.002);
    }

    #[test]
    fn seldom_used_rows_get_larger_steps() {
        let rows = row_exponents(&[1000.0, 10.0, 0.0, 0.0], 0.5);
        assert!(rows[0] < rows[1] && rows[1] <= rows[2], "{rows:?}");
        assert!(row_exponents(&[0.0, 0.0], 0.5).is_empty());
        assert!(row_exponents(&[f64::NAN, 1.0], 0.5).len() < 3);
    }
}
