//! Who gets how many bits: each array's share of the model's own loss, measured, then equal slopes.
//!
//! Equal relative steps treat all arrays alike. What an array's error does to the model's *output* differs by an
//! order of magnitude, and only running the model tells. So the plan codes each array alone at the uniform step,
//! runs the otherwise original model on text behind the calibration text, and takes the loss: KL divergence to the
//! original for decoders, squared distance of unit embeddings for encoders. States in front of every block are
//! kept, so that only the blocks from the array on run again.
//!
//! # Formula
//! Near the uniform step `s` array `i` loses `L_i (s_i / s)^2` and takes `B_i - b_i log2(s_i / s)` bytes, `b_i` being
//! its bytes an octave. Spending where it buys most means equal slopes, `L_i s_i^2 / b_i` the same everywhere, so
//! `log2(s_i / s) = (log2(b_i / L_i) - mean) / 2`, within two octaves. The exact size is met afterwards by one common
//! factor, as without allocation.
//!
//! # Cost
//! About `1.2e12` floating-point operations (half a minute on two cores for 10 M weights), with 512 to 4,096 tokens.
//! Larger models measure groups of arrays together: by role and quarter of the depth, then by role alone. Where even
//! that takes over `1e14` operations the step stays uniform, and a warning says so.

use std::collections::BTreeMap;

use lamella_codec::{Array, Codec, Progress, Rate, TensorMap};
use lamella_lm::{Family, Network, Role};
use rayon::prelude::*;

use super::measure::{Bench, MAX_LOGITS, TOKENS, WINDOW};
use super::plan::Limit;
use super::{CompressError, Job, Place};

/// How the budget is spread over the arrays.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Allocate {
    /// One relative step for all, embeddings and heads at a fixed fraction of it.
    Uniform,
    /// By each array's measured effect on the model's output.
    #[default]
    Measured,
    /// The same; the arrays that the patterns of one list match share a step, as fused kernels want.
    Tied(Vec<Vec<String>>),
    /// As a plan says: an array's own step over the common one, by name. Arrays without an entry keep theirs.
    Given(BTreeMap<String, f64>),
}

/// What measuring found, for reports and for choosing between recipes.
pub(super) struct Sensitivities {
    /// Loss of the model with only this target coded at its own step at that time.
    pub(super) losses: BTreeMap<usize, f64>,
    /// `log2` of the common step then.
    pub(super) log2_step: f64,
    /// Each target's step over the common one then, as without allocation.
    pub(super) ratios: BTreeMap<usize, f64>,
    /// Tokens that losses were measured on.
    pub(super) tokens: usize,
    /// Seconds that coding every array once took.
    pub(super) coding_seconds: f64,
    /// Targets that were measured together.
    pub(super) probes: Vec<Vec<usize>>,
}

/// Operations that measuring should take, and that it may take before arrays are measured in groups.
const OPERATIONS: (f64, f64) = (1.2e12, 5e12);
/// Operations beyond which nothing is measured.
const MOST_OPERATIONS: f64 = 1e14;
/// Steps move at most so many octaves.
const MAX_OCTAVES: f64 = 2.0;
/// Probes whose arrays are coded side by side.
const BATCH: usize = 4;
/// Elements of arrays coded side by side, unless one probe alone has more.
const BATCH_ELEMENTS: usize = 64 << 20;

/// Arrays whose errors are measured together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Probe {
    /// Targets.
    arrays: Vec<usize>,
    /// The first block that changes; blocks' count for the head alone.
    from: usize,
    /// Whether the embedded tokens change.
    embeds: bool,
}

/// How finely arrays are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grain {
    Array,
    RoleAndQuarter,
    Role,
}

