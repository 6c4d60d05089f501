//! `lamella plan`: what compressing would do, without doing it.

use std::path::PathBuf;

use clap::Args;
use lamella::weights::compress::{CompressReport, Input, Job};

use super::model_options::ModelOptions;
use super::{CliError, Exit, print};

/// Show what compressing would do: each array's recipe, bits and predicted loss
///
/// Statistics are taken (or loaded with `--statistics`) and sizes estimated from samples of rows; nothing is written.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lamella plan assets/stories260k --size 160KB\n  lamella plan org/name --size 40% --json"
)]
pub(crate) struct Plan {
    #[command(flatten)]
    options: ModelOptions,
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
        let request = self.options.request(&input, PathBuf::new())?;
        let report = Job::plan(&input, &request, &catalogue, &bar)?.report()?;
        bar.finish();
        if self.options.common.json {
            print::json(&report);
        } else {
            print::data(&describe(&report));
        }
        Ok(Exit::Done)
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
                match array.measured_loss {
                    Some(loss) => format!("{loss:.3e}"),
                    None => format!("{:.3e}", array.predicted_loss),
                },
                array.reason.clone(),
            ]
        })
        .collect();
    let loss =
        if report.arrays.iter().any(|array| array.measured_loss.is_some()) { "loss" } else { "predicted" };
    let mut text = print::table(&["array", "shape", "recipe", "bytes", "bits", loss, "why"], &rows);
    text.push_str(&format!("\n\n{}\n", summary(report)));
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
