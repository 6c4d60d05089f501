//! One binary decision predicted by several learners and a mixture of them that learns, too.

use super::logistic::{LIMIT, squash, stretch};

/// Learners per decision.
pub(super) const INPUTS: usize = 6;

/// A probability with 22 bits and how often it was updated, up to [`COUNT_LIMIT`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Learner {
    probability: u32,
    count: u16,
}

/// Weights of a trained matrix hardly change character on the way: average over long.
const COUNT_LIMIT: u16 = 1000;

/// `65536 / (n + 1.6)`.
const RATES: [u32; COUNT_LIMIT as usize + 1] = {
    let mut rates = [0; COUNT_LIMIT as usize + 1];
    let mut index = 0;
    while index < rates.len() {
        rates[index] = (655_360 / (10 * index + 16)) as u32;
        index += 1;
    }
    rates
};

impl Learner {
    /// 16-bit probability; before the first update it is the guess, as if seen twice.
    fn get(&mut self, guess: u16) -> u16 {
        if self.count == 0 {
            *self = Self { probability: u32::from(guess) << 6, count: 2 };
        }
        (self.probability >> 6) as u16
    }

    fn update(&mut self, bit: bool) {
        let target = if bit { (1i64 << 22) - 1 } else { 0 };
        let rate = i64::from(RATES[usize::from(self.count.min(COUNT_LIMIT))]);
        let moved = i64::from(self.probability) + (((target - i64::from(self.probability)) * rate) >> 16);
        self.probability = moved.clamp(1, (1 << 22) - 1) as u32;
        self.count = (self.count + 1).min(COUNT_LIMIT);
    }
}

/// Tables of learners, one per input, and weight sets.
#[derive(Debug, Clone)]
pub(super) struct Mixer {
    learners: Vec<Learner>,
    /// Entries per input.
    size: usize,
    weights: Vec<[i32; INPUTS]>,
    /// Final correction by weight set and mixed probability: two neighbours of 33 are interpolated.
    corrections: Vec<[u32; 33]>,
}

/// What a decision needs again once its bit is known.
pub(super) struct Decision {
    slots: [usize; INPUTS],
    stretched: [i32; INPUTS],
    set: usize,
    mixed: u16,
    bucket: usize,
    /// 16-bit probability of a one.
    pub(super) probability: u16,
}

impl Mixer {
    /// `size` contexts per input and `sets` weight sets.
    pub(super) fn new(size: usize, sets: usize) -> Self {
        let correction = std::array::from_fn(|bucket| u32::from(squash(128 * (bucket as i32 - 16))) << 6);
        Self {
            learners: vec![Learner::default(); INPUTS * size],
            size,
            weights: vec![[(1 << 16) * 2 / 5; INPUTS]; sets],
            corrections: vec![correction; sets],
        }
    }

    /// Predicts a bit from one context per input (below `size`) and a weight set (below `sets`).
    pub(super) fn predict(&mut self, contexts: [usize; INPUTS], set: usize, guess: u16) -> Decision {
        let mut slots = [0; INPUTS];
        let mut stretched = [0; INPUTS];
        let mut sum = 0i64;
        let weights = &self.weights[set];
        for input in 0..INPUTS {
            slots[input] = input * self.size + contexts[input].min(self.size - 1);
            stretched[input] = stretch(self.learners[slots[input]].get(guess) >> 4);
            sum += i64::from(stretched[input]) * i64::from(weights[input]);
        }
        let log_odds = (sum >> 16).clamp(-i64::from(LIMIT), i64::from(LIMIT)) as i32;
        let mixed = squash(log_odds);
        let position = (log_odds + 2048) as usize;
        let (left, fraction) = (position >> 7, (position & 127) as u32);
        let table = &self.corrections[set];
        let corrected = (table[left] * (128 - fraction) + table[left + 1] * fraction) >> 13;
        let probability = ((u32::from(mixed) + corrected) >> 1).clamp(24, 65_512) as u16;
        let bucket = if fraction < 64 { left } else { left + 1 };
        Decision { slots, stretched, set, mixed, bucket, probability }
    }

    /// Learns the bit of a decision.
    pub(super) fn update(&mut self, decision: &Decision, bit: bool) {
        let error =
            i64::from(if bit { 65_535 - i32::from(decision.mixed) } else { -i32::from(decision.mixed) });
        let weights = &mut self.weights[decision.set];
        for input in 0..INPUTS {
            // Slow: neighbours say little, and what is learned must not be lost in noise.
            let change = (i64::from(decision.stretched[input]) * error) >> 15;
            weights[input] = (i64::from(weights[input]) + change).clamp(-(1 << 20), 1 << 20) as i32;
            self.learners[decision.slots[input]].update(bit);
        }
        let entry = &mut self.corrections[decision.set][decision.bucket];
        let target = if bit { (1i64 << 22) - 1 } else { 0 };
        *entry = (i64::from(*entry) + ((target - i64::from(*entry)) >> 8)) as u32;
    }
}
