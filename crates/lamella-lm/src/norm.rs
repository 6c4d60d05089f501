//! Normalisation of rows.

use lamella_codec::TensorSource;
use rayon::prelude::*;

use crate::LmError;
use crate::config::NormKind;
use crate::elementwise::{dot, moments};
use crate::linear::read_vector;

/// Rows a thread takes at a time.
const ROWS: usize = 32;

/// Names of a norm's arrays.
#[derive(Debug, Clone)]
pub(crate) struct NormPlan {
    pub(crate) weight: String,
    pub(crate) bias: Option<String>,
}

/// A norm with its arrays read.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    kind: NormKind,
    epsilon: f32,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Norm {
    /// Reads a norm over rows of `width` features.
    pub(crate) fn load(
        plan: &NormPlan,
        kind: NormKind,
        epsilon: f32,
        width: usize,
        source: &dyn TensorSource,
    ) -> Result<Self, LmError> {
        let read = |name: &String| read_vector(source, name, width);
        Ok(Self {
            kind,
            epsilon,
            weight: read(&plan.weight)?,
            bias: plan.bias.as_ref().map(read).transpose()?,
        })
    }

    /// Normalises one row in place.
    pub(crate) fn row(&self, row: &mut [f32]) {
        self.groups(row, row.len());
    }

    /// Normalises every `width` features of a row by themselves, then scales and shifts the whole row.
    pub(crate) fn groups(&self, row: &mut [f32], width: usize) {
        for (group, weight) in row.chunks_exact_mut(width).zip(self.weight.chunks_exact(width)) {
            let (mean, scale) = match self.kind {
                NormKind::RootMeanSquare => {
                    (0.0, 1.0 / (dot(group, group) / width as f32 + self.epsilon).sqrt())
                }
                NormKind::Layer => {
                    let (mean, variance) = moments(group);
                    (mean, 1.0 / (variance + self.epsilon).sqrt())
                }
            };
            for (x, w) in group.iter_mut().zip(weight) {
                *x = (*x - mean) * scale * w;
            }
        }
        if let Some(bias) = &self.bias {
            for (x, b) in row.iter_mut().zip(bias) {
                *x += b;
            }
        }
    }

    /// Normalises all rows in place.
    pub(crate) fn rows(&self, values: &mut [f32]) {
        let width = self.weight.len();
        let all = |chunk: &mut [f32]| chunk.chunks_exact_mut(width).for_each(|row| self.row(row));
        if values.len() <= ROWS * width {
            all(values);
        } else {
            values.par_chunks_mut(ROWS * width).for_each(all);
        }
    }
}
