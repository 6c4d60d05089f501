//! Random numbers, factorisations, transforms and second moments: the linear algebra under every codec.
mod factor;
pub mod low_rank;
pub mod matrix;
mod second_moment;
pub use factor::{FactorError, InverseFactor};
pub use second_moment::SecondMoment;
