//! The blocks of BitStack ([`crate::systems`]): how one is written, added up and scaled, and what the system claims.

mod claim;

use half::f16;
use lamella_codec::Knowledge;

use crate::distortion::weighted_energy;

pub use claim::measure;

/// What a decoder knows of a block beside its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Triplets of a block.
    pub rank: usize,
}

/// The factors of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// `u`, `[rows, rank]`.
    pub left: Vec<f32>,
    /// `v`, `[rank, columns]`.
    pub right: Vec<f32>,
}

impl Form {
    /// Bytes of a layer; `None` where they cannot be counted.
    pub fn layer_bytes(&self, is_first: bool) -> Option<usize> {
        let signs = self.rows.checked_mul(self.columns)?.div_ceil(8);
        let factors = self.rows.checked_add(self.columns)?.checked_mul(self.rank)?.checked_mul(2)?;
        let head = if is_first { self.columns.checked_mul(2)?.checked_add(4)? } else { 0 };
        signs.checked_add(factors)?.checked_add(head)
    }

    /// Adds a block: `values += S * (u v)`, one multiplication and one addition at a time, in a fixed order.
    pub fn add(&self, values: &mut [f32], block: &Block, is_negative: impl Fn(usize) -> bool) {
        let mut magnitudes = vec![0.0f32; self.columns];
        for row in 0..self.rows {
            magnitudes.fill(0.0);
            for k in 0..self.rank {
                let left = block.left[row * self.rank + k];
                let right = &block.right[k * self.columns..][..self.columns];
                magnitudes.iter_mut().zip(right).for_each(|(sum, &v)| *sum += left * v);
            }
            for (column, &magnitude) in magnitudes.iter().enumerate() {
                let index = row * self.columns + column;
                values[index] += if is_negative(index) { -magnitude } else { magnitude };
            }
        }
    }

    /// Writes signs and factors.
    pub fn write(&self, payload: &mut Vec<u8>, block: &Block, residual: &[f32]) {
        let mut signs = vec![0u8; residual.len().div_ceil(8)];
        for (index, _) in residual.iter().enumerate().filter(|(_, value)| **value < 0.0) {
            signs[index / 8] |= 0x80 >> (index % 8);
        }
        payload.extend(signs);
        for &number in block.left.iter().chain(&block.right) {
            payload.extend_from_slice(&f16::from_f32(number).to_le_bytes());
        }
    }
}

/// 16-bit floats of a payload.
///
/// # Errors
/// One that is not finite.
pub fn floats(bytes: &[u8]) -> Result<Vec<f32>, String> {
    let read: Vec<f32> =
        bytes.as_chunks::<2>().0.iter().map(|&pair| f16::from_le_bytes(pair).to_f32()).collect();
    match read.iter().position(|number| !number.is_finite()) {
        Some(index) => Err(format!("number {index} of its 16-bit floats is not finite")),
        None => Ok(read),
    }
}

/// Step 5's way back: `m * sum / a_j`.
pub fn unscaled(sum: &[f32], unit: f32, scales: &[f32]) -> Vec<f32> {
    let columns = scales.len().max(1);
    sum.iter().enumerate().map(|(index, &value)| value / scales[index % columns] * unit).collect()
}

/// The factor that makes a block best under the second moment: `<R, B> / <B, B>`, from three energies.
pub fn gain(added: &[f32], residual: &[f32], unit: f32, scales: &[f32], knowledge: &Knowledge) -> f64 {
    let columns = scales.len();
    let energy = |values: &[f32]| weighted_energy(&unscaled(values, unit, scales), columns, knowledge);
    let (block, rest) = (energy(added), energy(residual));
    let both: Vec<f32> = added.iter().zip(residual).map(|(a, r)| a + r).collect();
    let gain = 0.5 * (energy(&both) - block - rest) / block;
    if gain.is_finite() { gain } else { 0.0 }
}
