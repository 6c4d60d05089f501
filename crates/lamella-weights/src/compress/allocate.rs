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

use lamella_codec::{Array, Progress, Silent, TensorMap, TensorSource};
use lamella_lm::judge::compare_logits;
use lamella_lm::statistics::paragraphs;
use lamella_lm::{Family, Hidden, Model, Network, Role};
use rayon::prelude::*;

use super::plan::Limit;
use super::run::Overlay;
use super::{CompressError, Job, Place};

/// How the budget is spread over the arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Allocate {
    /// One relative step for all, embeddings and heads at a fixed fraction of it.
    Uniform,
    /// By each array's measured effect on the model's output.
    #[default]
    Measured,
}

/// Operations that measuring should take, and that it may take before arrays are measured in groups.
const OPERATIONS: (f64, f64) = (1.2e12, 5e12);
/// Operations beyond which nothing is measured.
const MOST_OPERATIONS: f64 = 1e14;
/// Tokens of a measurement, at least and at most.
const TOKENS: (usize, usize) = (512, 4096);
/// Logits held at most.
const MAX_LOGITS: usize = 64 << 20;
/// Window of decoders.
const WINDOW: usize = 256;
/// Every so many windows behind the calibration text is used, so that more than one article is seen.
const WINDOW_STRIDE: usize = 4;
/// Steps move at most so many octaves.
const MAX_OCTAVES: f64 = 2.0;
/// Weights up to which the network is held in memory while it is measured.
const RESIDENT_WEIGHTS: u64 = 512 << 20;
/// Probes whose arrays are coded side by side.
const BATCH: usize = 4;

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
        let is_wanted =
            self.request.allocate == Allocate::Measured && self.limit != Limit::None && free.len() > 1;
        if !is_wanted || self.calibration.is_none() {
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
        let losses = self.losses(&probes, tokens, progress)?;
        let mut wanted: BTreeMap<usize, f64> = BTreeMap::new();
        for (probe, loss) in probes.iter().zip(&losses) {
            let slopes: f64 = probe.arrays.iter().map(|&target| self.bytes_an_octave(target)).sum();
            for &target in &probe.arrays {
                wanted.insert(target, 0.5 * (slopes / loss).log2());
            }
        }
        let octaves = centred(&wanted, |target| self.bytes_an_octave(target));
        for (&target, &octaves) in &octaves {
            let index = self.targets[target].members[0];
            self.treatments[index].step_ratio *= octaves.exp2();
            let ratio = self.treatments[index].step_ratio;
            if let Some(curve) = self.curves.get_mut(&target) {
                curve.set_ratio(ratio);
            }
        }
        Ok(true)
    }

    /// Bytes that an octave of step costs an array near the uniform step.
    fn bytes_an_octave(&self, target: usize) -> f64 {
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

    /// The array's own name and those of its twins.
    fn names(&self, target: usize) -> impl Iterator<Item = &str> {
        let member = self.targets[target].members[0];
        let is_same = move |(index, place): (usize, Place)| index == member || place == Place::TwinOf(member);
        let all = self.treatments.iter().enumerate();
        all.filter(move |(index, other)| is_same((*index, other.place)))
            .map(|(_, other)| other.spec.name.as_str())
    }

    /// Text behind the calibration text: neither statistics nor, by the protocols, evaluation have seen it. A text
    /// without more is used twice.
    fn unseen(&self, model: &Model, tokens: usize) -> Result<Vec<Vec<u32>>, CompressError> {
        let request = &self.request.calibration;
        let seen = self.calibration.as_ref().map_or(&[][..], |calibration| &calibration.sequences);
        let used: usize = seen.iter().map(Vec::len).sum();
        let (text, _) = request.read_text(self.input, &Silent)?;
        let mut longer = request.clone();
        let options = &mut longer.sequences;
        let mut fresh: Vec<Vec<u32>> = if let Some(range) = &mut options.paragraphs {
            let end = (range.end + tokens / 16).min(paragraphs(&text, options.longer_than).count());
            let start = range.end.min(end);
            *range = start..end;
            options.max_tokens = 2 * tokens;
            if start < end { longer.sequences(self.input, &text)? } else { Vec::new() }
        } else if model.network.family() == Family::Encoder {
            options.max_tokens = used + 2 * tokens;
            longer.sequences(self.input, &text)?.split_off(seen.len())
        } else {
            options.max_tokens = used + WINDOW + tokens * WINDOW_STRIDE;
            options.context_length = options.context_length.min(WINDOW);
            let mut begun = 0;
            let windows = longer.sequences(self.input, &text)?.into_iter().filter(|window| {
                begun += window.len();
                begun - window.len() >= used
            });
            let windows: Vec<Vec<u32>> = windows.collect();
            let stride = if windows.len() * WINDOW >= tokens * WINDOW_STRIDE { WINDOW_STRIDE } else { 1 };
            windows.into_iter().step_by(stride).collect()
        };
        if fresh.iter().map(Vec::len).sum::<usize>() < TOKENS.0.min(used) {
            fresh = seen.iter().rev().cloned().collect();
        }
        let mut held = 0;
        let fits = |sequence: &Vec<u32>| {
            held += sequence.len();
            held <= tokens || held == sequence.len()
        };
        Ok(fresh.into_iter().filter(|sequence| !sequence.is_empty()).take_while(fits).collect())
    }

    /// Loss of each probe, never below a thousandth of the mean.
    fn losses(
        &self,
        probes: &[Probe],
        tokens: usize,
        progress: &dyn Progress,
    ) -> Result<Vec<f64>, CompressError> {
        let own = self.input.model.as_ref().ok_or(CompressError::NoTokenizer)?;
        let resident = (self.weights() <= RESIDENT_WEIGHTS)
            .then(|| {
                let side: BTreeMap<String, Vec<u8>> = self.input.side_files.iter().cloned().collect();
                Model::with_config(own.config.clone(), self.input.directory.clone(), &side)?
                    .network
                    .resident()
            })
            .transpose()?;
        let network = resident.as_ref().unwrap_or(&own.network);
        let sequences = self.unseen(own, tokens)?;
        let mut states = vec![network.begin(&sequences)?];
        for block in 0..network.n_blocks() {
            let mut hidden = states[block].clone();
            network.block(block, &mut hidden, None)?;
            states.push(hidden);
        }
        let original = Outcome::of(network, &states[network.n_blocks()], None)?;
        let mut losses = Vec::with_capacity(probes.len());
        for batch in probes.chunks(BATCH) {
            let coded: Vec<TensorMap> =
                batch.par_iter().map(|probe| self.coded_alone(probe)).collect::<Result<_, _>>()?;
            for (probe, coded) in batch.iter().zip(&coded) {
                progress.check()?;
                let name = &self.targets[probe.arrays[0]].spec.name;
                progress.advance("measure sensitivities", losses.len() as u64, probes.len() as u64, name);
                let source = Overlay { above: coded, below: &*self.input.directory };
                let mut hidden = match probe.embeds {
                    true => network.begin_with(&source, &sequences)?,
                    false => states[probe.from].clone(),
                };
                for block in probe.from..network.n_blocks() {
                    match self.touches(probe, block) {
                        true => network.block_with(block, &source, &mut hidden, None)?,
                        false => network.block(block, &mut hidden, None)?,
                    }
                }
                let heads = network.linears().iter().filter(|site| site.block.is_none());
                let is_head = heads.into_iter().any(|site| coded.spec(&site.weight).is_some());
                losses.push(original.loss(&Outcome::of(
                    network,
                    &hidden,
                    is_head.then_some(&source as _),
                )?)?);
            }
        }
        let floor = 1e-3 * losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        Ok(losses.into_iter().map(|loss| loss.max(floor).max(f64::MIN_POSITIVE)).collect())
    }

    fn touches(&self, probe: &Probe, block: usize) -> bool {
        let mut blocks =
            probe.arrays.iter().filter_map(|&target| self.treatment(target).site.as_ref()?.block);
        blocks.any(|own| own == block)
    }

    /// The arrays of a probe, coded at the uniform step and decoded, under all their names.
    fn coded_alone(&self, probe: &Probe) -> Result<TensorMap, CompressError> {
        let mut decoded = TensorMap::default();
        for &target in &probe.arrays {
            let (codec, spec) = (self.codec(target), &self.targets[target].spec);
            let rate = self.step_rate(self.log2_step)(target);
            let encoded = codec.encode(&self.array(target)?, &self.knowledge(target)?, rate)?;
            let payloads: Vec<&[u8]> = encoded.layers.iter().map(|layer| &layer.payload[..]).collect();
            let array = codec.decode(spec, &payloads)?;
            for name in self.names(target) {
                let mut spec = spec.clone();
                name.clone_into(&mut spec.name);
                decoded.insert(Array::new(spec, array.bytes.to_vec())?);
            }
        }
        Ok(decoded)
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

/// What a model makes of a text.
enum Outcome {
    /// `[tokens, vocab_size]`
    Logits {
        values: Vec<f32>,
        tokens: usize,
    },
    Embeddings(Vec<Vec<f32>>),
}

impl Outcome {
    fn of(
        network: &Network,
        hidden: &Hidden,
        head: Option<&dyn TensorSource>,
    ) -> Result<Self, CompressError> {
        if network.family() == Family::Encoder {
            return Ok(Self::Embeddings(network.embed(hidden)));
        }
        let tokens = hidden.n_tokens();
        let values = match head {
            Some(source) => network.logits_with(source, hidden, 0..tokens, None)?,
            None => network.logits(hidden, None)?,
        };
        Ok(Self::Logits { values, tokens })
    }

    /// Mean KL divergence of `other` from this in nats, or mean squared distance.
    fn loss(&self, other: &Self) -> Result<f64, CompressError> {
        Ok(match (self, other) {
            (Self::Logits { values, tokens }, Self::Logits { values: changed, .. }) => {
                let compared = compare_logits(values, changed, &vec![0; *tokens])
                    .map_err(|(_, row)| CompressError::NotFinite { token: row })?;
                compared.iter().map(|row| row.kl_divergence).sum::<f64>() / compared.len().max(1) as f64
            }
            (Self::Embeddings(own), Self::Embeddings(changed)) => {
                let square = |(a, b): (&f32, &f32)| f64::from(a - b) * f64::from(a - b);
                let of = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).map(square).sum::<f64>();
                own.iter().zip(changed).map(of).sum::<f64>() / own.len().max(1) as f64
            }
            _ => 0.0,
        })
    }
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
