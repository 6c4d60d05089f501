//! HAWQ-V3 (S024): 4 or 8 bits for every layer, chosen by an integer linear programme over Hessian-weighted errors.
//!
//! # Idea
//! Rounding a layer costs about half the curvature of the loss times the squared rounding error. The mean curvature
//! of a layer is the trace of its Hessian block over its size, and one number for each layer and width is then all
//! that a small integer programme needs: the least total perturbation under limits on bytes, on bit operations and on
//! latency, each of which is a sum over layers too.
//!
//! # Algorithm
//! 1. Weights symmetric per output channel: `n = 2^(b-1) - 1`, `s = max |w| / n`, `q = clamp(round(w / s), -n-1, n)`.
//! 2. Mean trace `t_i = (1 / n_i) mean_j z_j^T H_i z_j` with `z_j` of random signs (Hutchinson), at most `probes` of
//!    them, fewer where the running mean moves by less than `tolerance`.
//! 3. Perturbation `Omega_i(b) = t_i |W_i - Q_b(W_i)|^2` for `b` of 4 and 8.
//! 4. Programme: one width for each layer, least `sum Omega_i(b_i)`, under any of `sum n_i b_i / 8 <= S`,
//!    `sum MAC_i b_i^2 <= B`, `sum latency_i(b_i) <= L`, each limit `low + r (high - low)` between all-4 and all-8.
//!
//! # Shapes
//! `weight [out_features, in_features]`, any float type; widths `[layers]`.
//!
//! # Stored form
//! `b` bits a weight and an f32 scale an output channel: `b + 32 / in_features` bits per weight (4.5 at 64 inputs).
//!
//! # Cost
//! Two forward passes a probe and layer; the programme takes milliseconds for hundreds of layers. Decoding is that of
//! plain integer weights.
//!
//! # When to choose it
//! Where hardware knows exactly two widths and a limit other than bytes (operations, latency) must hold too. For bytes
//! alone `house` spends them better, with a free rate for every array.
//!
//! # Claim
//! At the bytes half way between all-4 and all-8, KL divergence on unseen text is below the mean of 20 random
//! assignments of equal bytes and below that of the first layers at 8 bits.
//!
//! # Differences
//! From the paper: the Hessian is that of the KL divergence to the original model, which is the Gauss-Newton (Fisher)
//! matrix of the loss and equals its Hessian where the model fits its data. There `z^T H z` is the second difference
//! `(KL(W + e z) + KL(W - e z)) / e^2`, so that forward passes suffice, no gradient is needed and every estimate is
//! positive. `e` is a fiftieth of the layer's root mean square. The layers are the linears of a language model's blocks;
//! embedding and head stay as they are (the paper's first and last layers keep 8 bits). Activations stay floating
//! point, so integer-only inference with dyadic rescaling and quantisation-aware tuning are not here: this file is the
//! choice of bit widths. The operations of a layer count its weights once a token. KL and agreement of predictions
//! stand for accuracy.
//!
//! # Source
//! Z. Yao, Z. Dong, Z. Zheng, A. Gholami and others, "HAWQ-V3: Dyadic Neural Network Quantization", arXiv 2011.10680,
//! section 3.4 (programme) and Z. Dong and others, "HAWQ-V2", arXiv 1911.03852 (trace).

use std::time::Instant;

use lamella_codec::{Array, Claim, ClaimContext, ClaimSize, System, Wing};
use lamella_lm::LinearSite;
use lamella_rate::{AllocationError, Allocator, IntegerProgram, Limit, Offer, Problem, RatePoint};

use crate::levels::{Error, Judge, Levels, Random, Subject, mean_trace};

const CLAIM: &str = "at the bytes half way between all-4 and all-8 bits, KL on unseen text below the mean of 20 random \
                     assignments and below the first layers at 8 bits";
/// The widths of the programme.
const WIDTHS: [u32; 2] = [4, 8];
const RANDOM_ASSIGNMENTS: u64 = 20;
/// Relative move of the running mean of a trace at which no further vector is drawn.
const TOLERANCE: f64 = 1e-3;

/// The line of the list.
pub fn system() -> System {
    System {
        id: "S024",
        name: "HAWQ-V3 (bit widths)",
        wing: Wing::Weights,
        compresses: "bit widths over the layers of a model",
        recipe: Some("4 or 8 bits per array, chosen by an integer programme"),
        claim: Some(CLAIM),
        measure: Some(measure),
    }
}

/// What an assignment may cost; none of a kind where `None`.
#[derive(Debug, Clone, Default, PartialEq)]
struct Limits {
    /// Bytes of the layers.
    bytes: Option<u64>,
    /// Bit operations for one token: multiplications times both operands' widths.
    bit_operations: Option<f64>,
    /// Seconds (or any unit) at each width of [`WIDTHS`], and the most that they may sum to.
    latency: Option<(Vec<[f64; 2]>, f64)>,
}

