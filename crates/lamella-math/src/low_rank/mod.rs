//! Second moments as diagonal plus low rank: few enough numbers to be stored, good enough to shape errors by.
//!
//! # Idea
//! Inputs of a network's modules have a few strong common directions and much that is each feature's own. Factor
//! analysis says so: `H ~ T (I + M M^T) T`, `T` diagonal, `M` `[dimension, rank]`. What it keeps is judged by what
//! error feedback loses when it believes the model: `trace(H' ^-1 H) + log det H'`, the likelihood of factor analysis.
//!
//! # How
//! On the unit-diagonal form `R` of the damped moment, in turn until settled (a fixed number of rounds): eigenvectors
//! of `Psi^-1/2 R Psi^-1/2` by a step of subspace iteration and one of Rayleigh and Ritz, `M_k = v_k sqrt(theta_k - 1)`, and
//! `Psi = 1 - diag(Psi^1/2 M M^T Psi^1/2)`. Two products `dimension^2 * rank` a round.
//!
//! The loadings `M` are in units of each feature's own noise: rounding all of them to one step is then right, and
//! `I + M M^T` is positive definite whatever their values. [`Recursion`] turns them into the Cholesky factor's action
//! at `rank` multiply-adds a weight.
//!
//! Source: D. N. Lawley, "The estimation of factor loadings by the method of maximum likelihood", 1940; K. G. Joreskog,
//! "Some contributions to maximum likelihood factor analysis", 1967.

mod choice;
mod eigen;
mod recursion;
mod vector;

pub use recursion::{LANES, Recursion};

use crate::matrix::{Layout, multiply_add};
use crate::{FactorError, InverseFactor, SecondMoment};
use eigen::{orthonormalize, symmetric_eigen};

/// Rounds of eigenvectors and own variances.
const ROUNDS: usize = 24;
/// Steps of subspace iteration before own variances are first touched.
const FIRST_STEPS: usize = 8;
/// Directions carried along beside those asked for: they make the iteration settle.
const SPARE: usize = 8;
/// Smallest share of a feature's variance that is taken for its own.
const OWN_SHARE: f64 = 1.0 / 512.0;

/// Damping of the inverse that own variances start from: it exists also where no damping is asked for.
const LEAST_DAMPING: f64 = 1e-6;

/// `H ~ T (I + M M^T) T` with the exact diagonal of `H`.
#[derive(Debug, Clone, PartialEq)]
pub struct DiagonalPlusLowRank {
    dimension: usize,
    /// Diagonal of the damped mean second moment.
    diagonal: Vec<f64>,
    /// `M`, `[rank, dimension]`, strongest direction first.
    loadings: Vec<f32>,
}

impl DiagonalPlusLowRank {
    /// The best model of at most `rank` directions (never more than a quarter of the features).
    ///
    /// `damping` times the mean diagonal is added to the diagonal first.
    ///
    /// # Errors
    /// [`FactorError::Empty`] and [`FactorError::NonFinite`].
    pub fn fit(moment: &SecondMoment, damping: f64, rank: usize) -> Result<Self, FactorError> {
        let dimension = moment.dimension();
        if let Some(position) = moment.sum().iter().position(|value| !value.is_finite()) {
            return Err(FactorError::NonFinite { feature: position / dimension.max(1) });
        }
        if dimension > 0 && moment.mean_diagonal() <= 0.0 {
            return Err(FactorError::Empty { dimension });
        }
        let inverse_tokens = 1.0 / moment.tokens().max(1) as f64;
        let added = damping * moment.mean_diagonal() * inverse_tokens;
        let sums = moment.diagonal();
        let diagonal: Vec<f64> = sums.iter().map(|&sum| f64::from(sum) * inverse_tokens + added).collect();
        let mut model = Self { dimension, diagonal, loadings: Vec::new() };
        let rank = rank.min(dimension / 4);
        if rank > 0 {
            model.solve(moment, inverse_tokens, damping, rank)?;
        }
        Ok(model)
    }

