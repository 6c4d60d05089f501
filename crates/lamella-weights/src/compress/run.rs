//! Coding: fixed arrays first, then the free ones with unspent bytes carried on, the last ones closing the budget.

use std::collections::BTreeMap;

use lamella_codec::{
    Array, ArraySpec, Encoded, EncodedLayer, Progress, Rate, SourceError, TensorMap, TensorSource,
};
use lamella_file::Spool;
use lamella_lm::Hidden;
use lamella_lm::statistics::{Detail, InputStatistics, observe_block};
use lamella_rate::{LOG2_STEPS, RateCurve, common_step};
use rayon::prelude::*;

use super::plan::Limit;
use super::{CompressError, CompressReport, Job};

/// Arrays coded side by side at one step. Fixed: the carried budget must not depend on the thread count.
const BATCH: usize = 4;
/// Elements of the arrays coded side by side, unless one alone has more.
pub(super) const BATCH_ELEMENTS: usize = 8 << 20;
/// The closing arrays hold at least this share of the free bytes.
const CLOSING_SHARE: f64 = 0.08;
/// Up to so many free weights every array is a closing one: the whole model is coded a few times.
pub(super) const SMALL_MODEL_WEIGHTS: usize = 8 << 20;
/// The budget is met when at least this share of it is used.
const CLOSE_ENOUGH: f64 = 0.998;
const CLOSING_ROUNDS: usize = 14;

/// What is known of finished targets.
#[derive(Default)]
struct Finished {
    /// Layer lengths.
    lengths: BTreeMap<usize, Vec<u64>>,
    /// Distortion, and that of storing nothing.
    losses: BTreeMap<usize, (f64, f64)>,
}

impl Finished {
    fn bytes(&self, target: usize) -> Option<u64> {
        self.lengths.get(&target).map(|lengths| lengths.iter().sum())
    }
}

