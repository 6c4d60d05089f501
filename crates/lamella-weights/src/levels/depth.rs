//! Depth pruning: which halves of blocks can go, by evolution, by sums, by similarity, and by trying all.

use std::collections::BTreeMap;

use lamella_codec::Array;
use lamella_lm::{LinearSite, Role};
use lamella_rate::{Allocator, Evolution, Knapsack, Round};

use super::{Error, Judge, Levels, Subject, WINDOW};

/// What removing halves of blocks found, as mean KL divergences on the calibration text.
#[derive(Debug)]
pub(crate) struct Depth {
    /// Of all choices there are.
    pub(crate) best: f64,
    /// Evolution's.
    pub(crate) evolved: f64,
    /// Of the least sum of single errors.
    pub(crate) summed: f64,
    /// Of the halves that change their input least.
    pub(crate) similar: f64,
    /// How many choices there are.
    pub(crate) states: usize,
}

/// Removes halves of blocks: by evolution, by the least sum, by the similarity of states, and by trying all.
pub(crate) fn remove_halves(subject: &Subject, judge: &Judge<'_>, removed: usize) -> Result<Depth, Error> {
    // A half without its output projection leaves the residual stream as it is.
    let is_end = |site: &&LinearSite| matches!(site.role, Role::Output | Role::Down);
    let ends: Vec<LinearSite> = subject.sites().iter().filter(is_end).cloned().collect();
    let mut levels = Levels { arrays: Vec::new(), bytes: vec![vec![0, 1]; ends.len()] };
    for site in &ends {
        let spec = subject.network.source().array(&site.weight)?.spec;
        let zeros = vec![0.0; spec.len()];
        levels.arrays.push(vec![Some(Array::from_f32(spec, &zeros)?), None]);
    }
    let n = ends.len();
    let kept = n.saturating_sub(removed);
    let problem = levels.problem(judge)?;
    let summed = Knapsack::default().allocate(&problem, kept as u64)?.choices;
    let mut known: BTreeMap<Vec<usize>, f64> = BTreeMap::new();
    let mut kl = |choices: &[usize]| -> Result<f64, Error> {
        if let Some(&kl) = known.get(choices) {
            return Ok(kl);
        }
        let kl = judge.kl(&levels, choices)?;
        known.insert(choices.to_vec(), kl);
        Ok(kl)
    };
    let generations = (removed * kept * 2).div_ceil(3);
    let rounds = vec![Round { survivors: 1 }];
    let evolution = Evolution { generations, children: 32, rounds, seed: 29 };
    let evolved = evolution.search(&problem, kept as u64, Some(&summed), |choices, _, _| kl(choices))?;
    let (mut best, mut states) = (f64::INFINITY, 0);
    for mask in 0..1usize << n {
        if mask.count_ones() as usize == kept {
            let choices: Vec<usize> = (0..n).map(|unit| mask >> unit & 1).collect();
            best = best.min(kl(&choices)?);
            states += 1;
        }
    }
    // Halves whose removal changes the states the least, as depth pruning by cosine similarity would.
    let mut order: Vec<usize> = (0..n).collect();
    let change = similarities(subject, &ends, &levels)?;
    order.sort_by(|&a, &b| change[b].total_cmp(&change[a]).then(a.cmp(&b)));
    let mut similar = vec![1; n];
    order.iter().take(n - kept).for_each(|&unit| similar[unit] = 0);
    Ok(Depth { best, evolved: evolved.loss, summed: kl(&summed)?, similar: kl(&similar)?, states })
}

/// Cosine between the residual stream before and behind each half, summed over all its entries.
fn similarities(subject: &Subject, ends: &[LinearSite], levels: &Levels) -> Result<Vec<f64>, Error> {
    let windows: Vec<Vec<u32>> = subject.seen.chunks(WINDOW).take(2).map(<[u32]>::to_vec).collect();
    let network = &subject.network;
    let mut found = Vec::new();
    for site in ends {
        let block = site.block.unwrap_or(0);
        let mut before = network.begin(&windows)?;
        for index in 0..block {
            network.block(index, &mut before, None)?;
        }
        // Only this half of the block runs: the other's output projection is zero.
        let is_other = |other: &LinearSite| other.block == site.block && other.weight != site.weight;
        let choices: Vec<Option<usize>> = ends.iter().map(|end| is_other(end).then_some(0)).collect();
        let source = levels.chosen(&**network.source(), &choices);
        let mut behind = before.clone();
        network.block_with(block, &source, &mut behind, None)?;
        let (mut dot, mut own, mut other) = (0.0, 0.0, 0.0);
        for (a, b) in before.values().iter().zip(behind.values()) {
            dot += f64::from(a * b);
            own += f64::from(a * a);
            other += f64::from(b * b);
        }
        found.push(dot / (own * other).sqrt().max(1e-30));
    }
    Ok(found)
}