impl Job<'_> {
    /// Measures sensitivities and sets the arrays' step ratios; the plan is solved again afterwards.
    ///
    /// Returns whether anything changed.
    pub(super) fn allocate(&mut self, progress: &dyn Progress) -> Result<bool, CompressError> {
        let free = self.free_targets();
        let is_measured = matches!(self.request.allocate, Allocate::Measured | Allocate::Tied(_));
        if !is_measured || self.limit == Limit::None || free.len() < 2 || self.calibration.is_none() {
            return Ok(false);
        }
        let Some(model) = &self.input.model else { return Ok(false) };
        let Some((probes, tokens)) = self.probes(&free, &model.network) else {
            self.warn(
                progress,
                "the model is too large to measure sensitivities: one relative step is used".to_owned(),
            );
            return Ok(false);
        };
        let bench = self.bench(model, tokens)?;
        let (losses, coding_seconds) = self.losses(&probes, &bench, progress)?;
        let tokens = bench.tokens();
        drop(bench);
        let mut shares: BTreeMap<usize, f64> = BTreeMap::new();
        for (probe, loss) in probes.iter().zip(&losses) {
            let slopes: f64 = probe.arrays.iter().map(|&target| self.bytes_an_octave(target)).sum();
            for &target in &probe.arrays {
                shares.insert(target, loss * self.bytes_an_octave(target) / slopes);
            }
        }
        let mut wanted: BTreeMap<usize, f64> = BTreeMap::new();
        for (&target, loss) in &shares {
            wanted.insert(target, 0.5 * (self.bytes_an_octave(target) / loss).log2());
        }
        let ties = self.ties()?;
        for tied in &ties {
            let members = || tied.iter().filter(|target| shares.contains_key(target));
            let slopes: f64 = members().map(|&target| self.bytes_an_octave(target)).sum();
            let loss: f64 = members().map(|target| shares[target]).sum();
            members().for_each(|&target| {
                wanted.insert(target, 0.5 * (slopes / loss).log2());
            });
        }
        let ratios = shares.keys().map(|&target| (target, self.treatment(target).step_ratio)).collect();
        self.sensitivities = Some(Sensitivities {
            losses: shares,
            log2_step: self.log2_step,
            ratios,
            tokens,
            coding_seconds,
            probes: probes.into_iter().map(|probe| probe.arrays).collect(),
        });
        let octaves = centred(&wanted, |target| self.bytes_an_octave(target));
        for (&target, &octaves) in &octaves {
            self.set_ratio(target, self.treatment(target).step_ratio * octaves.exp2());
        }
        for tied in &ties {
            let ratio = self.treatment(tied[0]).step_ratio;
            tied.iter().for_each(|&target| self.set_ratio(target, ratio));
        }
        Ok(true)
    }

    pub(super) fn set_ratio(&mut self, target: usize, ratio: f64) {
        for &index in &self.targets[target].members {
            self.treatments[index].step_ratio = ratio;
        }
        if let Some(curve) = self.curves.get_mut(&target) {
            curve.set_ratio(ratio);
        }
    }

    /// Checks ties and takes a plan's steps, before anything expensive happens.
    pub(super) fn prepare_allocation(&mut self) -> Result<(), CompressError> {
        self.ties()?;
        let Allocate::Given(steps) = &self.request.allocate else { return Ok(()) };
        for (name, &ratio) in steps {
            let index = self.treatments.iter().position(|treatment| treatment.spec.name == *name);
            let index = index.ok_or_else(|| self.nothing_matches(name))?;
            if !(ratio.is_finite() && ratio > 0.0) {
                return Err(CompressError::BadStep { array: name.clone(), ratio });
            }
            let holder = match self.treatments[index].place {
                Place::TwinOf(original) => original,
                _ => index,
            };
            // No meaning where its recipe has no free rate, as after an edit. A stack has one step: its first array's.
            self.treatments[holder].step_ratio = ratio;
        }
        Ok(())
    }

    fn nothing_matches(&self, pattern: &str) -> CompressError {
        let names: Vec<&str> = self.treatments.iter().take(3).map(|t| t.spec.name.as_str()).collect();
        CompressError::PatternMatchesNothing { pattern: pattern.to_owned(), examples: names.join("`, `") }
    }

    /// Free targets that must share a step; lists with a target in common are one.
    pub(super) fn ties(&self) -> Result<Vec<Vec<usize>>, CompressError> {
        let Allocate::Tied(lists) = &self.request.allocate else { return Ok(Vec::new()) };
        let mut ties: Vec<Vec<usize>> = Vec::new();
        for list in lists {
            let mut tied: Vec<usize> = Vec::new();
            for pattern in list {
                let bad = |error: globset::Error| CompressError::BadPattern {
                    pattern: pattern.clone(),
                    message: error.kind().to_string(),
                };
                let glob = globset::Glob::new(pattern).map_err(bad)?.compile_matcher();
                if !self.treatments.iter().any(|treatment| glob.is_match(&treatment.spec.name)) {
                    return Err(self.nothing_matches(pattern));
                }
                let matches = |target: &usize| self.names(*target).any(|name| glob.is_match(name));
                let found: Vec<usize> = self.free_targets().into_iter().filter(matches).collect();
                tied.extend(found);
            }
            let (touching, mut apart): (Vec<_>, Vec<_>) =
                ties.into_iter().partition(|other| other.iter().any(|target| tied.contains(target)));
            tied.extend(touching.into_iter().flatten());
            tied.sort_unstable();
            tied.dedup();
            if tied.len() < 2 {
                return Err(CompressError::TieOfOne { patterns: list.join(",") });
            }
            apart.push(tied);
            ties = apart;
        }
        Ok(ties)
    }

    /// Bytes that an octave of step costs an array near the uniform step.
    pub(super) fn bytes_an_octave(&self, target: usize) -> f64 {
        let most = self.targets[target].spec.len() as f64 / 8.0;
        let slope = self
            .curves
            .get(&target)
            .map_or(most, |curve| curve.bytes(self.log2_step - 0.25) - curve.bytes(self.log2_step + 0.25));
        (2.0 * slope).clamp(0.4 * most, most).max(1e-9)
    }

    /// What is measured, on how many tokens; `None` where it would take too long.
    fn probes(&self, free: &[usize], network: &Network) -> Option<(Vec<Probe>, usize)> {
        let mut weights = vec![0.0; network.n_blocks()];
        for site in network.linears() {
            if let Some(weight) = site.block.and_then(|block| weights.get_mut(block)) {
                *weight += (site.in_features * site.out_features) as f64;
            }
        }
        let is_decoder = network.family() == Family::Decoder;
        let head = if is_decoder { (network.vocab_size() * network.hidden_size()) as f64 } else { 0.0 };
        let cost = |probes: &[Probe]| {
            let of = |probe: &Probe| weights[probe.from.min(weights.len())..].iter().sum::<f64>() + head;
            2.0 * probes.iter().map(of).sum::<f64>()
        };
        for grain in [Grain::Array, Grain::RoleAndQuarter, Grain::Role] {
            let probes = self.grouped(free, network, grain);
            let cost = cost(&probes).max(1.0);
            let least = cost * TOKENS.0 as f64;
            if least <= OPERATIONS.1 || (grain == Grain::Role && least <= MOST_OPERATIONS) {
                let room = if is_decoder { MAX_LOGITS / network.vocab_size().max(1) } else { usize::MAX };
                let tokens = ((OPERATIONS.0 / cost) as usize).clamp(TOKENS.0, TOKENS.1);
                return Some((probes, tokens.min(room).max(WINDOW)));
            }
        }
        None
    }

    fn grouped(&self, free: &[usize], network: &Network, grain: Grain) -> Vec<Probe> {
        let n_blocks = network.n_blocks();
        let embeddings = network.embeddings();
        let mut groups: BTreeMap<(usize, Option<Role>, usize), Probe> = BTreeMap::new();
        for &target in free {
            let treatment = self.treatment(target);
            let site = treatment.site.as_ref();
            let embeds = self.names(target).any(|name| embeddings.iter().any(|known| known == name));
            let block = site.and_then(|site| site.block);
            if site.is_none() && !embeds {
                continue;
            }
            let key = match (block, grain) {
                (None, _) | (_, Grain::Array) => (target, None, 0),
                (Some(block), Grain::RoleAndQuarter) => {
                    (usize::MAX, site.map(|site| site.role), 1 + 4 * block / n_blocks.max(1))
                }
                (Some(_), Grain::Role) => (usize::MAX, site.map(|site| site.role), 0),
            };
            let from = if embeds { 0 } else { block.unwrap_or(n_blocks) };
            let group = groups.entry(key).or_insert(Probe { arrays: Vec::new(), from, embeds });
            group.arrays.push(target);
            group.from = group.from.min(from);
            group.embeds |= embeds;
        }
        groups.into_values().collect()
    }

    /// The names of the target's arrays and of their twins.
    pub(super) fn names(&self, target: usize) -> impl Iterator<Item = &str> {
        self.targets[target].members.iter().flat_map(|&member| self.names_of(member))
    }

    /// An array's own name and those of its twins.
    pub(super) fn names_of(&self, member: usize) -> impl Iterator<Item = &str> {
        let is_same = move |(index, place): (usize, Place)| index == member || place == Place::TwinOf(member);
        let all = self.treatments.iter().enumerate();
        all.filter(move |(index, other)| is_same((*index, other.place)))
            .map(|(_, other)| other.spec.name.as_str())
    }

    /// Adds a target's arrays under all their names, taken out of what it was decoded to.
    pub(super) fn insert_members(
        &self,
        decoded: &mut TensorMap,
        target: usize,
        whole: &Array<'_>,
    ) -> Result<(), CompressError> {
        let mut bytes = &whole.bytes[..];
        for &member in &self.targets[target].members {
            let spec = &self.treatments[member].spec;
            let (own, rest) = bytes.split_at(spec.len() * spec.dtype.size_bytes());
            bytes = rest;
            for name in self.names_of(member) {
                let mut spec = spec.clone();
                name.clone_into(&mut spec.name);
                decoded.insert(Array::new(spec, own.to_vec())?);
            }
        }
        Ok(())
    }

    /// Loss of each probe, never below a thousandth of the mean, and the seconds that coding alone took.
    fn losses(
        &self,
        probes: &[Probe],
        bench: &Bench<'_>,
        progress: &dyn Progress,
    ) -> Result<(Vec<f64>, f64), CompressError> {
        let mut losses = Vec::with_capacity(probes.len());
        let mut coding = 0.0;
        for batch in self.side_by_side(probes) {
            let started = std::time::Instant::now();
            let coded: Vec<TensorMap> =
                batch.par_iter().map(|probe| self.coded_alone(probe)).collect::<Result<_, _>>()?;
            coding += started.elapsed().as_secs_f64();
            for (probe, coded) in batch.iter().zip(&coded) {
                progress.check()?;
                let name = &self.targets[probe.arrays[0]].spec.name;
                progress.advance("measure sensitivities", losses.len() as u64, probes.len() as u64, name);
                losses.push(bench.loss(coded, probe.from, probe.embeds)?);
            }
        }
        let floor = 1e-3 * losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        Ok((losses.into_iter().map(|loss| loss.max(floor).max(f64::MIN_POSITIVE)).collect(), coding))
    }

    /// Runs of probes whose arrays are coded side by side: few, and large ones alone, since all stay decoded until
    /// they are measured.
    fn side_by_side<'p>(&self, probes: &'p [Probe]) -> Vec<&'p [Probe]> {
        let elements =
            |probe: &Probe| probe.arrays.iter().map(|&target| self.targets[target].spec.len()).sum::<usize>();
        let mut held = 0;
        let mut batches = Vec::new();
        let mut start = 0;
        for (index, probe) in probes.iter().enumerate() {
            let own = elements(probe);
            if index > start && (index - start >= BATCH || held + own > BATCH_ELEMENTS) {
                batches.push(&probes[start..index]);
                (start, held) = (index, 0);
            }
            held += own;
        }
        if start < probes.len() {
            batches.push(&probes[start..]);
        }
        batches
    }

    /// The arrays of a probe, coded at the uniform step and decoded, under all their names.
    fn coded_alone(&self, probe: &Probe) -> Result<TensorMap, CompressError> {
        let mut decoded = TensorMap::default();
        for &target in &probe.arrays {
            let rate = self.step_rate(self.log2_step)(target);
            self.code_into(&mut decoded, target, self.codec(target), rate)?;
        }
        Ok(decoded)
    }

    /// Adds a target coded and decoded, under all its names; returns its bytes.
    pub(super) fn code_into(
        &self,
        decoded: &mut TensorMap,
        target: usize,
        codec: &dyn Codec,
        rate: Rate,
    ) -> Result<u64, CompressError> {
        let spec = &self.targets[target].spec;
        let encoded = codec.encode(&self.array(target)?, &self.knowledge(target)?, rate)?;
        let payloads: Vec<&[u8]> = encoded.layers.iter().map(|layer| &layer.payload[..]).collect();
        self.insert_members(decoded, target, &codec.decode(spec, &payloads)?)?;
        Ok(encoded.size_bytes() as u64)
    }
}

/// Octaves around their mean by weight, within bounds.
fn centred(wanted: &BTreeMap<usize, f64>, weight: impl Fn(usize) -> f64) -> BTreeMap<usize, f64> {
    let total: f64 = wanted.keys().map(|&target| weight(target)).sum();
    let mean =
        wanted.iter().map(|(&target, &octaves)| octaves * weight(target)).sum::<f64>() / total.max(1e-300);
    wanted
        .iter()
        .map(|(&target, octaves)| (target, (octaves - mean).clamp(-MAX_OCTAVES, MAX_OCTAVES)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octaves_keep_the_bytes_and_stay_in_bounds() {
        let wanted = BTreeMap::from([(0, 1.0), (1, 3.0), (2, 11.0)]);
        let found = centred(&wanted, |target| if target == 2 { 1.0 } else { 4.0 });
        // The mean by weight is (4 + 12 + 11) / 9 = 3.
        assert_eq!(found, BTreeMap::from([(0, -2.0), (1, 0.0), (2, 2.0)]));
    }
}
