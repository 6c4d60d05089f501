//! Cholesky factors of second moments, in `f64`, one thread, any order of columns.
//!
//! Error feedback needs the upper factor `U` of the inverse of the damped second moment `H`, `H^-1 = U^T U`:
//! `1 / U_jj^2` is what one unit of squared error in column `j` costs once all later columns have been moved to
//! hide it, and `U_jk / U_jj` says by how much column `k` moves.
//!
//! # How
//! No inverse of `H` is formed. With `P` the reversal of the order, `P H P = L L^T` gives `H = R R^T` for the
//! upper triangular `R = P L P`, and `U = R^-1` follows from `H^-1 = R^-T R^-1`. So `U` costs one Cholesky
//! factorisation and one triangular inverse: `2 n^3 / 3` multiply-adds, `16 n^2` bytes.
//!
//! # Example
//! ```
//! use lamella_math::{InverseFactor, SecondMoment};
//! let moment = SecondMoment::from_sum(2, 1, vec![4.0, 2.0, 2.0, 2.0]).unwrap();
//! let factor = InverseFactor::new(&moment, 0.0).unwrap();
//! // The inverse is [[0.5, -0.5], [-0.5, 1.0]] = U^T U with U below.
//! let root = 0.5f32.sqrt();
//! for (found, expected) in factor.upper().iter().zip([root, -root, 0.0, root]) {
//!     assert!((found - expected).abs() < 1e-6);
//! }
//! ```

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltError, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{MatMut, MatRef, Par};

use crate::SecondMoment;

/// Why a matrix has no factor.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FactorError {
    /// A leading minor is not positive: inputs that are copies of one another, and too little damping.
    #[error(
        "the second moment is not positive definite: the minor of feature {feature} fails, of {dimension} (damping {damping})"
    )]
    NotPositive {
        /// Feature whose pivot is not positive, in the moment's own numbering.
        feature: usize,
        /// Features of the moment.
        dimension: usize,
        /// Damping that was added, a fraction of the mean diagonal.
        damping: f64,
    },
    /// Nothing was accumulated, or only zeros.
    #[error("the second moment of {dimension} features is zero: no inputs were seen")]
    Empty {
        /// Features of the moment.
        dimension: usize,
    },
    /// The moment holds infinities or NaN.
    #[error("the second moment is not finite at feature {feature}")]
    NonFinite {
        /// First feature whose row is not finite.
        feature: usize,
    },
    /// The order of columns is no permutation of the features.
    #[error("the order of {found} columns is no permutation of {dimension} features")]
    BadOrder {
        /// Entries of the order.
        found: usize,
        /// Features of the moment.
        dimension: usize,
    },
}

/// The upper factor `U` of an inverse damped second moment, `H^-1 = U^T U`.
///
/// `H` is the mean of `x x^T` plus `damping` times the mean of its diagonal on the diagonal.
#[derive(Debug, Clone, PartialEq)]
pub struct InverseFactor {
    dimension: usize,
    damping: f64,
    absolute_damping: f64,
    upper: Vec<f32>,
}

impl InverseFactor {
    /// Factor in the moment's own order.
    ///
    /// # Errors
    /// An empty moment, numbers that are not finite, a minor that is not positive.
    pub fn new(moment: &SecondMoment, damping: f64) -> Result<Self, FactorError> {
        Self::solve(moment, damping, |position| position)
    }

    /// Factor with columns in another order: position `p` of the factor is feature `order[p]`.
    ///
    /// # Errors
    /// As [`InverseFactor::new`], and an order that is no permutation.
    pub fn in_order(moment: &SecondMoment, damping: f64, order: &[u32]) -> Result<Self, FactorError> {
        let dimension = moment.dimension();
        let mut seen = vec![false; dimension];
        for &feature in order {
            match seen.get_mut(feature as usize) {
                Some(slot) if !*slot => *slot = true,
                _ => return Err(FactorError::BadOrder { found: order.len(), dimension }),
            }
        }
        if order.len() != dimension {
            return Err(FactorError::BadOrder { found: order.len(), dimension });
        }
        Self::solve(moment, damping, |position| order[position] as usize)
    }

