//! Rotary positions.

/// Sines and cosines by position. Features `i` and `i + planes` of a head turn together.
#[derive(Debug, Clone, Default)]
pub struct Rotation {
    planes: usize,
    /// Per position: cosines, then sines.
    table: Vec<f32>,
}

impl Rotation {
    /// For `count` positions from 0: plane `i` turns by `frequencies[i]` per position; sines and cosines are
    /// multiplied with `factor`.
    pub fn new(frequencies: &[f32], factor: f32, count: usize) -> Self {
        let mut table = Vec::with_capacity(2 * count * frequencies.len());
        for position in 0..count {
            let angle = |f: &f32| f64::from(position as f32 * f);
            table.extend(frequencies.iter().map(|f| angle(f).cos() as f32 * factor));
            table.extend(frequencies.iter().map(|f| angle(f).sin() as f32 * factor));
        }
        Self { planes: frequencies.len(), table }
    }

    /// Features of a head that turn.
    pub(crate) fn rotated(&self) -> usize {
        2 * self.planes
    }

    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        self.table[position * 2 * self.planes..][..2 * self.planes].split_at(self.planes)
    }

    /// Turns a head's features.
    pub(crate) fn forward(&self, position: usize, head: &mut [f32]) {
        let (cosines, sines) = self.at(position);
        let (first, second) = head.split_at_mut(self.planes);
        for i in 0..self.planes {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cosines[i] - b * sines[i];
            second[i] = b * cosines[i] + a * sines[i];
        }
    }

    /// The transposed map, which takes gradients of outputs to gradients of inputs.
    pub(crate) fn backward(&self, position: usize, head: &mut [f32]) {
        let (cosines, sines) = self.at(position);
        let (first, second) = head.split_at_mut(self.planes);
        for i in 0..self.planes {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cosines[i] + b * sines[i];
            second[i] = b * cosines[i] - a * sines[i];
        }
    }
}
