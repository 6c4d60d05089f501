//! `lamella cut`: a smaller file out of a larger one.

use std::path::PathBuf;

use clap::Args;
use lamella::codec::Progress;
use lamella::file::File;
use lamella::weights::evaluate::{EvaluateError, EvaluateOptions, Opened, evaluate};

use super::budget::{BudgetOptions, Quality};
use super::progress::Bar;
use super::reencode::reencode;
use super::{CliError, Common, Exit, plan, print};

/// How far to cut.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// Largest size of the result: bytes, KB/MB/GB, KiB/MiB/GiB, or `N%` of the file
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// Most bits per weight: all bytes but copied side files, over all weights
    #[arg(long, value_name = "BITS")]
    bits: Option<f64>,
    /// The smallest file that is this good: `kl=0.02` (nats per token) or `mse=0.05` (embeddings)
    #[arg(long, value_name = "METRIC=BOUND", requires = "against")]
    quality: Option<String>,
}

/// Cut a `.lam` file to a smaller size, keeping whole layers
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lamella cut model.lam --size 300MB -o small.lam\n  lamella cut model.lam --bits 3 -o small.lam\n  lamella cut model.lam --quality kl=0.05 --against MODEL -o small.lam\n  lamella cut master.lam --size 300MB --reencode --statistics model.stats -o small.lam"
)]
pub(crate) struct Cut {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    target: Target,
    /// With `--quality`: the original that losses are measured against
    #[arg(long, value_name = "MODEL")]
    against: Option<String>,
    /// With `--quality`: the text to measure on [default: the original's `evaluation.txt`]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Replace the output where it exists
    #[arg(long)]
    overwrite: bool,
    /// Decode the file and code it anew with this recipe, at most as large, instead of dropping layers: slower, and
    /// smaller for the same loss. The file should be much finer than what is wanted, or lossless
    #[arg(long, value_name = "RECIPE", num_args = 0..=1, default_missing_value = "house", conflicts_with = "quality")]
    reencode: Option<String>,
    /// With `--reencode`: the statistics that `compress --statistics` kept [default: taken anew]
    #[arg(long, value_name = "FILE", requires = "reencode")]
    statistics: Option<PathBuf>,
    /// Print what would be kept and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: Common,
}

impl Cut {
    pub(crate) fn main(self) -> Result<Exit, CliError> {
        let bar = self.common.start()?;
        if self.output.exists() && !self.overwrite && !self.dry_run {
            return Err(CliError::usage(format!("`{}` exists", self.output.display()))
                .hint("`--overwrite` replaces it"));
        }
        let file = File::open(&self.file)?;
        let bytes = self.bytes(&file, &bar)?;
        if let Some(recipe) = &self.reencode {
            drop(file);
            let statistics = self.statistics.as_deref();
            // `compress` would take them anew and keep them there: here that would be a typing error that goes unseen.
            if let Some(path) = statistics.filter(|path| !path.exists()) {
                return Err(CliError::usage(format!("there are no statistics at `{}`", path.display()))
                    .hint("`lamella compress MODEL --statistics FILE` keeps them; without the option they are taken anew"));
            }
            let report = reencode(&self.file, recipe, bytes, statistics, &self.output, self.dry_run, &bar)?;
            bar.finish();
            match (self.common.json, self.dry_run) {
                (true, _) => print::json(&report),
                (false, true) => print::data(&plan::describe(&report)),
                (false, false) => print::data(&plan::summary(&report)),
            }
            return Ok(Exit::Done);
        }
        bar.finish();
        let cut = file.cut(bytes)?;
        let report = if self.dry_run { cut.report().clone() } else { cut.write(&self.output)? };
        if self.common.json {
            print::json(&report);
        } else {
            print::data(&format!(
                "{}: {} of {}, {} layers, {:.3} bits per element, predicted loss {:.2} times the file's",
                self.output.display(),
                print::bytes(report.bytes),
                print::bytes(file.length_bytes()),
                report.layers,
                report.bits_per_element,
                report.predicted_loss,
            ));
        }
        Ok(Exit::Done)
    }

    /// The largest size the target allows, or the smallest that is good enough.
    fn bytes(&self, file: &File, bar: &Bar) -> Result<u64, CliError> {
        if let Some(size) = &self.target.size {
            let size: lamella::rate::Size = size.parse()?;
            return Ok(size.bytes(file.length_bytes()));
        }
        if let Some(bits) = self.target.bits {
            if !(bits > 0.0 && bits <= 64.0) {
                return Err(CliError::usage(format!("`--bits {bits}` is not between 0 and 64")));
            }
            let side = file.layout().side.end - file.layout().side.start;
            return Ok((bits * file.elements() as f64 / 8.0) as u64 + side);
        }
        self.search(file, bar)
    }

    /// The smallest cut that meets a bound, by bisection on its bytes; each candidate is read back and judged.
    fn search(&self, file: &File, bar: &Bar) -> Result<u64, CliError> {
        let quality =
            BudgetOptions { size: None, bits: None, quality: self.target.quality.clone() }.quality()?;
        let (Some(quality), Some(against)) = (quality, &self.against) else {
            return Err(CliError::usage("a target is needed").hint("`--size`, `--bits` or `--quality`"));
        };
        let catalogue = lamella::catalogue();
        let original = Opened::open(against, &catalogue)?;
        let path =
            self.text.clone().or_else(|| original.evaluation_text.clone()).ok_or(EvaluateError::NoText)?;
        let text = std::fs::read_to_string(&path)
            .map_err(|error| CliError::usage(format!("`{}` cannot be read: {error}", path.display())))?;
        let options = EvaluateOptions { noise_floor: false, ..EvaluateOptions::default() };
        let (bound, is_kl) = match quality {
            Quality::Kl(bound) => (bound, true),
            Quality::EmbeddingMse(bound) => (bound, false),
        };
        let loss = |bytes: u64| -> Result<f64, CliError> {
            let candidate = File::from_bytes(file.cut(bytes)?.to_bytes()?)?;
            let coded = Opened::from_file(candidate, &catalogue)?.resident()?;
            let judged = evaluate(&coded, Some(&original), &text, &options, bar)?;
            if is_kl { judged.kl } else { judged.embedding_mse }.ok_or_else(|| {
                CliError::usage("`kl` is for language models, `mse` for encoders")
                    .hint("use the other metric with this model")
            })
        };
        let (mut low, mut high) = (file.layout().smallest_complete_bytes, file.length_bytes());
        let mut best = None;
        for round in 0..SEARCH_ROUNDS {
            bar.advance("search", round, SEARCH_ROUNDS, "");
            if high - low <= file.length_bytes() / SEARCH_SHARE {
                break;
            }
            let middle = low + (high - low) / 2;
            if loss(middle)? <= bound {
                (best, high) = (Some(middle), middle);
            } else {
                low = middle;
            }
        }
        best.ok_or_else(|| {
            CliError::usage(format!("no cut of `{}` meets {bound}", file.name()))
                .hint("only the whole file may be as good as that; `lamella eval` says how good it is")
        })
    }
}

/// Cuts that are measured at most.
const SEARCH_ROUNDS: u64 = 12;
/// The search ends within this part of the file.
const SEARCH_SHARE: u64 = 200;
