//! Which tensor gets which type, under an exact size of the file.
//!
//! 1. Every tensor is quantised into every type its rows fit (large ones on a sample of rows); the error is
//!    `trace((W - V) H (W - V)^T)` where the second moment `H` of its inputs is known.
//! 2. Every tensor alone is replaced by its quantised self, in the type that the size gives all of them on average;
//!    the otherwise original model runs over some of the calibration text, and the KL divergence to the original
//!    over the error is the tensor's *sensitivity*: loss per unit of error.
//! 3. A type's loss is its error times the sensitivity; [`lamella_rate::Knapsack`] picks one type per tensor so that
//!    the sum is least and the file at or under the size.
//!
//! Large models measure groups of tensors together, by name and quarter of the depth.

use std::collections::BTreeMap;

use lamella_codec::{Dtype, Knowledge, Progress, TensorMap};
use lamella_io::{GgmlType, GgufPlan, GgufSource};
use lamella_lm::judge::compare_logits;
use lamella_lm::{Hidden, LmError, Model, Network};
use lamella_rate::{Allocator, Knapsack, Offer, Problem, RatePoint};

use super::coding::{decoded, encode, read, site};
use super::solve::Effort;
use super::{Calibration, ExportError};
use crate::compress::Overlay;
use crate::distortion::distortion;

/// Types of rows that are whole blocks of 256, then of rows that are whole blocks of 32.
const LADDERS: [(usize, &[GgmlType]); 2] = {
    use GgmlType::*;
    [(256, &[Q2_K, Q3_K, IQ4_XS, Q4_K, Q5_K, Q6_K, Q8_0]), (32, &[Q4_0, IQ4_NL, Q4_1, Q5_0, Q5_1, Q8_0])]
};
/// Weights of the sample of rows that types are compared on.
const SAMPLE: usize = 1 << 20;
/// Rows next to each other in a sample; the sweep's chunk.
const SAMPLE_ROWS: usize = 64;
/// Operations that measuring should take, and that it may take before tensors are measured in groups.
const OPERATIONS: (f64, f64) = (1.2e12, 5e12);
/// Operations beyond which nothing is measured.
const MOST_OPERATIONS: f64 = 1e14;
/// Tokens of a measurement, at least and at most.
const TOKENS: (usize, usize) = (512, 4096);
/// Logits held at most.
const MAX_LOGITS: usize = 64 << 20;
/// Weights up to which the network is held in memory while it is measured.
const RESIDENT_WEIGHTS: usize = 512 << 20;

/// A type for a tensor: bytes in the file, error against the original.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    kind: GgmlType,
    bytes: u64,
    error: f64,
}

/// Tensors whose errors are measured together.
struct Probe {
    tensors: Vec<usize>,
    /// The first block that changes; the number of blocks for the head alone.
    from: usize,
    /// Whether the embedded tokens change.
    embeds: bool,
}

/// The type of every tensor whose `ruled` type is `None`, so that their bytes are at most `budget_bytes`.
///
/// # Errors
/// A size that even the smallest types exceed; arrays that cannot be read or run.
pub(super) fn allocate(
    model: &Model,
    plan: &GgufPlan,
    ruled: &[Option<GgmlType>],
    budget_bytes: u64,
    calibration: &Calibration,
    progress: &dyn Progress,
) -> Result<Vec<GgmlType>, ExportError> {
    let free: Vec<usize> = (0..ruled.len()).filter(|&tensor| ruled[tensor].is_none()).collect();
    let smallest: u64 = free.iter().map(|&tensor| kinds(model, &plan.tensors[tensor])[0].1).sum();
    if smallest > budget_bytes {
        return Err(ExportError::TooSmall { missing: smallest - budget_bytes });
    }
    let mut candidates: BTreeMap<usize, Vec<Candidate>> = BTreeMap::new();
    for (done, &tensor) in free.iter().enumerate() {
        progress.advance("compare types", done as u64, free.len() as u64, &plan.tensors[tensor].name);
        progress.check()?;
        candidates.insert(tensor, compare(model, &plan.tensors[tensor], calibration)?);
    }
    let weights: usize = free.iter().map(|&tensor| weights(&plan.tensors[tensor])).sum();
    let bits = budget_bytes as f64 * 8.0 / weights.max(1) as f64;
    let sensitivities = sensitivities(model, plan, &candidates, bits, calibration, progress)?;
    let offers = candidates.iter().zip(&sensitivities).map(|((&tensor, candidates), &sensitivity)| {
        let point =
            |candidate: &Candidate| RatePoint { bytes: candidate.bytes, loss: candidate.error * sensitivity };
        Offer::new(plan.tensors[tensor].name.clone(), candidates.iter().map(point).collect())
    });
    let problem = Problem::new(offers.collect())?;
    let allocation = Knapsack::default().allocate(&problem, budget_bytes)?;
    let mut kinds: Vec<GgmlType> = ruled.iter().map(|kind| kind.unwrap_or(GgmlType::F32)).collect();
    for ((&tensor, candidates), &choice) in candidates.iter().zip(&allocation.choices) {
        kinds[tensor] = candidates[choice].kind;
    }
    Ok(kinds)
}

