//! Judging a coded model against its original, from the written file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use lamella_codec::{Catalogue, Progress, TensorSource};
use lamella_file::{File, Storage};
use lamella_io::ModelDirectory;
use lamella_lm::judge::{
    Evaluation, JudgeError, LanguageOptions, evaluate_embeddings, evaluate_language, reordered,
};
use lamella_lm::statistics::{SequenceOptions, StatisticsError, paragraphs, sequences};
use lamella_lm::{Family, LinearSite, LmError, Model, Network};

use crate::open::{CodedModel, OpenError};

/// Why a model could not be judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum EvaluateError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    File(#[from] lamella_file::FileError),
    #[error(transparent)]
    Input(#[from] lamella_io::IoError),
    #[error(transparent)]
    Network(#[from] LmError),
    #[error(transparent)]
    Judge(#[from] JudgeError),
    #[error(transparent)]
    Text(#[from] StatisticsError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("`{name}` has no `tokenizer.json`, so no text can be read")]
    NoTokenizer { name: String },
    #[error(
        "there is no text to evaluate on: give `--text FILE`, or put `evaluation.txt` beside the original"
    )]
    NoText,
    #[error("an encoder is judged by its embeddings against the original's: give `--against ORIGINAL`")]
    NoReference,
    #[error("`{candidate}` and `{reference}` are not the same kind of model")]
    DifferentKinds { candidate: String, reference: String },
}

/// A model opened from a directory, a weight file or a `.lam` file, with what its storage costs.
#[derive(Debug)]
pub struct Opened {
    /// What errors call it.
    pub name: String,
    /// Network and tokenizer.
    pub model: Model,
    /// Bytes of the file, or of the weight files.
    pub bytes: u64,
    /// Weights, tied ones once.
    pub weights: u64,
    /// All bytes but copied side files, over all weights.
    pub bits_per_weight: f64,
    /// Coded bytes of the blocks' linears over their weights.
    pub linear_bits_per_weight: f64,
    /// The files beside the weights.
    pub side_files: BTreeMap<String, Vec<u8>>,
    /// `evaluation.txt` beside the weights, where there is one.
    pub evaluation_text: Option<PathBuf>,
    /// The open `.lam` file.
    coded: Option<Arc<CodedModel>>,
}

/// Whether a path names a `.lam` file: by what stands in it, not by its name.
pub fn is_coded(path: &Path) -> bool {
    let Ok(mut file) = fs_err::File::open(path) else { return false };
    let mut start = [0u8; 4];
    std::io::Read::read_exact(&mut file, &mut start).is_ok() && start == lamella_file::limits::MAGIC
}

impl Opened {
    /// Opens a model, and holds all its weights in memory as `f32`.
    ///
    /// # Errors
    /// Nothing there, damage, an architecture that is not known.
    pub fn open(name: &str, catalogue: &Catalogue) -> Result<Self, EvaluateError> {
        Self::open_lazy(name, catalogue)?.resident()
    }

    /// Reads all weights now: evaluation runs them many times. Arrays of a `.lam` file whose recipe says how they
    /// are executed stay in that form, the others become `f32`.
    ///
    /// # Errors
    /// A damaged array.
    pub fn resident(mut self) -> Result<Self, EvaluateError> {
        let failed = Mutex::new(None);
        let coded = self.coded.as_deref();
        let operators = |site: &LinearSite| {
            let coded = coded.filter(|_| !site.is_transposed)?;
            coded.execute(&site.weight).unwrap_or_else(|error| {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                None
            })
        };
        self.model.network = self.model.network.resident_with(&operators)?;
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(LmError::from(error).into()),
            None => Ok(self),
        }
    }

    /// Opens a model; weights are read as they are needed.
    ///
    /// # Errors
    /// As [`Opened::open`].
    pub fn open_lazy(name: &str, catalogue: &Catalogue) -> Result<Self, EvaluateError> {
        if is_coded(Path::new(name)) { Self::open_coded(name, catalogue) } else { Self::open_source(name) }
    }

    fn open_coded(name: &str, catalogue: &Catalogue) -> Result<Self, EvaluateError> {
        Self::from_file(File::open(name)?, catalogue)
    }

    /// The model in an open container, which may be a prefix; weights are read as they are needed.
    ///
    /// # Errors
    /// As [`Opened::open`].
    pub fn from_file(file: File, catalogue: &Catalogue) -> Result<Self, EvaluateError> {
        Self::from_coded(CodedModel::new(file, catalogue)?)
    }

    /// The model in an open container that can be [read on](Opened::grown).
    ///
    /// # Errors
    /// As [`Opened::open`].
    pub fn growing(file: File, catalogue: &Catalogue) -> Result<Self, EvaluateError> {
        Self::from_coded(CodedModel::new(file, catalogue)?.growing())
    }

    /// The model with what a longer prefix of its file adds; weights are read as they are needed.
    ///
    /// # Errors
    /// A file that is no longer prefix of this model's, or none behind it.
    pub fn grown(self, longer: File, catalogue: &Catalogue) -> Result<Self, EvaluateError> {
        let no_file = || OpenError::OtherFile { file: longer.name().to_owned(), shorter: self.name.clone() };
        let coded = self.coded.as_ref().ok_or_else(no_file)?;
        Self::from_coded(coded.grown(longer, catalogue)?)
    }

    fn from_coded(coded: CodedModel) -> Result<Self, EvaluateError> {
        let name = coded.file().name().to_owned();
        let side_files: BTreeMap<String, Vec<u8>> = coded.file().side_files()?.into_iter().collect();
        let coded = Arc::new(coded);
        let source: Arc<dyn TensorSource> = coded.clone();
        let model = Model::open(source, &side_files)?;
        let file = coded.file();
        let (bytes, weights) = (file.length_bytes(), file.elements());
        let side = file.layout().side.end - file.layout().side.start;
        let linears: Vec<&str> = block_linears(&model);
        let (mut linear_bytes, mut linear_weights) = (0.0f64, 0u64);
        for (index, array) in file.arrays().iter().enumerate() {
            let is_alias = matches!(array.storage, Storage::AliasOf(_));
            if is_alias || !linears.contains(&array.spec.name.as_str()) {
                continue;
            }
            let Some(target) = file.targets().of_array(index) else { continue };
            let layers = file.layer_indices(target).iter();
            let bytes: u64 = layers.map(|&layer| file.manifest().layers[layer as usize].length_bytes).sum();
            let (own, all) = (array.spec.len() as f64, file.targets().spec(target, file.arrays()));
            linear_bytes += bytes as f64 * own / all.map_or(own, |all| all.len() as f64).max(1.0);
            linear_weights += array.spec.len() as u64;
        }
        Ok(Self {
            name,
            bytes,
            weights,
            bits_per_weight: bytes.saturating_sub(side) as f64 * 8.0 / weights.max(1) as f64,
            linear_bits_per_weight: linear_bytes * 8.0 / linear_weights.max(1) as f64,
            model,
            side_files,
            evaluation_text: None,
            coded: Some(Arc::clone(&coded)),
        })
    }

    fn open_source(name: &str) -> Result<Self, EvaluateError> {
        let directory: Arc<ModelDirectory> = Arc::new(lamella_io::open_model(name)?);
        let side_files: BTreeMap<String, Vec<u8>> = directory.side_files()?.into_iter().collect();
        let source: Arc<dyn TensorSource> = directory.clone();
        let model = Model::open(source, &side_files)?;
        let weights: u64 = directory.arrays().iter().map(|spec| spec.len() as u64).sum();
        let linears = block_linears(&model);
        let linear = directory.arrays().iter().filter(|spec| linears.contains(&spec.name.as_str()));
        let (linear_bytes, linear_weights) = linear.fold((0, 0), |(bytes, weights), spec| {
            (bytes + spec.checked_size_bytes().unwrap_or(0), weights + spec.len())
        });
        let bytes = directory.weight_bytes();
        Ok(Self {
            name: name.to_owned(),
            bytes,
            weights,
            bits_per_weight: bytes as f64 * 8.0 / weights.max(1) as f64,
            linear_bits_per_weight: linear_bytes as f64 * 8.0 / linear_weights.max(1) as f64,
            model,
            evaluation_text: directory.evaluation_text(),
            side_files,
            coded: None,
        })
    }
}

