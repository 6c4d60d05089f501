//! Greedy removal: from the best points down.
//!
//! Every array starts at its largest point. While the whole is too large, the array that loses least per byte
//! saved takes its next step down; the step may skip points where a longer one is cheaper per byte. What the last
//! step saved too much is spent again where it buys most.

use std::collections::BinaryHeap;

use super::{Allocation, AllocationError, Allocator, Group, Problem, Step, spend_rest};

/// Greedy removal. See the [module of allocators](crate) for when to choose it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Greedy;

impl Allocator for Greedy {
    fn name(&self) -> &'static str {
        "greedy"
    }
    fn allocate(&self, problem: &Problem, budget_bytes: u64) -> Result<Allocation, AllocationError> {
        let groups = problem.pruned(budget_bytes)?;
        let mut picks: Vec<usize> = groups.iter().map(|group| group.points.len() - 1).collect();
        let mut total: u64 = groups.iter().zip(&picks).map(|(group, &pick)| group.points[pick].bytes).sum();
        let mut steps: BinaryHeap<Step> =
            groups.iter().enumerate().filter_map(|(g, group)| cheapest(g, group, picks[g])).collect();
        while total > budget_bytes {
            let Some(step) = steps.pop() else { break };
            let points = &groups[step.group].points;
            total -= points[step.from].bytes - points[step.to].bytes;
            picks[step.group] = step.to;
            steps.extend(cheapest(step.group, &groups[step.group], step.to));
        }
        spend_rest(&groups, &mut picks, budget_bytes - total);
        Ok(problem.allocation(&groups, &picks))
    }
}

/// The step down that causes the least loss per byte saved.
fn cheapest(index: usize, group: &Group, from: usize) -> Option<Step> {
    let here = group.points[from];
    let down = group.points[..from].iter().enumerate().map(|(to, point)| Step {
        gain: -(point.loss - here.loss) / (here.bytes - point.bytes) as f64,
        group: index,
        from,
        to,
    });
    down.max()
}
