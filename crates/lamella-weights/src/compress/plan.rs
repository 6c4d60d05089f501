//! The job before it is run: treatments, statistics, and one step for all free arrays that meets the budget.

use std::collections::BTreeMap;

use lamella_codec::{
    Array, ArrayError, Catalogue, Knowledge, Point, Progress, Rate, Recipe, TensorSource, Value,
};
use lamella_file::{LayerEntry, Manifest, SideFiles, size_of};
use lamella_rate::{LOG2_STEPS, RateCurve, common_step};
use rayon::prelude::*;

use super::allocate::Sensitivities;
use super::manifest::{Target, describe, targets};
use super::{Allocate, Budget, Calibration, CompressError, Input, Place, Request, Treatment, treat};

/// What the free arrays' payloads must fit into.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Limit {
    /// Bytes of the whole file.
    File(u64),
    /// Bytes of the free arrays' payloads.
    Payloads(u64),
    /// Nothing is free.
    None,
}

/// A measured point lies this near to the step that is used, in octaves.
const NEAR_ENOUGH: f64 = 0.15;
/// Rounds of measuring points.
const ROUNDS: usize = 4;

/// A planned compression.
pub struct Job<'a> {
    pub(super) input: &'a Input,
    pub(super) request: &'a Request,
    pub(super) treatments: Vec<Treatment>,
    pub(super) targets: Vec<Target>,
    pub(super) manifest: Manifest,
    pub(super) side: SideFiles,
    pub(super) calibration: Option<Calibration>,
    pub(super) limit: Limit,
    /// Curves of the free targets.
    pub(super) curves: BTreeMap<usize, RateCurve>,
    /// Points of the free targets, for the predicted distortion.
    points: BTreeMap<usize, Vec<Point>>,
    /// Bytes of every target: exact for fixed ones, predicted for free ones.
    pub(super) predicted_bytes: Vec<f64>,
    /// The common step.
    pub(super) log2_step: f64,
    /// What measuring found, where it was done.
    pub(super) sensitivities: Option<Sensitivities>,
    pub(super) started: std::time::Instant,
    pub(super) warnings: Vec<String>,
}

impl<'a> Job<'a> {
    /// Treats, calibrates and solves; writes nothing.
    ///
    /// # Errors
    /// Everything that can be refused is refused here: patterns, recipes, budgets out of reach (before calibration),
    /// texts and statistics.
    pub fn plan(
        input: &'a Input,
        request: &'a Request,
        catalogue: &Catalogue,
        progress: &dyn Progress,
    ) -> Result<Self, CompressError> {
        // A budget that holds the model as it is needs no loss.
        let is_exact =
            matches!(request.budget, Budget::Bytes(bytes) if bytes >= input.directory.weight_bytes());
        let recipe = if is_exact { Recipe::new("exact") } else { request.recipe.clone() };
        let stacks = request.allocate == Allocate::Uniform;
        let treatments = treat(input, &recipe, &request.rules, stacks, catalogue)?;
        let targets = targets(&treatments);
        let metadata = vec![("writer".to_owned(), format!("lamella {}", env!("CARGO_PKG_VERSION")))];
        let (manifest, side) = describe(input, &treatments, request, metadata)?;
        let mut job = Self {
            predicted_bytes: vec![0.0; targets.len()],
            input,
            request,
            treatments,
            targets,
            manifest,
            side,
            calibration: None,
            limit: Limit::None,
            curves: BTreeMap::new(),
            points: BTreeMap::new(),
            log2_step: 0.0,
            sensitivities: None,
            started: std::time::Instant::now(),
            warnings: Vec::new(),
        };
        job.check_tunable()?;
        job.prepare_allocation()?;
        job.warn_of_the_unknown(progress);
        if is_exact {
            job.warn(progress, "the size holds every array exactly, so nothing is quantised".to_owned());
        }
        job.size_fixed(progress)?;
        job.set_limit()?;
        job.check_reachable()?;
        job.calibrate(progress)?;
        job.choose_rows(progress)?;
        job.solve(progress)?;
        if job.allocate(progress)? {
            job.solve(progress)?;
            if job.polish(progress)? {
                job.solve(progress)?;
            }
        }
        Ok(job)
    }

    pub(super) fn warn(&mut self, progress: &dyn Progress, message: String) {
        progress.warn(&message);
        self.warnings.push(message);
    }

