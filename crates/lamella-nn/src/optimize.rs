//! AdamW and its schedule.

use rayon::prelude::*;

const BETA_1: f32 = 0.9;

/// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101). Tuning decays towards the starting
/// point, because what is tuned was good already; training decays towards zero.
#[derive(Debug, Clone)]
pub struct AdamW {
    /// Where tuning's decay leads; empty in training.
    start: Vec<Vec<f32>>,
    means: Vec<Vec<f32>>,
    squares: Vec<Vec<f32>>,
    steps: u32,
    beta_2: f32,
    epsilon: f32,
    /// Tuning: share of the way back to the starting point, per step.
    pub decay: f32,
    /// Training: share of the way to zero by array, per step and unit of rate.
    shrink: Vec<f32>,
}

fn zeros(vectors: &[Vec<f32>]) -> Vec<Vec<f32>> {
    vectors.iter().map(|vector| vec![0.0; vector.len()]).collect()
}

impl AdamW {
    /// Before the first step from `start`; no decay.
    pub fn new(start: &[Vec<f32>]) -> Self {
        Self {
            start: start.to_vec(),
            means: zeros(start),
            squares: zeros(start),
            steps: 0,
            beta_2: 0.98,
            epsilon: 1e-12,
            decay: 0.0,
            shrink: Vec::new(),
        }
    }

    /// For training from nothing: the second moment forgets faster (0.95), decay leads to zero.
    pub fn training(shapes: &[Vec<f32>], shrink: Vec<f32>) -> Self {
        Self { start: Vec::new(), beta_2: 0.95, epsilon: 1e-8, shrink, ..Self::new(shapes) }
    }

    /// One step; `rates[i]` is about how far an element of vector `i` moves.
    ///
    /// # Panics
    /// Where the shapes are not those of the start.
    pub fn step(&mut self, vectors: &mut [Vec<f32>], gradients: &[Vec<f32>], rates: &[f32]) {
        assert!(
            vectors.len() == self.means.len()
                && gradients.len() == vectors.len()
                && rates.len() == vectors.len()
        );
        self.steps += 1;
        // `powi` of a fixed base: a few multiplications in a fixed order.
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let first = 1.0 / (1.0 - BETA_1.powi(steps));
        let second = 1.0 / (1.0 - self.beta_2.powi(steps));
        let (start, decay, shrink) = (&self.start, self.decay, &self.shrink);
        let (beta_2, epsilon) = (self.beta_2, self.epsilon);
        let states = self.means.par_iter_mut().zip(&mut self.squares);
        vectors.par_iter_mut().zip(gradients).zip(states).enumerate().for_each(
            |(i, ((vector, gradient), (means, squares)))| {
                let rate = rates[i];
                let kept = 1.0 - rate * shrink.get(i).copied().unwrap_or(0.0);
                for (((x, g), mean), square) in vector.iter_mut().zip(gradient).zip(means).zip(squares) {
                    *mean = BETA_1 * *mean + (1.0 - BETA_1) * g;
                    *square = beta_2 * *square + (1.0 - beta_2) * g * g;
                    let step = *mean * first / ((*square * second).sqrt() + epsilon);
                    *x = *x * kept - rate * step;
                }
                if let Some(start) = start.get(i).filter(|_| decay > 0.0) {
                    vector.iter_mut().zip(start).for_each(|(x, start)| *x -= decay * (*x - start));
                }
            },
        );
    }

    /// Steps taken, running means of gradients and of their squares: what an interrupted run stores.
    pub fn state(&self) -> (u32, &[Vec<f32>], &[Vec<f32>]) {
        (self.steps, &self.means, &self.squares)
    }

    /// Goes on from a stored state.
    ///
    /// # Panics
    /// Where the shapes are others.
    pub fn restore(&mut self, steps: u32, means: Vec<Vec<f32>>, squares: Vec<Vec<f32>>) {
        let lengths = |vectors: &[Vec<f32>]| vectors.iter().map(Vec::len).collect::<Vec<_>>();
        assert!(lengths(&means) == lengths(&self.means) && lengths(&squares) == lengths(&self.squares));
        (self.steps, self.means, self.squares) = (steps, means, squares);
    }
}

/// The share of the full rate at a step: a tenth of the steps rising, then half a cosine down to nothing.
pub fn cosine(step: usize, steps: usize) -> f32 {
    cosine_after(step, steps, (steps / 10).max(1))
}

/// [`cosine`] with `warmup` rising steps.
pub fn cosine_after(step: usize, steps: usize, warmup: usize) -> f32 {
    if step < warmup {
        return (step + 1) as f32 / (warmup + 1) as f32;
    }
    let share = (step - warmup) as f32 / steps.saturating_sub(warmup).max(1) as f32;
    0.5 * (1.0 + (std::f32::consts::PI * share.min(1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_rises_then_falls_to_nothing() {
        let rates: Vec<f32> = (0..100).map(|step| cosine(step, 100)).collect();
        assert!(rates[..10].windows(2).all(|pair| pair[0] < pair[1]));
        assert!(rates[10..].windows(2).all(|pair| pair[0] > pair[1]));
        assert!(rates[99] < 0.01 && cosine(0, 1) > 0.0);
    }

    #[test]
    fn the_first_step_has_the_rates_length_whatever_the_gradients_scale() {
        for scale in [1e-4f32, 1.0, 1e4] {
            let mut vectors = vec![vec![1.0, 1.0]];
            AdamW::new(&vectors.clone()).step(&mut vectors, &[vec![scale, -scale]], &[0.25]);
            assert!((vectors[0][0] - 0.75).abs() < 1e-5 && (vectors[0][1] - 1.25).abs() < 1e-5);
        }
    }
}
