//! EvoPress (S029): the level of every layer, found by evolution on the loss of the whole model.
//!
//! # Idea
//! Errors of single layers do not add up to the error of the model: they cancel, amplify and saturate. Allocators
//! that sum per-layer errors therefore rank whole assignments wrongly. Evolution only ever asks for the loss of
//! a whole assignment, and its mutations keep the budget, so every candidate is comparable with every other.
//!
//! # Algorithm
//! 1. Database of units at levels. *Depth*: each block's attention and feed-forward half, kept or removed. *Sparsity*:
//!    each linear with nine shares of its weights kept, around 35 %. *Bits*: each linear by GPTQ at 2 to 6 bits.
//! 2. State: one level for each unit; the budget of all together (units, kept weights, bytes) is kept.
//! 3. Mutation: `min(U{1..3}, U{1..3})` switches, each one unit a level up and others down until the budget holds.
//! 4. Fitness: mean KL divergence to the original over calibration tokens.
//! 5. Selection in rounds: all children on few tokens, the survivors on more; the parent joins the last round only.
//!
//! The search itself is [`lamella_rate::Evolution`].
//!
//! # Shapes
//! `weight [out_features, in_features]`, any float type; levels `[units]` of small integers.
//!
//! # Stored form
//! That of the chosen levels, and `ceil(log2 levels)` bits a unit: GPTQ at `b` bits in groups of 32 takes `b + 1` bits
//! per weight; a removed half takes none.
//!
//! # Cost
//! Forward passes only: generations x children x tokens of the rounds. The full claim runs 150 x 16 on 512 and
//! 150 x 5 on 2,048 tokens for each of the two level searches; the quick one searches depth alone.
//!
//! # When to choose it
//! Where formats are coarse and fixed, so that few assignments exist and their errors interact. With free rates, the
//! measured sensitivities of `house` come close at a hundredth of the cost.
//!
//! # Claim
//! At 65 % average sparsity, KL on text the search has not seen is at least 15 % below uniform sparsity's and not above
//! dynamic programming's on summed single errors; and where 4 of the halves of a small model are removed, evolution
//! finds the best of all choices, which neither the sum of single errors nor the similarity of inputs and outputs finds.
//!
//! # Differences
//! From the paper: pruning by size of weight times norm of input (Wanda) instead of SparseGPT; switches between linears
//! of different sizes under one budget; the start is the sum's optimum; a fixed text for every generation. The
//! exhaustive search and all thresholds are on models of 260 thousand (quick) or 5 million (full) weights. Bits are
//! reported beside the claim.
//!
//! # Source
//! O. Sieberling, D. Kuznedelev, E. Kurtic, D. Alistarh, "EvoPress: Towards Optimal Dynamic Model Compression via
//! Evolutionary Search", arXiv 2410.14649.

use std::collections::BTreeMap;
use std::time::Instant;

use lamella_codec::{Array, Claim, ClaimContext, ClaimSize, System, Wing};
use lamella_lm::LinearSite;
use lamella_lm::statistics::{CalibrationOptions, Provenance, Statistics, calibrate};
use lamella_rate::{Allocator, Evolution, Knapsack, Round};

use crate::levels::{Error, Judge, Levels, Subject, WINDOW, remove_halves};

const CLAIM: &str = "at 65 % sparsity KL on unseen text at least 15 % below uniform's and not above summed errors' \
                     choice; the best of all removals of 4 halves is found where sums of errors miss it";
const UNIFORM_SPARSITY: f64 = 0.65;
const SPARSITY_LEVELS: i32 = 4;
const BITS: std::ops::RangeInclusive<u32> = 2..=6;
const REMOVED: usize = 4;

/// The line of the list.
pub fn system() -> System {
    System {
        id: "S029",
        name: "EvoPress",
        wing: Wing::Weights,
        compresses: "levels of compression over the layers of a model",
        recipe: Some("levels of pruning, bits or depth per array, chosen by evolution"),
        claim: Some(CLAIM),
        measure: Some(measure),
    }
}

