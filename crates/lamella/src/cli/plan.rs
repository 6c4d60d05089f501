//! `lamella plan`: what compressing would do, without doing it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lamella::codec::{Progress, Recipe};
use lamella::rate::{Allocator, Evolution, Greedy, IntegerProgram, Knapsack, Lagrangian};
use lamella::weights::compress::{Allocate, CompressReport, Input, Job, Request, Rule};

use super::model_options::ModelOptions;
use super::plan_file::{self, PlanFile};
use super::{CliError, Exit, print};

/// Show what compressing would do: each array's recipe, bits and predicted loss
///
/// Statistics are taken (or loaded with `--statistics`) and sizes estimated from samples of rows; nothing is written.
/// `--toml` prints a plan that can be edited and given back with `--plan FILE`, to `plan` or `compress`. With
/// `--candidate`, each array's choice between the default recipe at several steps and other recipes is measured.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lamella plan assets/stories260k --size 160KB\n  lamella plan org/name --size 40% --json\n  lamella plan MODEL --size 40% --toml > plan.toml\n  lamella plan MODEL --bits 3 --candidate 'gptq(bits=3)' --candidate exact --toml > plan.toml"
)]
pub(crate) struct Plan {
    #[command(flatten)]
    options: ModelOptions,
    /// Print the plan as TOML, to be edited and given back with `--plan`
    #[arg(long, conflicts_with = "json")]
    toml: bool,
    /// Another recipe that arrays may get where it buys more per byte; repeatable
    #[arg(long, value_name = "RECIPE", conflicts_with = "plan")]
    candidate: Vec<String>,
    /// What chooses between candidates
    #[arg(long, value_enum, default_value_t = Chooser::Knapsack, requires = "candidate")]
    allocator: Chooser,
    /// Keep measured points of candidates in this file, and read those it has
    #[arg(long, value_name = "FILE", requires = "candidate")]
    points: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Chooser {
    /// Convex hull
    Lagrangian,
    /// Dynamic programming over the bytes
    Knapsack,
    /// Integer linear programme
    Integer,
    /// Removal of what is worth least
    Greedy,
    /// Evolution on the sum of losses
    Evolution,
}

impl Chooser {
    fn allocator(self) -> Box<dyn Allocator> {
        match self {
            Self::Lagrangian => Box::new(Lagrangian),
            Self::Knapsack => Box::new(Knapsack::default()),
            Self::Integer => Box::new(IntegerProgram::default()),
            Self::Greedy => Box::new(Greedy),
            Self::Evolution => Box::new(Evolution::default()),
        }
    }
}

impl Plan {
    pub(crate) fn main(self) -> Result<Exit, CliError> {
        let bar = self.options.common.start()?;
        if self.options.budget.quality.is_some() {
            return Err(CliError::usage(
                "`plan` cannot tell the size of a `--quality`: it is found by measuring",
            )
            .hint("`lamella compress MODEL --quality …` finds it"));
        }
        let catalogue = lamella::catalogue();
        let input = Input::open(&self.options.model)?;
        let own = self.options.request(&input, PathBuf::new())?;
        let request = if self.candidate.is_empty() {
            own
        } else {
            self.with_candidates(&Job::plan(&input, &own, &catalogue, &bar)?, &own, &bar)?
        };
        let report = Job::plan(&input, &request, &catalogue, &bar)?.report()?;
        bar.finish();
        self.options.write_report(&report)?;
        if self.toml {
            print::data(&PlanFile::of(&report, &request.budget_text).to_text()?);
        } else if self.options.common.json {
            print::json(&report);
        } else {
            print::data(&describe(&report));
        }
        Ok(Exit::Done)
    }
}

impl Plan {
    /// The request with the recipes and steps that the allocator chooses.
    fn with_candidates(
        &self,
        job: &Job<'_>,
        request: &Request,
        progress: &dyn Progress,
    ) -> Result<Request, CliError> {
        let candidates: Vec<Recipe> =
            self.candidate.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let allocator = self.allocator.allocator();
        let catalogue = lamella::catalogue();
        let choice = job.choose(&candidates, &catalogue, &*allocator, self.points.as_deref(), progress)?;
        let mut chosen = request.clone();
        let recipes = choice.recipes.into_iter();
        chosen
            .rules
            .extend(recipes.map(|(name, recipe)| Rule { pattern: plan_file::escaped(&name), recipe }));
        chosen.allocate = Allocate::Given(choice.steps);
        Ok(chosen)
    }
}

/// The report as a person reads it.
pub(crate) fn describe(report: &CompressReport) -> String {
    let rows: Vec<Vec<String>> = report
        .arrays
        .iter()
        .map(|array| {
            vec![
                array.name.clone(),
                format!("{:?}", array.shape),
                array.recipe.clone(),
                array.bytes.to_string(),
                format!("{:.3}", array.bits_per_weight),
                format!("{:.3e}", array.predicted_loss),
                array.measured_loss.map_or(String::new(), |loss| format!("{loss:.3e}")),
                array.reason.clone(),
            ]
        })
        .collect();
    let header = ["array", "shape", "recipe", "bytes", "bits", "predicted loss", "measured", "why"];
    let mut text = print::table(&header, &rows);
    text.push_str(&format!("\n\n{}\n", summary(report)));
    if let Some(found) = &report.allocation {
        text.push_str(&format!(
            "predicted {}: {:.5}; with one relative step for all arrays {:.5} ({:.2} of it)\n",
            found.metric,
            found.loss,
            found.uniform_loss,
            found.loss / found.uniform_loss.max(f64::MIN_POSITIVE),
        ));
    }
    if let Some(estimate) = &report.estimate {
        text.push_str(&format!(
            "coding will take about {:.0} s, {} of memory and {} of disk\n",
            estimate.seconds,
            print::bytes(estimate.memory_bytes),
            print::bytes(estimate.disk_bytes),
        ));
    }
    for file in &report.left_out {
        text.push_str(&format!("not copied: {file}\n"));
    }
    text
}

/// One line of totals.
pub(crate) fn summary(report: &CompressReport) -> String {
    let mut line = format!(
        "{} ({} of {}), {} weights at {:.3} bits each",
        print::bytes(report.bytes),
        format_args!("{:.1} %", 100.0 * report.bytes as f64 / report.source_bytes.max(1) as f64),
        print::bytes(report.source_bytes),
        report.weights,
        report.bits_per_weight,
    );
    if let Some(linear) = report.linear_bits_per_weight {
        line.push_str(&format!(", linears at {linear:.3}"));
    }
    if report.calibration_tokens > 0 {
        line.push_str(&format!(
            "; calibrated on {} tokens of {}",
            report.calibration_tokens, report.calibration
        ));
    }
    line.push_str(&format!("; {:.1} s", report.seconds));
    line
}
