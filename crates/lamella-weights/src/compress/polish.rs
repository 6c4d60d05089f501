//! A short evolution on the loss of the whole coded model, from the allocation that single sensitivities give.
//!
//! Sensitivities are measured one array at a time in the otherwise original model. In the coded one errors add up, cancel
//! and saturate, so that an array's share of the loss is another. The polish codes all arrays once at the plan's steps
//! and then only runs the model: at another step an array's error keeps its shape and grows with the step, so a
//! candidate is the original plus scaled errors, and costs one run of the model on text behind the calibration text.
//!
//! # Algorithm
//! 1. Contexts: the loss of the coded model with each array in turn exact. Half the drop and half the array's own loss
//!    alone is the slope of the loss by the logarithm of its step: with `L = e_u H e_u` alone and `L + 2 e_u H e_rest` as
//!    the drop, their mean is `e_u H e_u + e_u H e_rest`.
//! 2. The hull's allocation for these slopes, over quarters of an octave around the plan's steps, at the same bytes; it
//!    is the start where the coded model's loss is smaller with it than with the plan's steps.
//! 3. Evolution (S029's search: level switches within the bytes) on the loss of the whole model, a few generations.
//!
//! # What it buys
//! On wiki5m (43 arrays) KL on unseen text falls by 1.6 % at 3 bits per weight and 2.8 % at 2.5. Nearly all of it comes
//! from the slopes in context: five generations of eight children found nothing better there.
//!
//! # Cost
//! The arrays coded once and one run for each array and child, `5e12` floating-point operations at most: larger models
//! keep the allocation as it is, and so do jobs with two arrays or fewer.

use std::collections::{BTreeMap, BTreeSet};

use lamella_codec::{Array, ArraySpec, Progress, TensorMap, TensorSource};
use lamella_rate::{Allocator, Evolution, Lagrangian, Offer, Problem, RatePoint, Round};

use super::measure::Bench;
use super::{CompressError, Job};

/// Quarters of an octave around the plan's step that an array may move.
const QUARTERS: i32 = 4;
const GENERATIONS: usize = 5;
const CHILDREN: usize = 8;
const SEED: u64 = 29;
/// Operations of all runs together.
const MOST_OPERATIONS: f64 = 5e12;
/// Elements whose originals and errors are held as `f32`.
const MOST_ELEMENTS: usize = 128 << 20;
/// A slope is at least this share of the array's own loss alone: drops are differences of noisy numbers.
const LEAST_SHARE: f64 = 0.25;

/// An array and its error at the plan's step.
struct Part {
    /// Its own and its twins'.
    specs: Vec<ArraySpec>,
    original: Vec<f32>,
    error: Vec<f32>,
}

/// The coded model with errors that can be scaled.
struct Coded<'b> {
    bench: Bench<'b>,
    /// The parts of each unit.
    units: Vec<Vec<Part>>,
    embeds: bool,
}

impl Coded<'_> {
    /// Loss of the model with each unit's error times its factor.
    fn loss(&self, factors: &[f32]) -> Result<f64, CompressError> {
        let mut changed = TensorMap::default();
        for (parts, &factor) in self.units.iter().zip(factors) {
            for part in parts.iter().filter(|_| factor != 0.0) {
                let values: Vec<f32> =
                    part.original.iter().zip(&part.error).map(|(own, error)| own + factor * error).collect();
                for spec in &part.specs {
                    changed.insert(Array::from_f32(spec.clone(), &values)?);
                }
            }
        }
        self.bench.loss(&changed, 0, self.embeds)
    }
}

