//! What a plan foresees: loss at other sizes and with one step for all, time, memory and disk.

use std::collections::BTreeMap;

use lamella_lm::Family;
use lamella_rate::{RateCurve, common_step};
use serde::Serialize;

use super::run::{BATCH_ELEMENTS, SMALL_MODEL_WEIGHTS};
use super::{CompressError, Job};

/// What measured allocation predicts. Losses are sums over arrays of what each does alone, growing with the square of
/// its step; together they do a little more or less.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AllocationReport {
    /// `kl` in nats per token, or `embedding_mse`.
    pub metric: String,
    /// Tokens that it was measured on.
    pub tokens: usize,
    /// Predicted loss of this file.
    pub loss: f64,
    /// Predicted loss of a file of the same size with one relative step for all arrays.
    pub uniform_loss: f64,
    /// Both over the size of the file, finest first.
    pub curve: Vec<CurvePoint>,
}

/// A size and what it is predicted to cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CurvePoint {
    /// Bytes of the file.
    pub bytes: f64,
    /// Predicted loss with this allocation.
    pub loss: f64,
    /// Predicted loss with one relative step.
    pub uniform_loss: f64,
}

/// What a job is expected to take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Seconds of coding behind the plan, on this machine.
    pub seconds: f64,
    /// Bytes of memory at most, without the pages of the input's files.
    pub memory_bytes: u64,
    /// Bytes of disk while it runs: finished layers and the file being written.
    pub disk_bytes: u64,
}

/// Weights a second that one thread codes, where nothing was timed.
const WEIGHTS_A_SECOND: f64 = 3e5;
/// Copies of an array, as f32, that coding it needs.
const COPIES: u64 = 6;
/// Times that closing arrays are coded, on average.
const CLOSINGS: f64 = 3.0;
/// Octaves of step around the plan's in the curve, in halves.
const CURVE: std::ops::RangeInclusive<i32> = -5..=4;

impl Job<'_> {
    /// The free arrays' curves with the steps that they have without allocation.
    pub(super) fn uniform_curves(&self) -> BTreeMap<usize, RateCurve> {
        let ratios = self.sensitivities.as_ref().map(|known| &known.ratios);
        let mut curves = self.curves.clone();
        for (target, curve) in &mut curves {
            if let Some(&ratio) = ratios.and_then(|ratios| ratios.get(target)) {
                curve.set_ratio(ratio);
            }
        }
        curves
    }

    /// What a target alone does to the model's loss at its own step `2^own_log2_step`.
    pub(super) fn model_loss(&self, target: usize, own_log2_step: f64) -> Option<f64> {
        let known = self.sensitivities.as_ref()?;
        let (loss, ratio) = (known.losses.get(&target)?, known.ratios.get(&target)?);
        Some(loss * (2.0 * (own_log2_step - known.log2_step - ratio.log2())).exp2())
    }

    fn summed_loss(&self, log2_step: f64, ratio_of: impl Fn(usize) -> f64) -> f64 {
        let losses = self.curves.keys();
        losses.filter_map(|&target| self.model_loss(target, log2_step + ratio_of(target).log2())).sum()
    }

    pub(super) fn allocation(&self, file_bytes: u64) -> Result<Option<AllocationReport>, CompressError> {
        let (Some(known), Some(model)) = (&self.sensitivities, &self.input.model) else { return Ok(None) };
        let is_encoder = model.network.family() == Family::Encoder;
        let own: Vec<&RateCurve> = self.curves.values().collect();
        let uniform = self.uniform_curves();
        let uniform: Vec<&RateCurve> = uniform.values().collect();
        let bytes_at = |log2_step: f64| own.iter().map(|curve| curve.bytes(log2_step)).sum::<f64>();
        let rest = file_bytes as f64 - bytes_at(self.log2_step);
        let point = |log2_step: f64| {
            let payloads = bytes_at(log2_step);
            let even = common_step(&uniform, payloads, 1.0);
            CurvePoint {
                bytes: rest + payloads,
                loss: self.summed_loss(log2_step, |target| self.treatment(target).step_ratio),
                uniform_loss: self
                    .summed_loss(even, |target| known.ratios.get(&target).copied().unwrap_or(1.0)),
            }
        };
        let here = point(self.log2_step);
        Ok(Some(AllocationReport {
            metric: if is_encoder { "embedding_mse" } else { "kl" }.to_owned(),
            tokens: known.tokens,
            loss: here.loss,
            uniform_loss: here.uniform_loss,
            curve: CURVE.map(|half| point(self.log2_step + 0.5 * f64::from(half))).collect(),
        }))
    }

    /// Time from what coding every array once took while sensitivities were measured; memory and disk from shapes.
    pub(super) fn estimate(&self, file_bytes: u64) -> Estimate {
        let free = self.free_targets();
        let sizes = || free.iter().map(|&target| self.targets[target].spec.len());
        let elements: usize = sizes().sum();
        let once = match &self.sensitivities {
            Some(known) => known.coding_seconds,
            None => elements as f64 / WEIGHTS_A_SECOND / rayon::current_num_threads() as f64,
        };
        let passes = if elements <= SMALL_MODEL_WEIGHTS { CLOSINGS } else { 1.0 + 0.08 * (CLOSINGS - 1.0) };
        let batch = sizes().max().unwrap_or(0).max(elements.min(BATCH_ELEMENTS)) as u64;
        let moments: u64 = self.calibration.as_ref().map_or(0, |_| {
            let inputs: BTreeMap<&str, usize> = free
                .iter()
                .filter_map(|&target| self.treatment(target).site.as_ref())
                .map(|site| (site.input.as_str(), site.in_features))
                .collect();
            inputs.values().map(|width| 4 * (width * width) as u64).sum()
        });
        // Closing arrays are held coded twice: the best so far and the one being tried.
        let held = if elements <= SMALL_MODEL_WEIGHTS { 2 * file_bytes } else { file_bytes / 6 };
        Estimate {
            seconds: once * passes,
            memory_bytes: 4 * COPIES * batch + moments + held,
            disk_bytes: 2 * file_bytes,
        }
    }
}