fn weights(tensor: &GgufSource) -> usize {
    tensor.shape.iter().product()
}

/// The type that an array's own numbers have.
pub(super) fn own_kind(model: &Model, tensor: &GgufSource) -> GgmlType {
    match model.network.source().spec(&tensor.parts[0]).map(|spec| spec.dtype) {
        Some(Dtype::BF16) => GgmlType::BF16,
        Some(Dtype::F16) => GgmlType::F16,
        _ => GgmlType::F32,
    }
}

/// The types a tensor can have and its bytes in each, by rising bytes.
fn kinds(model: &Model, tensor: &GgufSource) -> Vec<(GgmlType, u64)> {
    let columns = tensor.shape.last().copied().unwrap_or(0);
    let ladder = LADDERS.iter().find(|(block, _)| columns.is_multiple_of(*block)).map_or(&[][..], |l| l.1);
    let own = own_kind(model, tensor);
    let mut kinds = ladder.to_vec();
    if own == GgmlType::F32 {
        kinds.push(GgmlType::F16);
    }
    kinds.push(own);
    let bytes = |kind: GgmlType| kind.size_bytes(weights(tensor)).unwrap_or(0).next_multiple_of(32) as u64;
    let mut kinds: Vec<(GgmlType, u64)> = kinds.into_iter().map(|kind| (kind, bytes(kind))).collect();
    kinds.sort_by_key(|kind| kind.1);
    kinds
}

/// Quantises a tensor, or a sample of its rows, into every type it can have.
fn compare(
    model: &Model,
    tensor: &GgufSource,
    calibration: &Calibration,
) -> Result<Vec<Candidate>, ExportError> {
    let part = &tensor.parts[0];
    let columns = tensor.shape.last().copied().unwrap_or(1).max(1);
    let values = sample(read(model.network.source().as_ref(), tensor, part)?, columns);
    let mut knowledge = Knowledge::default();
    if let Some(site) = site(model, part) {
        knowledge.second_moment = calibration.statistics.second_moment(&site.input)?;
    }
    let share = weights(tensor) as f64 / values.len().max(1) as f64;
    let mut candidates = Vec::new();
    for (kind, bytes) in kinds(model, tensor) {
        let coded = encode(tensor, kind, &values, knowledge.second_moment.as_ref(), Effort::Sweep)?;
        let found = decoded(part, &[values.len()], kind, &coded)?.to_f32()?;
        let error = share * distortion(&values, &found, columns, &knowledge);
        candidates.push(Candidate { kind, bytes, error });
    }
    Ok(candidates)
}

/// Evenly spaced stretches of rows, at most [`SAMPLE`] weights where there are more.
fn sample(values: Vec<f32>, columns: usize) -> Vec<f32> {
    let stretch = SAMPLE_ROWS * columns;
    let wanted = (SAMPLE / stretch).max(1);
    let stretches = values.len() / stretch;
    if stretches <= wanted {
        return values;
    }
    let starts = (0..wanted).map(|i| i * stretches / wanted * stretch);
    starts.flat_map(|start| values[start..start + stretch].iter().copied()).collect()
}

