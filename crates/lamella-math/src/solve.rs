//! Solving with a symmetric positive definite matrix, in `f64`, one thread.

use faer::linalg::solvers::Solve;
use faer::{MatRef, Side};

/// `X` of `A X = B` for a row-major symmetric `A` `[n, n]` and `B` `[n, columns]`; `None` where `A` is not positive
/// definite or a shape does not fit.
///
/// ```
/// let solved = lamella_math::solve_positive(&[4.0, 0.0, 0.0, 2.0], 2, &[8.0, 1.0], 1).expect("positive definite");
/// assert!((solved[0] - 2.0).abs() < 1e-12 && (solved[1] - 0.5).abs() < 1e-12);
/// ```
pub fn solve_positive(matrix: &[f64], n: usize, right: &[f64], columns: usize) -> Option<Vec<f64>> {
    if n.checked_mul(n)? != matrix.len() || n.checked_mul(columns)? != right.len() {
        return None;
    }
    let factor = MatRef::from_row_major_slice(matrix, n, n).llt(Side::Lower).ok()?;
    let solved = factor.solve(MatRef::from_row_major_slice(right, n, columns));
    let values: Vec<f64> = (0..n * columns).map(|i| solved[(i / columns, i % columns)]).collect();
    values.iter().all(|value| value.is_finite()).then_some(values)
}
