//! Judging: how much of the original is left in a compressed model.
//!
//! | question | measure | function |
//! |---|---|---|
//! | Does a compressed language model predict as the original does? | `kl_divergence`, top-1 agreement | [`evaluate_language`] |
//! | How well does it predict the text itself? | perplexity | [`evaluate_language`] |
//! | Does a compressed encoder place texts where the original does? | `embedding_mse`, cosine | [`evaluate_embeddings`] |
//! | Does it still answer? | accuracy over choices, exact match | [`multiple_choice`], [`cloze`], [`exact_match`] |
//!
//! # Which one?
//! KL divergence to the original. Every scored position counts with the whole distribution, so a few thousand tokens
//! separate what perplexity needs a hundred thousand for, and it cannot be improved by luck: perplexity of a damaged
//! model may fall below the original's, KL only grows. Tasks say what users feel, but with a few hundred questions
//! their standard error is larger than most differences between codecs.
//!
//! # The measurement
//! A text's tokens are read in windows of `context` tokens, one every `stride`; the last `stride` tokens of each
//! window are scored ([`LanguageOptions`]). Original and candidate run in lockstep over the same windows, so memory
//! holds a group of windows and a slab of logits, whatever the text's length; an original that is expensive to run is
//! wrapped in a [`CachedPredictor`]. Probabilities are f64 log-softmax of f32 logits; KL is in nats per token.
//!
//! Two things belong under every figure. The *noise floor* is the original against itself, computed in another
//! numeric order ([`reordered`]): a KL near it measures rounding, not compression. *Intervals* resample whole windows
//! (paired: the same windows for both models), 1,000 times from a fixed seed.
//!
//! # Example
//! ```
//! use lamella_lm::judge::{LanguageOptions, Predictions, Predictor, Window, evaluate_language};
//! use lamella_lm::judge::JudgeError;
//!
//! /// Always gives the same two logits.
//! struct Coin([f32; 2]);
//! struct Tosses([f32; 2]);
//! impl Predictor for Coin {
//!     fn vocab_size(&self) -> usize { 2 }
//!     fn run(&self, _: &[Window]) -> Result<Box<dyn Predictions + '_>, JudgeError> {
//!         Ok(Box::new(Tosses(self.0)))
//!     }
//! }
//! impl Predictions for Tosses {
//!     fn logits(&self, _: usize, rows: std::ops::Range<usize>) -> Result<Vec<f32>, JudgeError> {
//!         Ok(self.0.repeat(rows.len()))
//!     }
//! }
//!
//! let (fair, biased) = (Coin([0.0, 0.0]), Coin([3.0_f32.ln(), 0.0]));
//! let text = [0, 1, 1, 0, 1, 0, 0, 1];
//! let options = LanguageOptions { context: 4, stride: 2, ..LanguageOptions::default() };
//! let report = evaluate_language(&biased, Some(&fair), None, &text, &options, &|_, _, _| {}).unwrap();
//! // Fair coin against 3/4 and 1/4: ln 2 of what is sure, less the mean log of the other's probabilities.
//! let expected = -0.5 * (0.75_f64 * 0.25).ln() - 2.0_f64.ln();
//! assert!((report.kl.unwrap() - expected).abs() < 1e-7);
//! assert!((report.reference_perplexity.unwrap() - 2.0).abs() < 1e-12);
//! ```

mod bootstrap;
mod cache;
mod distribution;
mod embeddings;
mod evaluation;
mod items;
mod language;
#[cfg(test)]
mod language_tests;
mod measure;
#[cfg(test)]
mod model_tests;
mod predict;
mod reorder;
mod tasks;

use std::path::PathBuf;

pub use crate::statistics::Progress;
pub use bootstrap::{Interval, Resampler, paired_difference};
pub use cache::CachedPredictor;
pub use embeddings::{Embedder, evaluate_embeddings};
pub use evaluation::{Evaluation, Intervals, NoiseFloor, Quantiles, SCHEMA};
pub use items::{ChoiceItem, ClozeItem, GenerationItem, read_items};
pub use language::{LanguageOptions, evaluate_language};
pub use measure::{Comparison, Scores, compare_logits, score_logits};
pub use predict::{Predictions, Predictor, Window};
pub use reorder::reordered;
pub use tasks::{TaskOptions, TaskReport, cloze, exact_match, multiple_choice};

/// Why a model could not be judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// The network could not be run.
    #[error(transparent)]
    Network(#[from] crate::LmError),
    /// The text gives nothing to score.
    #[error("the text gives nothing to score: {message}")]
    TooShort {
        /// What is needed against what there is.
        message: String,
    },
    /// Reference and candidate cannot be compared.
    #[error("the models cannot be compared: {message}")]
    Mismatch {
        /// What differs.
        message: String,
    },
    /// A logit or an embedding is NaN or infinite, or all logits of a position are.
    #[error("{what} are not finite ({place})")]
    NonFinite {
        /// Whose.
        what: String,
        /// Where first.
        place: String,
    },
    /// An option is out of range.
    #[error("option `{option}`: {message}")]
    Option {
        /// Option.
        option: &'static str,
        /// Found against allowed.
        message: String,
    },
    /// A line of a JSONL file is not what the runner reads.
    #[error("line {line}: {message}")]
    Item {
        /// Line, counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A cached file could not be read or written.
    #[error("cached logits `{}`", path.display())]
    Cache {
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
}
