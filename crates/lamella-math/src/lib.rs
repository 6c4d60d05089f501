//! Random numbers, factorisations, transforms and second moments: the linear algebra under every codec.
pub mod matrix;
mod factor;
mod second_moment;
pub use factor::{FactorError, InverseFactor};
pub use second_moment::SecondMoment;