impl Job<'_> {
    /// Codes everything and writes the file. A killed run leaves `OUTPUT.part/`, from which the same request goes
    /// on; the result has the same bytes as that of an undisturbed run.
    ///
    /// # Errors
    /// Arrays that cannot be coded, a spool that cannot be written, an interruption.
    pub fn run(&mut self, progress: &dyn Progress) -> Result<CompressReport, CompressError> {
        let spool = Spool::open(&self.request.output, &self.fingerprint()?)?;
        if self.request.tune.is_some() {
            self.untune(&spool)?;
        }
        let mut finished = Finished::default();
        let fixed: Vec<usize> = (0..self.targets.len()).filter(|&target| !self.is_free(target)).collect();
        let free = self.free_targets();
        let groups = self.groups(&free);
        let mut counter = Counter { progress, done: 0, total: self.targets.len() as u64 };
        if !self.request.sequential {
            self.code(&fixed, |_| Rate::Recipe, &BTreeMap::new(), &spool, &mut finished, &mut counter)?;
        }
        self.run_groups(&groups, &fixed, &spool, &mut finished, &mut counter)?;
        let tuned = match self.request.tune {
            Some(length) => Some(self.tune(length, &spool, &mut finished.lengths, progress)?),
            None => None,
        };
        let lengths: Vec<f64> =
            (0..self.targets.len()).map(|target| finished.bytes(target).unwrap_or(0) as f64).collect();
        let order = spool.order_by_gain(&self.manifest, |target| self.worth(target, &finished.losses))?;
        let bytes = spool.assemble(self.manifest.clone(), &self.side.bytes, &order)?;
        let mut report = self.report_of(bytes, &lengths, &finished.losses)?;
        report.tune = tuned;
        Ok(report)
    }

    /// What a unit of a target's distortion costs the task. Final steps were allocated at equal slopes, so there a bit
    /// of every weight is worth the same: elements over final distortion.
    fn worth(&self, target: usize, losses: &BTreeMap<usize, (f64, f64)>) -> f64 {
        match losses.get(&target) {
            Some(&(distortion, _)) if distortion > 0.0 && self.is_free(target) => {
                self.targets[target].spec.len() as f64 / distortion
            }
            _ => 1.0,
        }
    }

    fn fingerprint(&self) -> Result<String, CompressError> {
        let calibration = match &self.calibration {
            Some(_) => self.request.calibration.fingerprint(self.input)?,
            None => String::new(),
        };
        let recipes: Vec<String> =
            self.treatments.iter().map(|treatment| treatment.codec.recipe().to_string()).collect();
        Ok(format!(
            "lamella {} targets {} input {} recipes {} limit {:?} sequential {} allocate {:?} tune {:?} calibration {calibration}",
            env!("CARGO_PKG_VERSION"),
            self.targets.len(),
            self.input.content_hash()?,
            recipes.join(";"),
            self.limit,
            self.request.sequential,
            self.request.allocate,
            self.request.tune,
        ))
    }

    /// The free targets in the order they are coded; the last group closes the budget.
    fn groups(&self, free: &[usize]) -> Vec<Vec<usize>> {
        let elements: usize = free.iter().map(|&target| self.targets[target].spec.len()).sum();
        if !self.request.sequential {
            if elements <= SMALL_MODEL_WEIGHTS {
                return vec![free.to_vec()];
            }
            let total: f64 = free.iter().map(|&target| self.predicted_bytes[target]).sum();
            let mut closing = free.len();
            let mut held = 0.0;
            while closing > 0 && held < CLOSING_SHARE * total {
                closing -= 1;
                held += self.predicted_bytes[free[closing]];
            }
            let mut groups: Vec<Vec<usize>> = free[..closing].chunks(BATCH).map(<[usize]>::to_vec).collect();
            groups.push(free[closing..].to_vec());
            return groups;
        }
        let block_of = |target: usize| self.treatment(target).site.as_ref().and_then(|site| site.block);
        let blocks = self.input.model.as_ref().map_or(0, |model| model.network.n_blocks());
        let mut groups: Vec<Vec<usize>> = (0..blocks)
            .map(|block| (0..self.targets.len()).filter(|&target| block_of(target) == Some(block)).collect())
            .collect();
        groups.push((0..self.targets.len()).filter(|&target| block_of(target).is_none()).collect());
        groups
    }

    fn run_groups(
        &self,
        groups: &[Vec<usize>],
        fixed: &[usize],
        spool: &Spool,
        finished: &mut Finished,
        counter: &mut Counter<'_>,
    ) -> Result<(), CompressError> {
        let mut drift = self.request.sequential.then(|| Drift::begin(self)).transpose()?;
        // A sequential pass closes with its last groups together: the rest may hold too little.
        let closing_groups = if drift.is_some() { 2.min(groups.len()) } else { 1 };
        let (early, closing) = groups.split_at(groups.len() - closing_groups.min(groups.len()));
        for (block, group) in early.iter().enumerate() {
            let statistics = match &mut drift {
                Some(drift) => drift.observe(self, block)?,
                None => BTreeMap::new(),
            };
            let (free, fixed): (Vec<usize>, Vec<usize>) =
                group.iter().partition(|&&target| self.is_free(target));
            self.code(&fixed, |_| Rate::Recipe, &statistics, spool, finished, counter)?;
            let log2_step = self.carried_step(finished)?;
            self.code(&free, self.step_rate(log2_step), &statistics, spool, finished, counter)?;
            if let Some(drift) = &mut drift {
                drift.advance(self, block, group, spool)?;
            }
        }
        let last: Vec<usize> = closing.iter().flatten().copied().collect();
        let statistics = match &mut drift {
            Some(drift) => drift.observe_last(self, early.len())?,
            None => BTreeMap::new(),
        };
        let (free, rest): (Vec<usize>, Vec<usize>) = last.iter().partition(|&&target| self.is_free(target));
        let remaining: Vec<usize> = fixed
            .iter()
            .copied()
            .filter(|target| rest.contains(target) || !finished.lengths.contains_key(target))
            .filter(|target| !finished.lengths.contains_key(target))
            .collect();
        self.code(&remaining, |_| Rate::Recipe, &statistics, spool, finished, counter)?;
        self.close(&free, &statistics, spool, finished, counter)
    }

    pub(super) fn step_rate(&self, log2_step: f64) -> impl Fn(usize) -> Rate + '_ {
        move |target| Rate::Step(self.curves.get(&target).map_or(1.0, |curve| curve.step(log2_step)))
    }

    /// Codes targets side by side and spools them; what an earlier run finished is taken as it is.
    fn code(
        &self,
        targets: &[usize],
        rate: impl Fn(usize) -> Rate + Sync,
        statistics: &BTreeMap<String, InputStatistics>,
        spool: &Spool,
        finished: &mut Finished,
        counter: &mut Counter<'_>,
    ) -> Result<(), CompressError> {
        for batch in self.batches(targets) {
            counter.check()?;
            let coded: Vec<Option<Encoded>> = batch
                .par_iter()
                .map(|&target| {
                    if spool.finished_lengths(&self.targets[target].spec.name)?.is_some() {
                        return Ok(None);
                    }
                    let encoded = self.encode(target, rate(target), statistics)?;
                    Ok(Some(encoded))
                })
                .collect::<Result<_, CompressError>>()?;
            for (&target, encoded) in batch.iter().zip(coded) {
                self.keep(target, encoded, spool, finished)?;
                counter.step(&self.targets[target].spec.name);
            }
        }
        Ok(())
    }

    /// Runs of targets that are coded side by side: few at a time, and large ones alone, since each needs several
    /// copies of itself in memory.
    fn batches<'t>(&self, targets: &'t [usize]) -> Vec<&'t [usize]> {
        let mut batches = Vec::new();
        let mut rest = targets;
        while !rest.is_empty() {
            let mut elements = 0;
            let fits = rest.iter().take(BATCH).take_while(|&&target| {
                elements += self.targets[target].spec.len();
                elements <= BATCH_ELEMENTS
            });
            let (batch, later) = rest.split_at(fits.count().max(1));
            batches.push(batch);
            rest = later;
        }
        batches
    }

    fn encode(
        &self,
        target: usize,
        rate: Rate,
        statistics: &BTreeMap<String, InputStatistics>,
    ) -> Result<Encoded, CompressError> {
        let site = self.treatment(target).site.as_ref().filter(|site| !site.is_transposed);
        let mut knowledge = self.knowledge(target)?;
        if let Some(drifted) = site.and_then(|site| statistics.get(&site.input)) {
            knowledge.second_moment = drifted.second_moment().cloned();
        }
        let encoded = self.codec(target).encode(&self.array(target)?, &knowledge, rate)?;
        self.release(target);
        Ok(encoded)
    }

    fn keep(
        &self,
        target: usize,
        encoded: Option<Encoded>,
        spool: &Spool,
        finished: &mut Finished,
    ) -> Result<(), CompressError> {
        let name = &self.targets[target].spec.name;
        if let Some(encoded) = encoded {
            spool.store(name, &encoded.layers, &format!("{:e}", encoded.distortion_of_zeros))?;
        }
        let layers = spool.finished_lengths(name)?.unwrap_or_default();
        let zeros = spool.note(name)?.and_then(|note| note.parse().ok()).unwrap_or(0.0);
        let distortion = layers.last().map_or(0.0, |layer| layer.distortion);
        finished.lengths.insert(target, layers.iter().map(|layer| layer.length_bytes).collect());
        finished.losses.insert(target, (distortion, zeros));
        Ok(())
    }

    /// The common step for what is left, with the budget that is left.
    fn carried_step(&self, finished: &Finished) -> Result<f64, CompressError> {
        let (mut spent, mut predicted, mut left) = (0.0, 0.0, Vec::new());
        for (&target, curve) in &self.curves {
            match finished.bytes(target) {
                Some(bytes) => {
                    spent += bytes as f64;
                    predicted += self.predicted_bytes[target];
                }
                None => left.push(curve),
            }
        }
        // Predictions are corrected by how they fared so far, trusted as more of the model is coded.
        let total: f64 = self.curves.keys().map(|&target| self.predicted_bytes[target]).sum();
        let correction = (spent + 0.1 * total) / (predicted + 0.1 * total).max(1.0);
        Ok(common_step(&left, (self.allowed()? * 0.999 - spent).max(0.0), correction))
    }

    /// Codes the closing targets at steps found by bisection on their real sizes, until the budget is met.
    fn close(
        &self,
        closing: &[usize],
        statistics: &BTreeMap<String, InputStatistics>,
        spool: &Spool,
        finished: &mut Finished,
        counter: &mut Counter<'_>,
    ) -> Result<(), CompressError> {
        if closing.is_empty() {
            return Ok(());
        }
        let limit = match self.limit {
            Limit::File(bytes) | Limit::Payloads(bytes) => bytes,
            Limit::None => u64::MAX,
        };
        let curves: Vec<&RateCurve> = closing.iter().filter_map(|target| self.curves.get(target)).collect();
        let mut at = self.carried_step(finished)?;
        let mut too_large: Option<(f64, u64)> = None;
        let mut best: Option<(f64, u64, Vec<Encoded>)> = None;
        for round in 0..CLOSING_ROUNDS {
            counter.progress.advance("close the budget", round as u64, CLOSING_ROUNDS as u64, "");
            let rate = self.step_rate(at);
            let mut coded = Vec::with_capacity(closing.len());
            for batch in self.batches(closing) {
                counter.check()?;
                let encoded: Vec<Encoded> = batch
                    .par_iter()
                    .map(|&target| self.encode(target, rate(target), statistics))
                    .collect::<Result<_, _>>()?;
                coded.extend(encoded);
            }
            let used = self.used(closing, &coded, finished)?;
            if used > limit {
                too_large = Some((at, used));
            } else if best.as_ref().is_none_or(|best| used > best.1) {
                best = Some((at, used, coded));
            }
            if best.as_ref().is_some_and(|best| best.1 as f64 >= CLOSE_ENOUGH * limit as f64) {
                break;
            }
            let aim = limit as f64 * (1.0 + CLOSE_ENOUGH) / 2.0;
            let next = next_step(
                at,
                used as f64,
                aim,
                &curves,
                too_large,
                best.as_ref().map(|best| (best.0, best.1)),
            );
            let next = next.clamp(LOG2_STEPS.0, LOG2_STEPS.1);
            if next == at {
                break;
            }
            at = next;
        }
        let Some((_, _, coded)) = best else {
            let found = too_large.map_or(0, |found| found.1);
            return Err(CompressError::Missed { found, allowed: limit });
        };
        for (&target, encoded) in closing.iter().zip(coded) {
            self.keep(target, Some(encoded), spool, finished)?;
            counter.step(&self.targets[target].spec.name);
        }
        Ok(())
    }

    /// What the budget counts, with the closing targets coded so.
    fn used(&self, closing: &[usize], coded: &[Encoded], finished: &Finished) -> Result<u64, CompressError> {
        let mut lengths = finished.lengths.clone();
        for (&target, encoded) in closing.iter().zip(coded) {
            lengths.insert(
                target,
                encoded.layers.iter().map(|layer: &EncodedLayer| layer.payload.len() as u64).collect(),
            );
        }
        match self.limit {
            Limit::File(_) => {
                let all: Vec<Vec<u64>> = (0..self.targets.len())
                    .map(|target| lengths.get(&target).cloned().unwrap_or_default())
                    .collect();
                self.file_bytes(&all)
            }
            Limit::Payloads(_) => {
                Ok(self.free_targets().iter().filter_map(|target| lengths.get(target)).flatten().sum())
            }
            Limit::None => Ok(0),
        }
    }
}

