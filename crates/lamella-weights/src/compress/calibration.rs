//! Where the statistics come from: a saved file, or the original model run over a text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lamella_codec::Progress;
use lamella_lm::statistics::{
    self, CalibrationOptions, Provenance, SequenceOptions, Statistics, StatisticsWriter, TextUse, calibrate,
    sequences,
};
use lamella_lm::{Family, LinearSite};

use super::{CompressError, Input};
use crate::evaluate::fit_paragraphs;

/// The text used where the user gives none and the model brings none: public domain, 64 KB.
const BUILT_IN_TEXT: &str = include_str!("calibration.txt");

/// What the user says about calibration.
#[derive(Debug, Clone, Default)]
pub struct CalibrationRequest {
    /// `--calibrate FILE`; else the model directory's `calibration.txt`, else a built-in text.
    pub text: Option<PathBuf>,
    /// Token cap, context length, BOS rule, paragraphs.
    pub sequences: SequenceOptions,
    /// Saved statistics: read where the file exists, else written.
    pub statistics: Option<PathBuf>,
    /// Whether saved statistics of another model are taken, one that this one was coded from.
    pub takes_foreign: bool,
    /// Directory for statistics too large for memory.
    pub scratch: PathBuf,
}

/// Second moments of more bytes than this are kept in a file.
const STATISTICS_IN_MEMORY: usize = 512 << 20;

/// Bytes of all second moments of a network.
fn statistics_bytes(linears: &[LinearSite]) -> usize {
    let inputs: BTreeMap<&str, usize> =
        linears.iter().map(|site| (site.input.as_str(), site.in_features)).collect();
    inputs.values().map(|features| features * features * 4).sum()
}

/// The statistics and what they were taken of.
#[derive(Debug)]
pub struct Calibration {
    /// Second moments and row usage.
    pub statistics: Statistics,
    /// The token sequences, for a second pass; empty where statistics were loaded.
    pub sequences: Vec<Vec<u32>>,
    /// The text, for reports.
    pub text: String,
    /// The file that large statistics lie in, removed with this value.
    _scratch: Option<tempfile::NamedTempFile>,
}

/// Paragraphs of an encoder's calibration text, of those longer than [`ENCODER_LONGER_THAN`] characters.
const ENCODER_PARAGRAPHS: std::ops::Range<usize> = 0..96;
const ENCODER_LONGER_THAN: usize = 200;
const ENCODER_CONTEXT: usize = 128;

impl CalibrationRequest {
    /// How a model's calibration text is read where the user says nothing: encoders 96 paragraphs of more than 200
    /// characters, 128 tokens at most; language models windows of their context.
    pub fn protocol(input: &Input) -> SequenceOptions {
        let is_encoder = input.model.as_ref().is_some_and(|model| model.network.family() == Family::Encoder);
        let mut sequences = SequenceOptions::default();
        if is_encoder {
            sequences.context_length = ENCODER_CONTEXT;
            sequences.longer_than = ENCODER_LONGER_THAN;
            sequences.paragraphs = Some(ENCODER_PARAGRAPHS);
        }
        sequences
    }

