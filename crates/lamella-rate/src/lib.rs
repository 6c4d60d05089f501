//! Budgets and allocation: who gets how many bits.
//!
//! A user states a [`Budget`]: bytes, bits per weight, or a bound on a measured loss. Two ways lead from it to
//! a file of that size, and this crate holds both, free of models and files:
//!
//! * **One number sets the rate.** With a codec of free rate, each array's bytes fall as its step grows.
//!   [`RateCurve`] interpolates what was measured and answers which step gives how many bytes;
//!   [`common_step`] does so for all arrays at once, corrected by how finished arrays turned out; [`Search`]
//!   meets the target to a percent when each evaluation is a measurement.
//! * **One point per array.** Each array [offers](Offer) points of bytes and predicted loss, from one recipe at
//!   several rates or from several recipes; arrays that must agree (fused q, k and v) are tied; an
//!   [`Allocator`] picks a point for each.
//!
//! # Which allocator should I use?
//! | allocator | optimum | time | when |
//! |---|---|---|---|
//! | [`Lagrangian`] | within one array's step of it; exact where all points lie on convex curves | n log n | the default: many arrays, smooth curves |
//! | [`Knapsack`] | exact where the budget has no more bytes than buckets, else close to it | arrays x points x buckets | few arrays, ragged points, exact answers |
//! | [`IntegerProgram`] | exact | may grow exponentially | further limits beside bytes: operations, latency |
//! | [`Evolution`] | of what is measured, not of a sum | generations x children measurements | where errors interact and the whole can be measured |
//! | [`ErrorBudget`] | of bytes at a given loss, to its buckets' rounding | arrays x points x buckets | a loss is given and the fewest bytes are wanted |
//! | [`Greedy`] | usually within a percent | n log n | to check the others; follows a single path, so that plans of neighbouring budgets differ little |
//!
//! Where rows are free of each other, [`global_top`] chooses features of all arrays in one ranking instead.
//!
//! All but [`Evolution::search`] see sums only, not how errors of different arrays interact: predicted losses add up, real ones do not quite.
//! The loss of the whole is to be measured after coding and reported beside the prediction.
//!
//! ```
//! use lamella_rate::{Allocator, Knapsack, Offer, Problem, RatePoint};
//! let offer = |name: &str, points: &[(u64, f64)]| {
//!     Offer::new(name, points.iter().map(|&(bytes, loss)| RatePoint { bytes, loss }).collect())
//! };
//! let problem = Problem::new(vec![
//!     offer("q", &[(100, 8.0), (150, 2.0), (200, 0.5)]),
//!     offer("k", &[(100, 6.0), (150, 1.5), (200, 0.4)]),
//!     offer("head", &[(300, 40.0), (450, 5.0), (600, 1.0)]),
//! ])?
//! .tied(&[0, 1])?;
//! let allocation = Knapsack::default().allocate(&problem, 800)?;
//! assert_eq!(allocation.choices, [1, 1, 1]);
//! assert_eq!((allocation.bytes, allocation.loss), (750, 8.5));
//! # Ok::<(), lamella_rate::AllocationError>(())
//! ```
//!
//! Everything here is single-threaded and deterministic: the same input gives the same plan.

mod allocate;
mod budget;
mod curve;
mod search;
mod size;

pub use allocate::{
    Allocation, AllocationError, Allocator, ErrorBudget, Evolution, FeatureScores, Greedy, IntegerProgram,
    Knapsack, Lagrangian, Limit, Offer, Problem, RatePoint, Round, TopBudget, global_top,
};
pub use budget::{Budget, BudgetError, Metric};
pub use curve::{LOG2_STEPS, RateCurve, common_step};
pub use search::{Found, Search, SearchError};
pub use size::{Size, SizeError, bytes_text};
