//! Integer linear programme: exact, and the one allocator that takes further limits.
//!
//! One binary variable for each array and point, one point for each array, bytes within the budget, and any number
//! of further sums that must stay within a limit (operations, latency). Solved by branch and bound over the simplex
//! method, through the `good_lp` modelling crate and its pure Rust solver.

use good_lp::{Expression, ProblemVariables, Solution, SolverModel, constraint, microlp, variable};

use super::{Allocation, AllocationError, Allocator, Problem, RatePoint};

/// A further sum that an allocation must keep.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// What each point costs: one list for each array, in the order of the offers.
    pub costs: Vec<Vec<f64>>,
    /// The most that the chosen points' costs may come to.
    pub at_most: f64,
}

/// Integer linear programme. See the [module of allocators](crate) for when to choose it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct IntegerProgram {
    limits: Vec<Limit>,
}

impl IntegerProgram {
    /// Adds limits beside the budget of bytes.
    pub fn with_limits(limits: Vec<Limit>) -> Self {
        Self { limits }
    }
}

impl Allocator for IntegerProgram {
    fn name(&self) -> &'static str {
        "integer program"
    }

    fn allocate(&self, problem: &Problem, budget_bytes: u64) -> Result<Allocation, AllocationError> {
        let fits = |limit: &Limit| {
            let costs = limit.costs.iter().zip(&problem.offers);
            limit.costs.len() == problem.offers.len()
                && costs.into_iter().all(|(c, o)| c.len() == o.points.len())
        };
        if !self.limits.iter().all(fits) {
            return Err(AllocationError::BadLimit);
        }
        // Points that are beaten in bytes and loss may still be the cheapest under another limit.
        let mut groups =
            if self.limits.is_empty() { problem.pruned(budget_bytes)? } else { problem.groups() };
        let smallest = problem.smallest_bytes();
        if smallest > budget_bytes {
            return Err(AllocationError::Unreachable { smallest, budget: budget_bytes });
        }
        groups.retain(|group| !group.points.is_empty());
        // Numbers near one are what a simplex in floating point wants.
        let worst = |value: fn(&RatePoint) -> f64| {
            groups
                .iter()
                .flat_map(|group| &group.points)
                .map(value)
                .fold(f64::MIN_POSITIVE, |a, b| a.max(b.abs()))
        };
        let (loss_unit, byte_unit) = (worst(|point| point.loss), worst(|point| point.bytes as f64));
        let mut variables = ProblemVariables::new();
        let chosen: Vec<Vec<_>> = groups
            .iter()
            .map(|group| group.points.iter().map(|_| variables.add(variable().binary())).collect())
            .collect();
        let sum = |cost: &dyn Fn(usize, usize) -> f64| -> Expression {
            let all = chosen
                .iter()
                .enumerate()
                .flat_map(|(g, points)| points.iter().enumerate().map(move |p| (g, p)));
            all.map(|(g, (p, &variable))| cost(g, p) * variable).sum()
        };
        let objective = sum(&|g, p| groups[g].points[p].loss / loss_unit);
        let bytes = sum(&|g, p| groups[g].points[p].bytes as f64 / byte_unit);
        let mut model = variables.minimise(objective).using(microlp);
        model = model.with(constraint!(bytes <= budget_bytes as f64 / byte_unit));
        for limit in &self.limits {
            let unit = limit.costs.iter().flatten().fold(f64::MIN_POSITIVE, |a, b| a.max(b.abs()));
            let cost_of = |g: usize, p: usize| {
                let members =
                    problem.group_of.iter().enumerate().filter(|(_, group)| **group == groups[g].id);
                members.map(|(offer, _)| limit.costs[offer][groups[g].choices[p]]).sum::<f64>() / unit
            };
            let cost = sum(&cost_of);
            model = model.with(constraint!(cost <= limit.at_most / unit));
        }
        for points in &chosen {
            let one: Expression = points.iter().copied().sum();
            model = model.with(constraint!(one == 1.0));
        }
        let solution = model.solve().map_err(|error| match error {
            good_lp::ResolutionError::Infeasible => AllocationError::OverLimits,
            other => AllocationError::Solver { message: other.to_string() },
        })?;
        let mut picks = Vec::with_capacity(groups.len());
        for points in &chosen {
            let values = points.iter().map(|&variable| solution.value(variable));
            let best = values.enumerate().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
            picks.push(best.map_or(0, |(point, _)| point));
        }
        let allocation = problem.allocation(&groups, &picks);
        // A solver that works in floating point may overstep by its tolerance.
        if allocation.bytes > budget_bytes {
            let message = format!("it took {} bytes of {budget_bytes}", allocation.bytes);
            return Err(AllocationError::Solver { message });
        }
        Ok(allocation)
    }
}
