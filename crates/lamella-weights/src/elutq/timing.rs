//! What the look-ups cost beside expanding each row and beside `f32`, measured on this machine and thread.

use super::fit::{Levels, MAX_BITS};
use super::form::{PlaneForm, PlaneMatrix};
use super::product::PackedPlanes;
use crate::claims::timing::{dense_product, median, numbers};

/// Medians of one thread, and how far the look-ups are from the expanded product.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Milliseconds of a product by look-ups.
    pub look_up: f64,
    /// Milliseconds of expanding row by row and multiplying.
    pub expanding: f64,
    /// Milliseconds of the product with the weights held as `f32`.
    pub dense: f64,
    /// Distance of the results over the norm of the expanded one's.
    pub off: f64,
    /// Bits in memory per weight.
    pub resident_bits: f64,
}

/// A square matrix of `size` inputs at 2 bits in groups of 128, one vector, the median of `runs`.
pub fn measure(size: usize, runs: usize) -> Timing {
    let form = PlaneForm { rows: size, columns: size, bits: 2, group_size: 128 };
    let mut next = numbers();
    let mut scales = [0.0; MAX_BITS];
    (scales[0], scales[1]) = (0.011, 0.027);
    let levels = vec![Levels { offset: -0.02, scales }; size * form.per_row()];
    let planes = (0..2 * size * form.row_bytes()).map(|_| next() as u8).collect();
    let matrix = PlaneMatrix { form, levels, planes };
    let input: Vec<f32> = (0..size).map(|_| (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect();
    let packed = PackedPlanes::new(&matrix);
    let mut by_look_up = vec![0.0f32; size];
    let look_up = median(runs, || packed.multiply(&input, &mut by_look_up));
    let (mut expanded, mut row_values) = (vec![0.0f32; size], Vec::with_capacity(size));
    let expanding = median(runs, || {
        for (row, out) in expanded.chunks_mut(1).enumerate() {
            row_values.clear();
            matrix.expand_row(row, &mut row_values);
            dense_product(&row_values, &input, out);
        }
    });
    let dense_weights = matrix.expand();
    let mut by_dense = vec![0.0f32; size];
    let dense = median(runs, || dense_product(&dense_weights, &input, &mut by_dense));
    let norm: f64 = by_dense.iter().map(|&y| f64::from(y).powi(2)).sum();
    let off: f64 = by_dense.iter().zip(&by_look_up).map(|(&y, &v)| f64::from(y - v).powi(2)).sum();
    Timing {
        look_up,
        expanding,
        dense,
        off: (off / norm).sqrt(),
        resident_bits: packed.resident_bytes() as f64 * 8.0 / (size * size) as f64,
    }
}
