//! One stored form for every size: a coarse array, and layers that split its cells.
//!
//! * [`form`]: the bytes of the first layer and of a refinement.
//! * [`state`]: an array as integers, which layers refine and from which values are made.
//! * [`solver`]: structure, steps, sweep, layers; and what an array will take.
//!
//! The mathematics stands in [`lamella_quant::refine`] and [`lamella_math::low_rank`].

pub mod form;
pub mod solver;
pub mod state;
