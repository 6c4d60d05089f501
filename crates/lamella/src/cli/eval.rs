//! `lamella eval`: how good a model is, and how far from its original.

use std::path::PathBuf;

use clap::Args;
use lamella::lm::Family;
use lamella::weights::evaluate::{EvaluateError, EvaluateOptions, Opened, evaluate};

use super::model_options::range;
use super::{CliError, Common, Exit, print};

/// Judge a model: perplexity, KL divergence to the original, size, bits per weight
///
/// Language models are read in windows of `--context` tokens every `--stride`; the last `--stride` tokens of each
/// window are scored. Encoders are judged by their embeddings against `--against`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lamella eval story.lam --against assets/stories260k\n  lamella eval MODEL --text text.txt --context 256 --stride 128 --json"
)]
pub(crate) struct Eval {
    /// `.lam` file, model directory, weight file, or `org/name`
    #[arg(value_name = "MODEL")]
    model: String,
    /// The original to compare with
    #[arg(long, value_name = "MODEL")]
    against: Option<String>,
    /// Text to judge on [default: `evaluation.txt` beside the original or the model]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of a window [default: 256; encoders at most 128 tokens of a paragraph]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Tokens from one window to the next [default: half the context]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Tokens of the text used at most
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Put the tokenizer's beginning-of-text token before every window
    #[arg(long)]
    bos: bool,
    /// Encoders: judge on paragraphs FIRST..END [default: 200..328 where there are so many]
    #[arg(long, value_name = "FIRST..END")]
    paragraphs: Option<String>,
    /// Encoders: count only paragraphs of more than N characters
    #[arg(long, value_name = "N", default_value_t = 200)]
    longer_than: usize,
    /// Do not measure the original against itself in another numeric order
    #[arg(long)]
    no_noise_floor: bool,
    #[command(flatten)]
    common: Common,
}

impl Eval {
    pub(crate) fn main(self) -> Result<Exit, CliError> {
        let bar = self.common.start()?;
        let catalogue = lamella::catalogue();
        let candidate = Opened::open(&self.model, &catalogue)?;
        let reference = self.against.as_deref().map(|name| Opened::open(name, &catalogue)).transpose()?;
        let beside = reference.as_ref().and_then(|reference| reference.evaluation_text.clone());
        let path = self
            .text
            .clone()
            .or(beside)
            .or_else(|| candidate.evaluation_text.clone())
            .ok_or(EvaluateError::NoText)?;
        let text = std::fs::read(&path)
            .map_err(|error| CliError::usage(format!("`{}` cannot be read: {error}", path.display())))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let options = self.options(&candidate)?;
        let mut evaluation = evaluate(&candidate, reference.as_ref(), &text, &options, &bar)?;
        evaluation.resident_bytes = Some(candidate.model.network.resident_bytes() as u64);
        evaluation.tokens_per_second = tokens_per_second(&candidate, &text, options.language.context)?;
        bar.finish();
        if self.common.json {
            print::json(&evaluation);
        } else {
            print::data(&evaluation.to_string());
        }
        Ok(Exit::Done)
    }

    fn options(&self, candidate: &Opened) -> Result<EvaluateOptions, CliError> {
        let mut options = EvaluateOptions { noise_floor: !self.no_noise_floor, ..EvaluateOptions::default() };
        options.language.max_tokens = self.tokens;
        if candidate.model.network.family() == Family::Decoder {
            if let Some(context) = self.context {
                options.language.context = context;
                options.language.stride = (context / 2).max(1);
            }
            if let Some(stride) = self.stride {
                options.language.stride = stride;
            }
            if self.bos {
                let bos = candidate.model.tokenizer.as_ref().and_then(|tokenizer| tokenizer.bos());
                options.language.bos =
                    Some(bos.ok_or_else(|| CliError::usage("the tokenizer has no beginning-of-text token"))?);
            }
        } else if let Some(context) = self.context {
            options.encoder.context_length = context;
        }
        options.encoder.longer_than = self.longer_than;
        if let Some(text) = &self.paragraphs {
            options.encoder.paragraphs = Some(range(text)?);
        }
        Ok(options)
    }
}

/// Speed of one window, logits included: what reading a prompt of that length takes. Encoders have no logits.
fn tokens_per_second(opened: &Opened, text: &str, context: usize) -> Result<Option<f64>, CliError> {
    let model = &opened.model;
    let (Family::Decoder, Some(tokenizer)) = (model.network.family(), &model.tokenizer) else {
        return Ok(None);
    };
    let start: String = text.chars().take(16 * context).collect();
    let mut window = tokenizer.encode(&start, false)?;
    window.truncate(context);
    if window.is_empty() {
        return Ok(None);
    }
    let (n_tokens, started) = (window.len(), std::time::Instant::now());
    let hidden = model.network.forward(&[window])?;
    model.network.logits(&hidden, None)?;
    Ok(Some(n_tokens as f64 / started.elapsed().as_secs_f64().max(1e-9)))
}