impl Job<'_> {
    /// Moves the steps by a short evolution on the loss of the coded model; returns whether anything changed.
    pub(super) fn polish(&mut self, progress: &dyn Progress) -> Result<bool, CompressError> {
        let (Some(known), Some(model)) = (&self.sensitivities, &self.input.model) else { return Ok(false) };
        let units = self.units(&known.probes)?;
        let elements: usize = units.iter().flatten().map(|&target| self.targets[target].spec.len()).sum();
        let tokens = known.tokens / 2;
        let runs = (units.len() + GENERATIONS * CHILDREN) as f64;
        let operations = 2.0 * self.weights() as f64 * tokens as f64 * runs;
        if units.len() < 3 || elements > MOST_ELEMENTS || operations > MOST_OPERATIONS {
            return Ok(false);
        }
        let coded = self.with_errors(&units, self.bench(model, tokens)?, progress)?;
        let mut runs_done = 0;
        let mut run = |factors: &[f32]| -> Result<f64, CompressError> {
            progress.check()?;
            progress.advance("polish", runs_done.min(runs as u64), runs as u64, "");
            runs_done += 1;
            coded.loss(factors)
        };
        let plain = vec![1.0; units.len()];
        let together = run(&plain)?;
        let alone: Vec<f64> = units.iter().map(|unit| self.loss_alone(unit)).collect();
        let scale = together / alone.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let mut slopes = Vec::with_capacity(units.len());
        for (unit, &alone) in alone.iter().enumerate() {
            let mut factors = plain.clone();
            factors[unit] = 0.0;
            let drop = together - run(&factors)?;
            slopes.push((0.5 * (alone * scale + drop)).max(LEAST_SHARE * alone * scale));
        }
        let problem = self.quarters(&units, &slopes)?;
        let still = vec![QUARTERS as usize; units.len()];
        let bytes = |choices: &[usize]| -> u64 {
            problem.offers().iter().zip(choices).map(|(offer, &choice)| offer.points[choice].bytes).sum()
        };
        let budget = bytes(&still);
        let hull = Lagrangian.allocate(&problem, budget)?.choices;
        let mut judged: BTreeMap<Vec<usize>, f64> = BTreeMap::from([(still.clone(), together)]);
        let mut judge = |choices: &[usize]| -> Result<f64, CompressError> {
            if let Some(&loss) = judged.get(choices) {
                return Ok(loss);
            }
            let factors: Vec<f32> = choices.iter().map(|&choice| octaves_of(choice).exp2() as f32).collect();
            let loss = run(&factors)?;
            judged.insert(choices.to_vec(), loss);
            Ok(loss)
        };
        let by_hull = judge(&hull)?;
        let start = if by_hull < together { &hull } else { &still };
        let rounds = vec![Round { survivors: 1 }];
        let evolution = Evolution { generations: GENERATIONS, children: CHILDREN, rounds, seed: SEED };
        let found = evolution.search(&problem, budget, Some(start), |choices, _, _| judge(choices))?;
        drop(coded);
        for (unit, &choice) in units.iter().zip(&found.choices) {
            for &target in unit {
                self.set_ratio(target, self.treatment(target).step_ratio * octaves_of(choice).exp2());
            }
        }
        Ok(found.choices != still)
    }

    /// What was measured together, arrays that share a step in one unit.
    fn units(&self, probes: &[Vec<usize>]) -> Result<Vec<Vec<usize>>, CompressError> {
        let mut units: Vec<BTreeSet<usize>> =
            probes.iter().map(|arrays| arrays.iter().copied().collect()).collect();
        for tied in self.ties()? {
            let (touching, apart): (Vec<_>, Vec<_>) =
                units.into_iter().partition(|unit| tied.iter().any(|target| unit.contains(target)));
            units = apart;
            units.push(touching.into_iter().flatten().collect());
        }
        units.retain(|unit| !unit.is_empty());
        units.sort();
        Ok(units.into_iter().map(|unit| unit.into_iter().collect()).collect())
    }

    fn loss_alone(&self, unit: &[usize]) -> f64 {
        let own = |target: usize| self.log2_step + self.treatment(target).step_ratio.log2();
        unit.iter().filter_map(|&target| self.model_loss(target, own(target))).sum()
    }

    /// Every unit coded at the plan's steps.
    fn with_errors<'b>(
        &self,
        units: &[Vec<usize>],
        bench: Bench<'b>,
        progress: &dyn Progress,
    ) -> Result<Coded<'b>, CompressError> {
        let embeddings = self.input.model.as_ref().map_or_else(Vec::new, |model| model.network.embeddings());
        let mut coded = Coded { bench, units: Vec::with_capacity(units.len()), embeds: false };
        for (done, unit) in units.iter().enumerate() {
            progress.check()?;
            let name = &self.targets[unit[0]].spec.name;
            progress.advance("code for the polish", done as u64, units.len() as u64, name);
            let mut parts = Vec::with_capacity(unit.len());
            for &target in unit {
                let mut decoded = TensorMap::default();
                self.code_into(
                    &mut decoded,
                    target,
                    self.codec(target),
                    self.step_rate(self.log2_step)(target),
                )?;
                for &member in &self.targets[target].members {
                    let name = &self.treatments[member].spec.name;
                    let original = self.input.directory.array(name)?.to_f32()?;
                    let spec_of = |name: &str| decoded.spec(name).cloned();
                    let specs: Vec<ArraySpec> = self.names_of(member).filter_map(spec_of).collect();
                    coded.embeds |= specs.iter().any(|spec| embeddings.contains(&spec.name));
                    let changed = decoded.array(name)?.to_f32()?;
                    let error = changed.iter().zip(&original).map(|(changed, own)| changed - own).collect();
                    parts.push(Part { specs, original, error });
                }
                self.release(target);
            }
            coded.units.push(parts);
        }
        Ok(coded)
    }

    /// Points of each unit at quarters of an octave around the plan's steps, finest first.
    fn quarters(&self, units: &[Vec<usize>], slopes: &[f64]) -> Result<Problem, CompressError> {
        let offers = units.iter().zip(slopes).map(|(unit, &slope)| {
            let points = (0..=2 * QUARTERS as usize).map(|choice| {
                let octaves = octaves_of(choice);
                let curves = unit.iter().filter_map(|target| self.curves.get(target));
                let bytes: f64 = curves.map(|curve| curve.bytes(self.log2_step + octaves)).sum();
                RatePoint { bytes: bytes.ceil() as u64, loss: slope * (2.0 * octaves).exp2() }
            });
            Offer::new(self.targets[unit[0]].spec.name.clone(), points.collect())
        });
        Ok(Problem::new(offers.collect())?)
    }
}

/// Octaves that a choice moves a step by.
fn octaves_of(choice: usize) -> f64 {
    0.25 * (choice as f64 - f64::from(QUARTERS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_quarters_of_an_octave_around_the_plan() {
        assert_eq!(octaves_of(QUARTERS as usize), 0.0);
        assert_eq!((octaves_of(0), octaves_of(2 * QUARTERS as usize)), (-1.0, 1.0));
    }
}