/// The next step to try: by the curves' slope at first, by bisection once both sides are known.
fn next_step(
    at: f64,
    used: f64,
    aim: f64,
    curves: &[&RateCurve],
    too_large: Option<(f64, u64)>,
    fits: Option<(f64, u64)>,
) -> f64 {
    let bytes = |at: f64| curves.iter().map(|curve| curve.bytes(at)).sum::<f64>();
    if let (Some((fine, large)), Some((coarse, small))) = (too_large, fits) {
        // Interpolate between the sides, kept inside them.
        let (large, small) = (large as f64, small as f64);
        let share = ((large - aim) / (large - small).max(1.0)).clamp(0.1, 0.9);
        return fine + (coarse - fine) * share;
    }
    let slope = (bytes(at + 0.05) - bytes(at - 0.05)) / 0.1;
    let move_by = if slope < -1.0 { ((aim - used) / slope).clamp(-1.0, 1.0) } else { (used - aim).signum() };
    // A step too small to change anything would never end the search.
    let least = 1e-3 * (used - aim).signum();
    at + if move_by.abs() < least.abs() { least } else { move_by }
}

/// Counts finished targets.
struct Counter<'p> {
    progress: &'p dyn Progress,
    done: u64,
    total: u64,
}

impl Counter<'_> {
    fn check(&self) -> Result<(), CompressError> {
        Ok(self.progress.check()?)
    }
    fn step(&mut self, name: &str) {
        self.done += 1;
        self.progress.advance("code", self.done, self.total, name);
    }
}

