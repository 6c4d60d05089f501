//! `lamella compress`: a model in, a `.lam` file of the asked size out.

use std::path::PathBuf;

use clap::Args;
use lamella::codec::Progress;
use lamella::weights::compress::{Budget, CompressReport, Input, Job, Request, TuneReport};
use lamella::weights::evaluate::{EvaluateOptions, Opened, evaluate};

use super::budget::Quality;
use super::export::{Export, Format};
use super::model_options::ModelOptions;
use super::progress::Bar;
use super::{CliError, Exit, plan, print};

/// Compress a model to a size, to bits per weight, or to a quality
///
/// Calibrates on a text, finds the step that meets the budget, quantises each array with error feedback, codes it
/// and packs everything, side files included, into one file. An interrupted run goes on where it stopped.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lamella compress assets/stories260k --size 160KB -o story.lam\n  lamella compress MODEL --size 40% --calibrate text.txt\n  lamella compress MODEL --recipe 'gptq(bits=4, group_size=128)' --keep '*embed*'\n  lamella compress MODEL --quality kl=0.02\n  lamella compress MODEL --size 40% --report report.html\n  lamella compress MODEL --plan plan.toml\n  lamella compress MODEL --to gguf --size 4.2GB --calibrate text.txt"
)]
pub(crate) struct Compress {
    #[command(flatten)]
    options: ModelOptions,
    /// The file to write [default: the model's name with `.lam`]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the output where it exists
    #[arg(long)]
    overwrite: bool,
    /// Print the plan and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Write another tool's format instead: `gguf` at `--size`, or `compressed-tensors` (see `lamella export`)
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with = "lossless")]
    to: Option<Format>,
    /// Keep every bit: `expand` gives back byte-identical files, side files too
    #[arg(long, conflicts_with_all = ["size", "bits", "quality", "dry_run"])]
    lossless: bool,
    /// With `--lossless`: store the difference to this model where that is smaller; `expand` then needs it
    #[arg(long, value_name = "DIR", requires = "lossless")]
    base: Option<String>,
    /// Text that `--quality` is measured on [default: the model's `evaluation.txt`, else the calibration text]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
}

impl Compress {
    pub(crate) fn main(self) -> Result<Exit, CliError> {
        if let Some(to) = self.to {
            return self.export(to);
        }
        let bar = self.options.common.start()?;
        let output = self.output()?;
        if self.lossless {
            return self.compress_lossless(&output, &bar);
        }
        let input = Input::open(&self.options.model)?;
        let request = self.options.request(&input, output)?;
        let report = match self.options.budget.quality()? {
            Some(quality) => self.search(&input, request, quality, &bar)?,
            None => {
                let mut job = Job::plan(&input, &request, &lamella::catalogue(), &bar)?;
                if self.dry_run { job.report()? } else { job.run(&bar)? }
            }
        };
        bar.finish();
        self.options.write_report(&report)?;
        if self.options.common.json {
            print::json(&report);
        } else if self.dry_run {
            print::data(&plan::describe(&report));
        } else {
            print::data(&plan::summary(&report));
            if let Some(tuned) = &report.tune {
                print::data(&described(tuned));
            }
        }
        Ok(Exit::Done)
    }

    /// Writes another tool's format.
    fn export(self, to: Format) -> Result<Exit, CliError> {
        if to == Format::Gguf && self.options.budget.size.is_none() {
            return Err(CliError::usage("`compress --to gguf` needs a `--size`")
                .hint("`lamella export --to gguf --type q4_k` gives every matrix one type"));
        }
        let name = self.options.model.trim_end_matches('/').rsplit('/').next().unwrap_or("model");
        let name = name.trim_end_matches(".safetensors");
        let output = self.output.clone().unwrap_or_else(|| match to {
            Format::Gguf => PathBuf::from(format!("{name}.gguf")),
            _ => PathBuf::from(format!("{name}-compressed")),
        });
        Export::of_compress(&self.options, to, output, self.overwrite, self.dry_run)?.main()
    }

    fn compress_lossless(&self, output: &std::path::Path, bar: &Bar) -> Result<Exit, CliError> {
        let report =
            lamella::weights::lossless::compress(&self.options.model, output, self.base.as_deref(), bar)?;
        bar.finish();
        if self.options.common.json {
            print::json(&report);
            return Ok(Exit::Done);
        }
        let deltas = match &report.base {
            Some(hash) => format!(", {} as differences to {hash}", report.deltas),
            None => String::new(),
        };
        print::data(&format!(
            "{}  {}, {:.2} % of {}; {} files, {} arrays{deltas}",
            output.display(),
            print::bytes(report.bytes),
            100.0 * report.share,
            print::bytes(report.source_bytes),
            report.files,
            report.arrays,
        ));
        report.left_out.iter().for_each(|name| print::note(&format!("left out: directory `{name}`")));
        Ok(Exit::Done)
    }