    fn solve(
        &mut self,
        moment: &SecondMoment,
        inverse_tokens: f64,
        damping: f64,
        rank: usize,
    ) -> Result<(), FactorError> {
        let n = self.dimension;
        let width = (rank + SPARE).min(n);
        let roots: Vec<f64> = self.diagonal.iter().map(|value| 1.0 / value.sqrt()).collect();
        let mut unit = vec![0.0f32; n * n];
        for (i, (row, sums)) in unit.chunks_exact_mut(n).zip(moment.sum().chunks_exact(n)).enumerate() {
            for (j, (cell, &sum)) in row.iter_mut().zip(sums).enumerate() {
                *cell = (f64::from(sum) * inverse_tokens * roots[i] * roots[j]) as f32;
            }
            row[i] = 1.0;
        }
        let mut own = upper_bounds(moment, damping, &self.diagonal)?;
        // Directions as rows, `[width, n]`.
        let mut directions = start(width, n);
        orthonormalize(&mut directions, n);
        let mut kept = rank;
        for round in 0..ROUNDS {
            // Own variances have changed: eigenvectors of the old whitening would be believed where they are no longer
            // any, and a feature's own variance, once lost, does not come back.
            for _ in 0..if round == 0 { FIRST_STEPS } else { 1 } {
                directions = image(&unit, &own, &directions);
                orthonormalize(&mut directions, n);
            }
            let image = image(&unit, &own, &directions);
            let inner: Vec<f64> = (0..width * width)
                .map(|at| {
                    let (a, b) = (at / width * n, at % width * n);
                    dot(&directions[a..a + n], &image[b..b + n])
                })
                .collect();
            let (values, vectors) = symmetric_eigen(inner, width);
            let vectors_found = combine(&vectors, &directions, width, n);
            kept = values[..rank].iter().take_while(|&&value| value > 1.0 + 1e-3).count();
            self.loadings = vectors_found[..kept * n].iter().map(|&v| v as f32).collect();
            for (row, value) in self.loadings.chunks_exact_mut(n).zip(&values) {
                row.iter_mut().for_each(|cell| *cell *= (value - 1.0).sqrt() as f32);
            }
            if round + 1 < ROUNDS {
                for (j, psi) in own.iter_mut().enumerate() {
                    let common: f64 =
                        (0..kept).map(|k| f64::from(self.loadings[k * n + j]).powi(2)).sum::<f64>() * *psi;
                    *psi = (1.0 - common).clamp(OWN_SHARE, 1.0);
                }
                directions = combine(&vectors, &image, width, n);
                orthonormalize(&mut directions, n);
            }
        }
        self.loadings.truncate(kept * n);
        Ok(())
    }

    /// Features.
    pub fn dimension(&self) -> usize {
        self.dimension
    }
    /// Directions.
    pub fn rank(&self) -> usize {
        self.loadings.len().checked_div(self.dimension).unwrap_or(0)
    }
    /// Diagonal of the damped mean second moment.
    pub fn diagonal(&self) -> &[f64] {
        &self.diagonal
    }
    /// `M`, `[rank, dimension]`, in units of each feature's own noise.
    pub fn loadings(&self) -> &[f32] {
        &self.loadings
    }

    /// The model with only its first `rank` directions: what the others explained becomes the features' own.
    #[must_use]
    pub fn truncated(&self, rank: usize) -> Self {
        let n = self.dimension;
        if rank >= self.rank() {
            return self.clone();
        }
        let sum = |j: usize, range: std::ops::Range<usize>| -> f64 {
            range.map(|k| f64::from(self.loadings[k * n + j]).powi(2)).sum()
        };
        let mut loadings = self.loadings[..rank * n].to_vec();
        for j in 0..n {
            let shrink = (1.0 / (1.0 + sum(j, rank..self.rank()))).sqrt() as f32;
            (0..rank).for_each(|k| loadings[k * n + j] *= shrink);
        }
        Self { dimension: n, diagonal: self.diagonal.clone(), loadings }
    }
}

/// `Psi^-1/2 R Psi^-1/2` applied to each direction, `[directions, n]`.
fn image(unit: &[f32], own: &[f64], directions: &[f64]) -> Vec<f64> {
    let n = own.len();
    let scaled = |row: &mut dyn Iterator<Item = f64>| -> Vec<f64> {
        row.zip(own).map(|(value, psi)| value / psi.sqrt()).collect()
    };
    let whitened: Vec<f32> = directions
        .chunks_exact(n)
        .flat_map(|row| scaled(&mut row.iter().copied()))
        .map(|value| value as f32)
        .collect();
    let mut product = vec![0.0f32; whitened.len()];
    let (shape, square) = (Layout::row_major(whitened.len() / n, n), Layout::row_major(n, n));
    multiply_add(&mut product, shape, 0.0, &whitened, shape, unit, square, 1.0);
    product.chunks_exact(n).flat_map(|row| scaled(&mut row.iter().map(|&value| f64::from(value)))).collect()
}

/// The share of each feature's variance that the other features do not predict, `1 / (R_jj R^-1_jj)`: no model leaves
/// a feature more of its own. Starting from above keeps directions from settling on single features.
fn upper_bounds(moment: &SecondMoment, damping: f64, diagonal: &[f64]) -> Result<Vec<f64>, FactorError> {
    let n = diagonal.len();
    let factor = InverseFactor::new(moment, damping.max(LEAST_DAMPING))?;
    let mut inverse_diagonal = vec![0.0f64; n];
    for row in factor.upper().chunks_exact(n) {
        inverse_diagonal.iter_mut().zip(row).for_each(|(sum, &u)| *sum += f64::from(u).powi(2));
    }
    let bounds = inverse_diagonal.iter().zip(diagonal);
    Ok(bounds.map(|(&inverse, &variance)| (1.0 / (inverse * variance)).clamp(OWN_SHARE, 1.0)).collect())
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(a, b)| a * b).sum()
}

