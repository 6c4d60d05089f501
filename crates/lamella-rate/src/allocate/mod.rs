//! One point for each array under a budget.

mod error_budget;
mod evolution;
mod greedy;
mod integer_program;
mod knapsack;
mod lagrangian;
#[cfg(test)]
mod tests;
mod top;

pub use error_budget::ErrorBudget;
pub use evolution::{Evolution, Round};
pub use greedy::Greedy;
pub use integer_program::{IntegerProgram, Limit};
pub use knapsack::Knapsack;
pub use lagrangian::Lagrangian;
pub use top::{FeatureScores, TopBudget, global_top};

use serde::{Deserialize, Serialize};

/// A point an array can be coded at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RatePoint {
    /// Bytes the array takes.
    pub bytes: u64,
    /// Predicted loss, in the same unit for all arrays.
    pub loss: f64,
}

/// What one array offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The array's name.
    pub name: String,
    /// Points in any order. An allocation is an index into them.
    pub points: Vec<RatePoint>,
}

impl Offer {
    /// An array and its points.
    pub fn new(name: impl Into<String>, points: Vec<RatePoint>) -> Self {
        Self { name: name.into(), points }
    }
}

/// Why there is no allocation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocationError {
    /// Even the smallest points do not fit.
    #[error("the smallest points take {smallest} bytes, the budget is {budget}")]
    Unreachable {
        /// Bytes of the smallest points together.
        smallest: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// An array offers nothing, or a loss that is not a finite number.
    #[error("array `{name}`: {reason}")]
    BadOffer {
        /// The array.
        name: String,
        /// What is wrong with its points.
        reason: &'static str,
    },
    /// Arrays cannot be tied.
    #[error("arrays `{first}` and `{second}` cannot share a point: {reason}")]
    BadTie {
        /// One array.
        first: String,
        /// The other.
        second: String,
        /// Why not.
        reason: &'static str,
    },
    /// A limit beside the budget does not give one cost for each point of each array.
    #[error("a limit must give one cost for each point of each array")]
    BadLimit,
    /// No allocation keeps the budget and all further limits.
    #[error("no allocation keeps the budget and all limits")]
    OverLimits,
    /// The solver of integer programmes gave up.
    #[error("the integer programme was not solved: {message}")]
    Solver {
        /// What it says.
        message: String,
    },
}

/// The point chosen for each array.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// Index into each offer's points, in the order of the offers.
    pub choices: Vec<usize>,
    /// Bytes of the chosen points.
    pub bytes: u64,
    /// Sum of their predicted losses.
    pub loss: f64,
}

/// Chooses a point for each array so that bytes stay within a budget and loss is small.
pub trait Allocator {
    /// A short name for reports.
    fn name(&self) -> &'static str;
    /// Allocates at most `budget_bytes`. Same problem, same allocation.
    ///
    /// # Errors
    /// [`AllocationError::Unreachable`] where the smallest points do not fit.
    fn allocate(&self, problem: &Problem, budget_bytes: u64) -> Result<Allocation, AllocationError>;
}

/// Offers and which of them must agree.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    offers: Vec<Offer>,
    /// The group of each offer; groups are numbered in the order of their first array.
    group_of: Vec<usize>,
}

impl Problem {
    /// Arrays that are free of each other.
    ///
    /// # Errors
    /// An array without points, a loss that is not finite, more bytes than a `u64` counts.
    pub fn new(offers: Vec<Offer>) -> Result<Self, AllocationError> {
        let mut most = 0u64;
        for offer in &offers {
            let refuse = |reason| AllocationError::BadOffer { name: offer.name.clone(), reason };
            let largest = offer.points.iter().map(|point| point.bytes).max();
            let largest = largest.ok_or_else(|| refuse("it offers no point"))?;
            most = most
                .checked_add(largest)
                .ok_or_else(|| refuse("its bytes exceed 2^64 together with others"))?;
            if offer.points.iter().any(|point| !point.loss.is_finite()) {
                return Err(refuse("a loss is not a finite number"));
            }
        }
        let group_of = (0..offers.len()).collect();
        Ok(Self { offers, group_of })
    }

    /// Makes arrays share one choice: all take their first point, or all their second. Ties join: after tying 1
    /// with 2 and 2 with 3, all three agree.
    ///
    /// # Errors
    /// Arrays that offer different numbers of points, an index beyond the offers.
    pub fn tied(mut self, indices: &[usize]) -> Result<Self, AllocationError> {
        for pair in indices.windows(2) {
            let name =
                |index: usize| self.offers.get(index).map_or_else(|| index.to_string(), |o| o.name.clone());
            let refuse =
                |reason| AllocationError::BadTie { first: name(pair[0]), second: name(pair[1]), reason };
            let (Some(a), Some(b)) = (self.offers.get(pair[0]), self.offers.get(pair[1])) else {
                return Err(refuse("there is no such array"));
            };
            if a.points.len() != b.points.len() {
                return Err(refuse("they offer different numbers of points"));
            }
            let (keep, join) = (self.group_of[pair[0]], self.group_of[pair[1]]);
            let (keep, join) = (keep.min(join), keep.max(join));
            self.group_of.iter_mut().filter(|group| **group == join).for_each(|group| *group = keep);
        }
        Ok(self)
    }

