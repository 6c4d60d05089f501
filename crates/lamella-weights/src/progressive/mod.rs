//! One stored form for every size: a coarse array, and layers that split its cells.
//!
//! * [`form`]: the bytes of the first layer and of a refinement.
//! * [`state`]: an array as integers, which layers refine and from which values are made.
//! * [`growing`]: an array that takes in layer after layer.
//! * [`tables`]: codes and bits of large arrays, under static tables.
//! * [`solver`]: structure, steps, sweep, layers; and what an array will take.
//!
//! The mathematics stands in [`lamella_quant::refine`] and [`lamella_math::low_rank`].

mod bits;
pub mod form;
pub mod growing;
mod levels;
pub mod solver;
pub mod state;
pub mod tables;
