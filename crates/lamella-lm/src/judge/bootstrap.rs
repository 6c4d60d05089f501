//! Intervals by resampling.
//!
//! Scored units (windows, texts, questions) are drawn with replacement, as many as there are; the statistic of each
//! such sample spreads as the statistic itself would over other texts of the kind. *Paired* means that both models
//! are read off the same draw: what is hard for both cancels, and the difference has a far narrower interval than
//! either figure.

use serde::{Deserialize, Serialize};

use super::measure::quantile;

/// Ends of a two-sided interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Draws samples of units, the same ones in every run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resampler {
    /// Samples drawn. Default 1,000; none gives no intervals.
    pub resamples: usize,
    /// Probability that an interval shall cover. Default 0.95.
    pub confidence: f64,
    /// Seed. Default 0.
    pub seed: u64,
}

impl Default for Resampler {
    fn default() -> Self {
        Self { resamples: 1000, confidence: 0.95, seed: 0 }
    }
}

impl Resampler {
    /// The interval of a statistic over units; `None` below two units or without resamples.
    ///
    /// `statistic` gets the units drawn, as indices below `units`, in any order and with repetition.
    pub fn interval(&self, units: usize, mut statistic: impl FnMut(&[usize]) -> f64) -> Option<Interval> {
        if units < 2 || self.resamples == 0 {
            return None;
        }
        let mut state = self.seed;
        let mut drawn = vec![0; units];
        let mut values: Vec<f64> = (0..self.resamples)
            .map(|_| {
                drawn.iter_mut().for_each(|unit| *unit = below(&mut state, units));
                statistic(&drawn)
            })
            .collect();
        values.sort_unstable_by(f64::total_cmp);
        let outside = (1.0 - self.confidence.clamp(0.0, 1.0)) / 2.0;
        Some(Interval { low: quantile(&values, outside), high: quantile(&values, 1.0 - outside) })
    }
}

/// Interval of the mean of `left[i] - right[i]`: two candidates measured on the same units. `None` where the
/// lengths differ or there are fewer than two units.
pub fn paired_difference(resampler: &Resampler, left: &[f64], right: &[f64]) -> Option<Interval> {
    if left.len() != right.len() {
        return None;
    }
    resampler.interval(left.len(), |drawn| {
        drawn.iter().map(|&unit| left[unit] - right[unit]).sum::<f64>() / drawn.len() as f64
    })
}

/// A number below `bound` from a splitmix64 generator.
fn below(state: &mut u64, bound: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^= word >> 31;
    ((u128::from(word) * bound as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_mean_has_its_textbook_width() {
        // 400 values of unit variance: standard error 1/20, so 95 % lie within 1.96 / 20 of the mean.
        let values: Vec<f64> = (0..400).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let found = paired_difference(&Resampler::default(), &values, &[0.0; 400]).unwrap();
        assert!((found.high - 0.098).abs() < 0.015 && (found.low + 0.098).abs() < 0.015, "{found:?}");
    }

    #[test]
    fn what_both_share_cancels() {
        let left: Vec<f64> = (0..100).map(|i| f64::from(i * i)).collect();
        let right: Vec<f64> = left.iter().map(|value| value - 1.0).collect();
        let found = paired_difference(&Resampler::default(), &left, &right).unwrap();
        assert_eq!(found, Interval { low: 1.0, high: 1.0 });
        assert_eq!(paired_difference(&Resampler::default(), &left, &right[1..]), None);
    }

    #[test]
    fn seeds_repeat() {
        let values: Vec<f64> = (0..50).map(f64::from).collect();
        let at = |seed| {
            paired_difference(&Resampler { seed, ..Resampler::default() }, &values, &[0.0; 50]).unwrap()
        };
        assert_eq!(at(7), at(7));
        assert_ne!(at(7), at(8));
    }
}
