//! Evolution: level switches that keep the budget, judged by whatever can be measured.
//!
//! Losses of different arrays do not add up exactly, and some interact. The other allocators only see sums; this
//! one asks for the loss of a whole allocation. A child is its parent with one to three switches, each a point up
//! for one array and points down for others until the budget holds again. A generation's children are judged
//! cheaply, the best of them again on more data, and so on; the parent takes part in the last round only, so that
//! it is never lost to a worse child.

use super::{Allocation, AllocationError, Allocator, Group, Problem, lagrangian};

/// One round of selection within a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// How many candidates remain after it.
    pub survivors: usize,
}

/// Evolutionary search. See the [module of allocators](crate) for when to choose it.
#[derive(Debug, Clone, PartialEq)]
pub struct Evolution {
    /// Generations.
    pub generations: usize,
    /// Children of a generation.
    pub children: usize,
    /// Rounds of selection, the last of which leaves one.
    pub rounds: Vec<Round>,
    /// Seed: the same seed gives the same search.
    pub seed: u64,
}

impl Default for Evolution {
    /// 80 generations of 16 children, judged once.
    fn default() -> Self {
        Self { generations: 80, children: 16, rounds: vec![Round { survivors: 1 }], seed: 1 }
    }
}

impl Allocator for Evolution {
    fn name(&self) -> &'static str {
        "evolution"
    }

    /// Evolves by the offers' own losses from the hull's allocation.
    fn allocate(&self, problem: &Problem, budget_bytes: u64) -> Result<Allocation, AllocationError> {
        let summed = |choices: &[usize], _: usize, _: usize| -> Result<f64, AllocationError> {
            Ok(problem.offers.iter().zip(choices).map(|(offer, &choice)| offer.points[choice].loss).sum())
        };
        self.search(problem, budget_bytes, None, summed)
    }
}

impl Evolution {
    /// Evolves an allocation by a measured loss, from `start` or from the hull's allocation.
    ///
    /// `fitness(choices, generation, round)` is the loss of a whole allocation; a larger round should look at more
    /// data, and a generation's candidates must be judged on the same data. The returned [`Allocation::loss`] is the
    /// last round's measure of the winner.
    ///
    /// # Errors
    /// A budget below the smallest points; what `fitness` fails with.
    pub fn search<E: From<AllocationError>>(
        &self,
        problem: &Problem,
        budget_bytes: u64,
        start: Option<&[usize]>,
        mut fitness: impl FnMut(&[usize], usize, usize) -> Result<f64, E>,
    ) -> Result<Allocation, E> {
        let groups = problem.pruned(budget_bytes)?;
        let hull = lagrangian::walk(&groups, budget_bytes).picks;
        let mut parent =
            start.and_then(|start| picks_of(problem, &groups, start, budget_bytes)).unwrap_or(hull);
        let mut random = Random(self.seed);
        let mut loss = None;
        let last = self.rounds.len().saturating_sub(1);
        for generation in 0..self.generations {
            let mut children: Vec<Vec<usize>> = Vec::new();
            for _ in 0..self.children {
                let child = mutate(&groups, &parent, budget_bytes, &mut random);
                if child != parent && !children.contains(&child) {
                    children.push(child);
                }
            }
            if children.is_empty() {
                continue;
            }
            for (round, selection) in self.rounds.iter().enumerate() {
                if round == last {
                    children.insert(0, parent.clone());
                }
                let mut judged = Vec::with_capacity(children.len());
                for (index, child) in children.iter().enumerate() {
                    judged.push((
                        fitness(&problem.allocation(&groups, child).choices, generation, round)?,
                        index,
                    ));
                }
                judged.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                judged.truncate(if round == last { 1 } else { selection.survivors.max(1) });
                loss = judged.first().map(|best| best.0);
                children = judged.iter().map(|&(_, index)| children[index].clone()).collect();
            }
            if let Some(best) = children.into_iter().next() {
                parent = best;
            }
        }
        let mut found = problem.allocation(&groups, &parent);
        found.loss = loss.unwrap_or(found.loss);
        Ok(found)
    }
}

/// The pruned groups' picks that stand for given choices, where they exist and fit.
fn picks_of(problem: &Problem, groups: &[Group], choices: &[usize], budget_bytes: u64) -> Option<Vec<usize>> {
    let picks: Vec<usize> = groups
        .iter()
        .map(|group| {
            let offer = problem.group_of.iter().position(|&id| id == group.id)?;
            group.choices.iter().position(|choice| Some(choice) == choices.get(offer))
        })
        .collect::<Option<_>>()?;
    let bytes: u64 = groups.iter().zip(&picks).map(|(group, &pick)| group.points[pick].bytes).sum();
    (bytes <= budget_bytes).then_some(picks)
}

/// One to three switches: a group goes up, others go down until the budget holds.
fn mutate(groups: &[Group], parent: &[usize], budget_bytes: u64, random: &mut Random) -> Vec<usize> {
    let mut child = parent.to_vec();
    let mut total: u64 = groups.iter().zip(parent).map(|(group, &pick)| group.points[pick].bytes).sum();
    let switches = (1 + random.below(3)).min(1 + random.below(3));
    for _ in 0..switches {
        let up: Vec<usize> = (0..groups.len()).filter(|&g| child[g] + 1 < groups[g].points.len()).collect();
        if up.is_empty() {
            break;
        }
        let raised = up[random.below(up.len())];
        total += groups[raised].points[child[raised] + 1].bytes - groups[raised].points[child[raised]].bytes;
        child[raised] += 1;
        while total > budget_bytes {
            let down: Vec<usize> = (0..groups.len()).filter(|&g| g != raised && child[g] > 0).collect();
            if down.is_empty() {
                return parent.to_vec();
            }
            let lowered = down[random.below(down.len())];
            total -= groups[lowered].points[child[lowered]].bytes
                - groups[lowered].points[child[lowered] - 1].bytes;
            child[lowered] -= 1;
        }
    }
    // What the switches freed is given to whoever can still use it, in an order of chance.
    let first = random.below(groups.len().max(1));
    for offset in 0..groups.len() {
        let g = (first + offset) % groups.len();
        while let Some(next) = groups[g].points.get(child[g] + 1) {
            let cost = next.bytes - groups[g].points[child[g]].bytes;
            if total + cost > budget_bytes {
                break;
            }
            total += cost;
            child[g] += 1;
        }
    }
    child
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}