    /// The offers.
    pub fn offers(&self) -> &[Offer] {
        &self.offers
    }
    /// Bytes of the smallest allocation there is.
    pub fn smallest_bytes(&self) -> u64 {
        self.groups().iter().map(Group::smallest).sum()
    }
    /// Bytes of the largest allocation there is.
    pub fn largest_bytes(&self) -> u64 {
        self.groups().iter().filter_map(|group| group.points.iter().map(|p| p.bytes).max()).sum()
    }

    /// What may be chosen: one group of points for each set of tied arrays.
    fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut place = vec![usize::MAX; self.offers.len()];
        for (offer, &group) in self.offers.iter().zip(&self.group_of) {
            if place[group] == usize::MAX {
                place[group] = groups.len();
                let choices = (0..offer.points.len()).collect();
                groups.push(Group { id: group, points: offer.points.clone(), choices });
            } else {
                for (sum, point) in groups[place[group]].points.iter_mut().zip(&offer.points) {
                    sum.bytes += point.bytes;
                    sum.loss += point.loss;
                }
            }
        }
        groups
    }

    /// Groups with only those points that none beats in both bytes and loss, bytes rising and loss falling.
    fn pruned(&self, budget_bytes: u64) -> Result<Vec<Group>, AllocationError> {
        let mut groups = self.groups();
        let smallest: u64 = groups.iter().map(Group::smallest).sum();
        if smallest > budget_bytes {
            return Err(AllocationError::Unreachable { smallest, budget: budget_bytes });
        }
        for group in &mut groups {
            let points = &group.points;
            let mut order = group.choices.clone();
            order.sort_by(|&a, &b| {
                let key = |i: usize| points[i].bytes;
                key(a).cmp(&key(b)).then(points[a].loss.total_cmp(&points[b].loss)).then(a.cmp(&b))
            });
            let mut least = f64::INFINITY;
            order.retain(|&i| {
                let is_better = points[i].loss < least;
                least = least.min(points[i].loss);
                is_better
            });
            *group =
                Group { id: group.id, points: order.iter().map(|&i| points[i]).collect(), choices: order };
        }
        Ok(groups)
    }

    /// The allocation that takes point `picks[g]` of pruned group `g`.
    fn allocation(&self, groups: &[Group], picks: &[usize]) -> Allocation {
        let mut choice_of = vec![0; self.offers.len()];
        for (group, &pick) in groups.iter().zip(picks) {
            choice_of[group.id] = group.choices[pick];
        }
        let choices: Vec<usize> = self.group_of.iter().map(|&group| choice_of[group]).collect();
        let chosen = || self.offers.iter().zip(&choices).map(|(offer, &choice)| offer.points[choice]);
        Allocation { bytes: chosen().map(|p| p.bytes).sum(), loss: chosen().map(|p| p.loss).sum(), choices }
    }
}

/// Points of arrays that share one choice.
#[derive(Debug, Clone)]
struct Group {
    /// Number of the group in [`Problem::group_of`].
    id: usize,
    points: Vec<RatePoint>,
    /// The offers' index of each point.
    choices: Vec<usize>,
}

impl Group {
    fn smallest(&self) -> u64 {
        self.points.iter().map(|point| point.bytes).min().unwrap_or(0)
    }
}

/// Spends what is left: as long as some group has a larger point that fits, takes the one with the most loss
/// saved per byte. `picks` index pruned groups, `left_bytes` is what the picks leave of the budget.
fn spend_rest(groups: &[Group], picks: &mut [usize], mut left_bytes: u64) {
    use std::collections::BinaryHeap;
    let offer = |g: usize, pick: usize, left: u64| -> Option<Step> {
        let points = &groups[g].points;
        let here = points[pick];
        let affordable =
            points.iter().enumerate().skip(pick + 1).filter(|(_, p)| p.bytes - here.bytes <= left);
        affordable
            .map(|(to, p)| Step {
                gain: (here.loss - p.loss) / (p.bytes - here.bytes).max(1) as f64,
                group: g,
                from: pick,
                to,
            })
            .max()
    };
    let mut steps: BinaryHeap<Step> =
        picks.iter().enumerate().filter_map(|(g, &pick)| offer(g, pick, left_bytes)).collect();
    while let Some(step) = steps.pop() {
        let points = &groups[step.group].points;
        let cost = points[step.to].bytes - points[step.from].bytes;
        if cost <= left_bytes {
            left_bytes -= cost;
            picks[step.group] = step.to;
        }
        // What no longer fits is offered again, smaller, if anything of it fits.
        steps.extend(offer(step.group, picks[step.group], left_bytes));
    }
}

/// A change of one group's pick, ordered by gain, then by group and target so that ties are settled.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Loss saved per byte (or, when removing, minus the loss caused per byte).
    gain: f64,
    group: usize,
    from: usize,
    to: usize,
}

impl Ord for Step {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let earlier_first = (other.group, other.to).cmp(&(self.group, self.to));
        self.gain.total_cmp(&other.gain).then(earlier_first)
    }
}
impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Step {}