/// Step 1: rounds each output channel symmetrically.
fn quantize(weights: &[f32], in_features: usize, bits: u32) -> Vec<f32> {
    let top = f32::from((1u16 << (bits - 1)) - 1);
    let mut out = Vec::with_capacity(weights.len());
    for row in weights.chunks(in_features) {
        let peak = row.iter().fold(0.0f32, |peak, weight| peak.max(weight.abs()));
        let scale = if peak > 0.0 { peak / top } else { 1.0 };
        out.extend(row.iter().map(|weight| (weight / scale).round().clamp(-top - 1.0, top) * scale));
    }
    out
}

/// Bytes at a width: codes and one f32 scale for each output channel.
fn bytes_of(site: &LinearSite, bits: u32) -> u64 {
    let weights = (site.in_features * site.out_features) as u64;
    (weights * u64::from(bits)).div_ceil(8) + 4 * site.out_features as u64
}

/// Step 4: the width of each layer, as an index into [`WIDTHS`].
///
/// # Errors
/// Limits that no assignment keeps.
fn assign(
    sites: &[LinearSite],
    perturbations: &[[f64; 2]],
    limits: &Limits,
) -> Result<Vec<usize>, AllocationError> {
    let offers = sites.iter().zip(perturbations).map(|(site, losses)| {
        let points = WIDTHS.iter().zip(losses);
        let points = points.map(|(&bits, &loss)| RatePoint { bytes: bytes_of(site, bits), loss });
        Offer::new(site.weight.clone(), points.collect())
    });
    let problem = Problem::new(offers.collect())?;
    let mut further = Vec::new();
    if let Some(at_most) = limits.bit_operations {
        further
            .push(Limit { costs: sites.iter().map(|site| bit_operations(site).to_vec()).collect(), at_most });
    }
    if let Some((table, at_most)) = &limits.latency {
        let costs = table.iter().map(|row| row.to_vec()).collect();
        further.push(Limit { costs, at_most: *at_most });
    }
    let budget = limits.bytes.unwrap_or_else(|| problem.largest_bytes());
    Ok(IntegerProgram::with_limits(further).allocate(&problem, budget)?.choices)
}

/// `MAC b^2` of a token at each width.
fn bit_operations(site: &LinearSite) -> [f64; 2] {
    WIDTHS.map(|bits| (site.in_features * site.out_features) as f64 * f64::from(bits * bits))
}

/// Layers at 8 bits in this order as long as they fit.
fn in_order(order: &[usize], bytes: &[Vec<u64>], budget: u64) -> Vec<usize> {
    let mut choices = vec![0; bytes.len()];
    let mut total: u64 = bytes.iter().map(|levels| levels[0]).sum();
    for &layer in order {
        let more = bytes[layer][1] - bytes[layer][0];
        if total + more <= budget {
            total += more;
            choices[layer] = 1;
        }
    }
    choices
}