    /// Gives up the range of paragraphs where the text has fewer.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn fit_to_text(&mut self, input: &Input) -> Result<(), CompressError> {
        if self.sequences.paragraphs.is_some() {
            let (text, _) = self.read_text(input, &lamella_codec::Silent)?;
            self.sequences = fit_paragraphs(&self.sequences, &text);
        }
        Ok(())
    }

    /// The text to use and what to call it.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read_text(
        &self,
        input: &Input,
        progress: &dyn Progress,
    ) -> Result<(String, String), CompressError> {
        let path = self.text.clone().or_else(|| input.directory.calibration_text());
        match path {
            Some(path) => {
                let bytes = fs_err::read(&path).map_err(CompressError::Io)?;
                Ok((String::from_utf8_lossy(&bytes).into_owned(), path.display().to_string()))
            }
            None => {
                progress.warn(
                    "no calibration text was given and the model brings none: a built-in text of 64 KB is used; \
                     text like what the model will see (`--calibrate FILE`) gives better results",
                );
                Ok((BUILT_IN_TEXT.to_owned(), "built-in text".to_owned()))
            }
        }
    }

    fn scratch_directory(&self) -> &Path {
        if self.scratch.as_os_str().is_empty() { Path::new(".") } else { &self.scratch }
    }

    /// Hash of everything here that changes the bytes of the result.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn fingerprint(&self, input: &Input) -> Result<String, CompressError> {
        let (text, _) = self.read_text(input, &lamella_codec::Silent)?;
        let saved = match &self.statistics {
            Some(path) if path.exists() => statistics::text_hash(&format!("{:?}", fs_err::read(path)?)),
            _ => String::new(),
        };
        Ok(format!("{} {:?} {saved}", statistics::text_hash(&text), self.sequences))
    }

    /// The sequences that a text gives for this model.
    ///
    /// # Errors
    /// No tokenizer, or a text that gives no token.
    pub fn sequences(&self, input: &Input, text: &str) -> Result<Vec<Vec<u32>>, CompressError> {
        let Some(model) = &input.model else { return Ok(Vec::new()) };
        let tokenizer = model.tokenizer.as_ref().ok_or(CompressError::NoTokenizer)?;
        let mut options = self.sequences.clone();
        let longest = match model.network.family() {
            Family::Encoder => model.max_sequence_length,
            Family::Decoder => model.network.context_length(),
        };
        options.context_length = options.context_length.min(longest);
        Ok(sequences(tokenizer, model.network.family(), text, &options)?)
    }

    /// Pass 1: statistics of the original model, block by block.
    ///
    /// # Errors
    /// Unreadable text or statistics, statistics of another model, a network that cannot be run.
    pub fn run(&self, input: &Input, progress: &dyn Progress) -> Result<Calibration, CompressError> {
        let model = input.model.as_ref().ok_or(CompressError::NoTokenizer)?;
        let model_hash = input.content_hash()?;
        let (text, name) = self.read_text(input, progress)?;
        let sequences = self.sequences(input, &text)?;
        if let Some(path) = self.statistics.as_ref().filter(|path| path.exists()) {
            let statistics = Statistics::open(path)?;
            if statistics.provenance().model != model_hash && !self.takes_foreign {
                return Err(CompressError::ForeignStatistics { path: path.clone() });
            }
            return Ok(Calibration {
                statistics,
                sequences,
                text: path.display().to_string(),
                _scratch: None,
            });
        }
        let tokens = sequences.iter().map(|sequence| sequence.len() as u64).sum();
        let text_use =
            TextUse { hash: statistics::text_hash(&text), tokens, sequences: sequences.len() as u64 };
        let provenance = Provenance { model: model_hash, texts: vec![text_use] };
        let report =
            |done: u64, total: u64, current: &str| progress.advance("calibrate", done, total, current);
        let options = CalibrationOptions::default();
        // Statistics that would fill the memory go to a file block by block and are read back one at a time.
        let mut scratch = None;
        if self.statistics.is_none() && statistics_bytes(model.network.linears()) > STATISTICS_IN_MEMORY {
            scratch = Some(
                tempfile::Builder::new()
                    .prefix("lamella-statistics")
                    .tempfile_in(self.scratch_directory())?,
            );
        }
        let path = self.statistics.clone().or(scratch.as_ref().map(|file| file.path().to_owned()));
        let statistics = match path {
            Some(path) => {
                let mut writer = StatisticsWriter::create(&path, provenance)?;
                calibrate(&model.network, &sequences, &options, &mut writer, &report)?;
                progress.check()?;
                writer.finish()?;
                Statistics::open(&path)?
            }
            None => {
                let mut statistics = Statistics::new(provenance);
                calibrate(&model.network, &sequences, &options, &mut statistics, &report)?;
                progress.check()?;
                statistics
            }
        };
        for array in statistics.unreached(model.network.linears()) {
            progress.warn(&format!(
                "the calibration text never reached `{array}`: it is coded without statistics"
            ));
        }
        Ok(Calibration { statistics, sequences, text: name, _scratch: scratch })
    }
}
