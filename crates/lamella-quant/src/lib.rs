//! Quantisers and solvers: what turns the numbers of a matrix into few codes.
//!
//! * [`grid`]: uniform grids of `2^bits` levels per group of inputs, and rounding to nearest on them.
//! * [`feedback`]: the column sweep that carries each column's error into the columns after it, shaped by the
//!   inputs' second moment. GPTQ and the house recipe are this sweep with different roundings.
//! * [`refine`]: a coarse sweep whose error can be sent later, bit by bit.
//! * [`gptq`]: that sweep on [`grid`]s.
//! * [`execute`]: products on packed integers, without expanding them.
//!
//! # Which should I use?
//! Rounding to nearest needs no data and is the baseline of everything. With a second moment the sweep always
//! pays: at 3 bits and groups of 128 it halves the error of the layer's outputs or better.

pub mod execute;
pub mod feedback;
pub mod gptq;
pub mod grid;
pub mod refine;
pub mod sweep;