    fn warn_of_the_unknown(&mut self, progress: &dyn Progress) {
        if let Some(reason) = &self.input.unknown {
            let message =
                format!("the model's architecture is not known, so nothing is calibrated: {reason}");
            self.warn(progress, message);
        }
        if self.request.recipe.name() != "exact" {
            let kept = self
                .treatments
                .iter()
                .filter(|t| t.place == Place::Own && t.codec.recipe().name() == "exact");
            let large: Vec<String> = kept
                .filter(|treatment| treatment.spec.len() > 1 << 16)
                .map(|treatment| format!("`{}` ({})", treatment.spec.name, treatment.reason))
                .collect();
            if !large.is_empty() {
                self.warn(progress, format!("kept exact: {}", large.join(", ")));
            }
        }
    }

    pub(super) fn codec(&self, target: usize) -> &dyn lamella_codec::Codec {
        &*self.treatments[self.targets[target].members[0]].codec
    }

    pub(super) fn treatment(&self, target: usize) -> &Treatment {
        &self.treatments[self.targets[target].members[0]]
    }

    pub(super) fn is_free(&self, target: usize) -> bool {
        self.treatment(target).is_free()
    }

    pub(super) fn free_targets(&self) -> Vec<usize> {
        (0..self.targets.len()).filter(|&target| self.is_free(target)).collect()
    }

