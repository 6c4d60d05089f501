//! AdamW and its schedule.

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.98;
const EPSILON: f32 = 1e-12;

/// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), here towards the starting point: what
/// is tuned was good already.
#[derive(Debug, Clone)]
pub struct AdamW {
    start: Vec<Vec<f32>>,
    means: Vec<Vec<f32>>,
    squares: Vec<Vec<f32>>,
    steps: i32,
    /// Share of the way back to the starting point, per step and unit of relative rate.
    pub decay: f32,
}

impl AdamW {
    /// Before the first step from `start`; no decay.
    pub fn new(start: &[Vec<f32>]) -> Self {
        let zeros: Vec<Vec<f32>> = start.iter().map(|vector| vec![0.0; vector.len()]).collect();
        Self { start: start.to_vec(), means: zeros.clone(), squares: zeros, steps: 0, decay: 0.0 }
    }

    /// One step; `rates[i]` is about how far an element of vector `i` moves.
    ///
    /// # Panics
    /// Where the shapes are not those of the start.
    pub fn step(&mut self, vectors: &mut [Vec<f32>], gradients: &[Vec<f32>], rates: &[f32]) {
        assert!(
            vectors.len() == self.start.len()
                && gradients.len() == vectors.len()
                && rates.len() == vectors.len()
        );
        self.steps += 1;
        let first = 1.0 / (1.0 - BETA_1.powi(self.steps));
        let second = 1.0 / (1.0 - BETA_2.powi(self.steps));
        for (i, (vector, gradient)) in vectors.iter_mut().zip(gradients).enumerate() {
            let state = self.means[i].iter_mut().zip(&mut self.squares[i]).zip(&self.start[i]);
            for ((x, g), ((mean, square), start)) in vector.iter_mut().zip(gradient).zip(state) {
                *mean = BETA_1 * *mean + (1.0 - BETA_1) * g;
                *square = BETA_2 * *square + (1.0 - BETA_2) * g * g;
                *x -= rates[i] * (*mean * first / ((*square * second).sqrt() + EPSILON));
                *x -= self.decay * (*x - start);
            }
        }
    }
}

/// The share of the full rate at a step: a tenth of the steps rising, then half a cosine down to nothing.
pub fn cosine(step: usize, steps: usize) -> f32 {
    let warmup = (steps / 10).max(1);
    if step < warmup {
        return (step + 1) as f32 / (warmup + 1) as f32;
    }
    let share = (step - warmup) as f32 / (steps - warmup).max(1) as f32;
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
