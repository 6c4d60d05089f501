//! Entropy models: from counts or parameters to integer frequencies that are the same on every machine.
//!
//! * [`Frequencies`]: integer probabilities that sum to `1 << probability_bits`; every static coder takes them.
//! * [`normalize`]: counts (or weights of any scale) to frequencies, close to the least code length; integers only, so
//!   that a decoder may repeat it.
//! * [`Parametric`] and [`Mixture`]: Gaussian, Laplace, logistic and other shapes, named by two or three small
//!   integers; their tables come from committed constants by integer arithmetic.
//! * [`header`]: frequencies in few bytes, exact or with fewer digits where that is cheaper.
//! * [`log2_fixed`]: logarithms in 16-bit fixed point, so that encoders, too, decide alike everywhere.

mod frequencies;
pub mod header;
mod log2;
mod parametric;
mod survival;

pub use frequencies::{Frequencies, MAX_PROBABILITY_BITS, MIN_PROBABILITY_BITS, normalize};
pub use log2::{LOG2_ONE, log2_fixed};
pub use parametric::{CellRange, Mixture, Parametric, SCALE_COUNT, Shape};
