//! Coded matrices that multiply one vector at a time, as linears of a network.

use lamella_codec::CodedLinear;
use rayon::prelude::*;

/// A product with one vector on a matrix's codes.
pub trait VectorProduct: Send + Sync {
    /// Rows and columns.
    fn shape(&self) -> (usize, usize);
    /// `out = W input`, on this thread.
    fn product(&self, input: &[f32], out: &mut [f32]);
    /// Adds a row of the matrix to `target`.
    fn add_row_to(&self, row: usize, target: &mut [f32]);
    /// Bytes held in memory.
    fn held_bytes(&self) -> usize;
}

/// Runs a [`VectorProduct`] for every token, tokens side by side.
#[derive(Debug)]
pub struct ByVector<P>(pub P);

impl<P: VectorProduct> CodedLinear for ByVector<P> {
    fn apply(&self, inputs: &[f32], tokens: usize, outputs: &mut [f32], stride: usize, column: usize) {
        let (rows, columns) = self.0.shape();
        let inputs = inputs[..tokens * columns].par_chunks_exact(columns);
        let outputs = outputs.par_chunks_mut(stride);
        inputs
            .zip(outputs)
            .for_each(|(input, outputs)| self.0.product(input, &mut outputs[column..column + rows]));
    }

    fn add_row(&self, index: usize, target: &mut [f32]) {
        self.0.add_row_to(index, target);
    }

    fn resident_bytes(&self) -> usize {
        self.0.held_bytes()
    }
}