/// Losses on unseen text of three assignments, and how often the sum misled.
#[derive(Debug)]
struct Found {
    uniform: f64,
    summed: f64,
    evolved: f64,
    contradictions: usize,
}

/// Levels of `uniform`'s budget: the sum's optimum, then evolution from it, both judged on unseen text.
fn search(
    levels: &Levels,
    uniform: usize,
    judges: &[Judge<'_>; 2],
    unseen: &Judge<'_>,
    generations: usize,
) -> Result<Found, Error> {
    let problem = levels.problem(&judges[0])?;
    let budget = levels.total(&vec![uniform; levels.bytes.len()]);
    let summed = Knapsack::default().allocate(&problem, budget)?;
    let rounds = vec![Round { survivors: 4 }, Round { survivors: 1 }];
    let evolution = Evolution { generations, children: 16, rounds, seed: 29 };
    let sum = |choices: &[usize]| -> f64 {
        problem.offers().iter().zip(choices).map(|(offer, &choice)| offer.points[choice].loss).sum()
    };
    let mut judged: Vec<(f64, f64)> = Vec::new();
    let mut known: BTreeMap<(usize, Vec<usize>), f64> = BTreeMap::new();
    let found = evolution.search(&problem, budget, Some(&summed.choices), |choices, _, round| {
        if let Some(&kl) = known.get(&(round, choices.to_vec())) {
            return Ok(kl);
        }
        let kl = judges[round].kl(levels, choices)?;
        if round == 0 {
            judged.push((sum(choices), kl));
        }
        known.insert((round, choices.to_vec()), kl);
        Ok::<f64, Error>(kl)
    })?;
    // States whose sum is smaller by 5 % and whose loss is larger by 5 %.
    let contradicts = |a: &(f64, f64), b: &(f64, f64)| a.0 < 0.95 * b.0 && a.1 > 1.05 * b.1;
    let pairs = judged.iter().map(|a| judged.iter().filter(|b| contradicts(a, b)).count());
    Ok(Found {
        contradictions: pairs.sum(),
        uniform: unseen.kl(levels, &vec![uniform; levels.bytes.len()])?,
        summed: unseen.kl(levels, &summed.choices)?,
        evolved: unseen.kl(levels, &found.choices)?,
    })
}

/// Linears with shares of their weights kept; the middle level is the uniform one.
fn sparse(subject: &Subject, sites: &[LinearSite], statistics: &Statistics) -> Result<Levels, Error> {
    let mut levels = Levels { arrays: Vec::new(), bytes: Vec::new() };
    for site in sites {
        let array = subject.network.source().array(&site.weight)?;
        let weights = array.to_f32()?;
        let moment = statistics.knowledge(site)?.second_moment.ok_or("a linear without statistics")?;
        let norms = moment.diagonal();
        let score = |at: usize| weights[at].abs() * norms[at % site.in_features].max(0.0).sqrt();
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
        let (mut arrays, mut bytes) = (Vec::new(), Vec::new());
        for level in (-SPARSITY_LEVELS..=SPARSITY_LEVELS).rev() {
            let step = 0.5 * UNIFORM_SPARSITY.min(1.0 - UNIFORM_SPARSITY) / f64::from(SPARSITY_LEVELS);
            let sparsity = UNIFORM_SPARSITY + f64::from(level) * step;
            let kept = ((1.0 - sparsity) * weights.len() as f64).round() as usize;
            let mut values = vec![0.0; weights.len()];
            order[..kept].iter().for_each(|&at| values[at] = weights[at]);
            arrays.push(Some(Array::from_f32(array.spec.clone(), &values)?));
            bytes.push(kept as u64);
        }
        levels.arrays.push(arrays);
        levels.bytes.push(bytes);
    }
    Ok(levels)
}

/// The claim's figures so far.
fn claim(started: Instant, name: &str, baseline: f64, measured: f64, holds: bool, reason: String) -> Claim {
    Claim {
        id: "S029".to_owned(),
        name: "EvoPress".to_owned(),
        wing: Wing::Weights,
        claim: CLAIM.to_owned(),
        metric: "mean KL divergence to the original, nats per token".to_owned(),
        baseline_name: name.to_owned(),
        baseline,
        measured,
        holds,
        reason,
        seconds: started.elapsed().as_secs_f64(),
    }
}

fn measure(context: &ClaimContext) -> Result<Claim, Error> {
    let started = Instant::now();
    let subject = Subject::of(context)?;
    if context.size == ClaimSize::Quick {
        // The part that takes seconds: every choice there is can be tried.
        let depth = remove_halves(&subject, &Judge::new(&subject.network, &subject.seen, 1)?, REMOVED)?;
        let is_best = depth.evolved <= depth.best && depth.evolved < depth.summed.min(depth.similar);
        let reason = format!(
            "quick form: {}, depth only ({REMOVED} of {} states' halves removed, similarity {:.4}); sparsity and bits are \
             searched by --full",
            subject.name, depth.states, depth.similar
        );
        return Ok(claim(
            started,
            "the least sum of single errors",
            depth.summed,
            depth.evolved,
            is_best,
            reason,
        ));
    }
    let sites = subject.sites();
    let network = &subject.network;
    let mut statistics = Statistics::new(Provenance::default());
    let text: Vec<Vec<u32>> = subject.seen.chunks(WINDOW).take(64).map(<[u32]>::to_vec).collect();
    calibrate(network, &text, &CalibrationOptions::default(), &mut statistics, &|_, _, _| ())?;
    let judges = [Judge::new(network, &subject.seen, 4)?, Judge::new(network, &subject.seen, 16)?];
    let unseen = Judge::new(network, &subject.unseen, 16)?;
    let generations = 150;
    let pruned = sparse(&subject, &sites, &statistics)?;
    let sparsity = search(&pruned, SPARSITY_LEVELS as usize, &judges, &unseen, generations)?;
    let recipes: Vec<String> = BITS.map(|bits| format!("gptq(bits={bits}, group_size=32)")).collect();
    let coded = Levels::coded(network, &sites, &recipes, Some(&statistics), &context.catalogue)?;
    let bits = search(&coded, 1, &judges, &unseen, generations)?;
    let depth = remove_halves(&subject, &judges[0], REMOVED)?;
    let is_best =
        depth.evolved <= depth.best && depth.evolved < depth.summed && depth.evolved < depth.similar;
    let holds = sparsity.evolved <= 0.85 * sparsity.uniform && sparsity.evolved <= sparsity.summed && is_best;
    let reason = format!(
        "{}: sparsity {:.2} of uniform's, summed errors' choice {:.4} ({:.2}), {} contradictions (smaller sum by 5 %, \
             larger loss by 5 %); 3 bits by GPTQ: uniform {:.4}, evolved {:.4} ({:.2}), summed {:.4}, {} contradictions; \
             {REMOVED} of {} states' halves removed: best of all {:.4}, evolved {:.4}, summed {:.4}, similarity {:.4}",
        subject.name,
        sparsity.evolved / sparsity.uniform,
        sparsity.summed,
        sparsity.summed / sparsity.uniform,
        sparsity.contradictions,
        bits.uniform,
        bits.evolved,
        bits.evolved / bits.uniform,
        bits.summed,
        bits.contradictions,
        depth.states,
        depth.best,
        depth.evolved,
        depth.summed,
        depth.similar,
    );
    Ok(claim(started, "uniform sparsity of 65 %", sparsity.uniform, sparsity.evolved, holds, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evolution_finds_the_best_removal_of_all_where_sums_of_errors_mislead() {
        let context = ClaimContext {
            size: ClaimSize::Quick,
            assets: concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets").into(),
            data: None,
            catalogue: std::sync::Arc::new(lamella_codec::Catalogue::new(
                Vec::new(),
                crate::systems::codecs(),
            )),
        };
        let subject = Subject::of(&context).unwrap();
        let judge = Judge::new(&subject.network, &subject.seen, 2).unwrap();
        let found = remove_halves(&subject, &judge, REMOVED).unwrap();
        println!("{found:?}");
        assert_eq!(found.states, 210);
        assert!(found.evolved <= found.best && found.best <= found.summed.min(found.similar));
    }
}
