//! Norms of rows, forwards and in reverse.
//!
//! With `r = 1 / sqrt(mean(x^2) + epsilon)` (RMS) or of the centred row (layer), `n = x r` (or `(x - mean x) r`) and
//! `y = n w + b`. In reverse, with `g = dy w`: `dw = sum dy n`, `db = sum dy`, and
//! `dx = r (g - n mean(g n))`, for layer norms less `r mean(g)` too.

use crate::elementwise::dot;

/// How rows are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormKind {
    /// Divided by their root mean square.
    RootMeanSquare,
    /// Centred, then divided by their standard deviation.
    Layer,
}

impl NormKind {
    /// What is subtracted and what is multiplied.
    fn moments(self, row: &[f32], epsilon: f32) -> (f32, f32) {
        let n = row.len() as f32;
        match self {
            Self::RootMeanSquare => (0.0, 1.0 / (dot(row, row) / n + epsilon).sqrt()),
            Self::Layer => {
                let mean = row.iter().sum::<f32>() / n;
                let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
                (mean, 1.0 / (variance + epsilon).sqrt())
            }
        }
    }

    /// Normalises one row in place.
    pub(crate) fn forward(self, row: &mut [f32], epsilon: f32, weight: &[f32], bias: Option<&[f32]>) {
        let (mean, r) = self.moments(row, epsilon);
        row.iter_mut().zip(weight).for_each(|(x, w)| *x = (*x - mean) * r * w);
        if let Some(bias) = bias {
            row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
    }

    /// From `changes`, the gradient of the outputs, to that of the inputs, in place. `inputs` is the row that was
    /// normalised.
    pub(crate) fn backward(
        self,
        inputs: &[f32],
        changes: &mut [f32],
        epsilon: f32,
        weight: &[f32],
        weight_gradient: &mut [f32],
        bias_gradient: Option<&mut [f32]>,
    ) {
        let (mean, r) = self.moments(inputs, epsilon);
        if let Some(gradient) = bias_gradient {
            gradient.iter_mut().zip(changes.iter()).for_each(|(g, d)| *g += d);
        }
        let (mut sum, mut product) = (0.0f32, 0.0f32);
        for (((x, d), w), g) in inputs.iter().zip(changes.iter_mut()).zip(weight).zip(weight_gradient) {
            let normed = (x - mean) * r;
            *g += *d * normed;
            *d *= w;
            sum += *d;
            product += *d * normed;
        }
        let n = inputs.len() as f32;
        let (sum, product) = (if self == Self::Layer { sum / n } else { 0.0 }, product / n);
        for (x, d) in inputs.iter().zip(changes) {
            *d = r * (*d - sum - (x - mean) * r * product);
        }
    }
}
