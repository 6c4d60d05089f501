//! Tuning, end to end on a small language model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use lamella_codec::{Catalogue, Silent, TensorSource};
use lamella_lm::statistics::SequenceOptions;
use lamella_weights::compress::{
    Allocate, Budget, CalibrationRequest, CompressError, CompressReport, Input, Job, Request, Rule,
    TuneError, TuneLength,
};
use lamella_weights::open::CodedModel;
use lamella_weights::systems::codecs;

fn model() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/stories260k").to_owned()
}

fn request(output: PathBuf, tune: Option<TuneLength>) -> Request {
    Request {
        output,
        recipe: "house".parse().unwrap(),
        rules: Vec::new(),
        budget: Budget::Bits(2.5),
        budget_text: String::new(),
        calibration: CalibrationRequest {
            sequences: SequenceOptions { max_tokens: 2048, ..SequenceOptions::default() },
            ..CalibrationRequest::default()
        },
        sequential: false,
        tune,
        allocate: Allocate::Uniform,
    }
}

fn compressed(request: &Request) -> Result<CompressReport, CompressError> {
    let input = Input::open(&model()).unwrap();
    Job::plan(&input, request, &Catalogue::new(Vec::new(), codecs()), &Silent)?.run(&Silent)
}

fn vector(path: &Path, name: &str) -> Vec<f32> {
    let model = CodedModel::open(path, &Catalogue::new(Vec::new(), codecs())).unwrap();
    model.array(name).unwrap().to_f32().unwrap()
}

const NORM: &str = "model.norm.weight";
const BUDGET_BYTES_SLACK: f64 = 0.99;

#[test]
fn held_out_text_is_predicted_better_in_the_same_budget_and_the_bytes_repeat() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let plain = compressed(&request(path("plain.lam"), None)).unwrap();
    assert!(plain.tune.is_none());
    let asked = request(path("tuned.lam"), Some(TuneLength::Steps(10)));
    let report = compressed(&asked).unwrap();
    let tuned = report.tune.clone().unwrap();
    assert!(tuned.is_kept && tuned.loss_after < 0.99 * tuned.loss_before, "{tuned:?}");
    assert!(tuned.steps == 10 && tuned.parameters == 11 * 64, "{tuned:?}");
    let target = report.target_bytes as f64;
    assert!(
        report.bytes as f64 <= target && report.bytes as f64 >= BUDGET_BYTES_SLACK * target,
        "{report:?}"
    );
    assert_ne!(vector(&path("plain.lam"), NORM), vector(&path("tuned.lam"), NORM));
    let again = request(path("again.lam"), Some(TuneLength::Steps(10)));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| compressed(&again)).unwrap();
    assert!(std::fs::read(path("tuned.lam")).unwrap() == std::fs::read(path("again.lam")).unwrap());
}

#[test]
fn arrays_that_a_rule_keeps_are_not_tuned() {
    let directory = tempfile::tempdir().unwrap();
    let mut asked = request(directory.path().join("kept.lam"), Some(TuneLength::Steps(2)));
    asked.rules.push(Rule { pattern: "*norm*".to_owned(), recipe: "exact".parse().unwrap() });
    let error = compressed(&asked).unwrap_err();
    assert!(matches!(error, CompressError::Tune(TuneError::NothingToTune)), "{error}");
}
