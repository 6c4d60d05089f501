//! The Cholesky factor of `(I + M M^T)^-1`, applied without ever being formed.
//!
//! # Derivation
//! Read `x = M f + n`, with `f` and `n` of unit variance, from the last feature to the first. What the features behind
//! `j` say of `f` is Gaussian with some covariance `C_j` (the identity behind the last). Feature `j` has, given those
//! behind it, the variance `d_j = 1 + m_j C_j m_j^T`; it moves the belief by `k_j = C_j m_j^T / d_j` per unit of its
//! surprise, and leaves `C_(j-1) = C_j - d_j k_j k_j^T`. So `I + M M^T = V D V^T`, `V` unit upper triangular with
//! `V_ij = m_i . k_j`, and the upper factor of the inverse is `U = D^-1/2 V^-1`: `U_jj = 1 / sqrt(d_j)`.
//! For white `e` the shaped error `E = e U` solves `E V = e D^-1/2`, column by column:
//!
//! ```text
//! E_j = e_j / sqrt(d_j) - z . k_j        z = sum over i < j of E_i m_i
//! z   = z + E_j m_j
//! ```
//!
//! `2 rank` multiply-adds a number, where the dense product takes half the dimension. The same `z` runs the encoder's
//! sweep: what the columns before `j` got wrong moves its target by `+ z . k_j`.
//!
//! # Order of arithmetic
//! `C` is `f64`, all else `f32`. Sums over the rank go from the first direction to the last; no operation is fused.

use super::vector;

/// Rows that one pass of the recursion carries side by side.
pub const LANES: usize = 32;

/// Loadings with what the recursion needs per column.
#[derive(Debug, Clone, PartialEq)]
pub struct Recursion {
    rank: usize,
    /// `sqrt(d_j)`.
    pivots: Vec<f32>,
    /// `m_j` and `k_j`, interleaved by column: `[dimension, 2, rank]`.
    vectors: Vec<f32>,
}

impl Recursion {
    /// From loadings `[rank, dimension]` (any finite numbers); no loadings is the identity.
    pub fn new(loadings: &[f32], dimension: usize) -> Self {
        let rank = loadings.len().checked_div(dimension).unwrap_or(0);
        let mut pivots = vec![1.0f32; dimension];
        let mut vectors = vec![0.0f32; dimension * 2 * rank];
        vector::believe(loadings, rank, &mut pivots, &mut vectors);
        Self { rank, pivots, vectors }
    }

    /// Directions.
    pub fn rank(&self) -> usize {
        self.rank
    }
    /// `sqrt(d_j)`, one over the factor's diagonal, in units of each feature's own noise.
    pub fn pivots(&self) -> &[f32] {
        &self.pivots
    }

    /// The same recursion on errors in the weights' own unit, for columns whose steps are `steps`: a step is one unit
    /// of white error, so a column's own noise is `1 / (sqrt(d_j) step_j)`.
    #[must_use]
    pub fn scaled(mut self, steps: &[f32]) -> Self {
        let rank = self.rank;
        if rank > 0 {
            let columns = self.vectors.chunks_exact_mut(2 * rank);
            for ((vectors, &pivot), &step) in columns.zip(&self.pivots).zip(steps) {
                let unit = pivot * step;
                let (loadings, gains) = vectors.split_at_mut(rank);
                loadings.iter_mut().for_each(|m| *m /= unit);
                gains.iter_mut().for_each(|k| *k *= unit);
            }
        }
        self
    }

    /// Turns white errors `[dimension, rows]` (in the weights' unit, see [`Recursion::scaled`]) into shaped ones.
    pub fn shape(&self, errors: &mut [f32], rows: usize) {
        if self.rank > 0 {
            vector::shape(self, errors, rows);
        }
    }

    /// What a column adds to `z` per unit of error, and what it hears of it.
    #[inline(always)]
    pub(super) fn loadings_and_gains(&self, column: usize) -> (&[f32], &[f32]) {
        self.vectors[column * 2 * self.rank..][..2 * self.rank].split_at(self.rank)
    }