/// The states of the calibration text behind the blocks quantised so far.
struct Drift {
    batches: Vec<Hidden>,
    quantized: TensorMap,
}

impl Drift {
    fn begin(job: &Job<'_>) -> Result<Self, CompressError> {
        let reason = |reason: &str| CompressError::NotSequential { reason: reason.to_owned() };
        let model =
            job.input.model.as_ref().ok_or_else(|| reason(job.input.unknown.as_deref().unwrap_or("")))?;
        let calibration = job.calibration.as_ref().ok_or_else(|| reason("nothing was calibrated"))?;
        let batches = vec![model.network.begin(&calibration.sequences)?];
        Ok(Self { batches, quantized: TensorMap::default() })
    }

    fn network<'j>(&self, job: &'j Job<'_>) -> Result<&'j lamella_lm::Network, CompressError> {
        let model = job.input.model.as_ref();
        Ok(&model.ok_or(CompressError::NoTokenizer)?.network)
    }

    /// What a block's linears see behind quantised blocks, with the block's own weights still exact.
    fn observe(
        &self,
        job: &Job<'_>,
        block: usize,
    ) -> Result<BTreeMap<String, InputStatistics>, CompressError> {
        let mut batches = self.batches.clone();
        Ok(observe_block(self.network(job)?, block, &mut batches, None, Detail::Full)?)
    }

