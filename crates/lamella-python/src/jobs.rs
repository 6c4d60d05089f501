//! The program's verbs. Reports are JSON text, the same fields as `--json` prints.

use std::path::PathBuf;

use lamella::codec::{ClaimContext, ClaimSize, Progress, Recipe, RecipeError};
use lamella::file;
use lamella::rate::Size;
use lamella::weights::compress::{Allocate, Budget, Input, Job, Request, Rule, TuneLength};
use lamella::weights::evaluate::{EvaluateError, EvaluateOptions, Opened, evaluate as judge};
use lamella::weights::expand::ExpandError;
use lamella::weights::open::CodedModel;
use pyo3::prelude::*;

use crate::errors::{raise, usage};
use crate::progress::run;

/// What compression is told, as the program's options say it.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Options {
    size: Option<String>,
    bits: Option<f64>,
    recipe: String,
    keep: Vec<String>,
    rules: Vec<(String, String)>,
    calibrate: Option<PathBuf>,
    statistics: Option<PathBuf>,
    tokens: usize,
    sequential: bool,
    is_measured: bool,
    tune_steps: Option<usize>,
}

impl Options {
    fn request(&self, input: &Input, output: PathBuf) -> PyResult<Request> {
        let recipe = |text: &str| text.parse::<Recipe>().map_err(|error: RecipeError| raise(&error));
        let (budget, budget_text) = match (&self.size, self.bits) {
            (Some(text), None) => {
                let size: Size = text.parse().map_err(|error| raise(&error))?;
                (Budget::Bytes(size.bytes(input.directory.weight_bytes())), format!("--size {text}"))
            }
            (None, Some(bits)) if bits > 0.0 && bits <= 64.0 => {
                (Budget::Bits(bits), format!("--bits {bits}"))
            }
            (None, Some(bits)) => return Err(usage(format!("`bits` is {bits}; it takes 0 to 64"))),
            (None, None) => (Budget::Recipe, String::new()),
            (Some(_), Some(_)) => return Err(usage("give `size` or `bits`, not both")),
        };
        let mut request = Request::new(input, output, budget).map_err(|error| raise(&error))?;
        request.budget_text = budget_text;
        request.recipe = recipe(&self.recipe)?;
        request.sequential = self.sequential || request.recipe.flag("sequential").unwrap_or(false);
        for (pattern, text) in &self.rules {
            request.rules.push(Rule { pattern: pattern.clone(), recipe: recipe(text)? });
        }
        let exact = Recipe::new("exact");
        let kept = self.keep.iter().map(|glob| Rule { pattern: glob.clone(), recipe: exact.clone() });
        request.rules.extend(kept);
        request.calibration.text = self.calibrate.clone();
        request.calibration.statistics = self.statistics.clone();
        request.calibration.sequences.max_tokens = self.tokens;
        // The text decides how many paragraphs there are, so the protocol starts over with the user's own.
        request.calibration.sequences.paragraphs =
            lamella::weights::compress::CalibrationRequest::protocol(input).paragraphs;
        request.calibration.fit_to_text(input).map_err(|error| raise(&error))?;
        if !self.is_measured {
            request.allocate = Allocate::Uniform;
        }
        request.tune = self.tune_steps.map(TuneLength::Steps);
        Ok(request)
    }
}

/// Text of a report.
fn json(report: &impl serde::Serialize) -> PyResult<String> {
    serde_json::to_string(report).map_err(|error| raise(&error))
}

fn open(py: Python<'_>, model: &str) -> PyResult<Input> {
    py.detach(|| Input::open(model)).map_err(|error| raise(&error))
}

#[pyfunction]
fn compress(
    py: Python<'_>,
    model: &str,
    output: PathBuf,
    options: Options,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let input = open(py, model)?;
    let request = options.request(&input, output)?;
    let report =
        run(py, progress, |watch| Job::plan(&input, &request, &lamella::catalogue(), watch)?.run(watch))?;
    json(&report)
}

#[pyfunction]
fn plan(py: Python<'_>, model: &str, options: Options, progress: Option<Py<PyAny>>) -> PyResult<String> {
    let input = open(py, model)?;
    let request = options.request(&input, PathBuf::new())?;
    let report =
        run(py, progress, |watch| Job::plan(&input, &request, &lamella::catalogue(), watch)?.report())?;
    json(&report)
}

#[pyfunction]
fn compress_lossless(
    py: Python<'_>,
    model: &str,
    output: PathBuf,
    base: Option<&str>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let report =
        run(py, progress, |watch| lamella::weights::lossless::compress(model, &output, base, watch))?;
    json(&report)
}

