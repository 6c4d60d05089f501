//! What a model is worth: the bits that coding under it takes, measured on the moment it stands for.
//!
//! Error feedback under the factor of a model `H'` leaves a loss of `trace(H H'^-1)` squared steps and takes
//! `log det(H') / 2` bits more than the logarithm of the step says. At equal loss a weight therefore takes
//! `log2(trace(H H'^-1) / n) / 2 + log2(det H') / 2n` bits and something that is the same for all models.

use super::DiagonalPlusLowRank;
use crate::SecondMoment;
use crate::matrix::{Layout, multiply_add};

impl DiagonalPlusLowRank {
    /// The model with loadings that are whole multiples of `step`.
    #[must_use]
    pub fn rounded(&self, step: f64) -> Self {
        let round = |&m: &f32| ((f64::from(m) / step).round() * step) as f32;
        Self {
            dimension: self.dimension,
            diagonal: self.diagonal.clone(),
            loadings: self.loadings.iter().map(round).collect(),
        }
    }

    /// Bits that a weight takes more under this model than under the diagonal alone, at equal loss: negative where the
    /// model is of use. `moment` is what the model was fitted to.
    pub fn bits_against_diagonal(&self, moment: &SecondMoment) -> f64 {
        let (n, rank) = (self.dimension, self.rank());
        if rank == 0 || moment.dimension() != n {
            return 0.0;
        }
        // In units of the features' own noise H' is I + M M^T, and H has the same diagonal.
        let mut common = vec![0.0f64; n];
        for row in self.loadings.chunks_exact(n) {
            common.iter_mut().zip(row).for_each(|(sum, &m)| *sum += f64::from(m).powi(2));
        }
        let own: Vec<f64> = self.diagonal.iter().zip(&common).map(|(d, c)| (d / (1.0 + c)).sqrt()).collect();
        let inverse_tokens = 1.0 / moment.tokens().max(1) as f64;
        let added: Vec<f64> = self
            .diagonal
            .iter()
            .enumerate()
            .map(|(j, d)| d - f64::from(moment.sum()[j * n + j]) * inverse_tokens)
            .collect();
        let scaled: Vec<f32> =
            self.loadings.iter().enumerate().map(|(at, &m)| (f64::from(m) / own[at % n]) as f32).collect();
        let mut product = vec![0.0f32; scaled.len()];
        let (shape, square) = (Layout::row_major(rank, n), Layout::row_major(n, n));
        multiply_add(&mut product, shape, 0.0, &scaled, shape, moment.sum(), square, 1.0);
        // `M^T H M` in those units, and `I + M^T M`.
        let pair = |a: usize, b: usize| -> (f64, f64) {
            let (mut seen, mut gram) = (0.0, f64::from(u8::from(a == b)));
            for j in 0..n {
                let (left, right) =
                    (f64::from(self.loadings[a * n + j]), f64::from(self.loadings[b * n + j]));
                let value = f64::from(product[a * n + j]) * inverse_tokens / own[j];
                seen += right * (value + left * added[j] / (own[j] * own[j]));
                gram += left * right;
            }
            (seen, gram)
        };
        let (mut seen, mut gram) = (vec![0.0f64; rank * rank], vec![0.0f64; rank * rank]);
        for at in 0..rank * rank {
            (seen[at], gram[at]) = pair(at / rank, at % rank);
        }
        let (explained, log2_determinant) = trace_of_quotient(&mut gram, &mut seen, rank);
        let total: f64 = common.iter().map(|c| 1.0 + c).sum();
        let log2_own: f64 = common.iter().map(|c| (1.0 + c).log2()).sum();
        let loss = ((total - explained) / n as f64).max(f64::MIN_POSITIVE);
        0.5 * loss.log2() + 0.5 * (log2_determinant - log2_own) / n as f64
    }
}

