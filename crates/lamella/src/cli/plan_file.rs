//! A plan as TOML: printed by `plan --toml`, edited by hand, given back with `--plan FILE`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lamella::weights::compress::{CompressReport, Rule};
use serde::{Deserialize, Serialize};

use super::CliError;
use super::budget::BudgetOptions;

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanFile {
    /// Version of this form.
    schema: u32,
    /// `60MB` or `40%`, of the whole file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<String>,
    /// Or bits per weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bits: Option<f64>,
    /// Recipe of arrays that are not listed.
    pub(crate) recipe: String,
    /// Every array.
    #[serde(default)]
    array: Vec<PlanArray>,
}

/// One array of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanArray {
    name: String,
    recipe: String,
    /// Its step over the one common to all arrays: half of it is about a bit more per weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    step_ratio: Option<f64>,
    /// For reading only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bits_per_weight: Option<f64>,
    /// For reading only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    predicted_loss: Option<f64>,
}

const SCHEMA: u32 = 1;
const HEAD: &str = "\
# A plan of `lamella plan --toml`. Edit it and give it back: `lamella compress MODEL --plan FILE`.
# `recipe` and `step_ratio` decide; `bits_per_weight` and `predicted_loss` only tell. An array's `step_ratio` is its
# step over the one common to all: half of it is about a bit more per weight. The size is met by the common step.
";

impl PlanFile {
    /// What a report says, in this form.
    pub(crate) fn of(report: &CompressReport, budget_text: &str) -> Self {
        let (kind, value) = budget_text.split_once(' ').unwrap_or(("", ""));
        let arrays = report.arrays.iter().map(|array| PlanArray {
            name: array.name.clone(),
            recipe: array.recipe.clone(),
            step_ratio: array.step_ratio,
            bits_per_weight: Some((array.bits_per_weight * 1e4).round() / 1e4),
            predicted_loss: Some(array.predicted_loss),
        });
        Self {
            schema: SCHEMA,
            size: (kind == "--size").then(|| value.to_owned()),
            bits: if kind == "--bits" { value.parse().ok() } else { None },
            recipe: report.recipe.clone(),
            array: arrays.collect(),
        }
    }

    pub(crate) fn to_text(&self) -> Result<String, CliError> {
        Ok(format!("{HEAD}{}", toml::to_string(self)?))
    }

    /// Reads a plan.
    pub(crate) fn read(path: &Path) -> Result<Self, CliError> {
        let text = fs_err::read_to_string(path)?;
        let hint = "`lamella plan MODEL --size SIZE --toml` prints a plan to start from";
        let plan: Self = toml::from_str(&text).map_err(|error| {
            CliError::usage(format!("`{}` is no plan: {error}", path.display())).hint(hint)
        })?;
        if plan.schema != SCHEMA {
            let message =
                format!("`{}` has schema {}; this program reads {SCHEMA}", path.display(), plan.schema);
            return Err(CliError::usage(message).hint(hint));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = plan.array.iter().find(|array| !names.insert(array.name.as_str())) {
            return Err(CliError::usage(format!("`{}` lists `{}` twice", path.display(), twice.name)));
        }
        Ok(plan)
    }

    /// The budget it was made for.
    pub(crate) fn budget(&self) -> BudgetOptions {
        BudgetOptions { size: self.size.clone(), bits: self.bits, quality: None }
    }

    /// One rule an array.
    pub(crate) fn rules(&self) -> Result<Vec<Rule>, CliError> {
        let rule = |array: &PlanArray| -> Result<Rule, CliError> {
            Ok(Rule { pattern: escaped(&array.name), recipe: array.recipe.parse()? })
        };
        self.array.iter().map(rule).collect()
    }

    /// Steps by name.
    pub(crate) fn steps(&self) -> BTreeMap<String, f64> {
        self.array.iter().filter_map(|array| Some((array.name.clone(), array.step_ratio?))).collect()
    }
}

/// A glob that matches this name alone.
pub(crate) fn escaped(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len());
    for letter in name.chars() {
        match letter {
            '*' | '?' | '[' | ']' | '{' | '}' | '\\' => pattern.extend(['[', letter, ']']),
            _ => pattern.push(letter),
        }
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_comes_back_as_it_was_written_and_names_are_taken_literally() {
        let array = |name: &str, step_ratio| PlanArray {
            name: name.to_owned(),
            recipe: "house".to_owned(),
            step_ratio,
            bits_per_weight: Some(2.5),
            predicted_loss: None,
        };
        let plan = PlanFile {
            schema: 1,
            size: Some("40%".to_owned()),
            bits: None,
            recipe: "house".to_owned(),
            array: vec![array("a.0.*", Some(0.625)), array("b", None)],
        };
        let text = plan.to_text().unwrap();
        assert_eq!(toml::from_str::<PlanFile>(&text).unwrap(), plan, "{text}");
        assert_eq!(plan.rules().unwrap()[0].pattern, "a.0.[*]");
        assert_eq!(plan.steps(), BTreeMap::from([("a.0.*".to_owned(), 0.625)]));
        assert!(toml::from_str::<PlanFile>(&text.replace("step_ratio", "step")).is_err());
    }
}
