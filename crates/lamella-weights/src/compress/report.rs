//! What a compression reports.

use std::collections::BTreeMap;

use lamella_rate::common_step;
use serde::Serialize;

use super::manifest::Target;
use super::plan::Limit;
use super::{CompressError, Job};

use super::TuneReport;
use super::outlook::{AllocationReport, Estimate};

/// One array's row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArrayRow {
    /// Name.
    pub name: String,
    /// Shape, slowest axis first.
    pub shape: Vec<usize>,
    /// Recipe text.
    pub recipe: String,
    /// Bytes of its layers (its share where a payload holds several arrays).
    pub bytes: u64,
    /// Bits per element.
    pub bits_per_weight: f64,
    /// The array's own step over the one common to all, where its recipe has a free rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_ratio: Option<f64>,
    /// Bits per element that one relative step for all arrays would give it in a file of the same size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uniform_bits_per_weight: Option<f64>,
    /// What its error is predicted to add to the loss of the model, in the unit of the allocation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_loss: Option<f64>,
    /// Distortion predicted before coding, over that of storing nothing; 0 for exact arrays.
    pub predicted_loss: f64,
    /// Distortion measured after coding, over that of storing nothing; `None` in a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_loss: Option<f64>,
    /// Why this recipe, where it is not the default.
    pub reason: String,
}

/// The whole job, planned or done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompressReport {
    /// Version of this form.
    pub schema: u32,
    /// Bytes of the file (predicted in a plan).
    pub bytes: u64,
    /// Bytes asked for; 0 where the recipe alone decided.
    pub target_bytes: u64,
    /// Bytes of the source's weight files.
    pub source_bytes: u64,
    /// Weights, tied ones once.
    pub weights: u64,
    /// All bytes but copied side files, over all weights.
    pub bits_per_weight: f64,
    /// Coded bytes of the blocks' linears over their weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linear_bits_per_weight: Option<f64>,
    /// Seconds it took (in a plan: of the planning).
    pub seconds: f64,
    /// Default recipe.
    pub recipe: String,
    /// Text the statistics were taken of, and its tokens.
    pub calibration: String,
    /// Tokens of that text.
    pub calibration_tokens: u64,
    /// What the job is expected to take; only in a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// What measured allocation predicts, where it was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocation: Option<AllocationReport>,
    /// What tuning did, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tune: Option<TuneReport>,
    /// Every array.
    pub arrays: Vec<ArrayRow>,
    /// Files of the source directory that do not travel, with the reason.
    pub left_out: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl Job<'_> {
    /// The report of a plan; [`Job::run`] fills in what was measured.
    pub fn report(&self) -> Result<CompressReport, CompressError> {
        let lengths = self.predicted_lengths();
        let bytes = self.file_bytes(&lengths)?;
        let mut report = self.report_of(bytes, &self.predicted_bytes, &BTreeMap::new())?;
        report.estimate = Some(self.estimate(bytes));
        Ok(report)
    }

    pub(super) fn report_of(
        &self,
        bytes: u64,
        target_bytes: &[f64],
        measured: &BTreeMap<usize, (f64, f64)>,
    ) -> Result<CompressReport, CompressError> {
        let mut arrays = Vec::with_capacity(self.treatments.len());
        let (mut linear_bytes, mut linear_weights) = (0.0, 0.0);
        let mut place = vec![None; self.treatments.len()];
        for (target, Target { members, spec }) in self.targets.iter().enumerate() {
            for &member in members {
                let share = self.treatments[member].spec.len() as f64 / spec.len().max(1) as f64;
                place[member] = Some((target, target_bytes[target] * share));
            }
        }
        let uniform = self.uniform_curves();
        let spent: f64 = self.curves.values().map(|curve| curve.bytes(self.log2_step)).sum();
        let uniform_step = common_step(&uniform.values().collect::<Vec<_>>(), spent, 1.0);
        for (index, treatment) in self.treatments.iter().enumerate() {
            let (target, bytes) = place[index].map_or((None, 0.0), |(target, bytes)| (Some(target), bytes));
            let weights = treatment.spec.len() as f64;
            if treatment.is_block_linear() && target.is_some() {
                linear_bytes += bytes;
                linear_weights += weights;
            }
            let result = target.and_then(|target| measured.get(&target));
            let predicted = target.filter(|&target| self.is_free(target)).map_or(0.0, |target| {
                let step = self.curves.get(&target).map_or(1.0, |curve| curve.step(self.log2_step));
                self.predicted_distortion(target, step)
            });
            let zeros = result.map_or(0.0, |result| result.1);
            let relative = |distortion: f64| if zeros > 0.0 { distortion / zeros } else { distortion };
            arrays.push(ArrayRow {
                name: treatment.spec.name.clone(),
                shape: treatment.spec.shape.clone(),
                recipe: treatment.codec.recipe().to_string(),
                bytes: bytes.round() as u64,
                bits_per_weight: if weights > 0.0 { bytes * 8.0 / weights } else { 0.0 },
                step_ratio: target.filter(|&target| self.is_free(target)).map(|_| treatment.step_ratio),
                uniform_bits_per_weight: target
                    .filter(|_| self.sensitivities.is_some())
                    .and_then(|target| uniform.get(&target))
                    .map(|curve| curve.bytes(uniform_step) * 8.0 / weights.max(1.0)),
                model_loss: target
                    .and_then(|target| self.model_loss(target, self.log2_step + treatment.step_ratio.log2())),
                predicted_loss: relative(predicted),
                measured_loss: result.map(|result| relative(result.0)),
                reason: treatment.reason.clone(),
            });
        }
        let weights = self.weights();
        let counted = bytes.saturating_sub(self.side.table.stored_bytes) as f64;
        Ok(CompressReport {
            schema: 1,
            bytes,
            target_bytes: match self.limit {
                Limit::File(bytes) | Limit::Payloads(bytes) => bytes,
                Limit::None => 0,
            },
            source_bytes: self.input.directory.weight_bytes(),
            weights,
            bits_per_weight: counted * 8.0 / weights.max(1) as f64,
            linear_bits_per_weight: (linear_weights > 0.0).then(|| linear_bytes * 8.0 / linear_weights),
            seconds: self.started.elapsed().as_secs_f64(),
            recipe: self.request.recipe.to_string(),
            calibration: self
                .calibration
                .as_ref()
                .map_or(String::new(), |calibration| calibration.text.clone()),
            calibration_tokens: self
                .calibration
                .as_ref()
                .map_or(0, |calibration| calibration.statistics.provenance().tokens()),
            estimate: None,
            allocation: self.allocation(bytes)?,
            tune: None,
            arrays,
            left_out: self
                .input
                .directory
                .left_out()
                .iter()
                .map(|file| format!("{} ({})", file.name, file.reason))
                .collect(),
            warnings: self.warnings.clone(),
        })
    }
}
