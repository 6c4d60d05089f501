//! What a text says of a model: statistics of its inputs, and the tokens for passes behind quantised blocks.

use lamella_codec::{Interrupted, Progress};
use lamella_lm::Model;
use lamella_lm::statistics::{
    CalibrationOptions, Provenance, SequenceOptions, Statistics, StatisticsError, TextUse, calibrate,
    sequences, text_hash,
};

/// Public domain, 64 KB: the text where the user gives none and the model brings none.
pub const BUILT_IN_TEXT: &str = include_str!("../compress/calibration.txt");

/// Statistics of the original model and the tokens they were taken of.
#[derive(Debug)]
pub struct Calibration {
    /// Second moments and row usage.
    pub statistics: Statistics,
    /// Token sequences.
    pub sequences: Vec<Vec<u32>>,
}

/// Why a text could not be read for a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum CalibrationError {
    #[error("the model has no `tokenizer.json`, so no text can be read")]
    NoTokenizer,
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Calibration {
    /// Runs the model over a text, block by block. Windows are cut to the model's context.
    ///
    /// # Errors
    /// No tokenizer, a text that gives no token, arrays that cannot be read, an interruption.
    pub fn take(
        model: &Model,
        text: &str,
        options: &SequenceOptions,
        progress: &dyn Progress,
    ) -> Result<Self, CalibrationError> {
        let tokenizer = model.tokenizer.as_ref().ok_or(CalibrationError::NoTokenizer)?;
        let mut options = options.clone();
        options.context_length = options.context_length.min(model.network.context_length());
        let sequences = sequences(tokenizer, model.network.family(), text, &options)?;
        let text_use = TextUse {
            hash: text_hash(text),
            tokens: sequences.iter().map(|sequence| sequence.len() as u64).sum(),
            sequences: sequences.len() as u64,
        };
        // These statistics are never saved, so nothing asks which model they belong to.
        let mut statistics = Statistics::new(Provenance { model: String::new(), texts: vec![text_use] });
        let report =
            |done: u64, total: u64, current: &str| progress.advance("calibrate", done, total, current);
        calibrate(&model.network, &sequences, &CalibrationOptions::default(), &mut statistics, &report)?;
        progress.check()?;
        for array in statistics.unreached(model.network.linears()) {
            progress.warn(&format!("the text never reached `{array}`: it is quantised without statistics"));
        }
        Ok(Self { statistics, sequences })
    }
}
