//! The residual stream of a batch.

use std::ops::Range;
use std::sync::Arc;

use crate::rope::Rotations;

/// Activations of a batch of sequences between two blocks: `[total_tokens, hidden_size]`, row-major, sequences one
/// after the other.
#[derive(Debug, Clone)]
pub struct Hidden {
    pub(crate) values: Vec<f32>,
    pub(crate) hidden_size: usize,
    /// First row of each sequence, and the total at the end.
    pub(crate) offsets: Vec<usize>,
    /// Tokens of each sequence that earlier calls have already put into its cache.
    pub(crate) starts: Vec<usize>,
    /// Rotary tables by sequence; empty where the network has none.
    pub(crate) rotations: Vec<Arc<Rotations>>,
    /// Values of the first block, which later blocks of RWKV-7 mix in.
    pub(crate) first_values: Vec<f32>,
}

impl Hidden {
    /// Tokens of all sequences together.
    pub fn n_tokens(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }
    /// Sequences.
    pub fn n_sequences(&self) -> usize {
        self.starts.len()
    }
    /// Length of a row.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }
    /// All rows.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
    /// All rows, to be changed.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
    /// First row of each sequence, and the total at the end.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }
    /// Rows of one sequence.
    ///
    /// # Panics
    /// Where there is no such sequence.
    pub fn sequence(&self, index: usize) -> Range<usize> {
        self.offsets[index]..self.offsets[index + 1]
    }
    /// One row.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, token: usize) -> &[f32] {
        &self.values[token * self.hidden_size..][..self.hidden_size]
    }
}
