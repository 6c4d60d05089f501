//! Random numbers, factorisations, transforms and second moments: the linear algebra under every codec.
mod second_moment;
pub use second_moment::SecondMoment;
