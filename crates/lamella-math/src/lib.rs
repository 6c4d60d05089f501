//! Random numbers, factorisations, transforms and second moments: the linear algebra under every codec.
mod factor;
mod k_means;
pub mod low_rank;
pub mod matrix;
pub mod prefetch;
mod second_moment;
mod singular;
mod solve;
pub use factor::{FactorError, InverseFactor};
pub use k_means::{Codebook, KMeans};
pub use second_moment::SecondMoment;
pub use singular::{LowRankPair, low_rank_pair};
pub use solve::solve_positive;