/// Rows `sum_b vectors[k, b] rows[b]`.
fn combine(vectors: &[f64], rows: &[f64], width: usize, n: usize) -> Vec<f64> {
    let mut out = vec![0.0; width * n];
    for (out, weights) in out.chunks_exact_mut(n).zip(vectors.chunks_exact(width)) {
        for (&weight, row) in weights.iter().zip(rows.chunks_exact(n)) {
            out.iter_mut().zip(row).for_each(|(cell, &v)| *cell += weight * v);
        }
    }
    out
}

/// Directions that are the same on every run.
fn start(width: usize, n: usize) -> Vec<f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..width * n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / f64::from(1u32 << 30) - 1.0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A moment that is diagonal plus `rank` directions exactly.
    pub(super) fn structured(n: usize, rank: usize) -> SecondMoment {
        let common = start(rank, n);
        let mut sum = vec![0.0f32; n * n];
        for i in 0..n {
            for j in 0..n {
                let shared: f64 = (0..rank).map(|k| common[k * n + i] * common[k * n + j]).sum();
                let own = if i == j { 0.3 + 0.1 * (i % 5) as f64 } else { 0.0 };
                let scale = (1.0 + (i % 3) as f64) * (1.0 + (j % 3) as f64);
                sum[i * n + j] = (100.0 * scale * (shared + own)) as f32;
            }
        }
        SecondMoment::from_sum(n, 100, sum).unwrap()
    }

    #[test]
    fn finds_the_structure_that_is_there() {
        let (n, rank) = (60, 4);
        let moment = structured(n, rank);
        let model = DiagonalPlusLowRank::fit(&moment, 0.0, 8).unwrap();
        let own: Vec<f64> = (0..n)
            .map(|j| {
                let common: f64 =
                    (0..model.rank()).map(|k| f64::from(model.loadings()[k * n + j]).powi(2)).sum();
                model.diagonal()[j] / (1.0 + common)
            })
            .collect();
        for i in 0..n {
            for j in 0..n {
                let shared: f64 = (0..model.rank())
                    .map(|k| f64::from(model.loadings()[k * n + i] * model.loadings()[k * n + j]))
                    .sum();
                let found = (shared + f64::from(u8::from(i == j))) * (own[i] * own[j]).sqrt();
                let truth = f64::from(moment.sum()[i * n + j]) / 100.0;
                let scale = (model.diagonal()[i] * model.diagonal()[j]).sqrt();
                assert!((found - truth).abs() < 0.02 * scale, "({i}, {j}): {found} for {truth}");
            }
        }
    }

    #[test]
    fn recursion_equals_the_dense_factor() {
        let (n, rows) = (50, 19);
        let model = DiagonalPlusLowRank::fit(&structured(n, 5), 0.01, 6).unwrap();
        let rank = model.rank();
        // The model itself as a dense moment, in units of own noise.
        let sum: Vec<f32> = (0..n * n)
            .map(|at| {
                let shared: f32 = (0..rank)
                    .map(|k| model.loadings()[k * n + at / n] * model.loadings()[k * n + at % n])
                    .sum();
                shared + f32::from(u8::from(at / n == at % n))
            })
            .collect();
        let dense = InverseFactor::new(&SecondMoment::from_sum(n, 1, sum).unwrap(), 0.0).unwrap();
        let recursion = Recursion::new(model.loadings(), n);
        for j in 0..n {
            let expected = dense.upper()[j * n + j];
            assert!((1.0 / recursion.pivots()[j] - expected).abs() < 1e-4 * expected, "diagonal {j}");
        }
        let steps: Vec<f32> = recursion.pivots().iter().map(|pivot| 1.0 / pivot).collect();
        let recursion = recursion.scaled(&steps);
        let white: Vec<f32> = start(rows, n).iter().map(|&v| v as f32).collect();
        // `[n, rows]`; a unit of white error is one step of its column.
        let mut shaped: Vec<f32> =
            (0..n * rows).map(|at| white[at % rows * n + at / rows] * steps[at / rows]).collect();
        recursion.shape(&mut shaped, rows);
        for row in 0..rows {
            for k in 0..n {
                let expected: f64 = (0..=k)
                    .map(|j| f64::from(white[row * n + j]) * f64::from(dense.upper()[j * n + k]))
                    .sum();
                let found = f64::from(shaped[k * rows + row]);
                assert!((found - expected).abs() < 2e-4, "row {row}, column {k}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn never_more_directions_than_a_quarter_of_the_features() {
        let model = DiagonalPlusLowRank::fit(&structured(60, 4), 0.0, 12).unwrap();
        assert_eq!(model.truncated(2).rank(), 2);
        assert_eq!(DiagonalPlusLowRank::fit(&structured(3, 1), 0.0, 8).unwrap().rank(), 0);
    }
}
