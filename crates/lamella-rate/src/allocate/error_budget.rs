//! The smallest allocation within an error: dynamic programming over a bucketed error budget.
//!
//! The other allocators take a number of bytes and look for the least loss. This one takes the most that losses may
//! sum to and looks for the fewest bytes: the allocator of L-GreCo (S153). Errors are divided into buckets and rounded
//! up, so that the limit is never broken; `best[e]` is the fewest bytes of the arrays so far with exactly `e` buckets
//! of error, and each array in turn tries each of its points.

use super::{Allocation, AllocationError, Problem};

/// Fewest bytes within a total loss. See the [module](crate) for when to choose it.
#[derive(Debug, Clone, Copy)]
pub struct ErrorBudget {
    n_buckets: usize,
}

impl Default for ErrorBudget {
    /// 10,000 buckets.
    fn default() -> Self {
        Self { n_buckets: 10_000 }
    }
}

impl ErrorBudget {
    /// Divides the error budget into so many buckets, 1 to 1,000,000; time and memory grow with it.
    pub fn with_buckets(n_buckets: usize) -> Self {
        Self { n_buckets: n_buckets.clamp(1, 1_000_000) }
    }

    /// The allocation with the fewest bytes whose losses sum to at most `max_loss`.
    ///
    /// Rounding up may cost each array up to a bucket, so an allocation within a share of `arrays / buckets` of the
    /// limit may be missed; where nothing is found, the points of least loss are taken if they keep the limit.
    ///
    /// # Errors
    /// [`AllocationError::OverLimits`] where even the least losses sum to more.
    pub fn allocate(&self, problem: &Problem, max_loss: f64) -> Result<Allocation, AllocationError> {
        let groups = problem.groups();
        let bucket = max_loss / self.n_buckets as f64;
        let buckets_of = |loss: f64| -> usize {
            let needed = (loss / bucket).ceil();
            if needed <= self.n_buckets as f64 { (needed as usize).max(1) } else { self.n_buckets + 1 }
        };
        let n_cells = self.n_buckets + 1;
        let mut best = vec![u64::MAX; n_cells];
        best[0] = 0;
        let mut traces: Vec<u16> = vec![0; groups.len() * n_cells];
        for (group, trace) in groups.iter().zip(traces.chunks_mut(n_cells)) {
            let mut next = vec![u64::MAX; n_cells];
            for (index, point) in group.points.iter().enumerate().take(usize::from(u16::MAX)) {
                let cost = buckets_of(point.loss);
                for from in 0..n_cells.saturating_sub(cost) {
                    let bytes = best[from].saturating_add(point.bytes);
                    if bytes < next[from + cost] {
                        next[from + cost] = bytes;
                        trace[from + cost] = index as u16;
                    }
                }
            }
            best = next;
        }
        let cell = (0..n_cells).min_by_key(|&cell| best[cell]).filter(|&cell| best[cell] != u64::MAX);
        let mut picks = vec![0; groups.len()];
        match cell {
            Some(mut cell) => {
                for g in (0..groups.len()).rev() {
                    picks[g] = usize::from(traces[g * n_cells + cell]);
                    cell -= buckets_of(groups[g].points[picks[g]].loss);
                }
            }
            None => {
                for (pick, group) in picks.iter_mut().zip(&groups) {
                    let points = group.points.iter().enumerate();
                    let least = points.min_by(|a, b| {
                        a.1.loss.total_cmp(&b.1.loss).then(a.1.bytes.cmp(&b.1.bytes)).then(a.0.cmp(&b.0))
                    });
                    *pick = least.map_or(0, |(index, _)| index);
                }
            }
        }
        let found = problem.allocation(&groups, &picks);
        if found.loss <= max_loss { Ok(found) } else { Err(AllocationError::OverLimits) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Random, instance};
    use super::*;

    /// The fewest bytes there are.
    fn brute(problem: &Problem, max_loss: f64) -> u64 {
        fn walk(groups: &[super::super::Group], left: f64) -> u64 {
            let [group, rest @ ..] = groups else { return 0 };
            let fitting = group.points.iter().filter(|point| point.loss <= left);
            fitting
                .map(|point| point.bytes.saturating_add(walk(rest, left - point.loss)))
                .min()
                .unwrap_or(u64::MAX)
        }
        walk(&problem.groups(), max_loss)
    }

    #[test]
    fn between_the_optima_of_the_limit_and_of_one_smaller_by_the_rounding() {
        for seed in 0..200 {
            let problem = instance(seed, 2 + seed % 5, 2 + seed % 4);
            let mut random = Random(seed ^ 9);
            let bounds = |pick: fn(f64, f64) -> f64, start: f64| -> f64 {
                let of = |group: &super::super::Group| group.points.iter().map(|p| p.loss).fold(start, pick);
                problem.groups().iter().map(of).sum()
            };
            let (least, most) = (bounds(f64::min, f64::INFINITY), bounds(f64::max, 0.0));
            let max_loss = least + (most - least) * (0.1 + 0.8 * random.unit());
            let found = ErrorBudget::default().allocate(&problem, max_loss).unwrap();
            assert!(found.loss <= max_loss);
            let rounding = problem.groups().len() as f64 / 10_000.0;
            assert!(found.bytes >= brute(&problem, max_loss * (1.0 + 1e-12)), "{seed}");
            assert!(found.bytes <= brute(&problem, max_loss * (1.0 - rounding)), "{seed}");
        }
    }

    #[test]
    fn errors_in_whole_buckets_are_exact_and_too_little_is_refused() {
        use super::super::{Offer, RatePoint};
        let offer = |points: &[(u64, f64)]| {
            let points = points.iter().map(|&(bytes, loss)| RatePoint { bytes, loss });
            Offer::new("w", points.collect())
        };
        let problem = Problem::new(vec![
            offer(&[(10, 1.0), (6, 2.0), (2, 5.0)]),
            offer(&[(10, 2.0), (7, 3.0), (1, 6.0)]),
        ])
        .unwrap();
        let found = ErrorBudget::with_buckets(8).allocate(&problem, 8.0).unwrap();
        assert_eq!((found.bytes, found.loss), (7, 8.0));
        assert_eq!(ErrorBudget::default().allocate(&problem, 2.9), Err(AllocationError::OverLimits));
        let nothing = Problem::new(Vec::new()).unwrap();
        assert_eq!(ErrorBudget::default().allocate(&nothing, 0.0).unwrap().bytes, 0);
    }
}