fn block_linears(model: &Model) -> Vec<&str> {
    model
        .network
        .linears()
        .iter()
        .filter(|site| site.block.is_some())
        .map(|site| site.weight.as_str())
        .collect()
}

/// How a model is judged. The defaults are the project's protocols.
#[derive(Debug, Clone)]
pub struct EvaluateOptions {
    /// Windows of language models.
    pub language: LanguageOptions,
    /// Texts of encoders: paragraphs longer than 200 characters, 200 to 327 of them, 128 tokens at most. A text that
    /// has fewer gives all it has.
    pub encoder: SequenceOptions,
    /// Whether the original is also measured against itself in another numeric order.
    pub noise_floor: bool,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self {
            language: LanguageOptions::default(),
            encoder: SequenceOptions {
                max_tokens: usize::MAX,
                context_length: 128,
                longer_than: 200,
                paragraphs: Some(200..328),
                ..SequenceOptions::default()
            },
            noise_floor: true,
        }
    }
}

/// Judges `candidate`, against `reference` where there is one.
///
/// # Errors
/// Models that cannot be compared or run; a text that gives nothing to score.
pub fn evaluate(
    candidate: &Opened,
    reference: Option<&Opened>,
    text: &str,
    options: &EvaluateOptions,
    progress: &dyn Progress,
) -> Result<Evaluation, EvaluateError> {
    let family = candidate.model.network.family();
    if let Some(reference) = reference.filter(|reference| reference.model.network.family() != family) {
        return Err(EvaluateError::DifferentKinds {
            candidate: candidate.name.clone(),
            reference: reference.name.clone(),
        });
    }
    let tokenizer = reference
        .and_then(|reference| reference.model.tokenizer.as_ref())
        .or(candidate.model.tokenizer.as_ref())
        .ok_or_else(|| EvaluateError::NoTokenizer { name: candidate.name.clone() })?;
    let report = |done: u64, total: u64, current: &str| progress.advance("evaluate", done, total, current);
    let mut evaluation = match family {
        Family::Decoder => {
            let tokens = tokenizer.encode(text, false)?;
            let noise = reference.filter(|_| options.noise_floor).map(reordered_network).transpose()?;
            evaluate_language(
                &candidate.model.network,
                reference.map(|reference| &reference.model.network as _),
                noise.as_ref().map(|network| network as _),
                &tokens,
                &options.language,
                &report,
            )?
        }
        Family::Encoder => {
            let reference = reference.ok_or(EvaluateError::NoReference)?;
            let encoder = fit_paragraphs(&options.encoder, text);
            let texts = sequences(tokenizer, Family::Encoder, text, &encoder)?;
            let noise = options.noise_floor.then(|| reordered_network(reference)).transpose()?;
            evaluate_embeddings(
                &candidate.model.network,
                &reference.model.network,
                noise.as_ref().map(|network| network as _),
                &texts,
                &options.language.resampler,
                &report,
            )?
        }
    };
    evaluation.bytes = Some(candidate.bytes);
    evaluation.weights = Some(candidate.weights);
    evaluation.bits_per_weight = Some(candidate.bits_per_weight);
    evaluation.linear_bits_per_weight = Some(candidate.linear_bits_per_weight);
    Ok(evaluation)
}

/// The same network with its sums in another order: what is measured against it is rounding alone.
fn reordered_network(original: &Opened) -> Result<Network, LmError> {
    let network = &original.model.network;
    let source = reordered(Arc::clone(network.source()), network.linears());
    Model::open(source, &original.side_files)?.network.resident()
}

/// The options with a paragraph range that the text can fill: as asked where it can, else all there are.
pub fn fit_paragraphs(options: &SequenceOptions, text: &str) -> SequenceOptions {
    let mut fitted = options.clone();
    let Some(range) = &options.paragraphs else { return fitted };
    if paragraphs(text, options.longer_than).count() < range.end {
        fitted.paragraphs = None;
        if paragraphs(text, options.longer_than).next().is_none() {
            fitted.longer_than = 0;
        }
    }
    fitted
}