    fn solve(
        moment: &SecondMoment,
        damping: f64,
        feature: impl Fn(usize) -> usize,
    ) -> Result<Self, FactorError> {
        let dimension = moment.dimension();
        let sum = moment.sum();
        if let Some(position) = sum.iter().position(|value| !value.is_finite()) {
            return Err(FactorError::NonFinite { feature: position / dimension.max(1) });
        }
        let inverse_tokens = 1.0 / moment.tokens().max(1) as f64;
        let absolute_damping = damping * moment.mean_diagonal() * inverse_tokens;
        if dimension > 0 && moment.mean_diagonal() <= 0.0 {
            return Err(FactorError::Empty { dimension });
        }
        // Column-major and reversed: element (i, j) of P H P.
        let mut matrix = vec![0.0f64; dimension * dimension];
        for j in 0..dimension {
            let source = feature(dimension - 1 - j) * dimension;
            for i in j..dimension {
                matrix[j * dimension + i] =
                    f64::from(sum[source + feature(dimension - 1 - i)]) * inverse_tokens;
            }
            matrix[j * dimension + j] += absolute_damping;
        }
        let view = MatMut::from_column_major_slice_mut(&mut matrix, dimension, dimension);
        let scratch = cholesky_in_place_scratch::<f64>(dimension, Par::Seq, Default::default());
        let mut buffer = MemBuffer::new(scratch);
        cholesky_in_place(view, Default::default(), Par::Seq, MemStack::new(&mut buffer), Default::default())
            .map_err(|LltError::NonPositivePivot { index }| FactorError::NotPositive {
                feature: feature(dimension - 1 - index.min(dimension - 1)),
                dimension,
                damping,
            })?;
        let mut inverse = vec![0.0f64; dimension * dimension];
        invert_lower_triangular(
            MatMut::from_column_major_slice_mut(&mut inverse, dimension, dimension),
            MatRef::from_column_major_slice(&matrix, dimension, dimension),
            Par::Seq,
        );
        // L^-1 reversed in both directions is R^-1 = U; column-major reversed reads as row-major transposed.
        let mut upper = vec![0.0f32; dimension * dimension];
        for row in 0..dimension {
            for column in row..dimension {
                let (i, j) = (dimension - 1 - row, dimension - 1 - column);
                upper[row * dimension + column] = inverse[j * dimension + i] as f32;
            }
        }
        if let Some(position) = upper.iter().position(|value| !value.is_finite()) {
            let row = position / dimension;
            return Err(FactorError::NotPositive { feature: feature(row), dimension, damping });
        }
        Ok(Self { dimension, damping, absolute_damping, upper })
    }

    /// Features.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Damping, as a fraction of the mean diagonal.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// What was added to each diagonal element of the mean of `x x^T`.
    pub fn absolute_damping(&self) -> f64 {
        self.absolute_damping
    }

    /// `U`, row-major `[dimension, dimension]`, zero below the diagonal.
    pub fn upper(&self) -> &[f32] {
        &self.upper
    }

    /// The diagonal of `U`, all positive.
    pub fn diagonal(&self) -> Vec<f32> {
        self.upper.iter().step_by(self.dimension + 1).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moment(dimension: usize, tokens: usize, seed: u64) -> SecondMoment {
        let mut state = seed | 1;
        let rows: Vec<f32> = (0..dimension * tokens)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect();
        let mut moment = SecondMoment::new(dimension);
        moment.accumulate(&rows);
        moment
    }

    /// Largest deviation of `U H U^T` from the identity.
    fn whiteness(factor: &InverseFactor, moment: &SecondMoment, order: &[usize]) -> f64 {
        let n = moment.dimension();
        let mut worst = 0.0f64;
        for a in 0..n {
            for b in 0..n {
                let mut total = 0.0;
                for i in 0..n {
                    for j in 0..n {
                        let mut h = f64::from(moment.sum()[order[i] * n + order[j]]) / moment.tokens() as f64;
                        if i == j {
                            h += factor.absolute_damping();
                        }
                        total +=
                            f64::from(factor.upper()[a * n + i]) * h * f64::from(factor.upper()[b * n + j]);
                    }
                }
                worst = worst.max((total - f64::from(u8::from(a == b))).abs());
            }
        }
        worst
    }

    proptest! {
        #[test]
        fn whitens_the_second_moment(dimension in 1usize..12, extra in 2usize..40, seed in 1u64..1000) {
            let moment = moment(dimension, dimension + extra, seed);
            let factor = InverseFactor::new(&moment, 0.01).unwrap();
            let natural: Vec<usize> = (0..dimension).collect();
            prop_assert!(whiteness(&factor, &moment, &natural) < 1e-3);
            let order: Vec<usize> = (0..dimension).rev().collect();
            let as_u32: Vec<u32> = order.iter().map(|&p| p as u32).collect();
            let factor = InverseFactor::in_order(&moment, 0.01, &as_u32).unwrap();
            prop_assert!(whiteness(&factor, &moment, &order) < 1e-3);
        }
    }

    #[test]
    fn the_failing_minor_is_named() {
        // Feature 0 repeats feature 2; reversed elimination finds out at feature 0.
        let sum = vec![1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0];
        let moment = SecondMoment::from_sum(3, 1, sum).unwrap();
        assert_eq!(
            InverseFactor::new(&moment, 0.0),
            Err(FactorError::NotPositive { feature: 0, dimension: 3, damping: 0.0 })
        );
        assert!(InverseFactor::new(&moment, 0.01).is_ok());
        assert_eq!(InverseFactor::new(&SecondMoment::new(3), 0.01), Err(FactorError::Empty { dimension: 3 }));
        assert!(matches!(
            InverseFactor::in_order(&moment, 0.01, &[0, 0, 1]),
            Err(FactorError::BadOrder { found: 3, dimension: 3 })
        ));
    }
}
