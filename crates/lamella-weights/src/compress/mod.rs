//! Compressing a model: open, treat, calibrate, solve, code, assemble.
//!
//! ```text
//! Input::open          a directory, a weight file, org/name       (input.rs)
//! treat                which recipe each array gets, and why      (treatment.rs)
//! CalibrationRequest   second moments of the original model       (calibration.rs)
//! Job::choose_rows     rows that get a finer form, over all       (rows.rs)
//!                      arrays of recipes that ask for it
//! Job::plan            one step for all free arrays that meets    (plan.rs)
//!                      the budget, from a sample of rows
//! Job::allocate        each array's effect on the output,       (allocate.rs)
//!                      measured; steps that follow it           (measure.rs)
//! Job::polish          evolution of the steps on the loss of    (polish.rs)
//!                      the whole coded model
//! Job::choose          one of several recipes for each array      (candidates.rs)
//! Job::run             one sweep per array, finished layers       (run.rs)
//!                      spooled, unspent bytes carried on, the
//!                      last arrays closing the budget
//! ```
//!
//! # What a budget counts
//! `Budget::Bytes` is the whole file. `Budget::Bits` is `bits_per_weight`: all bytes but copied side files, over all
//! weights. Without either, a free-rate recipe's own `bits` counts the payloads of the arrays it treats over their
//! weights. Whatever is counted lands in [99 %, 100 %] of what was asked.

mod allocate;
mod calibration;
mod candidates;
mod input;
mod manifest;
mod measure;
mod outlook;
mod plan;
mod polish;
mod report;
mod rows;
mod run;
mod treatment;
mod tune;

use std::path::PathBuf;

use lamella_codec::{ArrayError, CatalogueError, CodecError, Interrupted, Recipe, Refusal, SourceError};
use lamella_file::FileError;
use lamella_io::IoError;
use lamella_lm::LmError;
use lamella_lm::statistics::StatisticsError;

pub use allocate::Allocate;
pub use calibration::{Calibration, CalibrationRequest};
pub use candidates::Choice;
pub use input::Input;
pub use outlook::{AllocationReport, CurvePoint, Estimate};
pub use plan::Job;
pub use report::{ArrayRow, CompressReport};
pub(crate) use run::Overlay;
pub use treatment::{Place, Rule, Treatment, treat};
pub use tune::{TuneError, TuneLength, TuneReport};

/// What may be spent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Bytes of the whole file.
    Bytes(u64),
    /// `bits_per_weight`: all bytes but copied side files, over all weights.
    Bits(f64),
    /// What the recipe's own arguments say.
    Recipe,
}

/// Everything that decides the bytes of the result, and where it goes.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where the file goes.
    pub output: PathBuf,
    /// The default recipe.
    pub recipe: Recipe,
    /// Rules for some arrays; a later rule wins.
    pub rules: Vec<Rule>,
    /// What may be spent.
    pub budget: Budget,
    /// The budget as the user wrote it, stored in the file.
    pub budget_text: String,
    /// Text and options of the statistics.
    pub calibration: CalibrationRequest,
    /// Whether each block's statistics are taken behind the already quantised blocks before it.
    pub sequential: bool,
    /// How long norms and biases are tuned after coding; not at all where `None`.
    pub tune: Option<TuneLength>,
    /// How the budget is spread over the arrays.
    pub allocate: Allocate,
}

impl Request {
    /// What the program does where the user gives nothing but a budget: the house recipe, the model's own
    /// calibration text (else the built-in one), measured allocation.
    ///
    /// # Errors
    /// A calibration text that cannot be read.
    pub fn new(input: &Input, output: PathBuf, budget: Budget) -> Result<Self, CompressError> {
        let beside = output.parent().filter(|parent| !parent.as_os_str().is_empty());
        let scratch = beside.map_or_else(|| PathBuf::from("."), PathBuf::from);
        let sequences = CalibrationRequest::protocol(input);
        let mut calibration =
            CalibrationRequest { text: None, sequences, statistics: None, takes_foreign: false, scratch };
        calibration.sequences.max_tokens = CALIBRATION_TOKENS;
        calibration.fit_to_text(input)?;
        Ok(Self {
            output,
            recipe: Recipe::new("house"),
            rules: Vec::new(),
            budget,
            budget_text: String::new(),
            calibration,
            sequential: false,
            tune: None,
            allocate: Allocate::Measured,
        })
    }
}

/// Calibration tokens at most, unless the user says otherwise.
pub const CALIBRATION_TOKENS: usize = 32_768;

/// Why a model could not be compressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum CompressError {
    #[error(transparent)]
    Input(#[from] IoError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Recipe(#[from] CatalogueError),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Array(#[from] ArrayError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Network(#[from] LmError),
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
    #[error(transparent)]
    Tune(#[from] TuneError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("pattern `{pattern}` matches no array; there are `{examples}` and others")]
    PatternMatchesNothing { pattern: String, examples: String },
    #[error("pattern `{pattern}` is not a glob: {message}")]
    BadPattern { pattern: String, message: String },
    #[error("`{patterns}` ties fewer than two arrays whose recipe has a free rate")]
    TieOfOne { patterns: String },
    #[error("the step ratio {ratio} of array `{array}` is not a number above 0")]
    BadStep { array: String, ratio: f64 },
    #[error(transparent)]
    Allocation(#[from] lamella_rate::AllocationError),
    #[error("there is nothing to choose by: {reason}")]
    NothingMeasured { reason: String },
    #[error("array `{array}` cannot get `{recipe}`: it {refusal}")]
    RuleRefused { array: String, recipe: String, refusal: Refusal },
    #[error("the model has no `tokenizer.json`, so no text can be read for its statistics")]
    NoTokenizer,
    #[error("`{path}` holds statistics of another model; give another file, or delete it to take them again")]
    ForeignStatistics { path: PathBuf },
    #[error(
        "{asked} bytes cannot be met: the smallest file of these recipes is {smallest} bytes ({fixed} of them are side files, exact arrays and manifest)"
    )]
    TooSmall { asked: u64, smallest: u64, fixed: u64 },
    #[error("{asked} bits per weight cannot be met: {smallest:.3} is the least these recipes reach")]
    TooFewBits { asked: f64, smallest: f64 },
    #[error(
        "the file would have {found} bytes, over the {asked} asked for, and no array's recipe has a free rate"
    )]
    NoFreeRate { asked: u64, found: u64 },
    #[error("the coded arrays came to {found} bytes where at most {allowed} were left; report this")]
    Missed { found: u64, allowed: u64 },
    #[error(
        "the model's own predictions are not finite at token {token} of the text that sensitivities are measured on"
    )]
    NotFinite { token: usize },
    #[error("`--sequential` needs a model whose architecture is known: {reason}")]
    NotSequential { reason: String },
}