/// Loss per unit of error, one for each of `candidates`.
fn sensitivities(
    model: &Model,
    plan: &GgufPlan,
    candidates: &BTreeMap<usize, Vec<Candidate>>,
    bits: f64,
    calibration: &Calibration,
    progress: &dyn Progress,
) -> Result<Vec<f64>, ExportError> {
    let network = &model.network;
    let Some((probes, tokens)) = probes(model, plan, candidates) else {
        progress.warn("the model is too large to measure sensitivities: all tensors' errors count alike");
        return Ok(vec![1.0; candidates.len()]);
    };
    let sequences = some_of(&calibration.sequences, tokens);
    let weights: usize = network.source().arrays().iter().map(lamella_codec::ArraySpec::len).sum();
    let resident = (weights <= RESIDENT_WEIGHTS).then(|| held(model)).transpose()?;
    let network = resident.as_ref().unwrap_or(network);
    let mut states = vec![network.begin(&sequences)?];
    for block in 0..network.n_blocks() {
        let mut hidden = states[block].clone();
        network.block(block, &mut hidden, None)?;
        states.push(hidden);
    }
    let original = network.logits(&states[network.n_blocks()], None)?;
    let mut losses = Vec::with_capacity(probes.len());
    for (done, probe) in probes.iter().enumerate() {
        let name = &plan.tensors[probe.tensors[0]].name;
        progress.advance("measure sensitivities", done as u64, probes.len() as u64, name);
        progress.check()?;
        let mut coded = TensorMap::default();
        let mut error = 0.0;
        for &tensor in &probe.tensors {
            let chosen = probe_kind(&candidates[&tensor], &plan.tensors[tensor], bits);
            error += chosen.error;
            code_alone(model, &plan.tensors[tensor], chosen.kind, calibration, &mut coded)?;
        }
        losses.push((measure(network, probe, &coded, &sequences, &states, &original)?, error));
    }
    // A tensor whose loss drowns in rounding is not free: it counts for a thousandth of the mean.
    let floor = 1e-3 * losses.iter().map(|loss| loss.0).sum::<f64>() / losses.len().max(1) as f64;
    let mut found = BTreeMap::new();
    for (probe, (loss, error)) in probes.iter().zip(losses) {
        found.extend(probe.tensors.iter().map(|&tensor| (tensor, loss.max(floor) / error.max(1e-300))));
    }
    Ok(candidates.keys().map(|tensor| found.get(tensor).copied().unwrap_or(0.0)).collect())
}

/// The network with all its weights in memory.
fn held(model: &Model) -> Result<Network, LmError> {
    let source = model.network.source().clone();
    Model::with_config(model.config.clone(), source, &BTreeMap::new())?.network.resident()
}

/// The type that sensitivity is measured in: the largest within the average bits.
fn probe_kind(candidates: &[Candidate], tensor: &GgufSource, bits: f64) -> Candidate {
    let of = |candidate: &&Candidate| candidate.bytes as f64 * 8.0 / weights(tensor).max(1) as f64 <= bits;
    // Beyond six bits losses drown in rounding.
    let coarse = candidates.iter().filter(|candidate| candidate.kind.is_quantized()).take(5);
    coarse.filter(of).last().copied().unwrap_or(candidates[0])
}