/// `trace(gram^-1 seen)` and `log2 det gram` by Cholesky's factor of `gram`; both matrices are used up.
fn trace_of_quotient(gram: &mut [f64], seen: &mut [f64], rank: usize) -> (f64, f64) {
    let mut log2_determinant = 0.0;
    for k in 0..rank {
        for j in 0..=k {
            let sum: f64 = (0..j).map(|l| gram[k * rank + l] * gram[j * rank + l]).sum();
            let left = gram[k * rank + j] - sum;
            gram[k * rank + j] = if j == k { left.max(1e-12).sqrt() } else { left / gram[j * rank + j] };
        }
        log2_determinant += 2.0 * gram[k * rank + k].log2();
    }
    // Both sides are solved for: the trace of `L^-1 seen L^-T`.
    for _ in 0..2 {
        for column in 0..rank {
            for k in 0..rank {
                let sum: f64 = (0..k).map(|l| gram[k * rank + l] * seen[l * rank + column]).sum();
                seen[k * rank + column] = (seen[k * rank + column] - sum) / gram[k * rank + k];
            }
        }
        for a in 0..rank {
            for b in 0..a {
                seen.swap(a * rank + b, b * rank + a);
            }
        }
    }
    ((0..rank).map(|k| seen[k * rank + k]).sum(), log2_determinant)
}

#[cfg(test)]
mod tests {
    use super::super::tests::structured;
    use super::*;
    use crate::InverseFactor;

    /// The same figure by dense matrices.
    fn by_dense_matrices(model: &DiagonalPlusLowRank, moment: &SecondMoment, damping: f64) -> f64 {
        let n = model.dimension();
        let common = |j: usize| -> f64 {
            (0..model.rank()).map(|k| f64::from(model.loadings()[k * n + j]).powi(2)).sum()
        };
        let own: Vec<f64> = (0..n).map(|j| (model.diagonal()[j] / (1.0 + common(j))).sqrt()).collect();
        let cell = |i: usize, j: usize| -> f64 {
            let shared: f64 = (0..model.rank())
                .map(|k| f64::from(model.loadings()[k * n + i] * model.loadings()[k * n + j]))
                .sum();
            (shared + f64::from(u8::from(i == j))) * own[i] * own[j]
        };
        let dense: Vec<f32> = (0..n * n).map(|at| cell(at / n, at % n) as f32).collect();
        let factor = InverseFactor::new(&SecondMoment::from_sum(n, 1, dense).unwrap(), 0.0).unwrap();
        let tokens = moment.tokens() as f64;
        let added = damping * moment.mean_diagonal() / tokens;
        let mut trace = 0.0;
        for row in factor.upper().chunks_exact(n) {
            for i in 0..n {
                for j in 0..n {
                    let h = f64::from(moment.sum()[i * n + j]) / tokens + if i == j { added } else { 0.0 };
                    trace += f64::from(row[i]) * h * f64::from(row[j]);
                }
            }
        }
        let diagonal: f64 =
            (0..n).map(|j| (f64::from(factor.upper()[j * n + j]).powi(2) * model.diagonal()[j]).log2()).sum();
        0.5 * (trace / n as f64).log2() - 0.5 * diagonal / n as f64
    }

    #[test]
    fn worth_equals_that_of_the_dense_factor() {
        let moment = structured(60, 4);
        let model = DiagonalPlusLowRank::fit(&moment, 0.02, 8).unwrap();
        for model in [model.clone(), model.truncated(2), model.rounded(0.3), model.truncated(3).rounded(0.7)]
        {
            let (found, expected) =
                (model.bits_against_diagonal(&moment), by_dense_matrices(&model, &moment, 0.02));
            assert!((found - expected).abs() < 1e-3, "{found} for {expected} at rank {}", model.rank());
        }
    }

    #[test]
    fn directions_that_are_there_are_worth_most() {
        let moment = structured(60, 4);
        let model = DiagonalPlusLowRank::fit(&moment, 0.0, 12).unwrap();
        let worth = |rank: usize| model.truncated(rank).bits_against_diagonal(&moment);
        assert_eq!(worth(0), 0.0);
        assert!(worth(1) < 0.0 && worth(4) < worth(2) - 0.1, "{} {} {}", worth(1), worth(2), worth(4));
        assert!(worth(12) > worth(4) - 0.01);
        assert!(model.truncated(4).rounded(1.0).bits_against_diagonal(&moment) > worth(4));
    }
}
