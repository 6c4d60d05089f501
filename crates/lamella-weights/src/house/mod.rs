//! What the house recipe stores, apart from the recipe itself.
//!
//! * [`coder`]: codes to bits and back, adaptively: no table is stored.
//! * [`form`]: the payload: steps, offsets, then the codes.
//! * [`solver`]: an array at a relative step, or what it will take.
//! * [`packed`]: the codes as packed integers, which multiply without being expanded.
//! * [`plan`]: which steps an array gets at a relative step.

pub mod coder;
pub mod form;
pub mod packed;
pub mod plan;
pub mod solver;
