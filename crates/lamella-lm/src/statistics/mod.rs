//! Calibration: what a network's linear modules see, taken once and read by every solver.
//!
//! A weight quantiser needs the second moments of the inputs its matrix multiplies ([`lamella_math::SecondMoment`]);
//! some methods want channel means and maxima, an embedding wants to know how often each row is used. All of these
//! are sums or maxima over tokens, so they stream, merge, and can be saved: calibrate once, compress many times.
//!
//! * [`sequences`] turns a text into token sequences (windows for decoders, paragraphs for encoders);
//! * [`calibrate`] runs them through the *original* network block by block and hands what each input key saw to a
//!   [`Sink`]: [`Statistics`] keeps it in memory, [`StatisticsWriter`] spools it to a file;
//! * [`Statistics::open`] reads such a file back, one entry at a time and only when it is asked for;
//! * [`FisherDiagonal`] is how sharply the predictions depend on each weight; `lamella-nn` takes it by gradients;
//! * [`observe_block`] is the step of [`calibrate`] by itself, for a second pass through already quantised blocks.
//!
//! # Which sink?
//! In memory a full second moment takes `4 features^2` bytes per input key: 30 MB for a small encoder, 3.9 GB for a
//! 1.1 B decoder. Spooled, it takes half of that on disk and one block's worth in memory. Small models: memory.
//!
//! # Determinism
//! Rows are collected to chunks of 2,048 tokens in index order, wherever the network happens to cut its batches;
//! every chunk is summed by a single thread per fixed panel of features. The same sequences give the same bits at
//! any thread count.
//!
//! ```
//! use lamella_lm::statistics::{Detail, InputAccumulator};
//! let mut accumulator = InputAccumulator::new(2, Detail::Full);
//! accumulator.push(&[1.0, -2.0]);
//! accumulator.push(&[3.0, 0.0]);
//! let seen = accumulator.finish();
//! assert_eq!(seen.tokens(), 2);
//! assert_eq!(seen.means(), [2.0, -1.0]);
//! assert_eq!(seen.maxima(), [3.0, 2.0]);
//! assert_eq!(seen.second_moment().unwrap().sum(), [10.0, -2.0, -2.0, 4.0]);
//! ```

mod calibrate;
mod fisher;
mod hash;
mod inputs;
mod sequences;
mod store;
mod tables;

use std::path::PathBuf;

pub use calibrate::{CalibrationOptions, calibrate, observe_block};
pub use fisher::FisherDiagonal;
pub(crate) use hash::hexadecimal;
pub use hash::{source_hash, text_hash};
pub use inputs::{Detail, InputAccumulator, InputStatistics};
pub use sequences::{BosRule, SequenceOptions, paragraphs, sequences};
pub use store::StatisticsWriter;
pub use tables::{Provenance, Sink, Statistics, TextUse};

/// Told how far a long job has come: units done, units in all, and what is being worked on.
pub type Progress<'a> = dyn Fn(u64, u64, &str) + Sync + 'a;

/// Why statistics could not be taken, kept or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatisticsError {
    /// The network could not be run.
    #[error(transparent)]
    Network(#[from] crate::LmError),
    /// The text gives no token to calibrate on.
    #[error("the calibration text gives no sequence: {message}")]
    NoTokens {
        /// What was asked of the text, and what it holds.
        message: String,
    },
    /// A module's inputs overflowed or are not numbers.
    #[error("inputs `{key}` are not finite in {channels} of {features} channels (first: {first})")]
    NonFinite {
        /// Input key.
        key: String,
        /// Channels with a sum that is not finite.
        channels: usize,
        /// Channels in all.
        features: usize,
        /// First such channel.
        first: usize,
    },
    /// Statistics of different things cannot be added up.
    #[error("statistics cannot be merged: {message}")]
    Mismatch {
        /// What differs.
        message: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A statistics file is cut or was changed after it was written.
    #[error("statistics file `{}` is damaged: {message}", path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// What does not fit.
        message: String,
    },
}
