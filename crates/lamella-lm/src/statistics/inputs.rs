//! What one group of linears saw.

use std::sync::Arc;

use lamella_math::SecondMoment;
use rayon::prelude::*;

use super::StatisticsError;

/// Tokens collected before they are summed: fixed, so that sums do not depend on how batches were cut.
const CHUNK_TOKENS: usize = 2048;
/// Channels that one thread works on.
const CHANNEL_TILE: usize = 256;

/// How much of the inputs is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Detail {
    /// The full second moment and the channel sums: `4 features^2` bytes per input key.
    #[default]
    Full,
    /// Channel sums only (means, mean squares, maxima): `20 features` bytes per input key.
    Diagonal,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Channels {
    pub(super) sums: Vec<f64>,
    pub(super) squares: Vec<f64>,
    pub(super) maxima: Vec<f32>,
}

impl Channels {
    pub(super) fn new(features: usize) -> Self {
        Self { sums: vec![0.0; features], squares: vec![0.0; features], maxima: vec![0.0; features] }
    }

    /// Adds rows token by token; tiles of channels run side by side.
    fn accumulate(&mut self, rows: &[f32]) {
        let features = self.sums.len();
        self.sums
            .par_chunks_mut(CHANNEL_TILE)
            .zip(self.squares.par_chunks_mut(CHANNEL_TILE))
            .zip(self.maxima.par_chunks_mut(CHANNEL_TILE))
            .enumerate()
            .for_each(|(tile, ((sums, squares), maxima))| {
                let first = tile * CHANNEL_TILE;
                for row in rows.chunks_exact(features) {
                    let values = &row[first..first + sums.len()];
                    for (channel, &value) in values.iter().enumerate() {
                        let wide = f64::from(value);
                        sums[channel] += wide;
                        squares[channel] += wide * wide;
                        maxima[channel] = maxima[channel].max(value.abs());
                    }
                }
            });
    }

    fn merge(&mut self, other: &Self) {
        for channel in 0..self.sums.len() {
            self.sums[channel] += other.sums[channel];
            self.squares[channel] += other.squares[channel];
            self.maxima[channel] = self.maxima[channel].max(other.maxima[channel]);
        }
    }
}

/// What the linears of one input key saw: cheap to clone, read-only.
#[derive(Debug, Clone, PartialEq)]
pub struct InputStatistics {
    tokens: u64,
    channels: Arc<Channels>,
    second_moment: Option<Arc<SecondMoment>>,
}

impl InputStatistics {
    pub(super) fn from_parts(
        tokens: u64,
        channels: Channels,
        second_moment: Option<Arc<SecondMoment>>,
    ) -> Self {
        Self { tokens, channels: Arc::new(channels), second_moment }
    }

    pub(super) fn channels(&self) -> &Channels {
        &self.channels
    }

    /// Tokens seen (for an expert: tokens routed to it).
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Input features.
    pub fn features(&self) -> usize {
        self.channels.sums.len()
    }

    /// Sum of `x x^T`; `None` where only [`Detail::Diagonal`] was taken.
    pub fn second_moment(&self) -> Option<&Arc<SecondMoment>> {
        self.second_moment.as_ref()
    }

    /// Mean of each channel; zeros where no token was seen.
    pub fn means(&self) -> Vec<f64> {
        self.per_token(&self.channels.sums)
    }

    /// Mean square of each channel; zeros where no token was seen.
    pub fn mean_squares(&self) -> Vec<f64> {
        self.per_token(&self.channels.squares)
    }

    /// Largest magnitude of each channel.
    pub fn maxima(&self) -> &[f32] {
        &self.channels.maxima
    }

    fn per_token(&self, sums: &[f64]) -> Vec<f64> {
        let tokens = self.tokens.max(1) as f64;
        sums.iter().map(|sum| sum / tokens).collect()
    }

    /// Adds what another run saw of the same input key.
    ///
    /// # Errors
    /// Another number of features, or a second moment on one side only.
    pub fn merge(&mut self, other: &Self) -> Result<(), StatisticsError> {
        if self.features() != other.features() {
            return Err(StatisticsError::Mismatch {
                message: format!("{} features against {}", self.features(), other.features()),
            });
        }
        let merged = match (&mut self.second_moment, &other.second_moment) {
            (None, None) => true,
            (Some(mine), Some(theirs)) => Arc::make_mut(mine).merge(theirs),
            _ => false,
        };
        if !merged {
            return Err(StatisticsError::Mismatch {
                message: "one side holds the full second moment, the other its diagonal".to_owned(),
            });
        }
        Arc::make_mut(&mut self.channels).merge(&other.channels);
        self.tokens += other.tokens;
        Ok(())
    }