    /// The array a target's codec sees.
    pub(super) fn array(&self, target: usize) -> Result<Array<'_>, CompressError> {
        let Target { members, spec } = &self.targets[target];
        if let [only] = members[..] {
            return Ok(self.input.directory.array(&self.treatments[only].spec.name)?);
        }
        let mut bytes = Vec::new();
        for &member in members {
            bytes.extend_from_slice(&self.input.directory.array(&self.treatments[member].spec.name)?.bytes);
        }
        Array::new(spec.clone(), bytes).map_err(|error: ArrayError| error.into())
    }

    /// Lets the memory of a target's arrays go.
    pub(super) fn release(&self, target: usize) {
        for &member in &self.targets[target].members {
            self.input.directory.release(&self.treatments[member].spec.name);
        }
    }

    /// What the statistics say of a target.
    pub(super) fn knowledge(&self, target: usize) -> Result<Knowledge, CompressError> {
        let treatment = self.treatment(target);
        let Some(calibration) = &self.calibration else { return Ok(Knowledge::default()) };
        let statistics = &calibration.statistics;
        Ok(match treatment.site.as_ref().filter(|site| !site.is_transposed) {
            Some(site) => {
                let mut knowledge = statistics.knowledge(site)?;
                let Target { members, spec } = &self.targets[target];
                if members.len() > 1 && spec.shape.len() == 2 {
                    knowledge.stacked_rows =
                        members.iter().map(|&member| self.treatments[member].spec.shape[0]).collect();
                }
                knowledge
            }
            None => {
                let mut knowledge = Knowledge::default();
                knowledge.row_usage = statistics.row_usage(&treatment.spec.name).cloned();
                knowledge
            }
        })
    }

    /// Bytes of everything whose size does not depend on the step.
    fn size_fixed(&mut self, progress: &dyn Progress) -> Result<(), CompressError> {
        let fixed: Vec<usize> = (0..self.targets.len()).filter(|&target| !self.is_free(target)).collect();
        for (done, target) in fixed.iter().copied().enumerate() {
            progress.advance("size", done as u64, fixed.len() as u64, &self.targets[target].spec.name);
            progress.check()?;
            let stored = self.codec(target).stored_bytes(&self.targets[target].spec);
            self.predicted_bytes[target] = match stored {
                Some(bytes) => bytes as f64,
                None => {
                    let encoded = self.codec(target).encode(
                        &self.array(target)?,
                        &Knowledge::default(),
                        Rate::Recipe,
                    )?;
                    encoded.size_bytes() as f64
                }
            };
        }
        Ok(())
    }

    pub(super) fn weights(&self) -> u64 {
        self.targets.iter().map(|target| target.spec.len() as u64).sum()
    }

    fn free_elements(&self) -> u64 {
        self.free_targets().into_iter().map(|target| self.targets[target].spec.len() as u64).sum()
    }

    fn set_limit(&mut self) -> Result<(), CompressError> {
        self.limit = match self.request.budget {
            Budget::Bytes(bytes) => Limit::File(bytes),
            Budget::Bits(bits) => {
                Limit::File((bits * self.weights() as f64 / 8.0) as u64 + self.side.table.stored_bytes)
            }
            Budget::Recipe => match self.recipe_bits() {
                Some(bits) => Limit::Payloads((bits * self.free_elements() as f64 / 8.0) as u64),
                None => Limit::None,
            },
        };
        if self.free_targets().is_empty() {
            let found = self.file_bytes(&self.predicted_lengths())?;
            return match self.limit {
                Limit::File(asked) if found > asked => Err(CompressError::NoFreeRate { asked, found }),
                _ => {
                    self.limit = Limit::None;
                    Ok(())
                }
            };
        }
        Ok(())
    }

    /// The `bits` argument of the free recipes; where several differ, their mean over the elements each treats.
    fn recipe_bits(&self) -> Option<f64> {
        let (mut bits, mut elements) = (0.0, 0.0);
        for target in self.free_targets() {
            let len = self.targets[target].spec.len() as f64;
            let own = match self.codec(target).recipe().get("bits").or(self.codec(target).recipe().get("")) {
                Some(Value::Number(bits)) => *bits,
                _ => DEFAULT_BITS,
            };
            bits += own * len;
            elements += len;
        }
        (elements > 0.0).then(|| bits / elements)
    }

    /// Lengths of one layer per target, as predicted.
    pub(super) fn predicted_lengths(&self) -> Vec<Vec<u64>> {
        self.predicted_bytes.iter().map(|&bytes| vec![bytes.round() as u64]).collect()
    }

    /// Exact size of the file with layers of these lengths, target by target.
    pub(super) fn file_bytes(&self, lengths: &[Vec<u64>]) -> Result<u64, CompressError> {
        let mut manifest = self.manifest.clone();
        manifest.layers = lengths
            .iter()
            .enumerate()
            .flat_map(|(target, layers)| layers.iter().map(move |&length| (target, length)))
            .map(|(target, length_bytes)| LayerEntry {
                target,
                length_bytes,
                crc32: 0,
                distortion: 0.0,
                is_mapped: false,
            })
            .collect();
        Ok(size_of(&manifest)?)
    }

    /// Bytes left for the free payloads, given predicted lengths for them.
    pub(super) fn allowed(&self) -> Result<f64, CompressError> {
        Ok(match self.limit {
            Limit::Payloads(bytes) => bytes as f64,
            Limit::File(bytes) => {
                let free: f64 =
                    self.free_targets().into_iter().map(|target| self.predicted_bytes[target].round()).sum();
                bytes as f64 - (self.file_bytes(&self.predicted_lengths())? as f64 - free)
            }
            Limit::None => 0.0,
        })
    }

    /// Refuses a budget below the smallest file before anything expensive happens.
    fn check_reachable(&mut self) -> Result<(), CompressError> {
        if self.limit == Limit::None {
            return Ok(());
        }
        let free = self.free_targets();
        let least: Vec<f64> = free
            .par_iter()
            .map(|&target| {
                let coarsest = Rate::Step(LOG2_STEPS.1.exp2());
                let points =
                    self.codec(target).estimate(&self.array(target)?, &Knowledge::default(), &[coarsest])?;
                self.release(target);
                Ok(points.first().map_or(0.0, |point| point.bytes))
            })
            .collect::<Result<_, CompressError>>()?;
        for (&target, &bytes) in free.iter().zip(&least) {
            self.predicted_bytes[target] = bytes.ceil();
        }
        let payloads: f64 = least.iter().sum();
        let smallest = self.file_bytes(&self.predicted_lengths())?;
        match (self.limit, self.request.budget) {
            (Limit::File(asked), Budget::Bits(bits)) if asked < smallest => {
                let counted = smallest - self.side.table.stored_bytes;
                Err(CompressError::TooFewBits {
                    asked: bits,
                    smallest: counted as f64 * 8.0 / self.weights().max(1) as f64,
                })
            }
            (Limit::File(asked), _) if asked < smallest => Err(CompressError::TooSmall {
                asked,
                smallest,
                fixed: smallest.saturating_sub(payloads as u64),
            }),
            (Limit::Payloads(asked), _) if (asked as f64) < payloads => {
                let per_weight = 8.0 / self.free_elements().max(1) as f64;
                Err(CompressError::TooFewBits {
                    asked: asked as f64 * per_weight,
                    smallest: payloads * per_weight,
                })
            }
            _ => Ok(()),
        }
    }

    fn calibrate(&mut self, progress: &dyn Progress) -> Result<(), CompressError> {
        let is_used = (0..self.targets.len())
            .any(|target| self.codec(target).uses_second_moment() && self.treatment(target).site.is_some());
        if !is_used || self.input.model.is_none() {
            return Ok(());
        }
        if self.input.model.as_ref().is_some_and(|model| model.tokenizer.is_none()) {
            self.warn(progress, CompressError::NoTokenizer.to_string() + "; nothing is calibrated");
            return Ok(());
        }
        self.calibration = Some(self.request.calibration.run(self.input, progress)?);
        Ok(())
    }

    /// Measures points on samples of rows until they lie near the step that meets the budget.
    fn solve(&mut self, progress: &dyn Progress) -> Result<(), CompressError> {
        let free = self.free_targets();
        if free.is_empty() || self.limit == Limit::None {
            return Ok(());
        }
        let bits = self.allowed()? * 8.0 / self.free_elements().max(1) as f64;
        let mut wanted = vec![(1.8 - bits).clamp(LOG2_STEPS.0, LOG2_STEPS.1)];
        for round in 0..ROUNDS {
            self.measure_points(&free, &wanted, progress, round)?;
            for _ in 0..3 {
                // The manifest grows by bytes with its lengths, so the allowance is looked at again.
                let allowed = self.allowed()?;
                let curves: Vec<&RateCurve> = self.curves.values().collect();
                self.log2_step = common_step(&curves, allowed * 0.998, 1.0);
                for &target in &free {
                    self.predicted_bytes[target] = self.curves[&target].bytes(self.log2_step);
                }
            }
            let curve = &self.curves[&free[0]];
            if curve.distance(self.log2_step) < NEAR_ENOUGH {
                break;
            }
            wanted = vec![self.log2_step];
        }
        if self.log2_step <= LOG2_STEPS.0 + 0.01 {
            let message =
                "the finest steps need less than was asked for: the file will be smaller than the budget";
            self.warn(progress, message.to_owned());
        }
        Ok(())
    }

    fn measure_points(
        &mut self,
        free: &[usize],
        log2_steps: &[f64],
        progress: &dyn Progress,
        round: usize,
    ) -> Result<(), CompressError> {
        let total = (free.len() * ROUNDS) as u64;
        let done = std::sync::atomic::AtomicU64::new((free.len() * round) as u64);
        let measured: Vec<(usize, Vec<Point>)> = free
            .par_iter()
            .map(|&target| {
                progress.check()?;
                let ratio = self.treatment(target).step_ratio;
                let rates: Vec<Rate> = log2_steps.iter().map(|&at| Rate::Step(at.exp2() * ratio)).collect();
                let points =
                    self.codec(target).estimate(&self.array(target)?, &self.knowledge(target)?, &rates)?;
                self.release(target);
                let done = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
                progress.advance("plan", done, total, &self.targets[target].spec.name);
                Ok((target, points))
            })
            .collect::<Result<_, CompressError>>()?;
        for (target, points) in measured {
            let (len, ratio) = (self.targets[target].spec.len(), self.treatment(target).step_ratio);
            self.curves.entry(target).or_insert_with(|| RateCurve::new(&[], len, ratio)).extend(&points);
            self.points.entry(target).or_default().extend(points);
        }
        Ok(())
    }

    /// Predicted distortion of a free target at its step.
    pub(super) fn predicted_distortion(&self, target: usize, step: f64) -> f64 {
        let distance = |point: &&Point| match point.rate {
            Rate::Step(known) => (known.log2() - step.log2()).abs(),
            _ => f64::INFINITY,
        };
        let points = self.points.get(&target).map_or(&[][..], |points| &points[..]);
        let Some(nearest) = points.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))) else {
            return 0.0;
        };
        // Between points the error goes as the square of the step.
        match nearest.rate {
            Rate::Step(known) => nearest.distortion * (step / known).powi(2),
            _ => nearest.distortion,
        }
    }
}

/// Bits per weight where a free recipe says none.
const DEFAULT_BITS: f64 = 4.0;