    /// [`Recursion::shape`] for whatever instructions the caller is compiled for.
    #[inline(always)]
    pub(super) fn shape_here(&self, errors: &mut [f32], rows: usize) {
        self.run(errors, rows, |_, _, white, pull| {
            for (value, &pull) in white.iter_mut().zip(pull) {
                *value -= pull;
            }
            *white
        });
    }

    /// Runs down the columns of `values` (`[dimension, rows]`). For each column and up to [`LANES`] rows `visit` gets
    /// the column, the first row, the values and `z . k_j`; it changes the values and returns the errors `E_j` that
    /// later columns are to hear of.
    #[inline(always)]
    pub fn run(
        &self,
        values: &mut [f32],
        rows: usize,
        mut visit: impl FnMut(usize, usize, &mut [f32; LANES], &[f32; LANES]) -> [f32; LANES],
    ) {
        if rows == 0 {
            return;
        }
        let mut state = vec![[0.0f32; LANES]; self.rank];
        for first in (0..rows).step_by(LANES) {
            let width = LANES.min(rows - first);
            state.iter_mut().for_each(|z| *z = [0.0; LANES]);
            for (j, column) in values.chunks_exact_mut(rows).enumerate() {
                let vectors = &self.vectors[j * 2 * self.rank..(j + 1) * 2 * self.rank];
                let (loadings, gains) = vectors.split_at(self.rank);
                let mut pull = [0.0f32; LANES];
                for (z, &gain) in state.iter().zip(gains) {
                    pull = std::array::from_fn(|lane| pull[lane] + z[lane] * gain);
                }
                let mut lanes = [0.0f32; LANES];
                lanes[..width].copy_from_slice(&column[first..first + width]);
                let errors = visit(j, first, &mut lanes, &pull);
                column[first..first + width].copy_from_slice(&lanes[..width]);
                for (z, &loading) in state.iter_mut().zip(loadings) {
                    *z = std::array::from_fn(|lane| z[lane] + errors[lane] * loading);
                }
            }
        }
    }
}

/// What [`Recursion::new`] keeps, for whatever instructions the caller is compiled for.
#[inline(always)]
pub(super) fn believe_here(loadings: &[f32], rank: usize, pivots: &mut [f32], vectors: &mut [f32]) {
    let dimension = pivots.len();
    // `C_kl` at `l * rank + k`: sums over `l` of all `k` run side by side.
    let mut belief = vec![0.0f64; rank * rank];
    (0..rank).for_each(|k| belief[k * rank + k] = 1.0);
    let (mut own, mut gain, mut share) = (vec![0.0f64; rank], vec![0.0f64; rank], vec![0.0f64; rank]);
    for j in (0..dimension).rev() {
        own.iter_mut().enumerate().for_each(|(k, m)| *m = f64::from(loadings[k * dimension + j]));
        gain.fill(0.0);
        for (row, &m) in belief.chunks_exact(rank.max(1)).zip(&own) {
            for (gain, &c) in gain.iter_mut().zip(row) {
                *gain += c * m;
            }
        }
        let mut variance = 1.0f64;
        for (&m, &gain) in own.iter().zip(&gain) {
            variance += m * gain;
        }
        // Rounding, or loadings that no encoder writes, must not turn it.
        let variance = if variance > 1.0 { variance } else { 1.0 };
        share.iter_mut().zip(&gain).for_each(|(share, gain)| *share = gain / variance);
        for (row, &other) in belief.chunks_exact_mut(rank.max(1)).zip(&gain) {
            for (c, &share) in row.iter_mut().zip(&share) {
                *c -= share * other;
            }
        }
        for k in 0..rank {
            vectors[j * 2 * rank + k] = own[k] as f32;
            vectors[(j * 2 + 1) * rank + k] = share[k] as f32;
        }
        pivots[j] = variance.sqrt() as f32;
    }
}
