//! Lagrangian allocation: equal slope everywhere.
//!
//! Minimising `loss + lambda * bytes` splits into one choice per array, and the best choice always lies on the
//! lower convex hull of the array's points. As lambda falls, arrays step along their hulls from small to large,
//! steepest edge first; so all edges of all hulls, sorted by slope, are *the* path of optimal allocations (Shoham
//! and Gersho, 1988). The walk stops at the first edge that does not fit: that allocation is optimal for its own
//! bytes. What is left, less than one edge, is spent greedily on whatever still fits, hull or not.

use super::{Allocation, AllocationError, Allocator, Group, Problem, RatePoint, Step, spend_rest};

/// Convex-hull allocation. See the [module of allocators](crate) for when to choose it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lagrangian;

impl Allocator for Lagrangian {
    fn name(&self) -> &'static str {
        "lagrangian"
    }
    fn allocate(&self, problem: &Problem, budget_bytes: u64) -> Result<Allocation, AllocationError> {
        let groups = problem.pruned(budget_bytes)?;
        let walk = walk(&groups, budget_bytes);
        Ok(problem.allocation(&groups, &walk.picks))
    }
}

/// Where the walk over the hulls' edges ended.
pub(super) struct Walk {
    /// Point of each group, after what was left is spent.
    pub(super) picks: Vec<usize>,
    /// Loss per byte at the end of the walk: what the next byte is worth. Zero where everything fits.
    pub(super) lambda: f64,
}

/// Walks the hulls of pruned groups, whose smallest points fit, as far as the budget goes.
pub(super) fn walk(groups: &[Group], budget_bytes: u64) -> Walk {
    let mut edges: Vec<Step> = Vec::new();
    for (group, points) in groups.iter().map(|group| &group.points).enumerate() {
        for pair in hull(points).windows(2) {
            let (from, to) = (pair[0], pair[1]);
            edges.push(Step { gain: slope(points[from], points[to]), group, from, to });
        }
    }
    // Descending; edges of one hull have strictly falling slopes, so they come in their order.
    edges.sort_by(|a, b| b.cmp(a));
    let mut picks = vec![0; groups.len()];
    let mut left = budget_bytes - groups.iter().map(|group| group.points[0].bytes).sum::<u64>();
    let mut lambda = 0.0;
    for edge in edges {
        let points = &groups[edge.group].points;
        let cost = points[edge.to].bytes - points[edge.from].bytes;
        if cost > left {
            lambda = edge.gain;
            break;
        }
        left -= cost;
        picks[edge.group] = edge.to;
    }
    spend_rest(groups, &mut picks, left);
    Walk { picks, lambda }
}

/// Loss saved per byte between two pruned points.
fn slope(from: RatePoint, to: RatePoint) -> f64 {
    (from.loss - to.loss) / (to.bytes - from.bytes) as f64
}

/// Indices of the lower convex hull of pruned points, slopes strictly falling.
fn hull(points: &[RatePoint]) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::new();
    for (next, &point) in points.iter().enumerate() {
        while let [.., before, last] = kept[..]
            && slope(points[before], points[last]) <= slope(points[last], point)
        {
            kept.pop();
        }
        kept.push(next);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_above_the_hull_are_left_out() {
        let points = [(0, 10.0), (10, 9.0), (20, 4.0), (30, 3.0), (40, 2.0), (50, 1.9)];
        let points = points.map(|(bytes, loss)| RatePoint { bytes, loss });
        assert_eq!(hull(&points), [0, 2, 4, 5]);
    }
}
