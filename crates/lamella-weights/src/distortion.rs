//! The loss of a coded matrix.

use lamella_codec::Knowledge;
use lamella_math::SecondMoment;
use lamella_math::matrix::{Layout, multiply_add};
use rayon::prelude::*;

/// Rows whose products one task computes; fixed, so that sums do not depend on the thread count.
const ROWS_PER_CHUNK: usize = 64;

/// `trace(E H E^T)` for the error `E = weights - reconstruction`, `[rows, columns]`, where the mean second moment
/// `H` of the inputs is known; else the squared error. Rows are weighted by their usage, where that is known,
/// scaled to mean 1.
pub fn distortion(weights: &[f32], reconstruction: &[f32], columns: usize, knowledge: &Knowledge) -> f64 {
    let error: Vec<f32> = weights.iter().zip(reconstruction).map(|(w, v)| w - v).collect();
    weighted_energy(&error, columns, knowledge)
}

/// [`distortion`] of a matrix that is its own error: what storing nothing would cost.
pub fn weighted_energy(error: &[f32], columns: usize, knowledge: &Knowledge) -> f64 {
    let mut energy = Energy::new(error.len().checked_div(columns).unwrap_or(0), columns, knowledge);
    energy.add(0, error);
    energy.sum()
}

/// [`weighted_energy`] of a matrix that comes in strips of rows.
#[derive(Debug)]
pub struct Energy<'a> {
    columns: usize,
    moment: Option<&'a SecondMoment>,
    usage: Option<&'a Vec<f64>>,
    mean_usage: f64,
    /// One per chunk of rows.
    sums: Vec<f64>,
}

impl<'a> Energy<'a> {
    /// Of a matrix of this shape, before its first strip.
    pub fn new(rows: usize, columns: usize, knowledge: &'a Knowledge) -> Self {
        let usage = knowledge.row_usage.as_deref().filter(|usage| usage.len() == rows);
        let mean_usage = usage.map_or(1.0, |usage| usage.iter().sum::<f64>() / rows as f64);
        let moment = knowledge.second_moment.as_deref().filter(|moment| moment.dimension() == columns);
        Self { columns, moment, usage, mean_usage, sums: Vec::new() }
    }

    /// Adds the rows from `first_row` on. Strips come in order; all but the last hold whole chunks of 64 rows.
    pub fn add(&mut self, first_row: usize, error: &[f32]) {
        let columns = self.columns;
        if columns == 0 {
            return;
        }
        let weight_of = |row: usize| match self.usage {
            Some(usage) if self.mean_usage > 0.0 => usage[row] / self.mean_usage,
            _ => 1.0,
        };
        let moment = self.moment;
        let per_chunk: Vec<f64> = error
            .par_chunks(ROWS_PER_CHUNK * columns)
            .enumerate()
            .map(|(chunk, rows_of_chunk)| {
                let rows = rows_of_chunk.len() / columns;
                let mut product = rows_of_chunk.to_vec();
                if let Some(moment) = moment {
                    let shape = Layout::row_major(rows, columns);
                    let square = Layout::row_major(columns, columns);
                    multiply_add(&mut product, shape, 0.0, rows_of_chunk, shape, moment.sum(), square, 1.0);
                }
                let by_row = product.chunks_exact(columns).zip(rows_of_chunk.chunks_exact(columns));
                by_row
                    .enumerate()
                    .map(|(row, (left, right))| {
                        let sum: f64 =
                            left.iter().zip(right).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                        sum * weight_of(first_row + chunk * ROWS_PER_CHUNK + row)
                    })
                    .sum::<f64>()
            })
            .collect();
        self.sums.extend(per_chunk);
    }

    /// The energy of all strips, per token where the second moment is known.
    pub fn sum(&self) -> f64 {
        let tokens = self.moment.map_or(1.0, |moment| moment.tokens().max(1) as f64);
        self.sums.iter().sum::<f64>() / tokens
    }
}

/// What each row adds to [`weighted_energy`].
pub fn row_energies(error: &[f32], columns: usize, knowledge: &Knowledge) -> Vec<f64> {
    let rows = error.len().checked_div(columns).unwrap_or(0);
    let usage = knowledge.row_usage.as_deref().filter(|usage| usage.len() == rows);
    let mean_usage = usage.map_or(1.0, |usage| usage.iter().sum::<f64>() / rows as f64);
    let moment = knowledge.second_moment.as_deref().filter(|moment| moment.dimension() == columns);
    let tokens = moment.map_or(1.0, |moment| moment.tokens().max(1) as f64);
    let chunks: Vec<Vec<f64>> = error
        .par_chunks((ROWS_PER_CHUNK * columns).max(1))
        .map(|rows_of_chunk| energies(rows_of_chunk, columns, moment))
        .collect();
    let mut all: Vec<f64> = chunks.into_iter().flatten().map(|energy| energy / tokens).collect();
    if let Some(usage) = usage.filter(|_| mean_usage > 0.0) {
        all.iter_mut().zip(usage).for_each(|(energy, count)| *energy *= count / mean_usage);
    }
    all
}

/// `e H e^T` of each row, with the sum of moments for `H`; the square without one.
fn energies(rows_of_chunk: &[f32], columns: usize, moment: Option<&SecondMoment>) -> Vec<f64> {
    let rows = rows_of_chunk.len() / columns;
    let mut product = rows_of_chunk.to_vec();
    if let Some(moment) = moment {
        let shape = Layout::row_major(rows, columns);
        let square = Layout::row_major(columns, columns);
        multiply_add(&mut product, shape, 0.0, rows_of_chunk, shape, moment.sum(), square, 1.0);
    }
    let by_row = product.chunks_exact(columns).zip(rows_of_chunk.chunks_exact(columns));
    by_row
        .map(|(left, right)| left.iter().zip(right).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn by_hand() {
        let moment = SecondMoment::from_sum(2, 2, vec![4.0, 2.0, 2.0, 6.0]).unwrap();
        let knowledge = Knowledge::of_inputs(Arc::new(moment));
        // H = [[2, 1], [1, 3]]; e = (1, -1): 2 - 2 + 3.
        assert_eq!(distortion(&[1.0, 0.0], &[0.0, 1.0], 2, &knowledge), 3.0);
        assert_eq!(distortion(&[1.0, 0.0], &[0.0, 1.0], 2, &Knowledge::default()), 2.0);
    }
}