#[pyfunction]
fn expand(
    py: Python<'_>,
    path: PathBuf,
    directory: PathBuf,
    base: Option<&str>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<(String, u64)>> {
    let coded =
        py.detach(|| CodedModel::open(&path, &lamella::catalogue())).map_err(|error| raise(&error))?;
    run(py, progress, |watch| -> Result<_, ExpandError> {
        lamella::weights::expand::expand(&coded, &directory, base, watch)
    })
}

#[pyfunction]
fn cut(py: Python<'_>, path: PathBuf, output: PathBuf, size: &str) -> PyResult<String> {
    let size: Size = size.parse().map_err(|error| raise(&error))?;
    let report = py
        .detach(|| {
            let file = file::File::open(&path)?;
            file.cut(size.bytes(file.length_bytes()))?.write(&output)
        })
        .map_err(|error| raise(&error))?;
    json(&report)
}

#[pyfunction]
fn verify(py: Python<'_>, path: PathBuf) -> PyResult<u64> {
    py.detach(|| {
        let file = file::File::open(&path)?;
        file.verify(|_| {})?;
        Ok(file.length_bytes())
    })
    .map_err(|error: file::FileError| raise(&error))
}

#[pyfunction]
fn evaluate(
    py: Python<'_>,
    model: &str,
    against: Option<&str>,
    text: Option<PathBuf>,
    tokens: Option<usize>,
    noise_floor: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let report = run(py, progress, |watch| -> Result<_, EvaluateError> {
        let catalogue = lamella::catalogue();
        let candidate = Opened::open(model, &catalogue)?;
        let reference = against.map(|name| Opened::open(name, &catalogue)).transpose()?;
        let beside = reference.as_ref().and_then(|reference| reference.evaluation_text.clone());
        let path =
            text.or(beside).or_else(|| candidate.evaluation_text.clone()).ok_or(EvaluateError::NoText)?;
        let text = std::fs::read(&path)?;
        let mut options = EvaluateOptions { noise_floor, ..EvaluateOptions::default() };
        options.language.max_tokens = tokens;
        judge(&candidate, reference.as_ref(), &String::from_utf8_lossy(&text), &options, watch)
    })?;
    json(&report)
}

#[pyfunction]
fn systems() -> PyResult<String> {
    let catalogue = lamella::catalogue();
    let rows: Vec<serde_json::Value> = catalogue
        .systems()
        .iter()
        .map(|system| {
            serde_json::json!({
                "id": system.id,
                "name": system.name,
                "wing": system.wing.name(),
                "compresses": system.compresses,
                "recipe": system.recipe,
                "claim": system.claim,
                "is_built": system.measure.is_some(),
            })
        })
        .collect();
    json(&rows)
}

#[pyfunction]
fn recipes() -> PyResult<String> {
    let catalogue = lamella::catalogue();
    let rows: Vec<serde_json::Value> = catalogue
        .codecs()
        .iter()
        .map(|codec| {
            serde_json::json!({"name": codec.name, "summary": codec.summary, "arguments": codec.arguments})
        })
        .collect();
    json(&rows)
}

#[pyfunction]
fn reproduce(
    py: Python<'_>,
    id: &str,
    is_full: bool,
    data: Option<PathBuf>,
    assets: PathBuf,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let catalogue = lamella::catalogue();
    let system = catalogue.system(id).ok_or_else(|| usage(format!("no system has the id `{id}`")))?.clone();
    let measure = system
        .measure
        .ok_or_else(|| usage(format!("`{}` {} is planned, not built", system.id, system.name)))?;
    let size = if is_full { ClaimSize::Full } else { ClaimSize::Quick };
    let context = ClaimContext { size, assets, data, catalogue };
    let claim = run(py, progress, |watch| {
        watch.advance("reproduce", 0, 1, system.name);
        measure(&context).map_err(ClaimError)
    })?;
    json(&claim)
}

/// A claim's error, of whatever type.
#[derive(Debug)]
struct ClaimError(Box<dyn std::error::Error + Send + Sync>);

impl std::fmt::Display for ClaimError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for ClaimError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(compress, module)?)?;
    module.add_function(wrap_pyfunction!(plan, module)?)?;
    module.add_function(wrap_pyfunction!(compress_lossless, module)?)?;
    module.add_function(wrap_pyfunction!(expand, module)?)?;
    module.add_function(wrap_pyfunction!(cut, module)?)?;
    module.add_function(wrap_pyfunction!(verify, module)?)?;
    module.add_function(wrap_pyfunction!(evaluate, module)?)?;
    module.add_function(wrap_pyfunction!(systems, module)?)?;
    module.add_function(wrap_pyfunction!(recipes, module)?)?;
    module.add_function(wrap_pyfunction!(reproduce, module)?)
}