    /// Refuses sums that overflowed.
    pub(super) fn check_finite(&self, key: &str) -> Result<(), StatisticsError> {
        let features = self.features();
        let bad: Vec<usize> = (0..features)
            .filter(|&channel| {
                let square = self.channels.squares[channel];
                !square.is_finite()
                    || square > f64::from(f32::MAX)
                    || !self.channels.sums[channel].is_finite()
            })
            .collect();
        match bad.first() {
            None => Ok(()),
            Some(&first) => {
                Err(StatisticsError::NonFinite { key: key.to_owned(), channels: bad.len(), features, first })
            }
        }
    }
}

/// Sums rows of one input key as they come.
#[derive(Debug)]
pub struct InputAccumulator {
    tokens: u64,
    features: usize,
    channels: Channels,
    second_moment: Option<SecondMoment>,
    pending: Vec<f32>,
}

impl InputAccumulator {
    /// No rows seen yet.
    pub fn new(features: usize, detail: Detail) -> Self {
        Self {
            tokens: 0,
            features,
            channels: Channels::new(features),
            second_moment: (detail == Detail::Full).then(|| SecondMoment::new(features)),
            pending: Vec::new(),
        }
    }

    /// Adds rows, `[tokens, features]` row-major. What comes out depends on the rows and their order, never on how
    /// they were cut into calls.
    ///
    /// # Panics
    /// Where `rows` is not a whole number of inputs: a programming error of the caller.
    pub fn push(&mut self, mut rows: &[f32]) {
        if self.features == 0 || rows.is_empty() {
            return;
        }
        assert!(
            rows.len().is_multiple_of(self.features),
            "{} numbers are not whole inputs of {} features",
            rows.len(),
            self.features
        );
        self.tokens += (rows.len() / self.features) as u64;
        let chunk = CHUNK_TOKENS * self.features;
        if !self.pending.is_empty() {
            let taken = rows.len().min(chunk - self.pending.len());
            self.pending.extend_from_slice(&rows[..taken]);
            rows = &rows[taken..];
            if self.pending.len() < chunk {
                return;
            }
            self.flush();
        }
        let whole = rows.len() / chunk * chunk;
        for rows in rows[..whole].chunks_exact(chunk) {
            self.add(rows);
        }
        self.pending.extend_from_slice(&rows[whole..]);
    }

    /// Sums what is left and hands over.
    pub fn finish(mut self) -> InputStatistics {
        self.flush();
        InputStatistics::from_parts(self.tokens, self.channels, self.second_moment.map(Arc::new))
    }

    fn flush(&mut self) {
        let mut rows = std::mem::take(&mut self.pending);
        self.add(&rows);
        rows.clear();
        self.pending = rows;
    }

    fn add(&mut self, rows: &[f32]) {
        if rows.is_empty() {
            return;
        }
        self.channels.accumulate(rows);
        if let Some(moment) = &mut self.second_moment {
            moment.accumulate(rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wave(length: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * 7919 % 1013) as f32 / 500.0 - 1.0) * 1.7).collect()
    }

    fn whole(rows: &[f32], features: usize) -> InputStatistics {
        let mut accumulator = InputAccumulator::new(features, Detail::Full);
        accumulator.push(rows);
        accumulator.finish()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn batching_leaves_no_trace(cuts in prop::collection::vec(1_usize..3000, 1..8)) {
            let rows = wave(5000 * 3);
            let mut accumulator = InputAccumulator::new(3, Detail::Full);
            let mut rest = &rows[..];
            for cut in cuts {
                let (now, later) = rest.split_at((cut * 3).min(rest.len()));
                accumulator.push(now);
                rest = later;
            }
            accumulator.push(rest);
            prop_assert_eq!(accumulator.finish(), whole(&rows, 3));
        }
    }

    #[test]
    fn merging_equals_seeing_everything() {
        let rows = wave(4096 * 4);
        let mut merged = whole(&rows[..2048 * 4], 4);
        merged.merge(&whole(&rows[2048 * 4..], 4)).unwrap();
        let seen = whole(&rows, 4);
        assert_eq!((merged.tokens(), merged.maxima()), (seen.tokens(), seen.maxima()));
        for (a, b) in merged.mean_squares().iter().zip(seen.mean_squares()) {
            assert!((a - b).abs() < 1e-12);
        }
        for (a, b) in merged.second_moment().unwrap().sum().iter().zip(seen.second_moment().unwrap().sum()) {
            assert!((a - b).abs() < 1e-3, "{a} {b}");
        }
        let mut diagonal = InputAccumulator::new(4, Detail::Diagonal);
        diagonal.push(&rows);
        let diagonal = diagonal.finish();
        assert_eq!(diagonal.mean_squares(), whole(&rows, 4).mean_squares());
        assert!(merged.merge(&diagonal).is_err());
    }

    #[test]
    fn overflow_names_the_channel() {
        let seen = whole(&[1.0, f32::INFINITY, 2.0, 1.0], 2);
        let error = seen.check_finite("block.0").unwrap_err();
        assert_eq!(error.to_string(), "inputs `block.0` are not finite in 1 of 2 channels (first: 1)");
        assert!(whole(&[1.0, f32::NAN], 2).check_finite("x").is_err());
    }
}
