//! `lamella diff`: what differs between two models.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use lamella::codec::{Progress, TensorSource};
use lamella::file::File;
use lamella::weights::evaluate::is_coded;
use lamella::weights::open::CodedModel;
use serde::Serialize;

use super::{CliError, Common, Exit, print};

/// Compare two models array by array: names, shapes, dtypes, numbers
///
/// Exit code 0 where all numbers are the same, 1 where they are not.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lamella diff story.lam assets/stories260k\n  lamella diff a.lam b.lam --json"
)]
pub(crate) struct Diff {
    /// `.lam` file, model directory, weight file, or `org/name`
    #[arg(value_name = "A")]
    left: String,
    /// The other one
    #[arg(value_name = "B")]
    right: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    state: &'static str,
    /// Squared error over squared norm of B's array.
    relative_error: Option<f64>,
    largest_difference: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    same: bool,
    arrays: Vec<Row>,
}

fn open(name: &str) -> Result<Arc<dyn TensorSource>, CliError> {
    if is_coded(Path::new(name)) {
        return Ok(Arc::new(CodedModel::new(File::open(name)?, &lamella::catalogue())?));
    }
    Ok(Arc::new(lamella::io::open_model(name)?))
}

impl Diff {
    pub(crate) fn main(self) -> Result<Exit, CliError> {
        let bar = self.common.start()?;
        let (left, right) = (open(&self.left)?, open(&self.right)?);
        let mut names: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
        left.arrays().iter().for_each(|spec| names.entry(&spec.name).or_default().0 = true);
        right.arrays().iter().for_each(|spec| names.entry(&spec.name).or_default().1 = true);
        let total = names.len() as u64;
        let mut arrays = Vec::with_capacity(names.len());
        for (done, (name, (in_left, in_right))) in names.into_iter().enumerate() {
            bar.advance("compare", done as u64, total, name);
            bar.check()?;
            arrays.push(match (in_left, in_right) {
                (true, false) => plain_row(name, "only in A"),
                (false, true) => plain_row(name, "only in B"),
                _ => compare(&*left, &*right, name)?,
            });
        }
        bar.finish();
        let same = arrays.iter().all(|row| row.state == "same");
        let report = Report { schema: 1, same, arrays };
        if self.common.json {
            print::json(&report);
        } else {
            let rows: Vec<Vec<String>> = report
                .arrays
                .iter()
                .map(|row| {
                    let number =
                        |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.3e}"));
                    vec![
                        row.name.clone(),
                        row.state.to_owned(),
                        number(row.relative_error),
                        number(row.largest_difference),
                    ]
                })
                .collect();
            print::data(&print::table(&["array", "state", "relative error", "largest difference"], &rows));
        }
        Ok(if same { Exit::Done } else { Exit::No })
    }
}

fn plain_row(name: &str, state: &'static str) -> Row {
    Row { name: name.to_owned(), state, relative_error: None, largest_difference: None }
}

fn compare(left: &dyn TensorSource, right: &dyn TensorSource, name: &str) -> Result<Row, CliError> {
    let (a, b) = (left.array(name)?, right.array(name)?);
    if a.spec.shape != b.spec.shape {
        return Ok(plain_row(name, "other shape"));
    }
    if a.spec.dtype == b.spec.dtype && a.bytes == b.bytes {
        return Ok(plain_row(name, "same"));
    }
    let state = if a.spec.dtype == b.spec.dtype { "other numbers" } else { "other dtype" };
    let (Ok(a), Ok(b)) = (a.to_f32(), b.to_f32()) else { return Ok(plain_row(name, state)) };
    let (mut error, mut norm, mut largest) = (0.0f64, 0.0f64, 0.0f64);
    for (&a, &b) in a.iter().zip(&b) {
        let difference = f64::from(a) - f64::from(b);
        error += difference * difference;
        norm += f64::from(b) * f64::from(b);
        largest = largest.max(difference.abs());
    }
    let relative_error = if norm > 0.0 { error / norm } else { error };
    Ok(Row {
        name: name.to_owned(),
        state,
        relative_error: Some(relative_error),
        largest_difference: Some(largest),
    })
}