    /// The same for the blocks from `block` on; they close the budget together, so each sees the others exact.
    fn observe_last(
        &self,
        job: &Job<'_>,
        block: usize,
    ) -> Result<BTreeMap<String, InputStatistics>, CompressError> {
        let network = self.network(job)?;
        let mut batches = self.batches.clone();
        let mut seen = BTreeMap::new();
        for index in block..network.n_blocks() {
            seen.extend(observe_block(network, index, &mut batches, None, Detail::Full)?);
        }
        Ok(seen)
    }

    /// Runs the states through a block that has been quantised.
    fn advance(
        &mut self,
        job: &Job<'_>,
        block: usize,
        group: &[usize],
        spool: &Spool,
    ) -> Result<(), CompressError> {
        self.quantized = TensorMap::default();
        for &target in group {
            let spec = &job.targets[target].spec;
            let layers = spool.finished(&spec.name)?.unwrap_or_default();
            let payloads: Vec<&[u8]> = layers.iter().map(|layer| &layer.payload[..]).collect();
            job.insert_members(&mut self.quantized, target, &job.codec(target).decode(spec, &payloads)?)?;
        }
        let overlay = Overlay { above: &self.quantized, below: &*job.input.directory };
        let network = self.network(job)?;
        observe_block(network, block, &mut self.batches, Some(&overlay), Detail::Diagonal)?;
        Ok(())
    }
}

/// Quantised arrays where there are some, the original's elsewhere.
pub(crate) struct Overlay<'s> {
    pub(crate) above: &'s TensorMap,
    pub(crate) below: &'s dyn TensorSource,
}

impl TensorSource for Overlay<'_> {
    fn arrays(&self) -> &[ArraySpec] {
        self.below.arrays()
    }
    fn array(&self, name: &str) -> Result<Array<'_>, SourceError> {
        match self.above.array(name) {
            Err(SourceError::Missing { .. }) => self.below.array(name),
            found => found,
        }
    }
}
