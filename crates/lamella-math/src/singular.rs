//! The leading singular triplets of a matrix, in `f64`, one thread.

use faer::MatRef;

/// `A ~ left * right`, each triplet's singular value shared evenly between both sides.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRankPair {
    /// Triplets kept.
    pub rank: usize,
    /// `U_k sqrt(s_k)`, `[rows, rank]` row-major.
    pub left: Vec<f64>,
    /// `sqrt(s_k) V_k^T`, `[rank, columns]` row-major.
    pub right: Vec<f64>,
}

/// The best approximation of rank `rank` (at most the smaller side) to a row-major matrix, by squared error.
///
/// `None` where the matrix is not `rows * columns` finite numbers, or its singular values do not converge.
///
/// ```
/// use lamella_math::low_rank_pair;
/// let pair = low_rank_pair(&[2.0, 4.0, 1.0, 2.0], 2, 2, 1).unwrap();
/// assert!((pair.left[0] * pair.right[1] - 4.0).abs() < 1e-12);
/// ```
pub fn low_rank_pair(matrix: &[f64], rows: usize, columns: usize, rank: usize) -> Option<LowRankPair> {
    if rows.checked_mul(columns)? != matrix.len() || matrix.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let rank = rank.min(rows).min(columns);
    if rank == 0 {
        return Some(LowRankPair { rank, left: Vec::new(), right: Vec::new() });
    }
    let decomposed = MatRef::from_row_major_slice(matrix, rows, columns).thin_svd().ok()?;
    let (u, v, s) = (decomposed.U(), decomposed.V(), decomposed.S().column_vector());
    let root = |k: usize| s[k].max(0.0).sqrt();
    let left = (0..rows * rank).map(|i| u[(i / rank, i % rank)] * root(i % rank)).collect();
    let right = (0..rank * columns).map(|i| v[(i % columns, i / columns)] * root(i / columns)).collect();
    Some(LowRankPair { rank, left, right })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_rank_returns_the_matrix_and_less_is_worse() {
        let (rows, columns) = (5, 7);
        let matrix: Vec<f64> = (0..rows * columns).map(|i| ((i * 37) % 23) as f64 - 11.0).collect();
        let error = |rank: usize| -> f64 {
            let pair = low_rank_pair(&matrix, rows, columns, rank).unwrap();
            let product = |i: usize| -> f64 {
                (0..pair.rank)
                    .map(|k| pair.left[i / columns * pair.rank + k] * pair.right[k * columns + i % columns])
                    .sum()
            };
            matrix.iter().enumerate().map(|(i, value)| (value - product(i)).powi(2)).sum()
        };
        assert!(error(9) < 1e-18);
        assert!(error(1) > error(2) && error(2) > error(4));
        assert_eq!(low_rank_pair(&matrix, 5, 6, 1), None);
        assert_eq!(low_rank_pair(&[f64::NAN], 1, 1, 1), None);
    }
}
