//! What `compress` and `plan` share: recipe, rules, calibration.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lamella::codec::Recipe;
use lamella::lm::statistics::BosRule;
use lamella::weights::compress::{
    Allocate, CalibrationRequest, CompressReport, Input, Request, Rule, TuneLength,
};

use super::budget::BudgetOptions;
use super::plan_file::PlanFile;
use super::{CliError, Common, html};

#[derive(Debug, Clone, Args)]
pub(crate) struct ModelOptions {
    /// Model directory, weight file, or `org/name` on the hub
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) budget: BudgetOptions,
    /// Recipe of every weight matrix: `house`, `house(bits=3)`, `gptq(bits=4, group_size=128)`, `rtn`, `exact`
    #[arg(long, value_name = "RECIPE", default_value = "house")]
    pub(crate) recipe: String,
    /// Code in layers, so that any part of the file from its beginning is a smaller model: `--recipe progressive`
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) progressive: bool,
    /// Keep matching arrays exact; a glob over whole names, repeatable
    #[arg(long, value_name = "GLOB")]
    pub(crate) keep: Vec<String>,
    /// Give matching arrays another recipe; repeatable, the last match wins
    #[arg(long, value_name = "GLOB=RECIPE")]
    pub(crate) rule: Vec<String>,
    /// Text to take statistics of [default: the model's `calibration.txt`, else a built-in one]
    #[arg(long, value_name = "FILE")]
    pub(crate) calibrate: Option<PathBuf>,
    /// Saved statistics: read where the file exists, else written
    #[arg(long, value_name = "FILE")]
    pub(crate) statistics: Option<PathBuf>,
    /// Calibration tokens at most
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    pub(crate) tokens: usize,
    /// Calibration window in tokens [default: 2048 or the model's context; encoders 128]
    #[arg(long, value_name = "N")]
    pub(crate) context: Option<usize>,
    /// Beginning-of-text tokens in calibration windows
    #[arg(long, value_enum, default_value_t = Bos::Auto)]
    pub(crate) bos: Bos,
    /// Calibrate on paragraphs FIRST..END of the text [default: encoders 0..96, else all]
    #[arg(long, value_name = "FIRST..END")]
    pub(crate) paragraphs: Option<String>,
    /// Count only paragraphs of more than N characters [default: encoders 200, else 0]
    #[arg(long, value_name = "N")]
    pub(crate) longer_than: Option<usize>,
    /// Take each block's statistics behind the already quantised blocks before it
    #[arg(long)]
    pub(crate) sequential: bool,
    /// How bits are spread: by each array's measured effect on the output, or one relative step for all
    #[arg(long, value_enum, default_value_t = Allocation::Measured, conflicts_with = "tie")]
    pub(crate) allocate: Allocation,
    /// Arrays that must share a relative step (fused q, k and v): globs with commas between; repeatable
    #[arg(long, value_name = "GLOB,GLOB")]
    pub(crate) tie: Vec<String>,
    /// Do what a plan says that `lamella plan --toml` wrote and that may have been edited; `--size`, `--bits`, `--rule`
    /// and `--keep` go before it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["recipe", "allocate", "tie"])]
    pub(crate) plan: Option<PathBuf>,
    /// Write a report to look at in a browser: one HTML file with charts, nothing loaded from elsewhere
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Then tune norms and biases for about so many minutes, so that predictions come nearer to the original's
    #[arg(long, value_name = "MINUTES")]
    pub(crate) tune: Option<f64>,
    /// The same for a number of steps, which gives the same bytes on every run
    #[arg(long, value_name = "N", conflicts_with = "tune")]
    pub(crate) tune_steps: Option<usize>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bos {
    /// As the tokenizer does
    Auto,
    /// Before every window
    Always,
    /// Nowhere
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Allocation {
    /// Sensitivities are measured on text behind the calibration text
    Measured,
    /// One relative step
    Uniform,
}

/// Reads `FIRST..END`.
pub(crate) fn range(text: &str) -> Result<std::ops::Range<usize>, CliError> {
    let wrong = || CliError::usage(format!("`{text}` is not a range like `0..96`"));
    let (first, end) = text.split_once("..").ok_or_else(wrong)?;
    let (first, end) = (first.parse().map_err(|_| wrong())?, end.parse().map_err(|_| wrong())?);
    if first < end { Ok(first..end) } else { Err(wrong()) }
}

impl ModelOptions {
    /// The request; the output path is empty for a plan.
    pub(crate) fn request(&self, input: &Input, output: PathBuf) -> Result<Request, CliError> {
        let plan = self.plan.as_deref().map(PlanFile::read).transpose()?;
        let own = if self.progressive { "progressive" } else { self.recipe.as_str() };
        let recipe: Recipe = plan.as_ref().map_or(own, |plan| plan.recipe.as_str()).parse()?;
        let exact = Recipe::new("exact");
        let mut rules: Vec<Rule> = plan.as_ref().map_or(Ok(Vec::new()), PlanFile::rules)?;
        for rule in &self.rule {
            let (pattern, recipe) = rule
                .split_once('=')
                .ok_or_else(|| CliError::usage(format!("`--rule {rule}` is not GLOB=RECIPE")))?;
            rules.push(Rule { pattern: pattern.to_owned(), recipe: recipe.parse()? });
        }
        rules.extend(self.keep.iter().map(|glob| Rule { pattern: glob.clone(), recipe: exact.clone() }));
        let own = match &plan {
            Some(plan) if !self.budget.is_given() => plan.budget(),
            _ => self.budget.clone(),
        };
        let (budget, budget_text) = own.budget(input.directory.weight_bytes())?;
        let beside = output.parent().filter(|parent| !parent.as_os_str().is_empty());
        let scratch = beside.map_or_else(|| PathBuf::from("."), PathBuf::from);
        let sequential = self.sequential || recipe.flag("sequential").unwrap_or(false);
        Ok(Request {
            output,
            recipe,
            rules,
            budget,
            budget_text,
            calibration: self.calibration(input, scratch)?,
            sequential,
            tune: self.tune()?,
            allocate: match (&plan, self.allocate) {
                (Some(plan), _) => Allocate::Given(plan.steps()),
                (None, Allocation::Measured) if self.tie.is_empty() => Allocate::Measured,
                (None, Allocation::Measured) => Allocate::Tied(self.ties()?),
                (None, Allocation::Uniform) => Allocate::Uniform,
            },
        })
    }

    /// Each `--tie` as its globs.
    fn ties(&self) -> Result<Vec<Vec<String>>, CliError> {
        let split = |tie: &String| -> Result<Vec<String>, CliError> {
            let globs: Vec<String> = tie.split(',').map(|glob| glob.trim().to_owned()).collect();
            if globs.iter().any(String::is_empty) {
                return Err(CliError::usage(format!("`--tie {tie}` has an empty pattern"))
                    .hint("`--tie '*.q_proj.weight,*.k_proj.weight'` ties all that either matches"));
            }
            Ok(globs)
        };
        self.tie.iter().map(split).collect()
    }

    /// Writes the report for the browser where one is asked for.
    pub(crate) fn write_report(&self, report: &CompressReport) -> Result<(), CliError> {
        let Some(path) = &self.report else { return Ok(()) };
        let page = html::page(&self.model, report)?;
        let temporary = path.with_extension("html.part");
        fs_err::write(&temporary, page)?;
        fs_err::rename(&temporary, path)?;
        Ok(())
    }

    fn tune(&self) -> Result<Option<TuneLength>, CliError> {
        match (self.tune, self.tune_steps) {
            (Some(minutes), _) if minutes.is_finite() && minutes > 0.0 => {
                Ok(Some(TuneLength::Minutes(minutes)))
            }
            (Some(minutes), _) => {
                Err(CliError::usage(format!("`--tune {minutes}` is not a number of minutes"))
                    .hint("`--tune 3` tunes for about three minutes"))
            }
            (None, Some(0)) => {
                Err(CliError::usage("`--tune-steps 0` tunes nothing").hint("leave the flag out"))
            }
            (None, steps) => Ok(steps.map(TuneLength::Steps)),
        }
    }

    fn calibration(&self, input: &Input, scratch: PathBuf) -> Result<CalibrationRequest, CliError> {
        let mut sequences = CalibrationRequest::protocol(input);
        sequences.max_tokens = self.tokens;
        sequences.bos = match self.bos {
            Bos::Auto => BosRule::AsTokenizer,
            Bos::Always => BosRule::Always,
            Bos::Never => BosRule::Never,
        };
        if let Some(context) = self.context {
            sequences.context_length = context;
        }
        if let Some(longer_than) = self.longer_than {
            sequences.longer_than = longer_than;
        }
        let mut request = CalibrationRequest {
            text: self.calibrate.clone(),
            sequences,
            statistics: self.statistics.clone(),
            takes_foreign: false,
            scratch,
        };
        match &self.paragraphs {
            Some(text) => request.sequences.paragraphs = Some(range(text)?),
            None => request.fit_to_text(input)?,
        }
        Ok(request)
    }
}
