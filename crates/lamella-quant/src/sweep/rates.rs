//! What a code costs: tables of code lengths per class of expected magnitude.
//!
//! Rounding by `distortion + lambda * bits` needs the length of every code before the coder has seen the data. The
//! coder adapts, so the lengths are learned the same way: from the codes of an earlier pass, in classes of the
//! expected magnitude of a number (its column's spread over its step, times its row's factor).

use std::sync::LazyLock;

/// Classes per octave of expected magnitude.
const CLASSES_PER_OCTAVE: u32 = 4;
/// Number of classes; the first stands for magnitudes of 2^-8 and less.
pub const CLASSES: usize = 64;
/// Codes with their own length; larger ones are extrapolated.
pub const LENGTHS: usize = 64;

/// The class of an expected magnitude, a quarter octave each.
///
/// Reads exponent and leading mantissa bits, so that it is exact on every machine.
#[inline]
pub fn class_of(expected: f32) -> usize {
    let bits = expected.max(0.0).to_bits() >> (23 - CLASSES_PER_OCTAVE.ilog2());
    let lowest = (127 - 8) * CLASSES_PER_OCTAVE;
    (bits.saturating_sub(lowest) as usize).min(CLASSES - 1)
}

/// Expected magnitude in the middle of a class.
pub fn magnitude_of(class: usize) -> f64 {
    let octave = (class as u32 / CLASSES_PER_OCTAVE) as i32 - 8;
    let within = f64::from(class as u32 % CLASSES_PER_OCTAVE) + 0.5;
    (1.0 + within / f64::from(CLASSES_PER_OCTAVE)) * 2.0f64.powi(octave)
}

/// Counts of magnitudes per class and quantiser.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<[[u32; LENGTHS]; 2]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![[[0; LENGTHS]; 2]; CLASSES] }
    }
}

impl Histogram {
    /// Counts one code.
    #[inline]
    pub fn add(&mut self, class: usize, quantizer: u32, magnitude: u32) {
        self.counts[class][quantizer as usize][(magnitude as usize).min(LENGTHS - 1)] += 1;
    }

    /// Adds another histogram's counts.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            for (mine, theirs) in mine.as_flattened_mut().iter_mut().zip(theirs.as_flattened()) {
                *mine += theirs;
            }
        }
    }
}

/// Code lengths in bits per class, quantiser and magnitude, the sign included.
#[derive(Debug, Clone)]
pub struct Lengths {
    bits: Vec<[[f32; LENGTHS]; 2]>,
}

impl Lengths {
    /// Lengths of half-Gaussian magnitudes before anything was counted, mixed with what was counted.
    pub fn learn(histogram: &Histogram, prior_weight: f64) -> Self {
        let bits = (0..CLASSES)
            .map(|class| {
                [0, 1].map(|quantizer| {
                    let prior = &PRIORS[class][quantizer];
                    let counts = &histogram.counts[class][quantizer];
                    let total: f64 = counts.iter().map(|&count| f64::from(count)).sum();
                    let mut bits = [0.0f32; LENGTHS];
                    for magnitude in 0..LENGTHS {
                        let probability = (f64::from(counts[magnitude]) + prior_weight * prior[magnitude])
                            / (total + prior_weight);
                        let sign = f64::from(u8::from(magnitude > 0));
                        bits[magnitude] = (sign - probability.max(1e-9).log2()) as f32;
                    }
                    bits
                })
            })
            .collect();
        Self { bits }
    }

    /// The table of one class and both quantisers.
    #[inline]
    pub fn of_class(&self, class: usize) -> &[[f32; LENGTHS]; 2] {
        &self.bits[class]
    }
}

/// Length of a magnitude; beyond the table every octave costs two more bits.
#[inline]
pub fn length(table: &[f32; LENGTHS], magnitude: u32) -> f32 {
    match table.get(magnitude as usize) {
        Some(&bits) => bits,
        None => table[LENGTHS - 1] + 2.0 * (magnitude as f32 / LENGTHS as f32).log2(),
    }
}

/// [`prior`] of every class and quantiser, computed once.
static PRIORS: LazyLock<Vec<[[f64; LENGTHS]; 2]>> = LazyLock::new(|| {
    (0..CLASSES).map(|class| [0, 1].map(|quantizer| prior(magnitude_of(class), quantizer))).collect()
});

/// Probabilities of magnitudes whose positions are Gaussian with the given mean magnitude, cells rounded.
fn prior(mean: f64, quantizer: usize) -> [f64; LENGTHS] {
    let shift = 0.5 * quantizer as f64;
    let shape = |sigma: f64| {
        let mut weights = [0.0f64; LENGTHS];
        for (magnitude, weight) in weights.iter_mut().enumerate() {
            let position = if magnitude == 0 { 0.0 } else { magnitude as f64 - shift };
            let sides = if magnitude == 0 { 1.0 } else { 2.0 };
            *weight = sides * (-0.5 * (position / sigma).powi(2)).exp() + 1e-7;
        }
        let total: f64 = weights.iter().sum();
        let average: f64 = weights
            .iter()
            .enumerate()
            .map(|(m, w)| w * (m as f64 - if m > 0 { shift } else { 0.0 }))
            .sum::<f64>()
            / total;
        (weights.map(|weight| weight / total), average)
    };
    let (mut low, mut high) = (0.05f64, 400.0f64);
    for _ in 0..40 {
        let middle = (low * high).sqrt();
        if shape(middle).1 < mean { low = middle } else { high = middle }
    }
    shape((low * high).sqrt()).0
}