    fn output(&self) -> Result<PathBuf, CliError> {
        let output = self.output.clone().unwrap_or_else(|| {
            let name = self.options.model.trim_end_matches('/').rsplit('/').next().unwrap_or("model");
            PathBuf::from(format!("{}.lam", name.trim_end_matches(".safetensors")))
        });
        if output.is_dir() {
            return Err(CliError::usage(format!("`{}` is a directory", output.display()))
                .hint(format!("`-o {}/model.lam`", output.display())));
        }
        if output.exists() && !self.overwrite && !self.dry_run {
            return Err(CliError::usage(format!("`{}` exists", output.display()))
                .hint("`--overwrite` replaces it once the new file is whole"));
        }
        Ok(output)
    }

    /// The smallest file that meets a bound, by bisection on bits per weight; every candidate is written, read back
    /// and judged.
    fn search(
        &self,
        input: &Input,
        mut request: Request,
        quality: Quality,
        bar: &Bar,
    ) -> Result<CompressReport, CliError> {
        if self.dry_run {
            return Err(CliError::usage(
                "a `--quality` is found by measuring files; there is no dry run of it",
            ));
        }
        let catalogue = lamella::catalogue();
        let original = Opened::open(&self.options.model, &catalogue)?;
        let text = match self.text.clone().or_else(|| input.directory.evaluation_text()) {
            Some(path) => std::fs::read_to_string(&path)
                .map_err(|error| CliError::usage(format!("`{}` cannot be read: {error}", path.display())))?,
            None => request.calibration.read_text(input, bar)?.0,
        };
        let options = EvaluateOptions { noise_floor: false, ..EvaluateOptions::default() };
        let output = request.output.clone();
        let candidate = PathBuf::from(format!("{}.candidate", output.display()));
        request.output.clone_from(&candidate);
        request.budget_text = format!("--quality {}", self.options.budget.quality.as_deref().unwrap_or(""));
        let bound = match quality {
            Quality::Kl(bound) | Quality::EmbeddingMse(bound) => bound,
        };
        let mut tried = |bits: f64| -> Result<(f64, CompressReport), CliError> {
            request.budget = Budget::Bits(bits);
            let report = Job::plan(input, &request, &catalogue, bar)?.run(bar)?;
            let coded = Opened::open(&candidate.display().to_string(), &catalogue)?;
            let judged = evaluate(&coded, Some(&original), &text, &options, bar)?;
            let measured = match quality {
                Quality::Kl(_) => judged.kl,
                Quality::EmbeddingMse(_) => judged.embedding_mse,
            };
            let measured = measured.ok_or_else(|| {
                CliError::usage("`kl` is for language models, `mse` for encoders")
                    .hint("use the other metric with this model")
            })?;
            Ok((measured, report))
        };
        // Loss falls by about four per bit: start where that rule points from a first look, then close in.
        let mut best: Option<(f64, CompressReport)> = None;
        let (mut low, mut high) = (0.0f64, f64::INFINITY);
        let mut bits = 4.0;
        for round in 0..SEARCH_ROUNDS {
            bar.advance("search", round as u64, SEARCH_ROUNDS as u64, &format!("{bits:.3} bits"));
            let (measured, report) = tried(bits)?;
            if measured <= bound {
                high = bits;
                std::fs::rename(&candidate, &output)
                    .map_err(|error| CliError::usage(format!("`{}`: {error}", output.display())))?;
                best = Some((bits, report));
            } else {
                low = bits;
            }
            if high.is_finite() && high - low < SEARCH_TOLERANCE * high {
                break;
            }
            let guess = bits + 0.5 * (measured.max(1e-12) / bound).log2() * 1.02;
            bits = if high.is_finite() && low > 0.0 {
                guess.clamp(low + 0.15 * (high - low), high - 0.15 * (high - low))
            } else {
                guess.clamp(bits - 2.0, bits + 2.0).max(0.5)
            };
            if bits > 20.0 {
                break;
            }
        }
        let _ = std::fs::remove_file(&candidate);
        best.map(|best| best.1).ok_or_else(|| {
            CliError::usage(format!("no file up to {low:.2} bits per weight meets {bound}"))
                .hint("a bound below the noise floor that `lamella eval` prints cannot be met")
        })
    }
}

/// What tuning did, in one line.
fn described(tuned: &TuneReport) -> String {
    let end = if tuned.is_kept { "" } else { ": not better, so nothing was changed" };
    format!(
        "tuned {} norm and bias parameters in {} steps: held-out {} from {:.5} to {:.5}{end}; {:.1} s",
        tuned.parameters, tuned.steps, tuned.metric, tuned.loss_before, tuned.loss_after, tuned.seconds,
    )
}

const SEARCH_ROUNDS: usize = 10;
/// The search ends when the smallest file known to do is this near to the largest known not to.
const SEARCH_TOLERANCE: f64 = 0.01;