fn measure(context: &ClaimContext) -> Result<Claim, Error> {
    let started = Instant::now();
    let subject = Subject::of(context)?;
    let sites = subject.sites();
    let is_quick = context.size == ClaimSize::Quick;
    // Random vectors a layer at most (the paper's m).
    let probes = if is_quick { 2 } else { 50 };
    let calibration = Judge::new(&subject.network, &subject.seen, if is_quick { 2 } else { 4 })?;
    let mut levels = Levels { arrays: Vec::new(), bytes: Vec::new() };
    let mut perturbations = Vec::new();
    for (index, site) in sites.iter().enumerate() {
        let array = subject.network.source().array(&site.weight)?;
        let weights = array.to_f32()?;
        let trace = mean_trace(&calibration, &array, probes, TOLERANCE, index as u64)?;
        let (mut arrays, mut losses) = (Vec::new(), [0.0; 2]);
        for (loss, bits) in losses.iter_mut().zip(WIDTHS) {
            let rounded = quantize(&weights, array.spec.shape[1], bits);
            let error = |(a, b): (&f32, &f32)| f64::from(a - b) * f64::from(a - b);
            *loss = trace * weights.iter().zip(&rounded).map(error).sum::<f64>();
            arrays.push(Some(Array::from_f32(array.spec.clone(), &rounded)?));
        }
        levels.arrays.push(arrays);
        levels.bytes.push(WIDTHS.map(|bits| bytes_of(site, bits)).to_vec());
        perturbations.push(losses);
    }
    let n = sites.len();
    let budget = levels.total(&vec![0; n]).midpoint(levels.total(&vec![1; n]));
    let by_bytes = assign(&sites, &perturbations, &Limits { bytes: Some(budget), ..Limits::default() })?;
    let operations = |width: usize| sites.iter().map(|site| bit_operations(site)[width]).sum::<f64>();
    let (low, high) = (operations(0), operations(1));
    let quarter = Limits { bit_operations: Some(low + 0.25 * (high - low)), ..Limits::default() };
    let by_operations = assign(&sites, &perturbations, &quarter)?;

    let unseen = Judge::new(&subject.network, &subject.unseen, if is_quick { 6 } else { 32 })?;
    let judged = |choices: &[usize]| {
        let choices: Vec<Option<usize>> = choices.iter().copied().map(Some).collect();
        unseen.verdict(&levels, &choices)
    };
    let found = judged(&by_bytes)?;
    let first = judged(&in_order(&(0..n).collect::<Vec<_>>(), &levels.bytes, budget))?;
    let mut random = 0.0;
    let mut better = 0;
    for seed in 0..RANDOM_ASSIGNMENTS {
        let kl = judged(&in_order(&Random(seed).order(n), &levels.bytes, budget))?.kl;
        random += kl / RANDOM_ASSIGNMENTS as f64;
        better += usize::from(kl < found.kl);
    }
    let (all_4, all_8) = (judged(&vec![0; n])?, judged(&vec![1; n])?);
    let limited = judged(&by_operations)?;
    let baseline = random.min(first.kl);
    Ok(Claim {
        id: "S024".to_owned(),
        name: "HAWQ-V3 (bit widths)".to_owned(),
        wing: Wing::Weights,
        claim: CLAIM.to_owned(),
        metric: "mean KL divergence to the original on unseen text, nats per token".to_owned(),
        baseline_name: "the better of 20 random assignments' mean and of the first layers at 8 bits"
            .to_owned(),
        baseline,
        measured: found.kl,
        holds: found.kl < baseline,
        reason: format!(
            "{}, {n} layers, {} of {budget} bytes: agreement {:.3} against {:.3} of the first layers at 8 bits; random \
             {random:.5}, first {:.5}, {better} of 20 random ones better; all 4 bits {:.5}, all 8 {:.5}; a quarter of the \
             bit operations instead of bytes {:.5}",
            subject.name,
            levels.total(&by_bytes),
            found.agreement,
            first.agreement,
            first.kl,
            all_4.kl,
            all_8.kl,
            limited.kl,
        ),
        seconds: started.elapsed().as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamella_lm::Role;

    fn site(weight: &str, in_features: usize, out_features: usize) -> LinearSite {
        LinearSite {
            weight: weight.to_owned(),
            input: weight.to_owned(),
            bias: None,
            in_features,
            out_features,
            is_transposed: false,
            role: Role::Up,
            block: Some(0),
            expert: None,
        }
    }

    #[test]
    fn channels_are_rounded_symmetrically() {
        // Scale 7 / 7 = 1 in the first channel, 14 / 7 = 2 in the second.
        let found = quantize(&[7.0, -3.4, 0.6, -14.0, 3.2, 0.9], 3, 4);
        assert_eq!(found, [7.0, -3.0, 1.0, -14.0, 4.0, 0.0]);
        assert_eq!(quantize(&[0.0, 0.0], 2, 8), [0.0, 0.0]);
    }

    #[test]
    fn every_limit_is_kept_at_the_least_perturbation() {
        let sites: Vec<LinearSite> =
            [(8, 8), (16, 8), (8, 32), (4, 4)].iter().map(|&(i, o)| site("w", i, o)).collect();
        let perturbations = [[5.0, 0.1], [3.0, 0.2], [4.0, 0.1], [1.0, 0.5]];
        let table = vec![[1.0, 1.5], [2.0, 2.2], [3.0, 5.0], [0.1, 0.4]];
        let cost = |choices: &[usize]| {
            let each = || choices.iter().enumerate();
            (
                each().map(|(i, &c)| bytes_of(&sites[i], WIDTHS[c])).sum::<u64>(),
                each().map(|(i, &c)| bit_operations(&sites[i])[c]).sum::<f64>(),
                each().map(|(i, &c)| table[i][c]).sum::<f64>(),
                each().map(|(i, &c)| perturbations[i][c]).sum::<f64>(),
            )
        };
        let (low, high) = (cost(&[0; 4]), cost(&[1; 4]));
        for share in [0.25, 0.5, 0.75] {
            let limits = Limits {
                bytes: Some(low.0 + ((high.0 - low.0) as f64 * share) as u64),
                bit_operations: Some(low.1 + share * (high.1 - low.1)),
                latency: Some((table.clone(), low.2 + share * (high.2 - low.2))),
            };
            let found = cost(&assign(&sites, &perturbations, &limits).unwrap());
            let fits = |cost: &(u64, f64, f64, f64)| {
                cost.0 <= limits.bytes.unwrap()
                    && cost.1 <= limits.bit_operations.unwrap() + 1e-6
                    && cost.2 <= limits.latency.as_ref().unwrap().1 + 1e-6
            };
            assert!(fits(&found));
            let all = (0..16usize).map(|code| cost(&[code & 1, code >> 1 & 1, code >> 2 & 1, code >> 3]));
            let best = all.filter(fits).map(|cost| cost.3).fold(f64::INFINITY, f64::min);
            assert!((found.3 - best).abs() < 1e-9, "{share}: {} {best}", found.3);
        }
        let none = Limits { bit_operations: Some(0.5 * low.1), ..Limits::default() };
        assert_eq!(assign(&sites, &perturbations, &none), Err(AllocationError::OverLimits));
    }
}