fn probes(
    model: &Model,
    plan: &GgufPlan,
    candidates: &BTreeMap<usize, Vec<Candidate>>,
) -> Option<(Vec<Probe>, usize)> {
    let network = &model.network;
    let n_blocks = network.n_blocks();
    let mut weights = vec![0.0; n_blocks];
    for site in network.linears() {
        if let Some(weight) = site.block.and_then(|block| weights.get_mut(block)) {
            *weight += (site.in_features * site.out_features) as f64;
        }
    }
    let head = (network.vocab_size() * network.hidden_size()) as f64;
    for is_grouped in [false, true] {
        let mut groups: BTreeMap<(usize, &str), Probe> = BTreeMap::new();
        for &tensor in candidates.keys() {
            let parts = &plan.tensors[tensor].parts;
            let embeds = network.embeddings().iter().any(|name| parts.contains(name));
            let block = parts.iter().find_map(|part| site(model, part)?.block);
            let from = if embeds { 0 } else { block.unwrap_or(n_blocks) };
            let key = match (block, is_grouped, plan.tensors[tensor].name.splitn(3, '.').nth(2)) {
                (Some(block), true, Some(part)) => (usize::MAX - 4 * block / n_blocks.max(1), part),
                _ => (tensor, ""),
            };
            let group = groups.entry(key).or_insert(Probe { tensors: Vec::new(), from, embeds });
            group.tensors.push(tensor);
            group.from = group.from.min(from);
        }
        let probes: Vec<Probe> = groups.into_values().collect();
        let of = |probe: &Probe| weights[probe.from.min(n_blocks)..].iter().sum::<f64>() + head;
        let cost = (2.0 * probes.iter().map(of).sum::<f64>()).max(1.0);
        let least = cost * TOKENS.0 as f64;
        if least <= OPERATIONS.1 || (is_grouped && least <= MOST_OPERATIONS) {
            let tokens = ((OPERATIONS.0 / cost) as usize).clamp(TOKENS.0, TOKENS.1);
            return Some((probes, tokens.min(MAX_LOGITS / network.vocab_size().max(1)).max(64)));
        }
    }
    None
}

/// Evenly spaced sequences of about so many tokens.
fn some_of(sequences: &[Vec<u32>], tokens: usize) -> Vec<Vec<u32>> {
    let all: usize = sequences.iter().map(Vec::len).sum();
    let wanted = (sequences.len() * tokens / all.max(1)).clamp(1, sequences.len().max(1));
    (0..wanted)
        .map(|i| {
            let sequence = &sequences[i * sequences.len() / wanted];
            sequence[..sequence.len().min(tokens)].to_vec()
        })
        .collect()
}

/// A tensor's arrays, quantised and decoded.
fn code_alone(
    model: &Model,
    tensor: &GgufSource,
    kind: GgmlType,
    calibration: &Calibration,
    coded: &mut TensorMap,
) -> Result<(), ExportError> {
    for part in &tensor.parts {
        let moment = match site(model, part) {
            Some(site) => calibration.statistics.second_moment(&site.input)?,
            None => None,
        };
        let source = model.network.source();
        let values = read(source.as_ref(), tensor, part)?;
        let bytes = encode(tensor, kind, &values, moment.as_ref(), Effort::Sweep)?;
        let shape = source.spec(part).map_or_else(Vec::new, |spec| spec.shape.clone());
        coded.insert(decoded(part, &shape, kind, &bytes)?);
    }
    Ok(())
}

/// Mean KL divergence of the model with a probe's tensors replaced, nats per token.
fn measure(
    network: &Network,
    probe: &Probe,
    coded: &TensorMap,
    sequences: &[Vec<u32>],
    states: &[Hidden],
    original: &[f32],
) -> Result<f64, ExportError> {
    let source = Overlay { above: coded, below: network.source().as_ref() };
    let mut hidden = match probe.embeds {
        true => network.begin_with(&source, sequences)?,
        false => states[probe.from].clone(),
    };
    for block in probe.from..network.n_blocks() {
        let is_changed = network.linears().iter().any(|site| {
            site.block == Some(block) && lamella_codec::TensorSource::spec(coded, &site.weight).is_some()
        });
        match is_changed {
            true => network.block_with(block, &source, &mut hidden, None)?,
            false => network.block(block, &mut hidden, None)?,
        }
    }
    let n_tokens = hidden.n_tokens();
    let changed = network.logits_with(&source, &hidden, 0..n_tokens, None)?;
    let compared = compare_logits(original, &changed, &vec![0; n_tokens])
        .map_err(|(_, token)| ExportError::NotFinite { token })?;
    Ok(compared.iter().map(|row| row.kl_divergence).sum::<f64>() / n_tokens.max(1) as f64)
}
