//! Training of language models: from a shape or an existing model, on a text, to a directory.
//!
//! * [`Shape`] describes a small Llama or, with experts, a small Mixtral, and makes its first weights;
//! * [`Texts`] reads a file or a directory and keeps the end of every file for judging;
//! * [`Run`] takes the steps: AdamW, warm-up and cosine, gradients clipped to length 1, held-out perplexity;
//! * [`write_model`] writes a Hugging Face directory.
//!
//! # Determinism
//! A step reads windows that depend on the seed, its number and the window's number alone; gradients are summed in a
//! fixed order. So a run gives the same bits at any thread count, and a run that was stopped and resumed gives those
//! of one that was not. Between machines only matrix products may differ (their kernels differ).

mod run;
mod shape;
mod state;
mod text;
mod write;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use run::{Run, TrainReport};
pub use shape::Shape;
pub use text::Texts;
pub use write::write_model;

use crate::{NetworkError, ReadError};

/// How a model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Steps.
    pub steps: usize,
    /// Windows of a step.
    pub batch: usize,
    /// Tokens of a window.
    pub context: usize,
    /// Largest learning rate.
    pub rate: f32,
    /// Steps in which the rate rises.
    pub warmup: usize,
    /// Weight decay of matrices, per unit of rate.
    pub decay: f32,
    /// Weight of the experts' balance in the loss.
    pub balance: f32,
    /// Chooses first weights and windows.
    pub seed: u64,
    /// Recompute blocks in reverse instead of keeping what they need.
    pub is_checkpointed: bool,
    /// Steps between looks at the held-out text.
    pub look_every: usize,
}

/// Why a model could not be trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum TrainError {
    #[error("`{field}` is {found}, {allowed}")]
    Field { field: &'static str, found: String, allowed: String },
    #[error("the text gives {found} tokens, a window needs {needed}")]
    TooLittleText { found: usize, needed: usize },
    #[error("`{}` holds no text", path.display())]
    NoText { path: PathBuf },
    #[error("`{}` was left by a run with another {what}", path.display())]
    OtherRun { path: PathBuf, what: String },
    #[error("`{}` does not hold the state of a run: {message}", path.display())]
    State { path: PathBuf, message: String },
    #[error("the loss is no longer a number at step {step}: the learning rate is too high")]
    Diverged { step: usize },
    #[error(transparent)]
    Interrupted(#[from] lamella_codec::Interrupted),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Model(#[from] lamella_lm::LmError),
    #[error(transparent)]
    Files(#[from] lamella_io::IoError),
    #[error(transparent)]
    Source(#[from] lamella_codec::SourceError),
    #[error(transparent)]
    Array(#[from] lamella_codec::ArrayError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Numbers that depend on what they are asked for alone.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The sequence for these words.
    pub(crate) fn of(words: &[u64]) -> Self {
        let mut random = Self(0);
        for &word in words {
            random.0 ^= word;
            random.0 = random.next();
        }
        random
    }

    /// The next 64 bits (splitmix64).
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// About normal with mean 0 and deviation 1: twelve uniform numbers' sum, the same on every machine.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32).sum::<f32>() - 6.0
    }
}
